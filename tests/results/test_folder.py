"""A store's folder: what is kept comes back, what isn't ours is left alone."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from calibrant.errors import OutputError
from calibrant.results import MASK, STUDY, Cell, Store, measurement_id, pack, revisions, verify
from calibrant.results.live import DATABASE
from calibrant.results.records import is_older

from tests.databases import change
from tests.refusing import refused
from tests.results import samples
from tests.results.conftest import LOST, MEASURE, files, filled, told
from tests.results.samples import (
    ALONE,
    LOSS,
    MEASURED,
    MEASUREMENTS,
    OTHER,
    OTHER_RUN,
    RECORD,
    RUN,
)

FORK = multiprocessing.get_context("fork")
NOBODY = 65534


def test_what_is_kept_comes_back_to_the_last_bit(store: Path):
    with Store(store, create=False) as again:
        kept = again.record(RUN.id)
        assert kept == RECORD
        assert kept is not None
        assert kept.provenance == RECORD.provenance
        assert again.record(RUN.id, whole=False) == replace(RECORD, weights=())
        assert again.file(RUN.id, MASK) == samples.MASK
        for evaluator, measured in MEASUREMENTS:
            found = again.measurement(RUN.id, measurement_id(RUN.id, evaluator))
            assert found is not None
            assert repr(found.outcomes) == repr(measured.outcomes), "NaN and the sign of zero too"
            assert repr(found.score.value) == repr(measured.score.value)
            assert (found.score.facts, found.beside) == (measured.score.facts, measured.beside)
            assert found.provenance == measured.provenance
        forms = {measurement_id(RUN.id, form): form for form, _ in MEASUREMENTS}
        assert again.evaluators(RUN.id) == forms
        assert again.scores(RUN.id)[MEASURE].score == MEASURED.score
        assert again.study_text() == "models: [tiny]\n"


def test_the_first_result_stays(tmp_path: Path):
    with Store(filled(tmp_path)) as store:
        store.add_record(replace(RECORD, sparsity=0.25), {MASK: b""})
        store.add_measurement(RUN.id, LOSS, ALONE)
        assert store.record(RUN.id) == RECORD
        assert store.file(RUN.id, MASK) == samples.MASK
        assert store.measurement(RUN.id, MEASURE) == MEASURED


def test_what_is_lacking_is_none(tmp_path: Path):
    with Store(tmp_path) as store:
        assert store.record(RUN.id) is None
        assert store.records() == []
        assert store.measurement(RUN.id, LOST) is None
        assert store.measurements(RUN.id) == {}
        assert store.file(RUN.id, MASK) is None
        assert store.cells() == []
        assert store.failures() == {}
        with refused(OutputError, RUN.id):
            store.add_measurement(RUN.id, LOSS, MEASURED)


def test_a_file_is_kept_once_however_many_runs_have_it(tmp_path: Path):
    with Store(tmp_path) as store:
        for target in ("0.5", "0.6", "0.7"):
            record = replace(RECORD, run=replace(RUN, target=target))
            store.add_record(record, {MASK: samples.MASK})
        assert store.bytes_of(MASK) == len(samples.MASK)
    assert len(list((tmp_path / "blobs").iterdir())) == 1


def test_a_deleted_mask_is_gone_and_a_damaged_one_is_written_again(tmp_path: Path):
    with Store(filled(tmp_path)) as store:
        (path,) = (tmp_path / "blobs").iterdir()
        path.write_bytes(b"harmed")
        assert store.state(RUN.id) is None
        store.put_back(RUN.id, {MASK: b"another"})
        assert store.state(RUN.id) is None
        store.put_back(RUN.id, {MASK: samples.MASK})
        assert store.state(RUN.id) == samples.MASK
        path.unlink()
        store.put_back(RUN.id, {MASK: samples.MASK})
        assert store.state(RUN.id) is None


# What a run and a measurement are called


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
        "revised": 1,
    }
    assert labels.keys() | deciding.keys() == vars(RUN).keys()
    ids = {RUN.id}
    for field, value in deciding.items():
        ids.add(replace(RUN, **{field: value}).id)  # pyright: ignore[reportArgumentType]
    assert len(ids) == len(deciding) + 1


def test_ids_are_the_same_in_another_process():
    call = f"Run(**{RUN.__dict__!r}).id, measurement_id({RUN.id!r}, {LOSS!r})"
    code = f"from calibrant.results import *; print({call})"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [RUN.id, MEASURE]


def test_measurement_ids_tell_runs_evaluators_and_data_apart():
    ids = {
        MEASURE,
        measurement_id("sha256:x", LOSS),
        measurement_id(RUN.id, {**LOSS, "tokens": 5}),
        measurement_id(RUN.id, LOSS, "sha256:d"),
    }
    assert len(ids) == 4


# The grid, and what is stale


def test_without_an_index_every_record_is_a_cell(tmp_path: Path):
    mine = {"spec": "mine", "class": "package:Mine", "revision": 1, "source": "wikitext"}
    with Store(filled(tmp_path)) as store:
        measured = store.add_measurement(RUN.id, mine, MEASURED)
        texts = {"loss(source='wikitext')": MEASURE, "mine(source='wikitext')": measured}
        expected = Cell("tiny", "wikitext", "wanda", "0.5", 3, RUN.id, texts, "dense")
        assert store.cells() == [expected], "as they are typed"


def test_of_results_that_differ_in_a_revision_cells_without_an_index_hold_the_newest(
    tmp_path: Path,
):
    newer = replace(RUN, method={"spec": "wanda", "revision": 2})
    other = replace(RUN, dtype="bfloat16")
    revised = replace(other, revised=1)
    with Store(tmp_path) as store:
        for run in (newer, RUN, revised, other):
            store.add_record(replace(RECORD, run=run))
        for revision in (10, 9):
            store.add_measurement(newer.id, {**LOSS, "revision": revision}, MEASURED)
        store.add_measurement(newer.id, {**LOSS, "tokens": 5}, MEASURED)
        cells = {cell.run: cell for cell in store.cells()}
    assert cells.keys() == {newer.id, revised.id}
    assert cells[newer.id].measures == {
        "loss(source='wikitext')": measurement_id(newer.id, {**LOSS, "revision": 10}),
        "loss(source='wikitext', tokens=5)": measurement_id(newer.id, {**LOSS, "tokens": 5}),
    }


def test_what_an_older_revision_had_a_part_in_is_older():
    pruned = {"spec": "dsnot", "revision": 1, "start": {"spec": "wanda", "revision": 1}}
    own = revisions("method", pruned)
    assert own == {"method dsnot": 1, "method wanda": 1}
    assert not is_older(own, {})
    assert not is_older(own, {"method wanda": 1, "evaluator loss": 2})
    assert is_older(own, {"method wanda": 2, "method unheard_of": 9})
    assert not is_older({"method wanda": 2}, {"method wanda": 2})


def test_a_failure_is_kept_until_it_goes_well(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_failure(RUN.id, {"error": "first"})
        store.add_failure(RUN.id, {"error": "out of memory"})
        expected = {"id": RUN.id, "error": "out of memory"}
        assert store.failures() == {RUN.id: expected}
        assert store.failure(RUN.id) == expected
        assert store.failure(LOST) is None
        store.add_record(RECORD)
        assert store.failures() == {}


# Folders that aren't ours, and those that can't be written


def test_a_published_failure_of_what_is_there_by_now_stays_forgotten(tmp_path: Path):
    with Store(filled(tmp_path)) as store:
        for name in (OTHER_RUN.id, measurement_id(OTHER_RUN.id, LOSS)):
            store.add_failure(name, {"error": "lost"})
    pack(tmp_path)
    with Store(tmp_path) as store:
        store.clear_failure(OTHER_RUN.id)
        store.add_record(OTHER)
        store.add_measurement(OTHER_RUN.id, LOSS, MEASURED)
        assert store.failures() == {}
        assert store.failure(OTHER_RUN.id) is None
    assert verify(tmp_path) == []


@pytest.mark.parametrize(
    "theirs",
    [
        "thesis.tex",
        "study.yaml",
        "statistics/report.csv/x",
        f"statistics/{'a' * 63}/x",
        f"statistics/{'a' * 64}.txt/x",
    ],
)
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, theirs: str):
    folder = tmp_path / "store"
    (folder / theirs).parent.mkdir(parents=True)
    (folder / theirs).write_text("x")
    with refused(OutputError, folder):
        Store(folder)
    assert set(files(tmp_path)) == {f"store/{theirs}"}


def test_a_folder_that_holds_statistics_alone_is_ours(tmp_path: Path):
    for name in ("a" * 64, "b" * 64 + "-piece-03"):
        (tmp_path / "statistics" / name).mkdir(parents=True)
    with Store(tmp_path) as store:
        assert store.cells() == []


@pytest.mark.parametrize("name", ["report", "missing", "."])
def test_reading_makes_nothing(tmp_path: Path, name: str):
    (tmp_path / "report").write_text("x")
    with refused(OutputError, tmp_path / name):
        Store(tmp_path / name, create=False)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.skipif(os.name != "posix", reason="links need a right elsewhere")
@pytest.mark.parametrize("target", ["store", "gone"], ids=["to itself", "to nothing"])
def test_a_link_to_nothing_is_no_folder(tmp_path: Path, target: str):
    (tmp_path / "store").symlink_to(target)
    with pytest.raises(OutputError, match="is a link to what isn't there; name another folder"):
        Store(tmp_path / "store")


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "report").write_text("x")
    with refused(OutputError, tmp_path / "report"):
        Store(tmp_path / "report")


def test_a_newer_format_is_refused(store: Path):
    change(store / DATABASE, "PRAGMA user_version = 99")
    before = files(store)
    for create in (False, True):
        with refused(OutputError, store):
            Store(store, create)
    assert files(store) == before


@pytest.mark.parametrize("names", [["calibrant-store.json"], [STUDY, "runs/x"]])
def test_an_older_format_is_refused(tmp_path: Path, names: list[str]):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for create in (False, True):
        with refused(OutputError, tmp_path):
            Store(tmp_path, create)


def test_a_network_file_system_is_refused_for_writing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = SimpleNamespace(mountpoint="/", fstype="ext4")
    far = SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")
    before = told(store)
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [far, root])
    for folder in (store, tmp_path / "new"):
        with refused(OutputError, folder):
            Store(folder)
    assert not (tmp_path / "new").exists()
    assert told(store) == before, "reading does no harm"
    near = SimpleNamespace(mountpoint=str(store), fstype="ext4")
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [root, far, near])
    Store(store).close()


def test_a_link_to_a_network_file_system_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    far = SimpleNamespace(mountpoint=str(tmp_path / "far"), fstype="nfs4")
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [far])
    with refused(OutputError, tmp_path / "near"):
        Store(tmp_path / "near")


def test_a_folder_of_ones_own_beside_results_makes_them_no_older(store: Path):
    said = told(store)
    (store / "runs").mkdir()
    assert told(store) == said
    pack(store)
    assert told(store) == said


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuses(_: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuses)
    with refused(OutputError, tmp_path):
        Store(tmp_path)


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="Windows doesn't tell it")
def test_a_store_on_a_mount_that_can_only_be_read_is_told_as_such(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    def unable(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", unable)
    with pytest.raises(OutputError, match="is it yours to write to"):
        Store(store)
    disk = os.statvfs(store)
    room = {name: getattr(disk, name) for name in ("f_bavail", "f_bfree", "f_blocks", "f_frsize")}
    mount = SimpleNamespace(**room, f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _: mount)
    with pytest.raises(OutputError, match="what is mounted there can only be read"):
        Store(store)


def test_reading_changes_nothing(store: Path):
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in store.rglob("*")}

    before = times()
    told(store)
    assert times() == before


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def _reads_as_nobody(folder: Path, expected: list[str]) -> None:
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    assert not os.access(folder, os.W_OK)
    assert told(folder) == expected
    with pytest.raises(OutputError):
        Store(folder).add_record(replace(RECORD, run=replace(RUN, target="0.9")))


@pytest.mark.parametrize("writer_was_killed", [False, True])
def test_a_folder_that_may_not_be_written_is_read(public: Path, writer_was_killed: bool):
    store = public / "store"
    if writer_was_killed:
        child = FORK.Process(target=_fills_and_dies, args=(store,))
        child.start()
        child.join()
        beside = store / f"{DATABASE}-wal"
        assert beside.stat().st_size > 0, "what was written last stands beside the database"
    else:
        filled(store)
    expected = told(filled(public / "expected"))
    for path in (*store.rglob("*"), store):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = files(store)
    reader = FORK.Process(target=_reads_as_nobody, args=(store, expected))
    reader.start()
    reader.join()
    assert reader.exitcode == 0
    assert files(store) == before
    store.chmod(0o755)
    (store / "blobs").chmod(0o755)


def _fills_and_dies(folder: Path) -> None:
    store = Store(folder)
    store.add_record(RECORD, {MASK: samples.MASK})
    store.add_measurement(RUN.id, LOSS, MEASURED)
    os.kill(os.getpid(), signal.SIGKILL)
