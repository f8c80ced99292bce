"""Whatever is spoiled in a store is found, named, and never believed; what is whole is left in
peace."""

import math
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from calibrant.errors import CalibrantError, DataError, OutputError
from calibrant.results import (
    Audit,
    Measurement,
    Outcome,
    Store,
    audit,
    measurement_id,
    pack,
    verify,
)
from calibrant.results.items import table_of
from calibrant.results.live import DATABASE
from calibrant.results.store import STATISTICS
from calibrant.results.stored import StoredMeasurement, StoredRun
from calibrant.spec import identity
from calibrant.system.durable import UNFINISHED

from tests.databases import change, reseal, spoil
from tests.refusing import refused
from tests.results import samples
from tests.results.conftest import ADDED, CELL, LOST, MEASURE, files, filled, told, varied
from tests.results.samples import ITEMS, LOSS, MEASURED, RECORD, RUN, SCORE

RUN_COLUMNS = "record", "provenance", "weights", "seals"
MEASURE_COLUMNS = "score", "provenance", "items", "seals"
COLUMNS = [("runs", name) for name in RUN_COLUMNS]
COLUMNS += [("measurements", name) for name in MEASURE_COLUMNS]
COLUMNS += [("files", "name"), ("files", "digest")]


def test_a_whole_store_is_counted_and_not_touched(store: Path):
    before = files(store)
    assert audit(store) == Audit(str(store), 2, 6, ())
    assert files(store) == before


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_damaged_column_is_named_and_not_believed(tmp_path: Path, table: str, column: str):
    before = told(filled(tmp_path))
    spoil(tmp_path / DATABASE, table, column)
    key = MEASURE if table == "measurements" else RUN.id
    with refused(DataError, tmp_path / DATABASE / key.partition(":")[2]):
        told(tmp_path)
    problems = verify(tmp_path)
    assert {problem.where for problem in problems} == {f"{DATABASE}/{key.partition(':')[2]}"}
    found = audit(tmp_path, drop=True)
    assert found.dropped == 1
    with Store(tmp_path, create=False) as store:
        assert store.ids() == ([RUN.id] if table == "measurements" else [])
        assert store.measured(RUN.id) == set()
    assert told(filled(tmp_path)) == before, "it is made again"
    assert verify(tmp_path) == []


def test_a_damaged_blob_is_named_and_not_believed(tmp_path: Path):
    before = told(filled(tmp_path))
    (path,) = (tmp_path / "blobs").iterdir()
    for content in (b"", b"\x00", b"\x01\xff", b"\x00\xff\x00"):
        path.write_bytes(content)
        with refused(DataError, path):
            told(tmp_path)
        assert {problem.where for problem in verify(tmp_path)} == {f"blobs/{path.name}"}
    assert audit(tmp_path, drop=True).dropped == 1
    assert told(filled(tmp_path)) == before, "it is made again"


def test_a_damaged_blob_of_a_published_run_is_to_be_deleted(tmp_path: Path):
    pack(filled(tmp_path))
    (path,) = (tmp_path / "blobs").iterdir()
    path.write_bytes(b"\x00")
    found = audit(tmp_path, drop=True)
    assert found.dropped == 0
    (problem,) = found.problems
    assert problem.remedy.startswith("delete it;")
    path.unlink()
    assert verify(tmp_path) == []


def test_statistics_that_are_half_written_are_named(tmp_path: Path):
    folder = filled(tmp_path) / STATISTICS / "0123" / "Gram"
    folder.mkdir(parents=True)
    (folder / f"{UNFINISHED}-block-0.safetensors-0123abcd").touch()
    (problem,) = verify(tmp_path)
    assert problem.what == "is half written"


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path):
    filled(tmp_path)
    (path,) = (tmp_path / "blobs").iterdir()
    path.unlink()
    os.mkfifo(path)
    assert {problem.where for problem in verify(tmp_path)} == {f"blobs/{path.name}"}
    path.unlink()
    path.symlink_to("/dev/zero")
    assert {problem.where for problem in verify(tmp_path)} == {f"blobs/{path.name}"}
    path.unlink()
    assert verify(tmp_path) == [], "deleted to save room"


