"""A packed store is the store: it says the same, and a study goes on beside its tables."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from calibrant.compare import read
from calibrant.durable import compact_json
from calibrant.errors import DataError, OutputError
from calibrant.store import EDITS, MASK, PROFILE, Record, Store, merge, pack, verify
from calibrant.store.items import table_of
from calibrant.store.live import DATABASE
from calibrant.store.published import MOVING, PACKED, settle
from calibrant.store.results import MeasurementRow, RunRow

from tests.databases import spoil
from tests.refusing import refused
from tests.store import samples
from tests.store.conftest import MEASURE, files, told, varied
from tests.store.samples import ITEMS, LOSS, MEASURED, OTHER_RUN, QUIZ, RECORD, RUN, SCORE


def bare(folder: Path, record: Record = RECORD) -> Path:
    """A store with one run."""
    with Store(folder) as store:
        store.add_record(record)
    return folder


def test_elsewhere_it_says_the_same(store: Path, tmp_path: Path):
    before, said = files(store), told(store)
    packed = pack(store, tmp_path / "packed")
    assert (packed.runs, packed.measurements) == (2, 6)
    assert files(store) == before
    assert told(tmp_path / "packed") == said
    assert verify(tmp_path / "packed") == []
    assert not (tmp_path / "packed" / DATABASE).exists()
    with Store(tmp_path / "packed", create=False) as there:
        assert there.study_text() == "models: [tiny]\n"
        assert there.file(RUN.id, PROFILE) == samples.PROFILE
        assert there.file(OTHER_RUN.id, EDITS) == samples.EDITS
        assert there.bytes_of(MASK) == len(samples.MASK)
        packed_reading = read(there)
    with Store(store, create=False) as here:
        assert repr(read(here).scores) == repr(packed_reading.scores)


def test_in_its_own_folder_it_says_the_same(store: Path):
    (store / "README.md").write_text("# Mine\n")
    said = told(store)
    for _ in range(2):  # what is packed can be packed again
        pack(store)
        assert told(store) == said
        assert verify(store) == []
        assert not (store / DATABASE).exists()
        assert (store / "README.md").read_text() == "# Mine\n"


def test_from_table_to_database_to_table_it_stays_the_same(store: Path, tmp_path: Path):
    said = told(store)
    pack(store, tmp_path / "first")
    merge(tmp_path / "merged", [tmp_path / "first"])
    assert told(tmp_path / "merged") == said
    pack(tmp_path / "merged", tmp_path / "second")
    assert told(tmp_path / "second") == said


def test_a_study_goes_on_beside_its_tables(store: Path, tmp_path: Path):
    pack(store, tmp_path / "packed")
    third = replace(RECORD, run=replace(RUN, target="0.9"))
    for folder in (store, tmp_path / "packed"):
        with Store(folder) as later:
            assert later.add_record(RECORD) == RUN.id
            later.add_measurement(RUN.id, LOSS, MEASURED)
            later.add_record(third, {MASK: b"third"})
            later.add_measurement(third.run.id, LOSS, MEASURED)
            later.add_measurement(OTHER_RUN.id, QUIZ, MEASURED)
            later.add_failure(MEASURE, {"error": "lost"})
            later.clear_failure(MEASURE)
    expected = told(store)
    with Store(tmp_path / "packed") as later:
        assert later.live.runs() == [third.run.id], "what is published isn't written again"
    for _ in range(2):
        assert told(tmp_path / "packed") == expected
        assert verify(tmp_path / "packed") == []
        pack(tmp_path / "packed")


def test_a_published_failure_is_forgotten_when_it_goes_well(tmp_path: Path):
    with Store(bare(tmp_path)) as store:
        store.add_failure(OTHER_RUN.id, {"error": "lost"})
    pack(tmp_path)
    with Store(tmp_path) as store:
        assert store.failures().keys() == {OTHER_RUN.id}
        store.clear_failure(OTHER_RUN.id)
        assert store.failures() == {}
        assert store.failure(OTHER_RUN.id) is None


def test_a_newer_grid_stands_before_the_published_one(store: Path):
    pack(store)
    with Store(store) as later:
        later.write_cells([], {"baseline": "other"})
        assert later.study() == {"baseline": "other"}
    assert told(store)[-3] == compact_json({"baseline": "other"})


def test_what_a_newer_version_wrote_is_kept(tmp_path: Path):
    """Fields that this version doesn't know come through `pack` and `merge`."""
    fields = {"id": RUN.id, **RECORD.plain(), "later": {"deep": [1, 2.5, None]}}
    provenance, weights = fields.pop("provenance"), fields.pop("weights")
    score = {**asdict(SCORE), "later": "x", "facts": {**SCORE.facts, "later": -0.0}}
    entry = {"id": MEASURE, "run": RUN.id, "evaluator": LOSS, "score": score, "data": "", "later": 1}
    with Store(tmp_path / "store") as store:
        store.adopt(RunRow(RUN.id, fields, weights, {**provenance, "later": True}))
        row = MeasurementRow(RUN.id, MEASURE, entry, table_of(ITEMS), {"later": True})
        store.adopt_measurement(row)
        assert store.record(RUN.id) == RECORD
    pack(tmp_path / "store", tmp_path / "packed")
    merge(tmp_path / "merged", [tmp_path / "packed"])
    for folder in ("store", "packed", "merged"):
        with Store(tmp_path / folder, create=False) as store:
            results = store.results(RUN.id)
            assert compact_json(results.record(RUN.id)) == compact_json(fields)
            assert compact_json(results.score(RUN.id, MEASURE)) == compact_json(entry)
            assert results.provenance(RUN.id)["later"] is True
            assert results.provenance(RUN.id, MEASURE) == {"later": True}


