"""`store verify` and `store merge`: what they say, and how they end."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.store import Store, measurement_id

from tests.cli.conftest import Ask, assert_refused
from tests.store.conftest import LOSS, RECORD, RUN, filled, results


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s")


def test_verify(ask: Ask, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS")  # where nobody says how wide a pipe is, lines stay whole
    answer = ask("store", "verify", "s")
    assert (answer.code, answer.err, len(answer.out.splitlines())) == (0, "", 1)
    found = ask("store", "verify", "s", "--json").json
    assert found == {"folder": "s", "runs": 1, "measurements": 1, "without_sums": 0, "problems": [], "whole": True}

    score = store.measure_folder(RUN.id, measurement_id(RUN.id, LOSS)) / "score.json"
    score.write_text(score.read_text().replace("1.3", "1.2"))
    (store.run_folder(RUN.id) / "mask.npz").write_bytes(b"")
    answer = ask("store", "verify", "s")
    assert (answer.code, answer.err) == (1, "")
    first, second, last = answer.out.splitlines()
    assert first.startswith(f"runs/{RUN.id[7:]}/mask.npz: ")
    assert "score.json: " in second
    assert "2 problems" in last
    found = ask("store", "verify", "s", "--json")
    assert (found.code, found.json["whole"], len(found.json["problems"])) == (1, False, 2)
    assert found.json["problems"][0].keys() == {"where", "what", "remedy"}


@pytest.mark.parametrize("words", [("verify", "thesis"), ("merge", "s", "thesis"), ("merge", "thesis", "s")])
def test_a_folder_that_is_no_store(ask: Ask, store: Store, tmp_path: Path, words: tuple[str, ...]):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    before = results(tmp_path)
    assert_refused(ask("store", *words), "'thesis'")
    assert results(tmp_path) == before


def test_merge(ask: Ask, store: Store, tmp_path: Path):
    assert_refused(ask("store", "merge", "s", "s"), "'s'")
    with Store(tmp_path / "t") as other:
        other.add_record(replace(RECORD, run=replace(RUN, target="0.6")))
        other.add_record(RECORD)
    answer = ask("store", "merge", "new", "s", "t")
    assert (answer.code, answer.err, len(answer.out.splitlines())) == (0, "", 1)
    verified = ask("store", "verify", "new", "--json").json
    assert (verified["runs"], verified["measurements"]) == (2, 1)
    assert ask("store", "merge", "new", "s", "--json").json == {"folder": "new", "runs": 0, "measurements": 0, "kept": 2, "problems": []}


def test_packed_and_unpacked(ask: Ask, store: Store, tmp_path: Path):
    before = results(tmp_path / "s")
    answer = ask("store", "pack", "s")
    assert (answer.code, answer.err) == (0, "")
    assert ask("store", "verify", "s", "--json").json["whole"]
    assert ask("store", "unpack", "s", "--out", "t", "--json").json["measurements"] == 1
    assert results(tmp_path / "t") == before
    assert_refused(ask("store", "unpack", "t"), "'t'")


@pytest.mark.parametrize("verb", ["pack", "unpack"])
@pytest.mark.parametrize("out", ["s", "s/../s", "link", "{whole}"])
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


def test_folders_without_sums_are_counted(ask: Ask, store: Store):
    sums = next(store.folder.glob("runs/*/sums.json"))
    sums.unlink()
    sums.with_name("provenance.json").write_text('{"seconds": 2.0}')  # from before there were seals too
    answer = ask("store", "verify", "s")
    assert answer.code == 0
    assert answer.out.splitlines()[1].startswith("1 of their folders")