HARMED = "UPDATE documents SET content = replace(content, 'a', 'e') WHERE kind = ?"


def test_a_damaged_grid_is_named_and_can_be_written_anew(store: Path):
    with Store(store) as writer:
        index = writer.index()
    change(store / DATABASE, HARMED, "index")
    with refused(DataError, store / DATABASE / "index-"):
        told(store)
    (problem,) = verify(store)
    assert (problem.where, "study" in problem.remedy) == (f"{DATABASE}/index-", True)
    assert audit(store, drop=True).dropped == 0
    with Store(store) as writer:
        writer.write_cells(index.cells, index.study, index.revisions)
    assert verify(store) == []


NO_FAILURES = ["3", "[1]", "{", "null", "", '{"cell": 3}', '{"error": [1]}']


def harm(path: Path, text: str | bytes | None) -> None:
    """Damage what is known of the failure."""
    if text is None:
        change(path, f"{HARMED} AND name = ?", "failure", LOST)
    elif isinstance(text, bytes):
        change(path, "UPDATE documents SET content = CAST(? AS TEXT) WHERE name = ?", text, LOST)
    else:
        reseal(path, "documents", LOST, "content", text)


@pytest.mark.parametrize("text", [None, b"\xff", *NO_FAILURES])
def test_a_damaged_failure_counts_as_none_and_can_be_dropped(
    store: Path, text: str | bytes | None, caplog: pytest.LogCaptureFixture
):
    another = {"id": "sha256:1", "what": "a fourth run", "error": "no"}
    with Store(store) as writer:
        writer.add_failure("sha256:1", another)
    harm(store / DATABASE, text)
    with Store(store, create=False) as reader:
        assert reader.failures() == {"sha256:1": another}
        assert caplog.messages == []
        assert [reader.failure(name) for name in (LOST, LOST, "sha256:1")] == [None, None, another]
        assert len(caplog.messages) == 1, "it is told once"
    (problem,) = verify(store)
    assert problem.where == f"{DATABASE}/failure-{'0' * 64}"
    assert "--drop" in problem.remedy
    assert audit(store, drop=True).dropped == 1
    assert verify(store) == []
    with Store(store, create=False) as reader:
        assert reader.failures() == {"sha256:1": another}


def test_a_damaged_failure_is_replaced_by_a_newer_one(store: Path):
    change(store / DATABASE, HARMED, "failure")
    with Store(store) as writer:
        writer.add_failure(LOST, {"what": "a third run", "error": "no"})
        assert writer.failure(LOST) == {"id": LOST, "what": "a third run", "error": "no"}
    change(store / DATABASE, HARMED, "failure")
    with Store(store) as writer:
        writer.clear_failure(LOST)
    assert verify(store) == []


def test_a_damaged_cell_is_named_and_can_be_dropped(store: Path):
    change(store / DATABASE, HARMED, "cell")
    where = f"{DATABASE}/cell-{samples.OTHER_RUN.id.partition(':')[2]}"
    with refused(DataError, store / where):
        told(store)
    (problem,) = verify(store)
    assert problem.where == where
    assert "--drop" in problem.remedy
    assert audit(store, drop=True).dropped == 1
    assert verify(store) == []
    with Store(store) as writer:
        assert writer.index().measured == ()
        writer.add_cell(ADDED)
        assert writer.index().measured == (ADDED,)


@pytest.mark.parametrize("size", [50, 5000])
def test_a_database_that_was_cut_is_named(store: Path, size: int):
    path = store / DATABASE
    path.write_bytes(path.read_bytes()[:size])
    for act in (told, verify):
        with refused(DataError, path):
            act(store)


