"""A store's folder: what is kept comes back, what isn't ours is left alone, what is damaged is named, and a kill loses nothing."""

import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from calibrant.errors import DataError, OutputError
from calibrant.spec import identity
from calibrant.store import MARKER, Cell, Measurement, Store, measurement_id, revisions, verify

from tests.refusing import refused
from tests.store.conftest import LOSS, MEASURED, RECORD, RUN, SCORE, as_format_1, filled, results, visible


def test_what_is_kept_comes_back_to_the_last_bit(tmp_path: Path):
    with Store(tmp_path / "s") as store:
        run_id = store.add_record(RECORD)
        measure_id = store.add_measurement(run_id, LOSS, MEASURED)
    again = Store(tmp_path / "s", create=False)
    kept = again.record(run_id)
    assert kept == RECORD
    assert kept is not None
    assert kept.provenance == {"seconds": 1.5}
    assert again.records() == [RECORD]
    found = again.measurement(run_id, measure_id)
    assert found == MEASURED
    assert found is not None
    assert found.provenance == {"seconds": 2.0}
    assert again.measurements(run_id) == {measure_id: MEASURED}
    assert again.evaluators(run_id) == {measure_id: LOSS}


def test_the_first_answer_stays(tmp_path: Path):
    with Store(tmp_path) as store:
        run_id = store.add_record(RECORD, {"mask.npz": b"\x00\xff"})
        store.add_record(replace(RECORD, sparsity=0.25), {"mask.npz": b""})
        measure_id = store.add_measurement(run_id, LOSS, MEASURED)
        store.add_measurement(run_id, LOSS, replace(MEASURED, outcomes=()))
        assert store.record(run_id) == RECORD
        assert store.file(run_id, "mask.npz") == b"\x00\xff"
        assert store.measurement(run_id, measure_id) == MEASURED
        alone = Measurement(replace(SCORE, stderr=None))
        assert store.measurement(run_id, store.add_measurement(run_id, {**LOSS, "tokens": 5}, alone)) == alone, "without items"


def test_what_is_lacking_is_none(tmp_path: Path):
    with Store(tmp_path) as store:
        assert store.record(RUN.id) is None
        assert store.records() == []
        assert store.measurement(RUN.id, "sha256:0") is None
        assert store.measurements(RUN.id) == {}
        assert store.file(RUN.id, "mask.npz") is None
        assert store.cells() == []
        assert store.failures() == {}
        with pytest.raises(OutputError) as raised:
            store.add_measurement(RUN.id, LOSS, MEASURED)
        assert raised.value.subject == RUN.id


def test_labels_are_no_part_of_a_runs_identity_and_all_else_is():
    labels = {"model_name": "other name", "data": "wikitext:text@many", "seed": 4}
    for field, value in labels.items():
        assert replace(RUN, **{field: value}).id == RUN.id, field  # pyright: ignore[reportArgumentType]
    deciding = {
        "model": "sha256:n",
        "tokens": "sha256:u",
        "method": {"spec": "wanda", "revision": 2},
        "target": "2:4",
        "allocation": {"spec": "owl"},
        "propagate": "arrival",
        "dtype": "bfloat16",
        "transforms": ({"spec": "rotate"},),
        "starved": "dense",
    }
    assert labels.keys() | deciding.keys() == vars(RUN).keys()
    ids = {replace(RUN, **{field: value}).id for field, value in deciding.items()}  # pyright: ignore[reportArgumentType]
    assert len(ids | {RUN.id}) == len(deciding) + 1


def test_ids_are_the_same_in_another_process(tmp_path: Path):
    code = f"from calibrant.store import *; print(Run(**{RUN.__dict__!r}).id, measurement_id({RUN.id!r}, {LOSS!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}).stdout
    assert out.split() == [RUN.id, measurement_id(RUN.id, LOSS)]


def test_measurement_ids_tell_runs_evaluators_and_data_apart():
    ids = {
        measurement_id(RUN.id, LOSS),
        measurement_id("sha256:x", LOSS),
        measurement_id(RUN.id, {**LOSS, "tokens": 5}),
        measurement_id(RUN.id, LOSS, "sha256:d"),
    }
    assert len(ids) == 4


