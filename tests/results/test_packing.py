"""A packed store is the store: it says the same, and a study goes on beside its tables."""

import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.errors import DataError, OutputError
from calibrant.lab.stats import read
from calibrant.results import (
    EDITS,
    MASK,
    PROFILE,
    Outcome,
    Record,
    Store,
    items,
    merge,
    pack,
    publishing,
    verify,
)
from calibrant.results.items import AS_IT_IS, CHOSEN, PLACED, SAME, restored_columns, table_of
from calibrant.results.live import DATABASE
from calibrant.results.published import MOVING, PACKED, PACKED_PURPOSE, settle
from calibrant.results.publishing import PACKING
from calibrant.results.stored import Blobs, StoredMeasurement, StoredRun, digest_of_file, understood
from calibrant.system.durable import compact_json, read_json, sealed, text_of_json

from tests.databases import spoil
from tests.refusing import refused
from tests.results import samples
from tests.results.conftest import ADDED, MEASURE, files, told, varied
from tests.results.samples import ITEMS, LOSS, MEASURED, OTHER_RUN, QUIZ, RECORD, RUN, SCORE


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
        assert later.index().study == {"baseline": "other"}
    assert told(store)[-3] == compact_json({"baseline": "other"})


def test_what_a_newer_version_wrote_is_kept(tmp_path: Path):
    """Fields that this version doesn't know come through `pack` and `merge`."""
    fields = {"id": RUN.id, **RECORD.plain(), "later": {"deep": [1, 2.5, None]}}
    provenance, weights = fields.pop("provenance"), fields.pop("weights")
    score = {**asdict(SCORE), "later": "x", "facts": {**SCORE.facts, "later": -0.0}}
    entry = {
        "id": MEASURE,
        "run": RUN.id,
        "evaluator": LOSS,
        "score": score,
        "data": "",
        "later": 1,
    }
    with Store(tmp_path / "store") as store:
        store.adopt(StoredRun(RUN.id, fields, weights, {**provenance, "later": True}))
        row = StoredMeasurement(RUN.id, MEASURE, entry, table_of(ITEMS), {"later": True})
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


@pytest.mark.parametrize("name", ["../x", "/dev/zero", "", "0" * 63, "0" * 64 + "/x"])
def test_a_name_that_is_no_digest_names_no_file(tmp_path: Path, name: str):
    with pytest.raises(DataError):
        Blobs(tmp_path).get(name)


@pytest.mark.parametrize(
    "facts", [({"value": 1}, {"value": 1}), ({"a": 1}, {"a": 1, "b": 2}), ({"a": 1}, {})]
)
def test_facts_that_have_no_column_are_refused(facts: tuple[dict[str, int], ...]):
    with pytest.raises(ValueError, match="fact"):
        table_of([Outcome(f"{len(own)}", 1.0, 1.0, own) for own in facts])


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
    after = files(store)
    assert after.keys() == before.keys()
    assert sorted(name for name in before if after[name] != before[name]) in ([], [DATABASE])
    with Store(store, create=False) as there:
        assert not there.at_work()


def test_not_where_a_study_is_at_work(store: Path, tmp_path: Path):
    with Store(store) as busy, busy.claim("something", wait=True):
        with refused(OutputError, store):
            pack(store)
        pack(store, tmp_path / "elsewhere")
    assert told(tmp_path / "elsewhere") == told(store)


def test_not_twice_at_once(store: Path):
    with Store(store) as first, first.claim(PACKING, wait=True), refused(OutputError, store):
        pack(store)


@pytest.mark.parametrize("published", [False, True])
def test_what_is_only_begun_is_not_lost(store: Path, published: bool):
    if published:
        pack(store)
    with Store(store) as busy:
        busy.trials(RUN.id).add({"without block 1": 2.5})
    said = told(store)
    with refused(OutputError, store):
        pack(store)
    assert told(store) == said
    with Store(store) as busy:
        assert busy.trials(RUN.id).known == {"without block 1": 2.5}
        busy.trials(RUN.id).remove()
    pack(store)
    assert told(store) == said