def test_rows_that_an_index_lacks_are_found(store: Path):
    change(store / DATABASE, "PRAGMA writable_schema = ON")
    page = change(
        store / DATABASE,
        "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_measurements_1'",
    )[0][0]
    (size,) = change(store / DATABASE, "PRAGMA page_size")[0]
    content = bytearray((store / DATABASE).read_bytes())
    count = (page - 1) * size + 4  # the low byte of how many cells the page has
    content[count] -= 1
    (store / DATABASE).write_bytes(content)
    (problem,) = verify(store)
    assert problem.where == DATABASE


@pytest.mark.parametrize("seed", range(3))
def test_no_byte_of_the_database_changes_what_is_said(tmp_path: Path, seed: int):
    """What can't be found any more is said by nobody, but `verify` misses it."""
    expected = told(varied(tmp_path / "store"))
    chance = random.Random(seed)
    refusals = 0
    for _ in range(25):
        shutil.rmtree(tmp_path / "harmed", ignore_errors=True)
        shutil.copytree(tmp_path / "store", tmp_path / "harmed")
        content = bytearray((tmp_path / "harmed" / DATABASE).read_bytes())
        content[chance.choice(_written(content))] ^= 1 << chance.randrange(8)
        (tmp_path / "harmed" / DATABASE).write_bytes(content)
        try:
            said = told(tmp_path / "harmed")
            assert set(said) <= set(expected)
            assert said == expected or verify(tmp_path / "harmed")
        except CalibrantError:
            refusals += 1
    assert refusals > 5


def _written(content: bytearray) -> list[int]:
    """The places in a file that hold something."""
    return [place for place, byte in enumerate(content) if byte and place >= 100]


# What was written with the right seal, and is no such thing


def plain_run(**changes: Any) -> StoredRun:
    fields = {"id": RUN.id, **RECORD.plain(), **changes}
    provenance, weights = fields.pop("provenance"), fields.pop("weights")
    return StoredRun(RUN.id, fields, weights, provenance)


def plain_measurement(**changes: Any) -> StoredMeasurement:
    entry = {"id": MEASURE, "run": RUN.id, "evaluator": LOSS, "score": asdict(SCORE), "data": ""}
    return StoredMeasurement(RUN.id, MEASURE, {**entry, **changes}, table_of(ITEMS))


ODD_RUNS: list[Mapping[str, Any]] = [
    {"run": {}},
    {"run": {**vars(RUN), "method": ["wanda"]}},
    {"run": {**vars(RUN), "seed": 1.5}},
    {"sparsity": "half"},
    {"sparsity": -1.0},
    {"weights": [{"shape": [2, 4]}]},
    {"weights": [{"name": "a", "bits": "xyz"}]},
    {"dense": [{"name": 3}]},
    {"data_facts": {"parts": [{"rows": -1}]}},
    {"provenance": {"seconds": "long"}},
    {"id": "sha256:1"},
    {"run": {**vars(RUN), "target": "0.6"}},
]
ODD_SCORES: list[Mapping[str, Any]] = [
    {"score": {**asdict(SCORE), "value": "high"}},
    {"score": {**asdict(SCORE), "better": "other"}},
    {"score": {**asdict(SCORE), "facts": {"tokens": -1}}},
    {"score": {**asdict(SCORE), "value": 3.25}},
    {"score": {**asdict(SCORE), "n": 3}},
    {"score": {**asdict(SCORE), "facts": {"items": "sha256:2"}}},
    {"evaluator": {**LOSS, "tokens": 5}},
    {"evaluator": "loss"},
    {"run": "sha256:1"},
    {"beside": [{}]},
]


@pytest.mark.parametrize("changes", ODD_RUNS, ids=range(len(ODD_RUNS)))
def test_a_record_that_is_none_is_named(tmp_path: Path, changes: Mapping[str, Any]):
    with Store(tmp_path) as store:
        store.adopt(plain_run(**changes))
    assert {problem.run for problem in verify(tmp_path)} == {RUN.id}
    assert audit(tmp_path, drop=True).dropped == 1
    assert verify(tmp_path) == []


