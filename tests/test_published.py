"""Numbers in the README, the pages and the log come from the records in studies/."""

import gzip
import itertools
import json
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import cost, findings
from studies.languages import tables as languages
from studies.made import PAGES, Page, noted_hashes
from studies.mixcal import tables as mixcal
from studies.pages import filled
from studies.sensitivity import milder
from studies.sensitivity import tables as sensitivity
from studies.served import tables as served
from studies.template import tables as template

from calibrant.lab.demo import STUDY
from calibrant.lab.report import report
from calibrant.lab.stats import contrast
from calibrant.lab.study import read_study
from calibrant.results import Store, verify

from tests.frozen.stores import committed, name_of
from tests.usual import usually

PROJECT = Path(__file__).parents[1]
DEMO = PROJECT / "studies/demo"
PAGE_NAMES = [page.path.stem for page in PAGES]


def paragraphs(text: str) -> list[str]:
    return [" ".join(p.split()) for p in text.split("\n\n") if p.strip()]


def test_pages_say_what_the_records_of_their_examples_say():
    quickstart = paragraphs((PROJECT / "docs/quickstart.md").read_text())
    demo = paragraphs(str(report(DEMO)))
    (table,) = [paragraph for paragraph in demo if paragraph.startswith("| calibrated on")]
    finding = next(paragraph for paragraph in demo if paragraph.startswith("Of "))
    assert {table, finding} <= set(quickstart)
    studies = paragraphs((PROJECT / "docs/studies.md").read_text())
    draws = paragraphs(str(report(PROJECT / "studies/draws/results")))
    (contrasts,) = [paragraph for paragraph in studies if paragraph.startswith("| contrast")]
    assert contrasts in draws


def test_the_records_are_those_of_the_demo_and_its_ranking_is_believable():
    with Store(DEMO, create=False) as store:
        asked = {(cell.data, cell.method, cell.target) for cell in store.cells()}
        assert asked == {(q.cell.data, q.cell.method, q.cell.target) for q in STUDY.requests()}
        for cell in store.cells():
            record = store.record(cell.run)
            assert record is not None
            assert record.run.id == cell.run, "the record answers another question"
            assert len(store.measurements(cell.run)) == len(STUDY.evaluators())
    (ranking,) = report(DEMO).rankings
    controls, others = (
        [entry.mean.value for entry in ranking.entries if entry.control is is_control]
        for is_control in (True, False)
    )
    assert min(controls) > max(others)
    assert min(others) > 0, "pruning never helps here"


def test_the_log_says_what_the_records_of_the_packings_say():
    script = runpy.run_path(str(PROJECT / "studies/packing/run.py"))
    log = (PROJECT / "docs/log/2026-11-24.md").read_text()
    names = {
        name: f"{name.partition(',')[0]}, 8,192 real tokens"
        for name in ("single, 8,192 tokens", "icl, 8,192 tokens")
    }
    names |= {
        "single, 16 windows": "single, 16 windows",
        "legacy icl, 16 windows": "qa@legacy, 16 windows",
    }
    names |= {"legacy single, 16 windows": "qa@legacy(of='one'), 16 windows"}
    dense = script["arm"](PROJECT / "studies/packing/equal", data="")
    assert len(dense) == 3
    for source in ("gsm8k", "esnli"):
        for name, (folder, data) in script["ARMS"].items():
            found = script["arm"](PROJECT / "studies/packing" / folder, data=data.format(source))
            assert all(len(kept) == 3 for kept in found.values())
            told = [f"{contrast({n: found[n]}, {n: dense[n]}):+.3f}" for n in dense]
            assert f"| {source}:{names[name]} | {' | '.join(told)} |" in log


@pytest.mark.slow
def test_the_readme_counts_the_runs_that_there_are():
    headline = (
        (PROJECT / "README.md").read_text().partition("## What it found")[2].partition("## ")[0]
    )
    assert findings.runs().partition(" with")[0] in " ".join(headline.split())


@pytest.mark.slow
def test_the_report_of_the_study_is_what_its_records_give():
    about = report(findings.STORE)
    assert about.text("markdown") == (findings.STORE / "report.md").read_text()
    kept = json.loads(gzip.decompress((findings.STORE / "report.json.gz").read_bytes()))
    assert close(json.loads(about.text("json")), kept), "calibrant report studies/smollm2 --json"


@pytest.mark.slow
@pytest.mark.parametrize("made_by", [findings, sensitivity, mixcal, served, template])
def test_a_picture_shows_what_the_records_say(made_by: Any):
    kept = json.loads(made_by.PICTURE.read_text())
    assert close(made_by.picture().spec["datasets"], kept["shown"]), (
        f"python -m {made_by.__name__} --write"
    )