def test_what_failed_midway_is_packed_without_what_tells_of_the_machine(store: Path):
    failure = {
        "what": "a search",
        "error": "DataError: '/home/me/rows.jsonl' is empty",
        "traceback": ['File "/home/me/calibrant/driver.py", line 1'],
    }
    with Store(store) as busy:
        busy.trials(OTHER_RUN.id).add({"without block 1": 2.5})
        busy.add_failure(OTHER_RUN.id, failure)
    pack(store)
    assert not (store / DATABASE).exists()
    with Store(store, create=False) as packed:
        kept = packed.failures()
    assert kept[OTHER_RUN.id] == {
        "id": OTHER_RUN.id,
        "what": "a search",
        "error": "DataError: '…/rows.jsonl' is empty",
    }


def test_a_profile_that_was_deleted_stays_so(store: Path):
    with Store(store, create=False) as here:
        here.blobs.path(here.results(RUN.id).digests(RUN.id)[PROFILE]).unlink()
    said = told(store)
    for _ in range(2):
        pack(store)
        assert told(store) == said
    with Store(store, create=False) as there:
        assert there.file(RUN.id, PROFILE) is None
        assert PROFILE in there.results(RUN.id).digests(RUN.id)


def test_only_into_a_new_folder(store: Path, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with refused(OutputError, tmp_path / "full"):
        pack(store, tmp_path / "full")


def rewritten(store: Path, **changes: Any) -> None:
    """Change `packed.json` as somebody does who can make a seal, and what it says of the tables."""
    path = store / PACKED
    manifest = {**read_json(path, PACKED_PURPOSE, required=True), **changes}
    manifest["files"] = {**manifest["files"]}
    for table in store.glob("*.parquet"):
        manifest["files"][table.name] = digest_of_file(table)
    path.write_text(text_of_json(sealed(manifest, PACKED_PURPOSE), ordered=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../other.parquet": "0" * 64}},
        {"failures": []},
        {"failures": {"sha256:1": 3}},
        {"index": []},
    ],
)
def test_a_manifest_of_another_form_is_refused(store: Path, changes: dict[str, Any]):
    pack(store)
    rewritten(store, **changes)
    with refused(DataError, store / PACKED):
        Store(store, create=False)


def test_more_matrices_than_there_are_are_refused(store: Path):
    pack(store)
    table = pq.read_table(store / "runs.parquet")
    counts = pa.array([count + 1 for count in table["matrices"].to_pylist()], pa.int64())
    place = table.column_names.index("matrices")
    pq.write_table(table.set_column(place, "matrices", counts), store / "runs.parquet")
    rewritten(store)
    with Store(store, create=False) as there:
        last = list(pq.read_table(store / "runs.parquet")["run"].to_pylist())[-1]
        with pytest.raises(DataError):
            there.results(last).weights(last)


def test_a_row_below_the_first_is_no_run(store: Path):
    pack(store)
    table = pq.read_table(store / "cells.parquet")
    place = table.column_names.index("run_row")
    rows = pa.array([-1] * len(table), pa.int32())
    pq.write_table(table.set_column(place, "run_row", rows), store / "cells.parquet")
    rewritten(store)
    with Store(store, create=False) as there, pytest.raises(DataError):
        there.index()


@pytest.mark.parametrize("place", [-1, 4, 9])
def test_a_place_beyond_the_list_is_refused(place: int):
    choices, gold = pa.array([[0.5, 0.25], [1.0, 2.0]]), pa.array([place, 0])
    stored = {"choices": choices, "gold": gold, "value values": pa.array([0.5])}
    stored["value places"] = pa.array([[0], [place]])
    layout = [["choices", AS_IT_IS, "choices"], ["gold", AS_IT_IS, "gold"]]
    for rule in ([CHOSEN, "choices", "gold"], [PLACED, "value values", "value places"]):
        with pytest.raises(ValueError, match="aren't there"):
            restored_columns([*layout, ["value", *rule]], stored.__getitem__, ["value"])


def test_a_layout_that_never_ends_is_refused():
    with pytest.raises(DataError), understood("items"):
        restored_columns([["value", SAME, "value"]], {}.__getitem__, None)


@pytest.mark.parametrize(
    ("limit", "most", "told"),
    [("MOST", 1, f"{len(ITEMS)} items"), ("LARGEST", 100, "more than 0 MiB")],
)
def test_more_items_than_are_read_are_not_written(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int, told: str
):
    monkeypatch.setattr(items, limit, most)
    with pytest.raises(ValueError, match=told):
        items.to_bytes(table_of(ITEMS))


@pytest.mark.parametrize(
    "content", [b"", b"no zlib", zlib.compress(bytes(99))[:-9], zlib.compress(bytes(99))]
)
def test_what_cannot_be_unpacked_is_refused(content: bytes):
    with pytest.raises(ValueError, match=r"cut|header"):
        items.unzipped(content, 98)


def test_one_run_is_read_from_its_own_tables(store: Path):
    pack(store)
    for name in ("items.parquet", "scores.parquet", "cells.parquet"):
        (store / name).unlink()
    with Store(store, create=False) as there:
        results = there.results(RUN.id)
        assert results.record(RUN.id)["run"]["target"] == RUN.target
        assert len(results.weights(RUN.id)) == len(RECORD.weights)


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


def test_what_another_pack_moves_in_meanwhile_stays(store: Path):
    """Who finds no `packed.json` on its way deletes nothing that comes there."""
    pack(store)
    moving = store / MOVING
    moving.mkdir()
    shutil.copyfile(store / "items.parquet", moving / "items.parquet")
    settle(store)
    assert (moving / "items.parquet").exists()


CAME_MEANWHILE: dict[str, Callable[[Store], object]] = {
    "a grid": lambda store: store.write_cells([], {"baseline": "c4"}),
    "a cell": lambda store: store.add_cell(replace(ADDED, measures={"another": "sha256:1"})),
    "a failure": lambda store: store.add_failure(RUN.id, {"error": "no memory"}),
    "what a run found so far": lambda store: store.trials(RUN.id).add({"first": 1.0}),
}


@pytest.mark.parametrize("what", CAME_MEANWHILE)
def test_what_comes_in_while_it_is_packed_stays(
    what: str, store: Path, monkeypatch: pytest.MonkeyPatch
):
    """Tables are compared for minutes in a large store, and somebody else may write meanwhile."""
    compare = publishing._check_same

    def interrupted(*asked: Any) -> None:
        compare(*asked)
        with Store(store) as other:
            CAME_MEANWHILE[what](other)

    monkeypatch.setattr(publishing, "_check_same", interrupted)
    with refused(OutputError, store):
        pack(store)
    said = told(store)
    monkeypatch.undo()
    if what == "what a run found so far":
        with Store(store) as there:
            assert there.trials(RUN.id).known == {"first": 1.0}
            there.trials(RUN.id).remove()
    pack(store)
    assert told(store) == said


@pytest.mark.parametrize("ended", [True, False])
def test_a_study_that_begins_when_tables_have_come_keeps_the_files_that_it_finds(
    store: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
):
    """It doesn't write a profile again that is there, and its run has it in no table."""
    later = replace(RECORD, run=replace(RUN, target="0.9"))
    begun: list[Store] = []
    remove = Store.remove_database

    def beginning(packing: Store, *counts: int) -> None:
        remove(packing, *counts)
        study = Store(store)
        study.add_record(later, {PROFILE: samples.PROFILE})
        begun.append(study)
        if ended:
            study.close()

    monkeypatch.setattr(Store, "remove_database", beginning)
    pack(store)
    (study,) = begun
    assert study.file(later.run.id, PROFILE) == samples.PROFILE
    study.close()
    monkeypatch.undo()
    pack(store)
    with Store(store, create=False) as there:
        assert there.file(later.run.id, PROFILE) == samples.PROFILE
        assert there.file(RUN.id, PROFILE) == samples.PROFILE
        digest = there.results(RUN.id).digests(RUN.id)[PROFILE]
        assert not there.blobs.path(digest).exists(), "tables have it"
    assert not (store / DATABASE).exists()


def test_it_is_a_data_set_for_the_hub(store: Path, tmp_path: Path):
    from datasets import load_dataset

    pack(store, tmp_path / "packed")
    counts = dict[str, int]()
    for name in ("runs", "matrices", "scores", "items", "cells"):
        place = str(tmp_path / "packed")
        counts[name] = len(load_dataset(place, name, split="train", cache_dir=str(tmp_path)))
    assert counts == {"runs": 2, "matrices": 4, "scores": 6, "items": 6, "cells": 1}