@pytest.mark.parametrize("changes", ODD_RUNS[:-2], ids=range(len(ODD_RUNS) - 2))
def test_a_record_of_another_shape_is_refused(tmp_path: Path, changes: Mapping[str, Any]):
    with Store(tmp_path) as store:
        store.adopt(plain_run(**changes))
        with refused(DataError, tmp_path / DATABASE / RUN.id.partition(":")[2]):
            store.records()


ODD_TEXTS = ["3", "[1]", "{", "null", "", "[" * 100_000, '{"n": ' + "9" * 5000 + "}", '{"a": NaN}']


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
@pytest.mark.parametrize(
    ("table", "column"), [("runs", "record"), ("runs", "provenance"), ("measurements", "score")]
)
def test_a_column_that_holds_something_else_is_named(
    tmp_path: Path, table: str, column: str, text: str
):
    key = MEASURE if table == "measurements" else RUN.id
    reseal(filled(tmp_path) / DATABASE, table, key, column, text)
    with refused(DataError, tmp_path / DATABASE / key.partition(":")[2]):
        told(tmp_path)
    (problem,) = verify(tmp_path)
    assert (problem.measurement or problem.run) == key


@pytest.mark.parametrize("changes", ODD_SCORES, ids=range(len(ODD_SCORES)))
def test_a_score_that_contradicts_itself_is_named(tmp_path: Path, changes: Mapping[str, Any]):
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        store.adopt_measurement(plain_measurement(**changes))
    assert {problem.measurement for problem in verify(tmp_path)} == {MEASURE}
    assert audit(tmp_path, drop=True).dropped == 1
    assert verify(tmp_path) == []


def test_items_without_a_sum_are_named(tmp_path: Path):
    items = table_of([Outcome("a", math.inf), Outcome("b", -math.inf)])
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        store.adopt_measurement(replace(plain_measurement(), items=items))
    assert {problem.measurement for problem in verify(tmp_path)} == {MEASURE}


def test_nothing_is_made_where_only_published_results_are_damaged(store: Path):
    pack(store)
    for path in (store / "blobs").iterdir():
        path.write_bytes(b"harmed")
    before = files(store)
    assert audit(store, drop=True).dropped == 0
    assert files(store) == before


ODD_ITEMS: list[Mapping[str, Any]] = [
    {"item": ["a"], "value": [1.0]},
    {"item": [1], "value": [1.0], "weight": [1.0]},
    {"item": ["a"], "value": ["1"], "weight": [1.0]},
    {"item": ["a", None], "value": [1.0, 2.0], "weight": [1.0, 1.0]},
]


@pytest.mark.parametrize("columns", ODD_ITEMS, ids=range(len(ODD_ITEMS)))
def test_items_that_are_none_are_refused(tmp_path: Path, columns: Mapping[str, Any]):
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        store.adopt_measurement(replace(plain_measurement(), items=pa.table(columns)))
        where = tmp_path / DATABASE / MEASURE.partition(":")[2]
        with refused(DataError, where):
            store.measurement(RUN.id, MEASURE)
        with refused(DataError, where):
            list(store.numbers([(RUN.id, MEASURE)]))
    (problem,) = verify(tmp_path)
    assert problem.measurement == MEASURE


def test_what_unpacks_to_more_than_any_record_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    filled(tmp_path)
    monkeypatch.setattr("calibrant.results.live.LARGEST", 100)
    with refused(DataError, tmp_path / DATABASE / RUN.id.partition(":")[2]):
        told(tmp_path)


def test_the_items_are_those_that_the_score_tells(tmp_path: Path):
    items = [["sha256:b", 10.0], ["sha256:a", 20.0]]
    digests = identity(items), identity([name for name, _ in items]), identity("others")
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        for number, digest in enumerate(digests):
            score = replace(SCORE, facts={"items": digest})
            store.add_measurement(RUN.id, {**LOSS, "tokens": number}, Measurement(score, ITEMS))
    (problem,) = verify(tmp_path)
    assert identity("others") in problem.what


