"""Whatever is spoiled in a store is found, named, and answered with what to do; what is whole is left in peace."""

import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.errors import OutputError
from calibrant.outcomes import write_items
from calibrant.spec import identity
from calibrant.store import Audit, Cell, Measurement, Store, audit, measurement_id, verify

from tests.store.conftest import LOSS, MEASURED, RECORD, RUN, SCORE, filled, visible

PROJECT = Path(__file__).parents[2]
MEASURE = measurement_id(RUN.id, LOSS)
CELL = Cell("tiny", "wikitext", "wanda", "0.5", 3, RUN.id, {"loss(source='wikitext')": MEASURE}, "dense")
RECORDED, SCORED, ITEMS = "runs/*/record.json", "runs/*/measures/*/score.json", "runs/*/measures/*/items.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    filled(tmp_path).write_text("study.yaml", "")
    store = Store(tmp_path)
    store.write_cells([CELL], {"baseline": None})
    store.close()
    return Store(tmp_path, create=False)


def the(store: Store, pattern: str) -> Path:
    (path,) = store.folder.glob(pattern)
    return path


def without_sums(store: Store) -> None:
    """As in a store from before there were sums, and seals."""
    for path in store.folder.rglob("sums.json"):
        path.unlink()
    for path in store.folder.rglob("provenance.json"):
        path.write_text('{"seconds": 2.0}')


def edited(path: Path, change: Callable[[Any], None]) -> None:
    kept = json.loads(path.read_text())
    change(kept)
    path.write_text(json.dumps(kept))


def test_a_whole_store_is_counted_and_not_touched(store: Store):
    before = {p: p.stat().st_mtime_ns for p in store.folder.rglob("*")}
    assert audit(store.folder) == Audit(str(store.folder), 1, 1, 0, ())
    assert {p: p.stat().st_mtime_ns for p in before if p.exists()} == before
    without_sums(store)
    assert audit(store.folder) == Audit(str(store.folder), 1, 1, 2, ())


def test_a_store_from_before_there_were_sums_is_whole():
    folder = "packing/equal"
    before = visible(PROJECT / "studies" / folder)
    found = audit(PROJECT / "studies" / folder)
    assert found.problems == ()
    assert found.without_sums == found.runs + found.measurements
    assert found.runs >= 8
    assert visible(PROJECT / "studies" / folder) == before