# What is refused


@pytest.mark.parametrize("table", ["runs", "matrices", "scores", "items", "cells"])
def test_a_table_of_another_store_is_refused_and_nothing_removed(tmp_path: Path, table: str):
    store = varied(tmp_path / "store")
    other = bare(tmp_path / "other", replace(RECORD, weights=RECORD.weights[:1]))
    for folder in (store, other):
        pack(folder)
    path = store / f"{table}.parquet"
    shutil.copyfile(other / path.name, path)
    before = files(store)
    for act in (told, pack):
        with refused(DataError, path):
            act(store)
    assert files(store) == before


@pytest.mark.parametrize(("table", "column"), [("runs", "weights"), ("measurements", "items")])
def test_what_is_damaged_is_not_packed(store: Path, table: str, column: str):
    spoil(store / DATABASE, table, column)
    before = files(store)
    with pytest.raises(DataError) as raised:
        pack(store)
    assert raised.value.subject.startswith(str(store / DATABASE))
    assert files(store) == before


def test_not_where_a_study_is_at_work(store: Path, tmp_path: Path):
    with Store(store) as busy, busy.claim("something", wait=True):
        with refused(OutputError, store):
            pack(store)
        pack(store, tmp_path / "elsewhere")
    assert told(tmp_path / "elsewhere") == told(store)


def test_only_into_a_new_folder(store: Path, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with refused(OutputError, tmp_path / "full"):
        pack(store, tmp_path / "full")


# Tables on their way, and other readers


def test_a_reader_finds_tables_on_their_way(store: Path):
    said = told(store)
    pack(store)
    moving = store / MOVING
    moving.mkdir()
    for name in ("items.parquet", "scores.parquet", PACKED):
        (store / name).rename(moving / name)
    assert told(store) == said
    assert [problem.where for problem in verify(store)] == [MOVING]
    settle(store)
    assert not moving.exists()
    assert told(store) == said


def test_it_is_a_data_set_for_the_hub(store: Path, tmp_path: Path):
    from datasets import load_dataset

    pack(store, tmp_path / "packed")
    counts = dict[str, int]()
    for name in ("runs", "matrices", "scores", "items", "cells"):
        place = str(tmp_path / "packed")
        counts[name] = len(load_dataset(place, name, split="train", cache_dir=str(tmp_path)))
    assert counts == {"runs": 2, "matrices": 4, "scores": 6, "items": 6, "cells": 1}