def test_without_an_index_every_record_is_a_cell(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        loss = store.add_measurement(RUN.id, LOSS, MEASURED)
        mine = store.add_measurement(RUN.id, {"spec": "mine", "class": "package:Mine", "revision": 1, "source": "wikitext"}, MEASURED)
        measures = {"loss(source='wikitext')": loss, "mine(source='wikitext')": mine}
        assert store.cells() == [Cell("tiny", "wikitext", "wanda", "0.5", 3, RUN.id, measures, "dense")], "as they are typed"


def test_of_answers_that_differ_in_a_revision_cells_without_an_index_hold_the_newest(tmp_path: Path):
    newer = replace(RUN, method={"spec": "wanda", "revision": 2})
    with Store(tmp_path) as store:
        for run in (newer, RUN, replace(RUN, dtype="bfloat16")):
            store.add_record(replace(RECORD, run=run))
        for revision in (10, 9):
            store.add_measurement(newer.id, {**LOSS, "revision": revision}, MEASURED)
        store.add_measurement(newer.id, {**LOSS, "tokens": 5}, MEASURED)
        cells = {cell.run: cell for cell in store.cells()}
    assert cells.keys() == {newer.id, replace(RUN, dtype="bfloat16").id}
    assert cells[newer.id].measures == {
        "loss(source='wikitext')": measurement_id(newer.id, {**LOSS, "revision": 10}),
        "loss(source='wikitext', tokens=5)": measurement_id(newer.id, {**LOSS, "tokens": 5}),
    }


def test_what_an_older_revision_had_a_part_in_is_stale_and_stays(tmp_path: Path):
    pruned = {"spec": "dsnot", "revision": 1, "start": {"spec": "wanda", "revision": 1}}
    assert revisions("method", pruned) == {"method dsnot": 1, "method wanda": 1}
    nested, newer = replace(RUN, method=pruned), replace(RUN, method={"spec": "wanda", "revision": 2})
    with Store(tmp_path) as store:
        for run in (RUN, nested, newer):
            store.add_record(replace(RECORD, run=run))
        old = store.add_measurement(newer.id, LOSS, MEASURED)
        new = store.add_measurement(newer.id, {**LOSS, "revision": 2}, MEASURED)
        assert store.stale() == set()
        store.write_cells([], revisions={"method wanda": 1, "evaluator loss": 1})
        assert store.stale() == set()
        store.write_cells([], revisions={"method wanda": 2, "evaluator loss": 2, "method unheard_of": 9})
        assert store.stale() == {RUN.id, nested.id, old}
        assert store.stale([replace(RECORD, run=newer)]) == {old}
        store.write_cells([], revisions={"allocation uniform": 2})
        assert store.stale() == {RUN.id, nested.id, newer.id}
        assert store.measured(newer.id) == {old, new}


def test_a_store_of_format_1_is_read_and_written_on(tmp_path: Path):
    as_format_1(filled(tmp_path))
    assert Store(tmp_path, create=False).records() == [RECORD]
    assert Store(tmp_path, create=False).records(whole=False) == [replace(RECORD, weights=())]
    assert json.loads((tmp_path / MARKER).read_text())["format"] == 1, "reading changes nothing"
    other = replace(RECORD, run=replace(RUN, target="0.7"))
    with Store(tmp_path) as store:
        store.add_record(other)
    assert json.loads((tmp_path / MARKER).read_text())["format"] == 2
    assert sorted(store.records(), key=lambda record: record.run.target) == [RECORD, other]
    assert verify(tmp_path) == []


def test_a_failure_is_kept_until_it_goes_well(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_failure(RUN.id, {"error": "first"})
        store.add_failure(RUN.id, {"error": "out of memory"})
        assert store.failures() == {RUN.id: {"id": RUN.id, "error": "out of memory"}}
        assert (store.failure(RUN.id), store.failure("sha256:0")) == ({"id": RUN.id, "error": "out of memory"}, None)
        store.add_record(RECORD)
        assert store.failures() == {}


# Folders that aren't ours


@pytest.mark.parametrize(
    "theirs", ["thesis.tex", "study.yaml", "statistics/report.csv/x", f"statistics/{'a' * 63}/x", f"statistics/{'a' * 64}.txt/x"]
)
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, theirs: str):
    (tmp_path / "s" / theirs).parent.mkdir(parents=True)
    (tmp_path / "s" / theirs).write_text("x")
    with pytest.raises(OutputError) as raised:
        Store(tmp_path / "s")
    assert raised.value.subject == str(tmp_path / "s")
    assert set(visible(tmp_path)) == {f"s/{theirs}"}


def test_an_unmarked_folder_of_ours_is_opened(tmp_path: Path):
    for name in ("a" * 64, "b" * 64 + "-piece-03"):
        (tmp_path / "statistics" / name).mkdir(parents=True)
    assert Store(tmp_path).cells() == []
    (tmp_path / "of a study" / "runs").mkdir(parents=True)
    (tmp_path / "of a study" / "study.yaml").write_text("")
    assert Store(tmp_path / "of a study").records() == []


@pytest.mark.parametrize("name", ["report", "missing", "."])
def test_reading_makes_nothing(tmp_path: Path, name: str):
    (tmp_path / "report").write_text("x")
    with pytest.raises(OutputError) as raised:
        Store(tmp_path / name, create=False)
    assert raised.value.subject == str(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_file_is_no_folder_and_a_newer_format_is_refused(tmp_path: Path):
    (tmp_path / "report").write_text("x")
    with refused(OutputError, str(tmp_path / "report")):
        Store(tmp_path / "report")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / MARKER).write_text('{"format": 99}')
    with refused(OutputError, str(tmp_path / "newer")):
        Store(tmp_path / "newer")


WEIGHTS, ITEMS, MASK = "runs/*/weights.json.gz", "runs/*/measures/*/items.parquet", "runs/*/mask.npz"
RECORDED, SCORED = "runs/*/record.json", "runs/*/measures/*/score.json"
HARMS: list[tuple[str, str]] = [
    (MARKER, "[]"),
    ("index.json", '{"cells": [], "study": {"pools": {"a": ["b", 3]}}}'),
    ("index.json", '{"cells": [{"run": "../../other"}]}'),
    ("index.json", '{"cells": [{"seed": 1.5}]}'),
    ("index.json", '{"a": ' + "[" * 70 + "]" * 70 + "}"),
    ("index.json", '{"revisions": {"method wanda": ' + "9" * 5000 + "}}"),
    ("index.json", '{"what": "\\ud800"}'),
    ("index.json", '{"what": NaN}'),
    ("index.json", '{"what": {"float": []}}'),
    (RECORDED, '{"run": {}}'),
    (RECORDED, '{"run": {"method": ["wanda"]}}'),
    (RECORDED, '{"data_facts": {"parts": [{"rows": -1}]}}'),
    (WEIGHTS, "no gzip"),
    (SCORED, '{"score": {"value": "high"}}'),
    ("runs/*/measures/*/provenance.json", '{"seconds": "long"}'),
    (ITEMS, "PAR1"),
    *product(("index.json", RECORDED, WEIGHTS, ITEMS, MASK), ("a fifo", "a device")),
]


def _read_everything(folder: Path) -> None:
    store = Store(folder, create=False)
    store.cells()
    store.study()
    store.records(whole=False)
    store.records()
    store.scores(RUN.id)
    store.evaluators(RUN.id)
    store.measurements(RUN.id)
    store.file(RUN.id, "mask.npz")


@pytest.mark.parametrize(("name", "content"), HARMS, ids=lambda text: text[:40])
def test_what_is_damaged_is_named_stays_and_is_not_waited_for(tmp_path: Path, name: str, content: str):
    filled(tmp_path).write_text("index.json", '{"cells": []}')
    path = next(tmp_path.glob(name))
    path.unlink()
    match content:
        case "a fifo":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case _:
            path.write_text(content)
    before = path.lstat().st_mtime_ns
    with pytest.raises(DataError) as raised:
        _read_everything(tmp_path)
    assert raised.value.subject == str(path)
    assert path.lstat().st_mtime_ns == before


def test_what_unpacks_to_more_than_any_record_is_refused(tmp_path: Path):
    store = filled(tmp_path)
    path = next(tmp_path.glob("runs/*/weights.json.gz"))
    path.write_bytes(gzip.compress(b"[" + b"0," * 2**25, compresslevel=1))
    (path.parent / "sums.json").unlink()
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError) as raised:
        store.records()
    assert raised.value.subject == str(path)


