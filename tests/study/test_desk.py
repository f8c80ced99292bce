"""A worker that reaches the store only through questions gives what one gives that writes
itself.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calibrant.errors import DataError, OutputError
from calibrant.lab.study import Study
from calibrant.lab.study.driver import Message
from calibrant.lab.study.sending import Desk, RemoteStore, packed
from calibrant.lab.study.workers import FORGIVEN, WORK, Summary, do_job
from calibrant.results import STATISTICS, STUDY, Claim, Measurement, Outcome, Score, Store
from calibrant.results.outcomes import Journal

from tests.results.samples import RECORD, SCORE
from tests.study.small import RUNS, asked, results

LOSS = {"spec": "loss", "revision": 1}
ODD = (float("nan"), float("inf"), -0.0, 0.1)


def connected(store: Path, own: Path) -> tuple[Desk, RemoteStore]:
    """A desk of a store, and what a worker has of it."""
    own.mkdir(exist_ok=True)
    desk = Desk(store)
    return desk, RemoteStore(desk.answer, own)


def test_a_study_through_questions_is_one_without(
    given: dict[str, str], whole: Path, tmp_path: Path
):
    study, told = asked(given), list[Message]()
    desk, remote = connected(tmp_path / "store", tmp_path / "own")
    (tmp_path / "own" / WORK).write_bytes(packed(study.workload()))
    (tmp_path / "own" / FORGIVEN).write_text("{}")
    with Store(tmp_path / "store") as store:
        store.write_text(STUDY, study.as_yaml())
        summary = Summary(store, study.workload(), lambda *_: None)
        # The worker isn't told where the store is.
        job = {"shared": str(tmp_path / "own"), "place": 0, "count": 1, "threads": 1}
        do_job(job, told.append, remote)
        for message in told:
            summary.add(message)
        finished = summary.result()
        assert not store.at_work()
        assert remote.cells() == store.cells()
    desk.close()
    assert finished.computed == 3 * RUNS
    assert results(tmp_path / "store") == results(whole)


def results_added_by_a_worker(study: Study, store: Path, own: Path) -> int:
    """How many results a worker adds that has a folder of its `own`."""
    desk, remote = connected(store, own)
    (own / WORK).write_bytes(packed(study.workload()))
    (own / FORGIVEN).write_text("{}")
    told = list[Message]()
    do_job({"shared": str(own), "place": 0, "count": 1, "threads": 1}, told.append, remote)
    desk.close()
    return sum(message[0] == "made" for message in told)


def test_nobody_waits_for_files_in_the_folder_of_another(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data=["random_tokens"], methods="wanda", evaluate=(), statistics_gb=1e-7)
    first, second = tmp_path / "first", tmp_path / "second"
    results_added_by_a_worker(replace(study, statistics_gb=1.0), tmp_path / "before", first)
    files = [path.name for path in first.glob("*.tokens")]
    files += [f"sha256:{path.name}" for path in (first / STATISTICS).iterdir()]
    assert len(files) == 2

    desk, remote = connected(tmp_path / "store", first)
    for name in files:
        assert remote.claim(name) is not None
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    assert results_added_by_a_worker(study, tmp_path / "store", second) == 2
    # And none stays in its own folder beyond the limit.
    assert not list((second / STATISTICS).iterdir())
    desk.close()


def test_numbers_arrive_to_the_bit(tmp_path: Path, whole: Path):
    desk, remote = connected(tmp_path / "store", tmp_path / "own")
    with Store(whole, create=False) as store:
        record = store.records()[0]
    run = remote.add_record(record, {"mask.npz": b"\x00\xff"})
    outcomes = tuple(
        Outcome(str(n), value, facts={"all": list(ODD)}) for n, value in enumerate(ODD)
    )
    score = Score("c4", "loss", ODD[0], None, 4, "nats", "lower", facts={"odd": ODD[1]})
    measured = remote.add_measurement(run, LOSS, Measurement(score, outcomes))
    with Store(tmp_path / "store", create=False) as store:
        kept = store.measurement(run, measured)
        assert store.records() == [record]
    assert remote.record(run) == record
    assert remote.state(run) == b"\x00\xff"
    assert remote.measured(run) == {measured}
    assert kept is not None
    assert [repr(item) for item in kept.outcomes] == [repr(item) for item in outcomes]
    assert repr(kept.score) == repr(score)
    desk.close()


def test_claims_of_a_worker_that_is_gone_are_free(tmp_path: Path):
    desk, remote = connected(tmp_path / "store", tmp_path / "own")
    other_desk, other = connected(tmp_path / "store", tmp_path / "other")
    assert remote.claim("work") is not None
    assert other.claim("work") is None
    desk.close()
    claim = other.claim("work", wait=True)
    assert claim is not None
    claim.free()
    assert other.claim("work") is not None
    other_desk.close()


def test_what_a_lost_worker_found_is_known_to_the_next(tmp_path: Path):
    desk, remote = connected(tmp_path / "store", tmp_path / "own")
    remote.trials("sha256:1").add({"without block 1": 2.5})
    desk.close()
    desk, remote = connected(tmp_path / "store", tmp_path / "own")
    journal: Journal = remote.trials("sha256:1")
    assert journal.known == {"without block 1": 2.5}
    journal.remove()
    assert len(journal) == 0
    assert len(remote.trials("sha256:1")) == 0
    desk.close()


def test_a_claim_that_cannot_be_freed_leaves_no_other_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    desk, remote = connected(tmp_path / "store", tmp_path / "own")
    for name in ("one", "two", "three"):
        assert remote.claim(name) is not None
    free = Claim.free

    def failing(claim: Claim) -> None:
        if claim.name == "two":
            raise OutputError("the disk is full")
        free(claim)

    with monkeypatch.context() as patched:
        patched.setattr(Claim, "free", failing)
        with pytest.raises(OutputError):
            desk.close()
    with Store(tmp_path / "store") as store:
        held = [name for name in ("one", "two", "three") if store.claim(name) is None]
    assert held == ["two"]


def test_what_goes_wrong_in_the_store_is_told_as_that(tmp_path: Path):
    desk, remote = connected(tmp_path / "store", tmp_path / "own")
    facts: dict[str, Any] = {"more": 2**70}
    outcomes = (
        Outcome("a", 1.0, 1.0, facts={"value": 1}),
        Outcome("b", 1.0, 1.0, facts={"value": 1}),
    )
    with Store(tmp_path / "store") as store:
        run = store.add_record(RECORD)
        store.add_failure("sha256:1", facts)
    with pytest.raises(DataError, match="add_measurement failed: ValueError"):
        remote.add_measurement(run, LOSS, Measurement(SCORE, outcomes))
    with pytest.raises(DataError, match="failure failed: OverflowError"):
        remote.failure("sha256:1")
    desk.close()


def test_an_error_at_the_desk_is_raised_at_the_worker(tmp_path: Path):
    desk, remote = connected(tmp_path / "store", tmp_path / "own")
    score = Score("c4", "loss", 1.0, None, 0, "nats", "lower")
    with pytest.raises(OutputError) as caught:
        remote.add_measurement("sha256:1", LOSS, Measurement(score))
    assert caught.value.subject == "sha256:1"
    desk.close()


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("close", ()),
        ("write_text", ("study.yaml", "harm")),
        ("has_record", (1,)),
        ("add_failure", ("sha256:1",)),
    ],
)
def test_what_is_no_question_is_refused(tmp_path: Path, asked: str, given: tuple[Any, ...]):
    desk = Desk(tmp_path / "store")
    kind, content = msgspec.msgpack.decode(desk.answer(asked, msgspec.msgpack.encode(given)))
    assert (kind, content[0]) == ("error", "DataError")
    desk.close()
    assert not (tmp_path / "store" / "study.yaml").exists()


@pytest.mark.parametrize(
    "answer", [b"", msgspec.msgpack.encode(["answer", 1]), json.dumps([]).encode()]
)
def test_what_is_no_answer_is_refused(tmp_path: Path, answer: bytes):
    with pytest.raises(DataError):
        RemoteStore(lambda *_: answer, tmp_path).ids()