def test_a_score_without_items_and_one_that_is_no_number_are_whole(tmp_path: Path):
    nothing = replace(SCORE, value=math.nan)
    outcomes = tuple(replace(outcome, value=math.nan) for outcome in ITEMS)
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        store.add_measurement(RUN.id, LOSS, Measurement(SCORE))
        store.add_measurement(RUN.id, {**LOSS, "tokens": 1}, Measurement(nothing, outcomes))
        store.add_measurement(RUN.id, LOSS, MEASURED, data="sha256:d")
    assert verify(tmp_path) == []


# What is beside results


def test_a_measurement_without_its_run_is_found(tmp_path: Path):
    change(filled(tmp_path) / DATABASE, "DELETE FROM runs")
    problems = verify(tmp_path)
    assert MEASURE in {problem.measurement for problem in problems}
    assert audit(tmp_path, drop=True).dropped == 1
    assert {problem.measurement for problem in verify(tmp_path)} == {""}


def test_cells_that_point_nowhere_are_found_unless_something_failed(store: Path):
    more = replace(CELL, measures={**CELL.measures, "task": "sha256:3"})
    other = replace(CELL, run="sha256:1", measures={"loss": "sha256:2"}, data="pile")
    unknown = replace(other, run="", measures={})
    with Store(store) as writer:
        writer.write_cells([CELL, more, other, unknown])
        first, second = verify(store)
        assert "sha256:3" in first.what
        assert "sha256:1" in second.what
        writer.add_failure("sha256:1", {"error": "out of memory"})
        writer.add_failure("sha256:3", {"error": "out of memory"})
        assert verify(store) == []


def test_a_failure_of_what_is_there_is_found(store: Path):
    with Store(store) as writer:
        writer.add_failure(RUN.id, {"error": "lost"})
    (problem,) = verify(store)
    assert RUN.id in problem.where
    assert LOST not in problem.where


def test_a_file_that_belongs_to_no_run_is_found(store: Path):
    (store / "blobs" / "stray").write_text("mine")
    (store / "report.html").write_text("")
    (problem,) = verify(store)
    assert problem.where == "blobs/stray"
    assert problem.remedy.startswith("harmless")
    assert audit(store, drop=True).dropped == 0


def test_an_empty_folder_is_no_store(tmp_path: Path):
    with refused(OutputError, tmp_path):
        verify(tmp_path)


# What is published


@pytest.mark.parametrize("table", ["runs", "matrices", "scores", "items", "cells"])
def test_a_table_that_changed_is_named_and_not_believed(store: Path, table: str):
    pack(store)
    path = store / f"{table}.parquet"
    whole = path.read_bytes()
    for content in (whole.replace(b"PAR1", b"par1", 1), whole[:-9], b""):
        path.write_bytes(content)
        assert [problem.where for problem in verify(store)] == [path.name]
        with refused(DataError, path):
            told(store)
        assert audit(store, drop=True).dropped == 0
    path.unlink()
    assert [problem.where for problem in verify(store)] == [path.name]
    with refused(DataError, path):
        pack(store)


def test_a_changed_list_of_tables_is_refused(store: Path):
    pack(store)
    path = store / "packed.json"
    path.write_text(path.read_text().replace('"runs": 2', '"runs": 3'))
    with refused(DataError, path):
        verify(store)


def test_a_damaged_blob_of_a_published_store_is_named(store: Path):
    pack(store)
    for path in (store / "blobs").iterdir():
        path.write_bytes(b"harmed")
    found = audit(store, drop=True)
    assert {problem.run for problem in found.problems} == {RUN.id, samples.OTHER_RUN.id}
    assert found.dropped == 0, "what is published stays"


def test_measured_under_another_id_is_found(tmp_path: Path):
    other = measurement_id(RUN.id, {**LOSS, "tokens": 9})
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        store.adopt_measurement(replace(plain_measurement(), id=other))
    (problem,) = verify(tmp_path)
    assert problem.measurement == other