def close(a: Any, b: Any) -> bool:
    """Equal but for the last digits of numbers, which another processor adds in another order."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, rel=1e-9, abs=1e-12) if isinstance(a, float) else a == b


def test_the_page_about_the_dense_model_is_made_of_its_records():
    script = runpy.run_path(str(PROJECT / "studies/dense/run.py"))
    text = (PROJECT / "docs/findings/dense.md").read_text()
    assert script["page"]() == text
    scores = {}
    for name, metric in script["CONVENTION"].items():
        record = json.loads((PROJECT / f"studies/dense/{name}.json").read_text())
        (scores[name],) = [score for score in record["scores"] if score["metric"] == metric]
    for name in ("commonsense_qa", "piqa", "openbookqa", "hellaswag", "arc_easy"):
        assert scores[name]["value"] > scores[name]["chance"] + 2 * scores[name]["stderr"]


def test_the_page_about_choosing_says_what_its_records_and_those_of_its_levers_say():
    levers = runpy.run_path(str(PROJECT / "studies/levers/run.py"))
    choosing = runpy.run_path(str(PROJECT / "studies/choosing/compare.py"))
    page = (PROJECT / "docs/findings/choosing.md").read_text()
    found = choosing["found"]()
    assert all(of["draws"] >= 3 for of in found.values())
    tables = [*levers["tables"](), *choosing["tables"](found)]
    assert found
    assert len(tables) > 3
    for table in tables:
        assert table in page, table


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_a_page_whose_inputs_or_tables_changed_says_what_its_records_say(page: Page):
    if page.hashes() != noted_hashes()[page.file]:
        assert filled(page.text, page.load().tables()) == page.text, (
            f"python -m {page.module} --write"
        )
        pytest.fail("the page is right, but what is noted of it is old: python -m studies.pages")


def test_a_change_of_inputs_or_tables_is_noticed_and_one_of_prose_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "studies/one"
    folder.mkdir(parents=True)
    records, script, page = folder / "records.json", folder / "run.py", tmp_path / "page.md"
    records.write_text("[1, 2]")
    script.write_text("")
    text = "before\n\n<!-- sets -->\n\n| a | 1 |\n\n<!-- end of sets -->\n\nafter\n"
    page.write_text(text)
    monkeypatch.setattr("studies.made.PROJECT", tmp_path)
    monkeypatch.setattr("studies.made.STUDIES", tmp_path / "studies")
    asked = Page("page.md", "studies.one.run", ("one",))
    seen = [asked.hashes()]
    page.write_text(text.replace("after", "prose that no table has"))
    assert asked.hashes() == seen[0]
    page.write_text(text.replace("| 1 |", "| 2 |"))
    seen.append(asked.hashes())
    records.write_text("[1, 3]")
    seen.append(asked.hashes())
    (folder / "more.json").write_text("[]")
    seen.append(asked.hashes())
    script.unlink()
    seen.append(asked.hashes())
    assert all(seen[i] != seen[i + 1] for i in range(4))


BUILD = """
import {module} as script
from studies.pages import filled
text = script.PAGE.read_text("utf-8")
assert filled(text, script.tables()) == text, "python -m {module} --write"
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_a_page_says_what_its_records_say_and_needs_no_others(page: Page, tmp_path: Path):
    """Each page is built from its inputs alone: what reads another file of studies/ fails here.

    The library isn't among the inputs, so this test alone notices that it computes another number.
    """
    for path in (*page.inputs(), page.path, PROJECT / "studies/made.py"):
        copy = tmp_path / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    build = [sys.executable, "-c", BUILD.format(module=page.module)]
    ran = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert page.hashes() == noted_hashes()[page.file], (
        "the page is right, but what is noted of it is old: python -m studies.pages"
    )


def asked_in(folder: Path) -> Path:
    """Where the study's file is that a store was made by, if it is in the project."""
    name = "study" if folder.name == "results" else folder.name
    return folder.with_name(f"{name}.yaml")


STORES = [name_of(folder) for folder in committed()]
USUAL = ("studies/grids/rotated", "studies/words/smollm2", "studies/blocks/factors")
CUT = {"studies/template/qwen"}
"""Stores that were packed while runs were missing, which their pages say."""


@pytest.mark.parametrize("name", usually(STORES, USUAL))
def test_every_run_of_a_store_is_as_it_was_written(name: str):
    found = verify(PROJECT / name)
    if name in CUT:
        assert found
        assert all("isn't there" in problem.what for problem in found)
    else:
        assert found == []


@pytest.mark.parametrize(
    "name", usually([name for name in STORES if asked_in(PROJECT / name).exists()], USUAL)
)
def test_the_study_of_a_store_is_what_its_file_asks(name: str):
    folder = PROJECT / name
    asked = read_study(asked_in(folder))
    assert read_study(folder / "study.yaml") == asked
    with Store(folder, create=False) as store:
        kept = store.index().study
        for contrast in kept["primary"]:
            # The word of stores from before 0.3.
            if "sparsity" in contrast:
                contrast["target"] = contrast.pop("sparsity")
        assert kept == asked.for_reading()
        labels = [
            (of.model, of.data, of.method, of.target, of.seed, of.propagate)
            for of in asked.labels()
        ]
        assert [cell.labels for cell in store.cells()] == labels


