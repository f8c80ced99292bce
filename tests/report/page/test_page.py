import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calibrant.lab.report import report
from calibrant.lab.report.page import Contents
from calibrant.lab.report.page import page as page_of
from calibrant.lab.report.page.parts import command
from calibrant.lab.report.plots.theme import DARK, LIGHT
from calibrant.lab.report.sentences import NOTHING_TO_RANK, ONLY_MEASURED
from calibrant.results import Cell, Record, Run, Store, merge
from calibrant.spec.foreign import visible

from tests.report.made import ACCOUNT, EVERYTHING, READING, measured, store_of
from tests.stats import stores

HOSTILE = "<script>alert('x')</script>"
BREAKOUT = "</script></style></title><img src=x onerror=\"alert(1)\"> & 'q' =cmd()"
VOID = {"meta", "img", "br", "hr", "link", "input"}


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
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


SETS = {"python_docs": (2.5, 3.9), "gsm8k:cot": (2.9, 3.4), "full_stops": (8.0, 9.0)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(store_of(tmp_path_factory.mktemp("made"), SETS)).html()


def words_of(page: str) -> str:
    """The text that a page shows, with single spaces."""
    return " ".join("".join(Reader(page).text).split())


def test_the_page_is_sound_html_and_its_plots_say_in_words_what_they_draw(page: str):
    read = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 0
    charts = [a for a in read.all("svg") if a.get("role") == "img"]
    assert len(charts) >= 2  # a forest and a heat map
    for chart in charts:
        assert set((chart["aria-labelledby"] or "").split()) <= set(ids)
    assert page.count("<desc") == len(charts)
    assert re.search(r"<desc[^>]*>[^<]*gsm8k:cot", page)
    assert read.all("html")[0]["lang"] == "en"
    assert "viewport" in {m.get("name") for m in read.all("meta")}
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert {"prefers-color-scheme: dark", "@media print"} <= set(
        re.findall(r"prefers-color-scheme: dark|@media print", style)
    )
    assert re.findall(r"--([\w-]+): (#[0-9a-f]+);", style) == [*LIGHT.items(), *DARK.items()]
    used = set(re.findall(r"var\(--([\w-]+)\)", page)) - {"w", "head"}
    assert {name for name in used if not re.fullmatch(r"h\d+", name)} <= set(LIGHT) == set(DARK)


def test_nothing_is_fetched_and_nothing_runs_but_the_pages_own_scripts(page: str):
    read = Reader(page)
    assert not {tag for tag, _ in read.tags} & {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "image",
        "use",
        "foreignobject",
    }
    for tag, attrs in read.tags:
        assert not any(
            name.startswith("on")
            or name in {"src", "srcset", "xlink:href", "action", "data", "background"}
            for name in attrs
        ), tag
        assert (attrs.get("href") or "#").startswith("#"), "a link stays on the page"
        assert "url(" not in (attrs.get("style") or "")
    style = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    policy = (
        next(
            m["content"]
            for m in read.all("meta")
            if m.get("http-equiv") == "Content-Security-Policy"
        )
        or ""
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.partition("style-src")[0]
    run = [
        text
        for text, attrs in zip(read.scripts, read.all("script"), strict=True)
        if attrs.get("type") != "application/json"
    ]
    digests = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in run
    }
    assert digests == set(re.findall(r"'sha256-[^']+'", policy))
    for text, attrs in zip(read.scripts, read.all("script"), strict=True):
        assert attrs.get("type") != "application/json" or json.loads(text)


def profile_of(text: str) -> dict[str, object]:
    """A calibration set whose rows, words, parts and licences are this text."""
    numbers = {"windows": 16, "counted": 90, "distinct": 9}
    sizes = {"even": 0.9, "numbers": 0.1, "word_length": 4.0}
    quoted = {"part": text, "licence": text, "text": text}
    shares = {"words": {text: 9}, "characters": {text: 0.5}, "scripts": {text: 1.0}}
    return {**numbers, **sizes, **shares, "examples": [quoted], "unquoted": {text: text}}


def test_whatever_a_name_or_a_row_holds_is_shown_as_text(tmp_path: Path):
    name = (
        f"{HOSTILE} {BREAKOUT} javascript:alert(1) a\x00b\u202ec {{{{ 7 * 7 }}}} {{% raw %}} "
        "ünïcödé 数据"
    )
    others = {"other": (2.6, 3.8), "third": (2.7, 3.9)}
    alike = store_of(
        tmp_path / "a",
        {"x": (2.5, 3.9), **others},
        model="x",
        names=("x", "code:text"),
        profile=profile_of("x"),
    )
    sound = Counter(tag for tag, _ in Reader(report(alike).html()).tags)
    folder = store_of(
        tmp_path / "b",
        {name: (2.5, 3.9), **others},
        model=name,
        names=(name, "code:text"),
        profile=profile_of(name),
    )
    with Store(folder) as store:
        store.add_failure("sha256:f", {"what": name, "error": name})
    page = report(folder).html()
    read = Reader(page)
    here = Counter(tag for tag, _ in read.tags)
    for tag in {*here, *sound} - {
        "li",
        "ul",
        "h2",
        "text",
        "g",
        "path",
        "line",
    }:  # the failure's own list; ticks of an axis with other labels
        assert here[tag] == sound[tag], tag
    assert not any(key.startswith("on") for _, attrs in read.tags for key in attrs)
    assert visible(name) in "".join(read.text)
    assert [figure.get("class") for figure in read.all("figure")].count("quote") == 3
    assert not {"\x00", "\u202e"} & set(page)


def test_the_answer_and_its_evidence_are_there(page: str):
    text = words_of(page)
    assert "Of 3 calibration sets, gsm8k:cot kept smollm2 best" in text
    for wanted in (
        "smollm2 (dequantized from Q4_1)",
        "python_docs",
        "magnitude",
        "dense",
        "80",
        "512",
        "8,192",
        "40 seconds over all runs of this grid",
        "compressing 38 %",
    ):
        assert wanted in text, wanted  # five runs of 3 s, ten measurements of 2.5 s
    assert "calibrant prune smollm2 --data gsm8k:cot --method wanda --target 0.6" in text
    assert (
        "calibrant evaluate pruned --dtype float32 --task 'loss(docs:text)' --task "
        "'loss(code:text)'" in text
    )


@pytest.mark.parametrize(
    "names",
    [(), ("only",), pytest.param(tuple(f"set {i}" for i in range(20)), marks=pytest.mark.slow)],
)
def test_none_one_and_twenty_sets_give_a_page(tmp_path: Path, names: tuple[str, ...]):
    items = 1 if len(names) == 1 else 8
    text = words_of(
        report(
            store_of(
                tmp_path, {name: (2.5 + i / 100, 3.5) for i, name in enumerate(names)}, items=items
            )
        ).html()
    )
    assert ("nothing to rank" in text) is (not names)
    assert ("nothing to choose between" in text) is (len(names) == 1)
    assert ("no interval (one item)" in text) is (items == 1)


def test_doubts_failures_and_several_methods_are_on_the_page_that_lands_in_the_store(
    tmp_path: Path,
):
    folder = store_of(tmp_path, {"python_docs": (2.5, 3.9), "random_tokens": (2.2, 2.9)})
    (folder / "study.yaml").unlink()
    with Store(folder) as store:
        store.add_failure("sha256:f", {"what": "wanda 0.6 on pile", "error": "DataError: no rows"})
        store.write_cells(
            [
                *store.cells(),
                *(replace(c, target="2:4", method="sparsegpt") for c in store.cells() if c.data),
            ]
        )
    path = report(str(folder)).write_html()
    assert path == folder / "report.html"
    page = path.read_text("utf-8")
    text = words_of(page)
    assert 'class="doubt"' in page
    for told in (
        "random_tokens is a control",
        "wanda 0.6 on pile: DataError: no rows",
        "sparsegpt at 2:4 sparsity",
    ):
        assert told in text
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    command = "--data python_docs --method wanda --target 0.6 --samples 16 --length 512 --seed 0"
    assert command in text, "without the study's text the commands say what was drawn"


def test_what_each_dense_model_scored_is_on_the_page_and_no_other_models_score(tmp_path: Path):
    folder = store_of(tmp_path / "both", {"c4": (2.5, 3.9)})
    with (
        Store(folder) as store,
        Store(store_of(tmp_path / "qwen", {"c4": (2.6, 3.8)}, model="qwen"), create=False) as other,
    ):
        merge(folder, [other.folder])
        store.write_cells([*store.cells(), *other.cells()])
    found = report(folder)
    for model in ("smollm2", "qwen"):
        assert [score.value for score in found.facts.dense[model]] == [2.0, 3.0]
    assert "dense score" in words_of(found.html())
    with Store(folder) as store:
        store.write_cells([cell for cell in store.cells() if cell.method != "none"])
    found = report(folder)
    assert found.facts.dense == {}
    assert "dense score" not in words_of(found.html())


def test_two_evaluators_that_measured_the_same_have_columns_of_their_own(tmp_path: Path):
    with Store(store_of(tmp_path / "study", {"c4": (2.5, 3.9)})) as store:
        cells = []
        for cell in store.cells():
            form = {"spec": "agreement", "source": "docs:text"}
            again = store.add_measurement(cell.run, form, measured("docs:text", 0.2, 0.0))
            cells.append(replace(cell, measures={**cell.measures, "agreement(docs:text)": again}))
        store.write_cells(cells)
    page = report(tmp_path / "study").html()
    heads = page.partition('id="run-table"')[2].partition("</thead>")[0]
    for head in ("docs:text [loss(docs:text)]", "docs:text [agreement(docs:text)]", ">code<"):
        assert head in heads


def made(**changes: object) -> str:
    return page_of(Contents(replace(EVERYTHING, **changes), ACCOUNT, READING))


def test_whatever_a_contrast_is_called_is_shown_as_text():
    name = HOSTILE + BREAKOUT
    sound = {tag for tag, _ in Reader(made()).tags}
    contrasts = tuple(
        replace(c, name=name, compare=name, needs=name, reason=name) for c in EVERYTHING.contrasts
    )
    read = Reader(made(contrasts=contrasts, missing=(name,)))
    assert {tag for tag, _ in read.tags} <= sound
    assert "".join(read.text).count(name) >= len(contrasts)


def test_a_store_from_before_has_a_page_that_says_what_it_lacks():
    text = words_of(report(Path(__file__).parents[3] / "studies/packing/equal").html())
    for told in (
        "gsm8k:single",
        "made before words were kept",
        "no facts about layers",
        "nothing about how alike",
    ):
        assert told in text


def test_a_notebook_shows_what_was_found_without_a_script_and_names_as_text(tmp_path: Path):
    found = report(
        store_of(tmp_path, {HOSTILE: (2.5, 3.9), "gsm8k:cot": (2.9, 3.4)}, model=BREAKOUT)
    )
    page = found._repr_html_()
    read = Reader(page)
    assert "gsm8k:cot kept" in "".join(read.text)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe"}
    assert page.count('role="img"') == 2, "one for a wide screen, one for a narrow one"
    ids = re.findall(r'\sid="([^"]+)"', page + report(tmp_path)._repr_html_())
    assert len(ids) == len(set(ids)), "two reports may stand in one notebook"
    assert "body {" not in page, "the style is the report's alone"
    assert ".calibrant-report { color-scheme" in page


def test_without_calibration_data_a_notebook_shows_what_was_measured(tmp_path: Path):
    folder = store_of(tmp_path, {})
    shown = report(folder)._repr_html_()
    assert "Without calibration data" in shown
    assert "magnitude" in shown
    with Store(folder) as store:
        store.write_cells([cell for cell in store.cells() if cell.method == "none"])
    shown = report(folder)._repr_html_()
    assert ONLY_MEASURED in shown
    assert NOTHING_TO_RANK not in shown


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"windows": 16, "length": 512, "tokens": 8192, "parts": [{}]},
            "--samples 16 --length 512",
        ),
        # A sum whose parts end in windows that aren't full.
        (
            {"windows": 17, "length": 512, "tokens": 8192, "parts": [{}, {}]},
            "--samples 16 --length 512",
        ),
        # Windows that texts don't fill.
        (
            {"windows": 16, "length": 512, "tokens": 1024, "parts": [{}]},
            "--samples 16 --length 512",
        ),
        # Two sets of a mix, each with the whole budget.
        (
            {"windows": 32, "length": 512, "tokens": 16384, "parts": [{}, {}], "mix": [{}, {}]},
            "--samples 16 --length 512",
        ),
        # What the study asked for, in tokens.
        (
            {"windows": 2, "length": 512, "tokens": 1000, "parts": [{}]},
            "--tokens 1000 --length 512",
        ),
        # Older records say less.
        ({}, "--samples 128 --length 2048"),
    ],
)
def test_a_command_says_what_was_drawn_and_not_what_another_study_draws(
    facts: dict[str, object], words: str
):
    run = Run("m", "tiny", "c4", "t", {"spec": "wanda"}, "0.5", {"spec": "uniform"}, "", "float32")
    cell = Cell("tiny", "c4", "wanda", "0.5", 1, run.id)
    budget = {"samples": 128, "length": 2048, "tokens": 1000}
    said = command(cell, Record(run, 0.5, data_facts=facts), budget)
    assert f"--target 0.5 {words} --seed 1" in said


def test_what_is_of_an_older_revision_is_tagged_and_counted(tmp_path: Path):
    losses = {"dense": [[3.0, 2.0]], "c4": [[3.5, 2.6]]}
    with stores.store_of(tmp_path, losses) as store:
        cells = store.cells()
        for newest, runs, measurements in (("method wanda", 1, 0), ("evaluator loss", 0, 4)):
            store.write_cells(cells, revisions={newest: 2})
            found = report(tmp_path)
            assert found.comparison.stale == runs + measurements
            page = found.html().partition('id="run-table"')[2]
            assert page.count('</code><span class="tag">stale</span>') == runs
            assert page.count('<span class="tag">stale</span></td>') == measurements
