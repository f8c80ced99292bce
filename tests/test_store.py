import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.durable import read_json, text_of_json
from calibrant.errors import DataError, OutputError
from calibrant.store import MARKER, Cell, Measurement, Outcome, Record, Run, Score, Store, measurement_id

RUN = Run(
    model="sha256:m",
    model_name="tiny",
    data="wikitext",
    tokens="sha256:t",
    method={"spec": "wanda", "revision": 1},
    target="0.5",
    allocation={"spec": "uniform", "revision": 1},
    propagate="dense",
    dtype="float32",
    seed=3,
)
RECORD = Record(
    RUN, 0.5, ({"name": "a", "shape": [2, 4], "sparsity": 0.5, "notes": {}},), ({"name": "head", "reason": "tied"},), {"tokens": 9}, {"seconds": 1.5}
)
SCORE = Score("wikitext:text", "loss", 3.25, 0.1, 2, "nats/token", "lower", facts={"tokens": 30, "perplexity": math.inf})
MEASURED = Measurement(SCORE, (Outcome("sha256:b", 40.1, 10.0), Outcome("sha256:a", 0.1 + 0.2, 20.0)), {"seconds": 2.0})
LOSS = {"spec": "loss", "revision": 1, "source": "wikitext"}


def visible(folder: Path) -> set[str]:
    """Every file of a store that isn't unfinished work."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".unfinished" not in p.parts}


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


def test_what_is_lacking_is_none(tmp_path: Path):
    with Store(tmp_path) as store:
        assert store.record(RUN.id) is None
        assert store.records() == []
        assert store.measurement(RUN.id, "sha256:0") is None
        assert store.measurements(RUN.id) == {}
        assert store.file(RUN.id, "mask.npz") is None
        assert store.cells() == []
        assert store.failures() == {}


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("model_name", "other name", True),
        ("data", "wikitext:text@many", True),
        ("seed", 4, True),
        ("model", "sha256:n", False),
        ("tokens", "sha256:u", False),
        ("method", {"spec": "wanda", "revision": 2}, False),
        ("target", "2:4", False),
        ("allocation", {"spec": "owl"}, False),
        ("propagate", "arrival", False),
        ("dtype", "bfloat16", False),
    ],
)
def test_labels_are_no_part_of_a_runs_identity_and_all_else_is(field: str, value: object, same: bool):
    assert (replace(RUN, **{field: value}).id == RUN.id) is same  # pyright: ignore[reportArgumentType]


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


def test_the_first_answer_stays(tmp_path: Path):
    with Store(tmp_path) as store:
        run_id = store.add_record(RECORD)
        store.add_record(replace(RECORD, sparsity=0.25))
        measure_id = store.add_measurement(run_id, LOSS, MEASURED)
        store.add_measurement(run_id, LOSS, replace(MEASURED, outcomes=()))
        assert store.record(run_id) == RECORD
        assert store.measurement(run_id, measure_id) == MEASURED


def test_files_beside_a_record(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_record(RECORD, {"mask.npz": b"\x00\xff"})
        assert store.file(RUN.id, "mask.npz") == b"\x00\xff"


def test_a_measurement_without_items(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        measure_id = store.add_measurement(RUN.id, LOSS, Measurement(replace(SCORE, stderr=None)))
        assert store.measurement(RUN.id, measure_id) == Measurement(replace(SCORE, stderr=None))


def test_what_was_measured_needs_a_record(tmp_path: Path):
    with Store(tmp_path) as store, pytest.raises(OutputError, match=RUN.id):
        store.add_measurement(RUN.id, LOSS, MEASURED)


def test_cells_keep_their_order_and_labels(tmp_path: Path):
    cells = [Cell("m", "b", "wanda", "0.5", 0, "sha256:1", {"z": "sha256:3", "a": "sha256:4"}), Cell("m", "a", "wanda", "0.5", 1, "")]
    with Store(tmp_path) as store:
        store.write_cells(cells)
        assert store.cells() == cells
        assert list(store.cells()[0].measures) == ["z", "a"]


def test_without_an_index_every_record_is_a_cell(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        measure_id = store.add_measurement(RUN.id, LOSS, MEASURED)
        assert store.cells() == [Cell("tiny", "wikitext", "wanda", "0.5", 3, RUN.id, {"loss(source='wikitext')": measure_id})]


def test_a_failure_is_kept_until_it_goes_well(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_failure(RUN.id, {"error": "first"})
        store.add_failure(RUN.id, {"error": "out of memory"})
        assert store.failures() == {RUN.id: {"id": RUN.id, "error": "out of memory"}}
        store.add_record(RECORD)
        assert store.failures() == {}


def test_merging_is_copying(tmp_path: Path):
    with Store(tmp_path / "a") as a, Store(tmp_path / "b") as b:
        a.add_record(RECORD)
        b.add_record(replace(RECORD, run=replace(RUN, target="0.6")))
    subprocess.run(["cp", "-rn", f"{tmp_path}/b/runs/.", f"{tmp_path}/a/runs"], check=True)
    assert {r.run.target for r in Store(tmp_path / "a", create=False).records()} == {"0.5", "0.6"}


# Folders that aren't ours


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=str(tmp_path)):
        Store(tmp_path)
    assert visible(tmp_path) == {"thesis.tex"}


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "report").write_text("x")
    with pytest.raises(OutputError, match="report"):
        Store(tmp_path / "report")


@pytest.mark.parametrize("there", [True, False])
def test_reading_makes_nothing(tmp_path: Path, there: bool):
    folder = tmp_path if there else tmp_path / "missing"
    with pytest.raises(OutputError, match=folder.name):
        Store(folder, create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_a_marker_is_known_by_its_study(tmp_path: Path):
    (tmp_path / "study.yaml").write_text("")
    (tmp_path / "runs").mkdir()
    assert Store(tmp_path).records() == []


def test_a_study_file_alone_makes_no_store(tmp_path: Path):
    (tmp_path / "study.yaml").write_text("")
    with pytest.raises(OutputError, match=str(tmp_path)):
        Store(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path):
    (tmp_path / MARKER).write_text('{"format": 99}')
    with pytest.raises(OutputError, match="99"):
        Store(tmp_path)


@pytest.mark.parametrize("name", ["record.json", "measures/*/score.json", "measures/*/items.parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str):
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        store.add_measurement(RUN.id, LOSS, MEASURED)
    damaged = next((tmp_path / "runs").glob(f"*/{name}"))
    damaged.write_bytes(damaged.read_bytes()[:20])
    store = Store(tmp_path, create=False)
    with pytest.raises(DataError, match=damaged.name):
        store.records() if name == "record.json" else store.measurements(RUN.id)


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    store = Store(tmp_path)
    monkeypatch.setattr(os, "rename", denied)
    with pytest.raises(OutputError, match="Permission denied"):
        store.add_record(RECORD)


# Full disks and kills


@pytest.mark.parametrize("at", range(6))
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int):
    store = Store(tmp_path)
    store.add_record(RECORD)
    before, calls, flush = visible(tmp_path), iter(range(100)), os.fsync

    def full(handle: int) -> None:
        if next(calls) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    measure_id = measurement_id(RUN.id, LOSS)
    try:
        store.add_measurement(RUN.id, LOSS, MEASURED)
    except OutputError as error:
        assert "the disk is full" in str(error)  # noqa: PT017
    else:
        assert at == 5
    # The flush after the rename may fail too: what appeared by then is whole.
    assert store.measurement(RUN.id, measure_id) in (None, MEASURED)
    assert visible(tmp_path) - before in (set(), {p for p in visible(tmp_path) if measure_id[7:] in p})
    assert len(list((tmp_path / ".unfinished").glob("*/*"))) == 1  # the writer's lock, and none of what it couldn't finish


CALLS = 23
"""File system calls between opening a new store and the last rename, each of which is survived."""


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


@pytest.mark.parametrize("at", range(CALLS + 1))
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


def test_opening_spares_the_work_of_another_living_writer(tmp_path: Path):
    with Store(tmp_path) as busy:
        with busy._appearing(tmp_path / "runs" / "x") as folder:  # pyright: ignore[reportPrivateUsage]
            (folder / "half").write_text("written")
            with Store(tmp_path) as other:
                other.add_record(RECORD)
            assert (folder / "half").read_text() == "written"
        assert (tmp_path / "runs" / "x" / "half").read_text() == "written"


def _adds(folder: Path, worker: int) -> None:
    with Store(folder) as store:
        for i in range(20):
            store.add_record(replace(RECORD, run=replace(RUN, target=f"0.{i:02}")))
            store.write_cells([Cell("m", "", "none", "0.0", worker, "")])


def test_two_writers_neither_lose_nor_spoil_anything(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_adds, args=(tmp_path / "s", n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = Store(tmp_path / "s")
    assert len(store.records()) == 20
    assert len(store.cells()) == 1


def test_a_closed_store_leaves_no_corner_behind(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_record(RECORD)
    assert visible(tmp_path) == {MARKER, *(f"runs/{RUN.id[7:]}/{n}" for n in ("record.json", "provenance.json"))}
    assert [p.name for p in (tmp_path / ".unfinished").iterdir()] == ["lock"]


def test_records_are_readable_by_others_as_far_as_the_user_lets_them(tmp_path: Path):
    before = os.umask(0o022)
    try:
        with Store(tmp_path / "s") as store:
            store.add_record(RECORD)
    finally:
        os.umask(before)
    assert (tmp_path / "s" / "runs" / RUN.id[7:]).stat().st_mode & 0o777 == 0o755


# Text


def test_json_brings_every_float_back(tmp_path: Path):
    value = {"a": [0.1 + 0.2, math.inf, -math.inf, 5e-324], "float": {"b": 1}, "z": None}
    (tmp_path / "x.json").write_text(text_of_json(value))
    assert read_json(tmp_path / "x.json") == value
    (tmp_path / "x.json").write_text(text_of_json([math.nan]))
    assert math.isnan(read_json(tmp_path / "x.json")[0])
    assert json.loads(text_of_json({"b": 1, "a": 2})) == {"a": 2, "b": 1}
    assert text_of_json({"b": 1, "a": 2}).index("a") < text_of_json({"b": 1, "a": 2}).index("b")


def test_the_same_record_is_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        with Store(tmp_path / name) as store:
            store.add_record(replace(RECORD, provenance={"seconds": name}))
            store.add_measurement(RUN.id, LOSS, replace(MEASURED, provenance={"seconds": name}))
    for file in sorted(visible(tmp_path / "a")):
        if Path(file).name != "provenance.json":
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
