"""`store verify` and `store merge`: what they say, and how they end."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.store import Store, measurement_id

from tests.cli.conftest import Ask
from tests.store.conftest import LOSS, MEASURED, RECORD, RUN, filled, results


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s")


def test_a_whole_store(ask: Ask, store: Store):
    answer = ask("store", "verify", "s")
    assert (answer.code, answer.out, answer.err) == (0, "1 run, 1 measurement, every hash agrees\n", "")
    found = ask("store", "verify", "s", "--json").json
    assert found == {"folder": "s", "runs": 1, "measurements": 1, "without_sums": 0, "problems": [], "whole": True}


def test_folders_without_sums_are_counted(ask: Ask, store: Store):
    sums = next(store.folder.glob("runs/*/sums.json"))
    sums.unlink()
    sums.with_name("provenance.json").write_text('{"seconds": 2.0}')  # from before there were seals too
    answer = ask("store", "verify", "s")
    assert answer.code == 0
    assert answer.out.splitlines()[1] == "1 of their folders are from before there were sums: of those, ids and scores were checked"


def test_a_damaged_store_is_told_in_a_line_a_problem(ask: Ask, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS")  # where nobody says how wide a pipe is, lines stay whole
    score = store.measure_folder(RUN.id, measurement_id(RUN.id, LOSS)) / "score.json"
    score.write_text(score.read_text().replace("1.3", "1.2"))
    (store.run_folder(RUN.id) / "mask.npz").write_bytes(b"")
    answer = ask("store", "verify", "s")
    assert (answer.code, answer.err) == (1, "")
    first, second, last = answer.out.splitlines()
    assert first.startswith(f"runs/{RUN.id[7:]}/mask.npz: ")
    assert "have it computed" in first
    assert "score.json: has changed" in second
    assert last == "1 run, 1 measurement, 2 problems"
    found = ask("store", "verify", "s", "--json")
    assert (found.code, found.json["whole"], len(found.json["problems"])) == (1, False, 2)
    assert found.json["problems"][0].keys() == {"where", "what", "remedy"}


@pytest.mark.parametrize("words", [("verify", "thesis"), ("merge", "new", "thesis"), ("merge", "s", "thesis"), ("merge", "thesis", "s")])
def test_a_folder_that_is_no_store(ask: Ask, store: Store, tmp_path: Path, words: tuple[str, ...]):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    before = results(tmp_path)
    answer = ask("store", *words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.count("\n") == 1
    assert "'thesis'" in answer.err
    assert results(tmp_path) == before


def test_a_store_into_itself(ask: Ask, store: Store):
    answer = ask("store", "merge", "s", "s")
    assert (answer.code, answer.err) == (2, "'s' can't be merged into itself; name another store\n")


def test_merged(ask: Ask, store: Store, tmp_path: Path):
    with Store(tmp_path / "t") as other:
        other.add_record(replace(RECORD, run=replace(RUN, target="0.6")))
        other.add_record(RECORD)
    answer = ask("store", "merge", "new", "s", "t")
    assert (answer.code, answer.out, answer.err) == (0, "2 runs and 1 measurement copied into new, 1 already there\n", "")
    assert ask("store", "verify", "new").out == "2 runs, 1 measurement, every hash agrees\n"
    assert ask("store", "merge", "new", "s", "--json").json == {"folder": "new", "runs": 0, "measurements": 0, "kept": 2, "problems": []}


def test_other_results_for_the_same_are_told(ask: Ask, store: Store, tmp_path: Path):
    with Store(tmp_path / "t") as other:
        other.add_record(replace(RECORD, sparsity=0.25))
        other.add_measurement(RUN.id, LOSS, MEASURED)
    answer = ask("store", "merge", "s", "t")
    assert (answer.code, answer.err) == (1, "")
    first, last = answer.out.splitlines()
    assert first.startswith(f"t/runs/{RUN.id[7:]}: the same run with other results: sparsity; what this store holds was kept")
    assert last == "0 runs and 0 measurements copied into s, 2 already there, 1 problem"
    assert store.record(RUN.id) == RECORD


def test_both_are_listed(ask: Ask):
    said = ask("store", "--help").out
    assert "verify" in said
    assert "merge" in said


def test_packed_and_unpacked(ask: Ask, store: Store, tmp_path: Path):
    before = results(tmp_path / "s")
    answer = ask("store", "pack", "s")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("1 run, 1 measurement in s: 7 files of ")
    assert ask("store", "verify", "s").out == "1 run, 1 measurement, every hash agrees\n"
    assert ask("store", "unpack", "s", "--out", "t", "--json").json["measurements"] == 1
    assert results(tmp_path / "t") == before
    again = ask("store", "unpack", "t")
    assert (again.code, again.out) == (2, "")
    assert "'t' isn't packed" in again.err


@pytest.mark.parametrize("verb", ["pack", "unpack"])
@pytest.mark.parametrize("out", ["s", "s/", "./s", "s/../s", "link", "{whole}"])
def test_out_is_another_folder(ask: Ask, store: Store, tmp_path: Path, verb: str, out: str):
    if verb == "unpack":
        assert ask("store", "pack", "s").code == 0
    (tmp_path / "link").symlink_to("s")
    before = results(tmp_path)
    given = out.format(whole=tmp_path / "s")
    answer = ask("store", verb, "s", "--out", given, "--json")
    assert answer.code == 2
    assert answer.json["error"]["subject"].rstrip("/") in (given.rstrip("/"), "s")
    assert answer.err.count("\n") == 1
    assert results(tmp_path) == before