def test_a_run_that_has_lost_its_record_gets_it_back_and_keeps_its_measurements(tmp_path: Path):
    store = filled(tmp_path)
    before = results(tmp_path)
    for name in ("record.json", "weights.json.gz", "mask.npz"):
        (store.run_folder(RUN.id) / name).unlink()
    assert (store.has_record(RUN.id), store.ids()) == (False, [])
    with Store(tmp_path) as writer:
        with pytest.raises(OutputError):
            writer.add_measurement(RUN.id, LOSS, MEASURED)
        writer.add_record(RECORD, {"mask.npz": b"\x00\xff"})
    assert results(tmp_path) == before
    assert verify(tmp_path) == []


def test_a_staging_folder_is_gone_when_the_store_is_closed(tmp_path: Path):
    with Store(tmp_path) as store:
        own = store.staging_folder()
        assert own == store.staging_folder()
        (own / "tokens").write_text("1 2 3")
        Store(tmp_path)
        assert (own / "tokens").exists(), "another writer spares it"
    assert not own.exists()
    assert [p.name for p in (tmp_path / ".unfinished").iterdir()] == ["lock"]


# Kills, two writers, forks


CALLS = 25
"""Calls between the opening of a new store and its last rename; a kill at each of them is survived."""


def _dies(folder: Path, at: int) -> None:
    """Add a measurement and be killed at the `at`-th file system call that makes something durable or visible."""
    calls = iter(range(100))

    def deadly(call):
        def made(*args: object, **kwargs: object) -> object:
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return made

    for name in ("fsync", "rename", "replace", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    store = Store(folder)
    store.add_record(RECORD)
    store.add_measurement(RUN.id, LOSS, MEASURED)
    os._exit(0)


@pytest.mark.parametrize("at", [0, 6, 12, 18, CALLS, *(pytest.param(at, marks=pytest.mark.slow) for at in range(CALLS) if at % 6)])
def test_a_kill_leaves_all_or_nothing_and_the_next_opening_cleans_up(tmp_path: Path, at: int):
    folder = tmp_path / "s"
    child = multiprocessing.get_context("fork").Process(target=_dies, args=(folder, at))
    child.start()
    child.join()
    assert child.exitcode == (-signal.SIGKILL if at < CALLS else 0), "CALLS is no longer how many such calls there are"
    with Store(folder) as store:
        assert store.record(RUN.id) in (None, RECORD)
        assert store.measurement(RUN.id, measurement_id(RUN.id, LOSS)) in (None, MEASURED)
        store.add_record(RECORD)
        store.add_measurement(RUN.id, LOSS, MEASURED)
        assert store.measurement(RUN.id, measurement_id(RUN.id, LOSS)) == MEASURED
    assert [p.name for p in (folder / ".unfinished").iterdir()] == ["lock"]


def _adds(folder: Path, worker: int, start: Any) -> None:
    start.wait()
    with Store(folder) as store:
        for n in range(10):
            for target in (f"0.{n:02}", f"0.{n:02}{worker}"):
                run_id = store.add_record(replace(RECORD, run=replace(RUN, target=target), provenance={"worker": worker}))
                store.add_measurement(run_id, LOSS, replace(MEASURED, provenance={"worker": worker}))
            store.add_failure(identity(n), {"error": "lost"})
            store.clear_failure(identity(n))
            store.write_cells([Cell("m", "", "none", "0.0", worker, "")])


def test_two_writers_neither_lose_nor_spoil_anything(tmp_path: Path):
    """They write the same ten runs and ten of their own each, at once; what is there is what one writer would have written."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [context.Process(target=_adds, args=(tmp_path / "s", n, start)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert verify(tmp_path / "s") == []
    assert len(Store(tmp_path / "s", create=False).records()) == 30
    for n in range(2):
        _adds(tmp_path / "alone", n, threading.Barrier(1))
    (tmp_path / "alone" / "index.json").write_bytes((tmp_path / "s" / "index.json").read_bytes())  # whoever came last
    assert results(tmp_path / "s") == results(tmp_path / "alone")
    assert [p.name for p in (tmp_path / "s" / ".unfinished").iterdir()] == ["lock"]


def _forks(folder: Path) -> None:
    with Store(folder) as store:
        store.add_record(RECORD)
        own = store.staging_folder()
        child = os.fork()
        if not child:
            assert store.staging_folder() != own
            store.add_measurement(RUN.id, LOSS, MEASURED)
            sys.exit(0)  # unlike os._exit, with everything that a process does at its end
        assert os.waitpid(child, 0)[1] == 0
        store.add_record(replace(RECORD, run=replace(RUN, target="0.6")))


def test_a_forked_child_is_a_writer_of_its_own(tmp_path: Path):
    worker = multiprocessing.get_context("fork").Process(target=_forks, args=(tmp_path / "s",))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert len(Store(tmp_path / "s", create=False).records()) == 2
    assert verify(tmp_path / "s") == []


# Bytes


def test_the_same_record_is_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        with Store(tmp_path / name) as store:
            store.add_record(replace(RECORD, provenance={"seconds": name}))
            store.add_measurement(RUN.id, LOSS, replace(MEASURED, provenance={"seconds": name}))
    assert results(tmp_path / "a") == results(tmp_path / "b")