@pytest.mark.slow
def test_pages_say_how_much_text_was_shown_and_measured():
    languages_page = languages.PAGE.read_text("utf-8")
    shown, measured = texts_of(languages.STORE)
    passages = [shown[data] for data in languages.SETS]
    assert (
        f"{min(low for low, _ in passages)} to {max(high for _, high in passages)} passages"
        in languages_page
    )
    counts: dict[str, set[int]] = {"flores": set(), "xquad": set()}
    for text, documents in measured.items():
        for source in counts:
            if source in text and "lape" not in text:
                counts[source] |= documents
    assert f"({min(counts['flores'])} to {max(counts['flores'])} passages)" in languages_page
    assert counts["xquad"] == {5, 6}


@pytest.mark.slow
def test_the_draws_that_go_against_each_other_are_those_of_the_page_on_mixing():
    against: dict[tuple[str, ...], list[str]] = {}
    for pair in mixcal.PAIRS:
        for (label, group), end in itertools.product(mixcal.groups(pair).items(), ("0", "1")):
            between = [share for share in group if share not in {"0", "1", mixcal.POOLED}]
            shares = [
                share
                for share in between
                if np.corrcoef(group[end].losses[0], group[share].losses[0])[0, 1] < -0.5
            ]
            if shares:
                against[(*label, mixcal.NAMES[mixcal.PAIRS[pair][1 - int(end)]])] = shares
    assert against == {
        ("smollm2", "sparsegpt", "C4"): ["0.25", "0.75", "0.9"],
        ("gemma3-270m", "sparsegpt", "C4"): ["0.75"],
        ("gemma3-270m", "wanda", "arithmetic"): ["0.25", "0.5"],
    }


@pytest.mark.slow
def test_the_page_on_milder_targets_says_where_its_runs_come_from():
    ran: dict[tuple[str, str], Counter[str]] = {}
    with Store(milder.STORE, create=False) as store:
        cells = store.cells()
        for cell in cells:
            processor = store.provenance(cell.run)["processor"].split()[0]
            ran.setdefault((cell.method, cell.target), Counter()).update(
                [processor if cell.data else f"{processor}, no data"]
            )
        first_draws = {
            c.data
            for c in cells
            if c.method == "alps"
            and store.provenance(c.run)["processor"].startswith("Intel")
            and c.seed == 0
        }
    assert [ran.pop((method, target)) for method, target in milder.MILDER.items()] == [
        {"AMD": 24}
    ] * 10
    assert [ran.pop((method, target)) for method, target in sensitivity.STRONG.items()] == [
        {"Intel(R)": 24}
    ] * 10
    assert ran.pop(("alps", "0.6")) == {"Intel(R)": 3, "AMD": 9}
    assert ran.pop(("evop(generations=8)", "blocks 0.2")) == {"Intel(R)": 2, "AMD": 10}
    assert ran.pop(("llama_cpp(importance=False)", "Q3_K_M")) == {"AMD, no data": 1}
    assert all(of == {"Intel(R), no data": 1} for of in ran.values()), "nothing else looked at data"
    assert first_draws == {"c4", "gsm8k:icl", "python_code"}


def texts_of(folder: Path) -> tuple[dict[str, tuple[int, int]], dict[str, set[int]]]:
    """How many rows a draw of each set holds, at least and at most; and how many documents each
    measurement has, of every model.
    """
    shown: dict[str, list[int]] = {}
    measured: dict[str, set[int]] = {}
    with Store(folder, create=False) as store:
        for cell in store.cells():
            if cell.run and (record := store.record(cell.run, whole=False)) is not None:
                if cell.data:
                    shown.setdefault(cell.data, []).append(
                        sum(part["rows"] for part in record.data_facts["parts"])
                    )
                scores = store.scores(cell.run)
                for text, name in cell.measures.items():
                    if name in scores:
                        measured.setdefault(text, set()).add(scores[name].score.n)
    return {data: (min(rows), max(rows)) for data, rows in shown.items()}, measured


def test_what_is_counted_is_what_the_shapes_say(monkeypatch: pytest.MonkeyPatch):
    # A matrix of n by n from t tokens: of its Gram the panels of the upper triangle, between a half
    # and all of 2·t·n².
    monkeypatch.setattr(
        cost,
        "SHAPE",
        {**cost.SHAPE, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2},
    )
    whole = 2 * 2 * 64 * (3 * 512**2 + 1024**2)
    assert whole / 2 < cost.grams(64) <= whole
    found = cost.forwards(64)
    matrices = 4 * 512**2 + 3 * 512 * 1024
    attention = 2 * 2 * 64 * 64 * 512
    assert found["blocks"] == 2 * (2 * 64 * matrices + attention)
    assert found["head"] == 2 * 64 * 512 * 32000
    updates = sum(
        out * inputs**2 for out, inputs in [(512, 512)] * 4 + [(1024, 512)] * 2 + [(512, 1024)]
    )
    assert (
        0.5 * updates < cost.eliminations()["gptq"] / 2 < 2 * updates + 2 * (3 * 512**3 + 1024**3)
    )
