import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calibrant.compare import kept_experts
from calibrant.errors import OutputError
from calibrant.families import FAMILIES
from calibrant.foreign import visible
from calibrant.report import report
from calibrant.report.page import Contents
from calibrant.report.page import page as page_of
from calibrant.report.plots import routers
from calibrant.report.plots.theme import DARK, LIGHT
from calibrant.store import Store

from tests.compare.test_experts import EDITS, edited
from tests.report.made import ACCOUNT, EVERYTHING, PLAIN, READING, store_of

HOSTILE = "<script>alert('x')</script>"
BREAKOUT = "</script></style></title><img src=x onerror=\"alert(1)\"> & 'q' =cmd()"
VOID = {"meta", "img", "br", "hr", "link", "input"}
RAW = {"style", "script"}


class Reader(HTMLParser):
    """Reads a page strictly: every element must be closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in RAW:
            self.text.append(data)
        elif self.open[-1] == "script":
            self.scripts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


SETS = {"python_docs": (2.5, 3.9), "gsm8k:cot": (2.9, 3.4), "full_stops": (8.0, 9.0)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(store_of(tmp_path_factory.mktemp("made"), SETS)).html()


def test_the_page_is_sound_html(page: str):
    read = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 0


def test_nothing_is_fetched_and_nothing_runs_but_the_pages_own_scripts(page: str):
    read = Reader(page)
    assert not {tag for tag, _ in read.tags} & {"link", "img", "iframe", "object", "embed", "base", "image", "use", "foreignobject"}
    for tag, attrs in read.tags:
        assert not any(name.startswith("on") or name in {"src", "srcset", "xlink:href", "action", "data", "background"} for name in attrs), tag
        assert (attrs.get("href") or "#").startswith("#"), "a link stays on the page"
        assert "url(" not in (attrs.get("style") or "")
    style = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    policy = next(m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy") or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.partition("style-src")[0]
    run = [text for text, attrs in zip(read.scripts, read.all("script"), strict=True) if attrs.get("type") != "application/json"]
    digests = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in run}
    assert digests == set(re.findall(r"'sha256-[^']+'", policy))
    for text, attrs in zip(read.scripts, read.all("script"), strict=True):
        assert attrs.get("type") != "application/json" or json.loads(text)


def test_whatever_a_name_holds_is_shown_as_text(tmp_path: Path):
    name = f"{HOSTILE} {BREAKOUT} javascript:alert(1) a\x00b\u202ec {{{{ 7 * 7 }}}} {{% raw %}} ünïcödé 数据"
    others = {"other": (2.6, 3.8), "third": (2.7, 3.9)}
    alike = store_of(tmp_path / "a", {"x": (2.5, 3.9), **others}, model="x", names=("x", "code:text"))
    sound = Counter(tag for tag, _ in Reader(report(alike).html()).tags)
    folder = store_of(tmp_path / "b", {name: (2.5, 3.9), **others}, model=name, names=(name, "code:text"))
    with Store(folder) as store:
        store.add_failure("sha256:f", {"what": name, "error": name})
    page = report(folder).html()
    read = Reader(page)
    here = Counter(tag for tag, _ in read.tags)
    for tag in {*here, *sound} - {"li", "ul", "h2", "text", "g", "path", "line"}:  # the failure's own list; ticks of an axis with other labels
        assert here[tag] == sound[tag], tag
    assert not any(key.startswith("on") for _, attrs in read.tags for key in attrs)
    assert visible(name) in "".join(read.text)
    assert not {"\x00", "\u202e"} & set(page)


def test_the_answer_and_its_evidence_are_there(page: str):
    read = Reader(page)
    text = " ".join("".join(read.text).split())
    assert "Which calibration data kept smollm2 best?" in text
    assert "smollm2 (dequantized from Q4_1)" in text
    assert "Of 3 calibration sets, gsm8k:cot kept smollm2 best" in text
    for wanted in ("python_docs", "magnitude", "dense", "80", "512", "8,192", "How to repeat it", "Where the time went", "Is python_docs the best"):
        assert wanted in text, wanted
    assert "40 seconds over everything" in text  # five runs of 3 s, ten measurements of 2.5 s
    assert "calibrant prune smollm2 --data gsm8k:cot --method wanda --sparsity 0.6" in text
    assert "calibrant evaluate pruned --dtype float32 --task 'loss(docs:text)' --task 'loss(code:text)'" in text


def test_plots_say_in_words_what_they_draw(page: str):
    read = Reader(page)
    charts = [a for a in read.all("svg") if a.get("role") == "img"]
    assert len(charts) >= 2  # a forest and a heat map
    ids = {attrs.get("id") for _, attrs in read.tags}
    for chart in charts:
        assert set((chart["aria-labelledby"] or "").split()) <= ids
    assert page.count("<desc") == len(charts)
    assert re.search(r"<desc[^>]*>[^<]*gsm8k:cot", page)


def test_both_colour_schemes_small_screens_and_print_are_thought_of(page: str):
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert '<html lang="en">' in page
    assert page.count("tabindex") >= 4  # whatever scrolls can be reached with the keyboard


def test_colours_can_be_read_on_their_ground():
    """WCAG 2.2: 4.5 for text, 3 for marks, in both schemes."""
    for colours in (LIGHT, DARK):
        for ground in ("paper", "card", "best"):
            assert contrast_of(colours["ink"], colours[ground]) >= 7
            assert contrast_of(colours["soft"], colours[ground]) >= 4.5
        for text in ("accent", "better", "worse", "untold", "f-reading"):
            assert contrast_of(colours[text], colours["card"]) >= 4.5, text
        for family in (f"f-{f}" for f in FAMILIES):
            assert contrast_of(colours[family], colours["card"]) >= 3, family
        for step in range(7):
            assert contrast_of(colours[f"heat-{step}"], colours[f"heat-ink-{step}"]) >= 4.5, step


def test_every_colour_of_the_style_sheets_is_one_of_the_palettes(page: str):
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    used = set(re.findall(r"var\(--([\w-]+)\)", page)) - {"w", "head"}
    used = {name for name in used if not re.fullmatch(r"h\d+", name)}  # the heads of tables
    assert used <= set(LIGHT) == set(DARK)
    given = re.findall(r"--([\w-]+): (#[0-9a-f]+);", style)
    assert given == [*LIGHT.items(), *DARK.items()]


def contrast_of(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("sets", [{}, {"only": (2.5, 3.5)}, {f"set {i}": (2.5 + i / 100, 3.5) for i in range(20)}])
def test_none_one_and_twenty_sets_give_a_page(tmp_path: Path, sets: dict[str, tuple[float, float]]):
    read = Reader(report(store_of(tmp_path, sets)).html())
    text = "".join(read.text)
    assert ("nothing to rank" in text) is (not sets)
    assert ("nothing to choose between" in text) is (len(sets) == 1)


def test_a_single_document_has_no_interval(tmp_path: Path):
    text = "".join(Reader(report(store_of(tmp_path, SETS, items=1)).html()).text)
    assert "no interval (one item)" in text
    assert "No difference is significant" in text


def test_an_empty_store_gives_a_page(tmp_path: Path):
    Store(tmp_path).close()
    assert "nothing to rank" in "".join(Reader(report(tmp_path).html()).text)


def test_a_doubtful_result_is_marked(tmp_path: Path):
    page = report(store_of(tmp_path, {"python_docs": (2.5, 3.9), "random_tokens": (2.2, 2.9)})).html()
    text = "".join(Reader(page).text)
    assert 'class="doubt"' in page
    assert "random_tokens is a control without content" in text
    assert "better than the dense model when pruned with random_tokens" in text


def test_failures_are_shown(tmp_path: Path):
    folder = store_of(tmp_path, SETS)
    with Store(folder) as store:
        store.add_failure("sha256:f", {"what": "wanda 0.6 on pile", "error": "DataError: no rows"})
    assert "wanda 0.6 on pile: DataError: no rows" in "".join(Reader(report(folder).html()).text)


def test_several_methods_and_targets_share_a_page(tmp_path: Path):
    folder = store_of(tmp_path, SETS)
    with Store(folder) as store:
        store.write_cells([*store.cells(), *(replace(c, target="2:4", method="sparsegpt") for c in store.cells() if c.data)])
    page = report(folder).html()
    Reader(page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "sparsegpt at 2:4 sparsity" in page


def made(**changes: object) -> str:
    return page_of(Contents(replace(EVERYTHING, **changes), ACCOUNT, READING))


def test_contrasts_letters_holes_and_stale_records_are_on_the_page():
    page = made()
    text = " ".join("".join(Reader(page).text).split())
    assert re.search(r"<td[^>]*>\+1\.600<sup>a</sup>", page)
    (pile,) = re.findall(r'<tr class="aside"><th scope="row"><bdi>pile.*?</tr>', page)
    assert "incomplete" in pile
    assert pile.count('<td data-value="">—</td>') == 3  # the mean, one measured set and the difference to the best
    for told in ("Primary contrasts", "one draw cannot say", "gsm8k:icl did better than c4", "Do the rankings agree?", "2 records are from an older"):
        assert told in text, told
    assert "<li>pile (draw 0) on loss(source=&#39;docs&#39;): DataError: no rows</li>" in page


@pytest.mark.parametrize("name", [HOSTILE, BREAKOUT])
def test_whatever_a_contrast_is_called_is_shown_as_text(name: str):
    sound = {tag for tag, _ in Reader(made()).tags}
    contrasts = tuple(replace(c, name=name, compare=name, needs=name, reason=name) for c in EVERYTHING.contrasts)
    read = Reader(made(contrasts=contrasts, missing=(name,)))
    assert {tag for tag, _ in read.tags} <= sound
    assert "".join(read.text).count(name) >= len(contrasts)


def test_the_page_lands_in_the_store(tmp_path: Path):
    folder = store_of(tmp_path, SETS)
    path = report(str(folder)).write_html()
    assert path == folder / "report.html"
    assert path.read_text("utf-8") == report(Store(folder)).html()


def test_a_folder_without_results_is_refused(tmp_path: Path):
    with pytest.raises(OutputError, match=str(tmp_path / "nothing")):
        report(tmp_path / "nothing")


def test_a_store_from_before_has_a_page_that_says_what_it_lacks():
    text = " ".join("".join(Reader(report(Path(__file__).parents[3] / "studies/packing/equal").html()).text).split())
    assert "gsm8k:single" in text
    assert "This store was made before words were kept" in text
    assert "This store holds no facts about layers" in text
    assert "This store holds nothing about how alike its calibration sets are" in text


def test_without_the_studys_text_the_commands_say_what_was_drawn(tmp_path: Path):
    folder = store_of(tmp_path, SETS)
    (folder / "study.yaml").unlink()
    assert "--data gsm8k:cot --method wanda --sparsity 0.6 --samples 16 --length 512 --seed 0" in "".join(Reader(report(folder).html()).text)


def test_where_experts_were_dropped_the_grid_shows_who_stays():
    results = edited(EDITS)
    (kept,) = kept_experts(results)
    of_it = replace(PLAIN, model=kept.model, method=kept.method, target=kept.target, propagate=kept.propagate)
    comparison = replace(EVERYTHING, rankings=(of_it, PLAIN))
    plot = routers([kept])
    assert plot is not None
    with_it, without = (page_of(Contents(comparison, ACCOUNT, given)) for given in (results, edited({})))
    assert with_it.count(escape(plot.title)) > 0
    assert escape(plot.title) not in without
    first, second = with_it.split('data-choice="grid"')[1:3]
    assert escape(plot.title) in first
    assert escape(plot.title) not in second, "another method dropped no experts"
