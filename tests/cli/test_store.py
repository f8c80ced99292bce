"""`store verify`, `store merge` and `store pack`: what they say, and how they end."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.results import Store
from calibrant.results.live import DATABASE

from tests.cli.conftest import Ask, assert_refused
from tests.databases import change, spoil
from tests.results.conftest import MEASURE, files, filled, told
from tests.results.samples import RECORD, RUN


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return filled(tmp_path / "s")


def test_verify(ask: Ask, store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS")  # where nobody says how wide a pipe is, lines stay whole
    answer = ask("store", "verify", "s")
    assert (answer.code, answer.err, len(answer.out.splitlines())) == (0, "", 1)
    found = ask("store", "verify", "s", "--json").json
    expected = {"folder": "s", "runs": 1, "measurements": 1, "problems": [], "dropped": 0}
    assert found == {**expected, "whole": True}

    spoil(store / DATABASE, "measurements", "score")
    (blob,) = (store / "blobs").iterdir()
    blob.write_bytes(b"")
    answer = ask("store", "verify", "s")
    assert (answer.code, answer.err) == (1, "")
    first, second, last = answer.out.splitlines()
    assert first.startswith(f"blobs/{blob.name}: ")
    assert second.startswith(f"{DATABASE}/{MEASURE.partition(':')[2]}: ")
    assert "2 problems" in last
    found = ask("store", "verify", "s", "--json")
    assert (found.code, found.json["whole"], len(found.json["problems"])) == (1, False, 2)
    keys = {"where", "what", "remedy", "run", "measurement"}
    assert found.json["problems"][0].keys() == keys


def test_what_is_damaged_is_dropped_where_that_is_asked_for(ask: Ask, store: Path):
    spoil(store / DATABASE, "measurements", "items")
    found = ask("store", "verify", "s", "--drop", "--json")
    assert (found.code, found.json["dropped"]) == (1, 1)
    assert ask("store", "verify", "s", "--json").json["measurements"] == 0
    assert ask("store", "verify", "s").code == 0


@pytest.mark.parametrize("words", [("report", "s"), ("store", "pack", "s")])
@pytest.mark.parametrize("column", ["record", "seals"])
def test_a_damaged_record_is_refused_by_every_reader(
    ask: Ask, store: Path, words: tuple[str, ...], column: str
):
    spoil(store / DATABASE, "runs", column)
    assert_refused(ask(*words), DATABASE)


@pytest.mark.parametrize("words", [("verify", "s"), ("merge", "t", "s"), ("pack", "s")])
def test_a_damaged_database_is_refused(ask: Ask, store: Path, words: tuple[str, ...]):
    (store / DATABASE).write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    assert_refused(ask("store", *words), DATABASE)


@pytest.mark.parametrize(
    "words", [("verify", "thesis"), ("merge", "s", "thesis"), ("merge", "thesis", "s")]
)
def test_a_folder_that_is_no_store(ask: Ask, store: Path, tmp_path: Path, words: tuple[str, ...]):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    before = files(tmp_path)
    assert_refused(ask("store", *words), "'thesis'")
    assert files(tmp_path) == before


def test_merge(ask: Ask, store: Path, tmp_path: Path):
    assert_refused(ask("store", "merge", "s", "s"), "'s'")
    with Store(tmp_path / "t") as other:
        other.add_record(replace(RECORD, run=replace(RUN, target="0.6")))
        other.add_record(RECORD)
    answer = ask("store", "merge", "new", "s", "t")
    assert (answer.code, answer.err, len(answer.out.splitlines())) == (0, "", 1)
    verified = ask("store", "verify", "new", "--json").json
    assert (verified["runs"], verified["measurements"]) == (2, 1)
    again = ask("store", "merge", "new", "s", "--json").json
    assert again == {"folder": "new", "runs": 0, "measurements": 0, "kept": 2, "problems": []}
    change(tmp_path / "t" / DATABASE, "UPDATE runs SET provenance = '{}'")
    assert ask("store", "merge", "new", "t").code == 1


def test_pack(ask: Ask, store: Path):
    before = told(store)
    answer = ask("store", "pack", "s")
    assert (answer.code, answer.err) == (0, "")
    assert ask("store", "verify", "s", "--json").json["whole"]
    assert told(store) == before
    assert ask("store", "pack", "s", "--out", "t", "--json").json["measurements"] == 1
    assert told(store.with_name("t")) == before


@pytest.mark.parametrize("out", ["s", "s/../s", "link", "{whole}"])
def test_out_is_another_folder(ask: Ask, store: Path, tmp_path: Path, out: str):
    (tmp_path / "link").symlink_to("s")
    before = files(tmp_path)
    given = out.format(whole=tmp_path / "s")
    answer = ask("store", "pack", "s", "--out", given, "--json")
    assert answer.code == 2
    assert answer.json["error"]["subject"].rstrip("/") in (given.rstrip("/"), "s")
    assert answer.err.count("\n") == 1
    assert files(tmp_path) == before


def test_what_is_measured_into_a_folder_is_reported(ask: Ask, model: Path, tmp_path: Path):
    task = "loss(source='python_docs', tokens=256, length=64)"
    words = ("evaluate", model, "--task", task, "--dtype", "float32", "--store", "results")
    assert ask(*words).code == 0
    assert ask(*words, "--label", "a tool").code == 0
    (ranking,) = ask("report", "results", "--format", "json").json["rankings"]
    assert [entry["name"] for entry in ranking["entries"]] == ["a tool"]
    assert "a tool" in ask("report", "results").out
    (tmp_path / "file").write_text("mine")
    assert_refused(ask(*words[:-1], "file"), "file")
    assert_refused(ask(*words, "--label", "two\nlines"))