@pytest.mark.parametrize("pattern", [RECORDED, "runs/*/mask.npz", SCORED, ITEMS])
def test_one_bit_anywhere_is_found(store: Store, pattern: str):
    path = the(store, pattern)
    for at in range(0, path.stat().st_size, max(1, path.stat().st_size // 8)):
        content = bytearray(whole := path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)
        (problem,) = verify(store.folder)
        assert problem.where == str(path.relative_to(store.folder))
        path.write_bytes(whole)
    assert verify(store.folder) == []


@pytest.mark.parametrize("pattern", [RECORDED, "runs/*/mask.npz", SCORED, ITEMS, "runs/*/sums.json", "runs/*/measures/*/sums.json"])
def test_what_was_cut_short_or_is_gone_is_found(store: Store, pattern: str):
    path = the(store, pattern)
    whole = path.read_bytes()
    for spoiled in (b"", whole[: len(whole) // 2], b"\xff\xfe"):
        path.write_bytes(spoiled)
        assert {problem.where for problem in verify(store.folder)} == {str(path.relative_to(store.folder))}
    path.unlink()
    problems = verify(store.folder)
    if path.name == "sums.json":  # the seal of the provenance says that there were sums
        assert {problem.where for problem in problems} == {str(path.relative_to(store.folder))}
        assert audit(store.folder).without_sums == 1
    elif path.name == "mask.npz":
        assert problems == []  # deleted to save room: the weights can be pruned again
    elif path.name == "record.json":
        assert {problem.where for problem in problems} == {f"runs/{RUN.id[7:]}", "index.json"}
    else:
        assert [problem.where for problem in problems] == [str(path.relative_to(store.folder))]


@pytest.mark.parametrize("pattern", [RECORDED, SCORED, ITEMS, "runs/*/provenance.json", "runs/*/measures/*/provenance.json", "index.json"])
def test_without_sums_what_cannot_be_read_is_found(store: Store, pattern: str):
    without_sums(store)
    path = the(store, pattern)
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = verify(store.folder)
    assert problem.where == str(path.relative_to(store.folder))


@pytest.mark.parametrize(
    ("pattern", "change", "named"),
    [
        (RECORDED, lambda kept: kept["run"].update(target="0.6"), "sha256:"),
        (RECORDED, lambda kept: kept["run"].update(extra=1), "extra"),
        (SCORED, lambda kept: kept["evaluator"].update(tokens=5), "sha256:"),
        (SCORED, lambda kept: kept.update(run="sha256:1"), "sha256:1"),
        (SCORED, lambda kept: kept["score"].update(value=3.25), "1.3466"),
        (SCORED, lambda kept: kept["score"].update(n=3), "3"),
        (SCORED, lambda kept: kept["score"]["facts"].update(items="sha256:2"), "sha256:2"),
        (SCORED, lambda kept: kept.pop("data"), "data"),
    ],
)
def test_what_contradicts_itself_is_found_without_sums(store: Store, pattern: str, change: Callable[[Any], None], named: str):
    without_sums(store)
    edited(the(store, pattern), change)
    (problem,) = verify(store.folder)
    assert named in problem.what


def test_items_of_another_measurement_are_found(store: Store):
    without_sums(store)
    write_items(the(store, ITEMS), [replace(MEASURED.outcomes[0], value=40.0), MEASURED.outcomes[1]])
    (problem,) = verify(store.folder)
    assert "1.343" in problem.what
    pq.write_table(pa.table({"item": ["a"]}), the(store, ITEMS))
    (problem,) = verify(store.folder)
    assert problem.where == str(the(store, ITEMS).relative_to(store.folder))


def test_the_items_are_those_that_the_score_tells(tmp_path: Path):
    items = [["sha256:b", 10.0], ["sha256:a", 20.0]]
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        for n, told in enumerate((identity(items), identity([name for name, _ in items]), identity("others"))):
            store.add_measurement(RUN.id, {**LOSS, "tokens": n}, replace(MEASURED, score=replace(SCORE, facts={"items": told})))
    (problem,) = verify(tmp_path)
    assert identity("others") in problem.what


def test_scores_without_items_and_scores_that_are_no_number_are_whole(tmp_path: Path):
    nothing = replace(SCORE, value=math.nan)
    with Store(tmp_path) as store:
        store.add_record(RECORD)
        store.add_measurement(RUN.id, LOSS, Measurement(SCORE))
        outcomes = tuple(replace(o, value=math.nan) for o in MEASURED.outcomes)
        store.add_measurement(RUN.id, {**LOSS, "tokens": 1}, Measurement(nothing, outcomes))
        store.add_measurement(RUN.id, LOSS, replace(MEASURED, score=SCORE), data="sha256:d")
    assert verify(tmp_path) == []


def test_a_folder_that_was_renamed_is_found(store: Store):
    without_sums(store)
    the(store, "runs/*/measures/*").rename(the(store, "runs/*/measures") / ("0" * 64))
    the(store, "runs/*").rename(store.folder / "runs" / ("1" * 64))
    assert {p.where.split("/")[-1] for p in verify(store.folder)} == {"record.json", "score.json", "index.json"}


def test_what_lies_among_results_and_is_none_is_found_but_for_hidden_files(store: Store):
    run = store.run_folder(RUN.id)
    for path in (run / "notes.txt", run / "measures" / "x.csv", store.folder / "runs" / "readme"):
        path.write_text("mine")
    for path in (run / ".DS_Store", run / "measures" / ".DS_Store", store.folder / "runs" / ".DS_Store"):
        path.write_text("the system's")
    (store.folder / "statistics").mkdir()
    (store.folder / "report.html").write_text("")
    assert sorted(Path(p.where).name for p in verify(store.folder)) == ["notes.txt", "readme", "x.csv"]
    assert Store(store.folder, create=False).measured(RUN.id) >= {MEASURE}


def test_cells_that_point_nowhere_are_found_unless_something_failed(store: Store):
    other = replace(CELL, run="sha256:1", measures={"loss": "sha256:2"}, data="pile")
    with Store(store.folder) as writer:
        writer.write_cells([CELL, replace(CELL, measures={**CELL.measures, "task": "sha256:3"}), other, replace(other, run="", measures={})])
        first, second = verify(store.folder)
        assert "sha256:3" in first.what
        assert "sha256:1" in second.what
        writer.add_failure("sha256:1", {"error": "out of memory"})
        writer.add_failure("sha256:3", {"error": "out of memory"})
        assert verify(store.folder) == []


def test_failures_that_are_damaged_or_outdated_are_found(store: Store):
    with Store(store.folder) as writer:
        writer.add_failure(RUN.id, {"error": "lost"})
        writer.add_failure("sha256:1", {"error": "lost"})
        writer.add_failure("sha256:2", {"error": "lost"})
    (store.folder / "failures/1.json").write_text("{")
    (store.folder / "failures/2.json").rename(store.folder / "failures/3.json")
    assert {Path(p.where).stem for p in verify(store.folder)} == {"1", "3", RUN.id[7:]}


def _dies_at_work(folder: Path) -> None:
    store = Store(folder)
    (store.staging_folder() / "half").write_text("written")
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_the_killed_leave_is_found_and_what_the_living_do_is_not(store: Store):
    with Store(store.folder) as living:
        living.staging_folder()
        living.journal(RUN.id, {**LOSS, "tokens": 7}).add({"a": 1})
        with living.claim("something", wait=True):
            assert verify(store.folder) == []
        living.journal(RUN.id, LOSS).add({"a": 1})
        (problem,) = verify(store.folder)
        assert problem.where == f".journals/{MEASURE[7:]}.jsonl"
        living.journal(RUN.id, LOSS).remove()
        dead = multiprocessing.get_context("fork").Process(target=_dies_at_work, args=(store.folder,))
        dead.start()
        dead.join()
        (problem,) = verify(store.folder)
        assert problem.where.startswith(".unfinished/")
        Store(store.folder)
        assert verify(store.folder) == []


def test_a_disk_that_gives_no_answer_is_told(store: Store, monkeypatch: pytest.MonkeyPatch):
    opened = Path.open

    def failing(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if path.name == "mask.npz":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", failing)
    (problem,) = verify(store.folder)
    assert problem.where.endswith("mask.npz")
    assert "Input/output error" in problem.what


def test_an_empty_run_is_found_and_an_empty_folder_is_no_store(store: Store, tmp_path: Path):
    shutil.rmtree(store.run_folder(RUN.id) / "measures")
    (store.run_folder(RUN.id) / "record.json").unlink()
    assert f"runs/{RUN.id[7:]}" in {p.where for p in verify(store.folder)}
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError) as raised:
        verify(tmp_path / "empty")
    assert raised.value.subject == str(tmp_path / "empty")
