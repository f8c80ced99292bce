"""The whole page in a real browser, made from whole stores, of which one has hostile rows."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from calibrant.lab.report import report
from calibrant.results import PROFILE, Store
from calibrant.results.live import DATABASE

from tests.databases import swap_file
from tests.report.page.browser import browser, needs_browser, opened
from tests.stats.synthetic import Synthetic
from tests.study.small import asked, kept_files, texts

pytestmark = [needs_browser, pytest.mark.slow]
ATTACK = (
    '<script>alert(1)</script> </script><img src=x onerror="alert(1)"> <a '
    "href='javascript:alert(1)'>javascript:alert(1)</a> =cmd()"
)


COVERED = """() => {
    const plots = [...document.querySelectorAll('svg.plot')];
    return plots.filter((svg) => svg.getClientRects().length).flatMap((svg) => {
        // What an axis leaves out, since it would cover its neighbour, is there with this opacity.
        const texts = [...svg.querySelectorAll('text:not([opacity="0"])')];
        const every = texts.map((t) => [t.textContent, t.getBoundingClientRect()]);
        const boxes = every.filter(([t]) => t.trim());
        return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) =>
            Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 &&
            Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 0.35 * p.height
        ).map(([b]) => `${a} | ${b}`));
    });
}"""
"""The texts of plots that stand over one another."""


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as one:
        yield one


def made(folder: Path, **shape: Any) -> Path:
    """The page of a made-up study, in a file."""
    study = Synthetic(**{"facts": True, "items": 12, **shape}).write(folder / "study")
    (study / "study.yaml").write_text("models: [model0]\n")
    return report(study).write_html(folder / "page.html")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods at two sparsities, five sets, three draws."""
    return made(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
def test_everybody_can_read_the_published_demo(
    started: Any, tmp_path: Path, scheme: str, width: int
):
    demo = report(Path(__file__).parents[3] / "studies/demo").write_html(tmp_path / "demo.html")
    with opened(started, width=width, color_scheme=scheme, reduced_motion="reduce") as watched:
        page = watched.open(demo).page
        assert watched.violations() == []
        assert page.evaluate(COVERED) == []
        assert page.locator("#ranking .on-narrow svg").first.is_visible() is (width == 390)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (
            "nothing but tables and plots scrolls sideways"
        )
        page.evaluate(
            "() => document.querySelectorAll('details').forEach((fold) => { fold.open = true; })"
        )
        page.goto(f"{demo.as_uri()}#set-1")
        page.locator("#set-1").wait_for()
        assert watched.violations() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert watched.wrong == []
        assert set(watched.requests) == {demo.as_uri()}


def test_from_the_answer_to_a_set_and_to_the_command_that_repeats_it(started: Any, usual: Path):
    with opened(started) as watched:
        page = watched.open(usual).page
        assert "Over 4 combinations" in page.locator("#answer").inner_text()
        rankings = page.locator("#ranking [data-choice]")
        assert [rankings.nth(i).is_visible() for i in range(4)] == [True, False, False, False]
        page.locator("#ranking select").select_option("r2")
        assert [rankings.nth(i).is_visible() for i in range(4)] == [False, False, True, False]
        assert page.locator("#grid [data-choice]").first.is_visible(), (
            "choosers are independent of one another"
        )
        page.locator("#ranking [data-key=r2] a", has_text="set3").click()
        page.locator("#set-3").wait_for()
        told = page.locator("#set-3").inner_text()
        for wanted in (
            "KEY TERMS",
            "set3: some words",
            "Sets that are like it",
            "MIT",
            "16 windows of up to 512 tokens",
        ):
            assert wanted.casefold() in told.casefold(), wanted
        page.locator("#set-3 .columns a").first.click()
        page.wait_for_function("() => document.querySelector('#set-3').hidden")
        assert page.locator("main > article:visible").count() == 1
        page.locator("nav a", has_text="Runs").click()
        page.locator("input.filter").fill("SET2 method1 0.01")
        shown = page.locator("#run-table tbody tr:visible")
        assert page.locator(".filter-count").inner_text() == f"{shown.count()} of 63"
        assert 0 < shown.count() < 63
        shown.first.locator("summary").click()
        assert "calibrant prune model0 --data set2 --method method1" in shown.first.inner_text()
        page.locator("input.filter").fill("nothing")
        assert page.locator(".filter-count").inner_text() == "0 of 63"
        assert watched.wrong == []


def test_tables_are_sorted_the_study_copied_and_all_of_it_printed(started: Any, usual: Path):
    with opened(started) as watched:
        page = watched.open(usual).page
        button = page.locator("#run-table button", has_text="text0")
        values = "(rows) => rows.map((row) => Number(row.cells[5].dataset.value))"
        button.click()
        up = page.locator("#run-table tbody tr").evaluate_all(values)
        button.click()
        assert (up, page.locator("#run-table tbody tr").evaluate_all(values)) == (
            sorted(up),
            sorted(up, reverse=True),
        )
        assert page.locator("#run-table th[aria-sort=descending]").inner_text().startswith("text0")
        page.locator("#ranking [data-key=r0] button.sort").first.click()
        aside = page.locator("#ranking [data-key=r0] tbody tr").evaluate_all(
            "(rows) => rows.map((row) => row.className === 'aside')"
        )
        assert aside == [False] * 5 + [True] * 2, "what is aside stays at the end"
        views, choices = (page.locator(f"{kind}:visible") for kind in (".view", "[data-choice]"))
        before = views.count(), choices.count()
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert (views.count(), choices.count()) == (
            page.locator(".view").count(),
            page.locator("[data-choice]").count(),
        )
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert (views.count(), choices.count()) == before
        page.evaluate(
            "() => { navigator.clipboard.writeText = () => Promise.reject(new DOMException('no')); "
            "}"
        )
        page.locator("button.copy").click()
        page.wait_for_function(
            "() => document.querySelector('.copied').textContent.startsWith('selected')"
        )
        assert page.evaluate("getSelection().toString()").strip() == "models: [model0]"


def test_hostile_rows_are_text_everywhere(started: Any, tmp_path: Path):
    """Rows, words, quotations and names that would run if anything let them."""
    given = texts(tmp_path / "data")
    rows = [{"text": f"{ATTACK} {i % 7} {i}"} for i in range(80)]
    hostile = tmp_path / "data" / "<img src=x onerror=alert(1)>.jsonl"
    hostile.write_text("\n".join(map(json.dumps, rows)))
    study = asked(given, data=[f"'{hostile}'", given["prose"], "random_tokens"], methods=["wanda"])
    study.run(tmp_path / "results")
    with Store(tmp_path / "results", create=False) as store:
        for run, profile in kept_files(store.folder, PROFILE).items():
            kept = json.loads(profile.read_text())
            words = {**kept["words"], ATTACK: 99, "=cmd()": 98}
            quoted = {"part": ATTACK, "licence": ATTACK, "text": ATTACK}
            # Whoever attacks writes the digest and the seal too.
            content = json.dumps({**kept, "words": words, "examples": [quoted]}).encode()
            swap_file(store.folder / DATABASE, run, PROFILE, store.blobs.put(content))
    found = report(tmp_path / "results")
    path = found.write_html(tmp_path / "page.html")
    with opened(started) as watched:
        page = watched.open(path).page
        page.wait_for_timeout(200)
        assert page.locator("img, a[href^=javascript], iframe, object").count() == 0
        assert page.locator("script").count() == 4, (
            "Vega, the page's own, and two that only hold data"
        )
        (number,) = [
            p for p in range(3) if "onerror" in page.locator(f"#set-{p} h2").text_content()
        ]
        page.goto(f"{path.as_uri()}#set-{number}")
        assert ATTACK in page.locator(f"#set-{number} .quote").first.inner_text()
        assert ATTACK in page.locator(f"#set-{number} .terms").inner_text()
        page.locator(f"#set-{number} h2").click()
        assert watched.wrong == []
        assert set(watched.requests) == {path.as_uri()}
    for row in csv.reader(io.StringIO(found.to_csv(), newline="")):
        assert not any(field[:1] in "=@\t\r" and field for field in row), row
    for plot in (p for p in found.write_plots(tmp_path / "plots") if p.suffix == ".svg"):
        drawn = {element.tag.rpartition("}")[2] for element in ElementTree.parse(plot).iter()}
        assert drawn <= {"svg", "title", "desc", "g", "path", "line", "rect", "text"}, plot.name
