"""Journals lose nothing that was scored, and items come back as they were."""

import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from calibrant.errors import CalibrantError, OutputError
from calibrant.results import Store
from calibrant.results.items import from_bytes, outcomes_of, table_of, to_bytes
from calibrant.results.outcomes import Journal, Measurement, Outcome, Score, item_name

from tests.databases import change
from tests.refusing import refused

FORK = multiprocessing.get_context("fork")


def test_a_journal_opened_again_knows_what_was_kept(tmp_path: Path):
    path = tmp_path / "deep" / "journal.sqlite"
    journal = Journal(path, "question")
    found = {"one": 0.1 + 0.2, "two": [1.5, math.inf, -0.0], "three": {"hit": True}}
    journal.add({"one": 0.1 + 0.2})
    journal.add({"two": [1.5, math.inf, -0.0], "three": {"hit": True}})
    again = Journal(path, "question")
    assert repr(again.known) == repr(found)
    assert len(again) == 3
    assert "four" not in again
    assert again["one"] == found["one"]
    again.remove()
    assert again.known == {}
    assert Journal(path, "question").known == {}
    again.remove()


def test_each_question_has_its_own(tmp_path: Path):
    path = tmp_path / "journal.sqlite"
    for question in ("one", "two"):
        Journal(path, question).add({"a": question})
    Journal(path, "one").remove()
    assert Journal(path, "one").known == {}
    assert Journal(path, "two").known == {"a": "two"}
    assert Journal(path, "three").known == {}


def test_a_store_has_journals_of_its_own(tmp_path: Path):
    loss = {"spec": "loss"}
    with Store(tmp_path) as store:
        store.journal("sha256:1", loss).add({"a": 1})
        store.trials("sha256:1").add({"b": 2})
    with Store(tmp_path) as store:
        assert store.journal("sha256:1", loss).known == {"a": 1}
        assert store.journal("sha256:1", loss, "sha256:data").known == {}
        assert store.trials("sha256:1").known == {"b": 2}
        store.trials("sha256:1").remove()
        assert store.trials("sha256:1").known == {}
        assert store.journal("sha256:1", loss).known == {"a": 1}


def test_without_a_path_nothing_is_written():
    journal = Journal()
    journal.add({"one": 1})
    assert journal["one"] == 1
    journal.remove()


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")  # which is not waited for
    for path in (tmp_path / "file" / "journal.sqlite", tmp_path / "pipe"):
        with refused(OutputError, path.parent):
            Journal(path, "question").add({"one": 1})


def _writes_and_dies(path: Path) -> None:
    journal = Journal(path, "question")
    journal.add({"one": 1})
    database = journal._database
    assert database is not None
    with database.writing("be killed") as connection:
        connection.execute("DELETE FROM journal")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_what_was_kept(tmp_path: Path):
    path = tmp_path / "journal.sqlite"
    writer = FORK.Process(target=_writes_and_dies, args=(path,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert Journal(path, "question").known == {"one": 1}


def test_two_that_write_one_journal_at_once_spoil_nothing(tmp_path: Path):
    path = tmp_path / "journal.sqlite"
    first, second = Journal(path, "question"), Journal(path, "question")
    first.add({"one": 1})
    second.add({"two": 2})
    second.add({"one": 1})
    assert Journal(path, "question").known.keys() == {"one", "two"}


ENTRIES = [
    "3",
    "[3, 4]",
    '["a", 1]',
    "",
    "[" * 100_000,
    '["x", ' + "9" * 5000 + "]",
    '["x", "\\ud800',
]
ENTRIES += ['[0.5, "0123456789abcdef"]', '{"a": 1}', "null"]


@pytest.mark.parametrize("entry", ENTRIES, ids=range(len(ENTRIES)))
def test_a_damaged_entry_costs_no_other(
    tmp_path: Path, entry: str, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "journal.sqlite"
    Journal(path, "question").add({"first": 1.5, "second": [2, math.inf]})
    change(path, "UPDATE journal SET entry = ? WHERE name = 'first'", entry)
    again = Journal(path, "question")
    assert again.known == {"second": [2, math.inf]}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    again.add({"first": 3})
    assert Journal(path, "question").known == {"second": [2, math.inf], "first": 3}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET entry = replace(entry, '1.5', '0.5')",
        "UPDATE journal SET name = 'third'",
        "UPDATE journal SET question = 'another'",
    ],
)
def test_what_says_something_else_or_is_of_another_is_not_believed(tmp_path: Path, statement: str):
    path = tmp_path / "journal.sqlite"
    Journal(path, "question").add({"first": 1.5})
    change(path, statement)
    for question in ("question", "another"):
        assert Journal(path, question).known == {}


@pytest.mark.parametrize("content", ["no database", "SQLite format 3\0" + "x" * 5000])
def test_a_damaged_file_is_begun_anew(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "journal.sqlite"
    path.write_text(content)
    journal = Journal(path, "question")
    assert journal.known == {}
    journal.add({"one": 1})
    assert Journal(path, "question").known == {"one": 1}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    "statement", ["PRAGMA user_version = 9", "ALTER TABLE journal RENAME TO mine"]
)
def test_a_journal_that_is_not_damaged_is_never_thrown_away(tmp_path: Path, statement: str):
    path = tmp_path / "journal.sqlite"
    Journal(path, "question").add({"one": 1})
    change(path, statement)
    before = path.read_bytes()
    with pytest.raises(CalibrantError):
        Journal(path, "question")
    assert path.read_bytes() == before


def test_what_is_damaged_is_set_aside(tmp_path: Path):
    path = tmp_path / "journal.sqlite"
    path.write_text("somebody's own")
    Journal(path, "question").add({"one": 1})
    assert (tmp_path / "journal.sqlite.damaged").read_text() == "somebody's own"


def test_a_text_that_is_none_costs_no_other_entry(tmp_path: Path):
    path = tmp_path / "journal.sqlite"
    Journal(path, "question").add({"first": 1.5, "second": 2})
    change(path, "UPDATE journal SET entry = CAST(x'ff' AS TEXT) WHERE name = 'first'")
    assert Journal(path, "question").known == {"second": 2}


@pytest.mark.parametrize(
    ("item", "name"),
    [("0a" * 32, "0a" * 8), ("x" * 64, "x" * 64), ("0A" * 32, "0A" * 32), ("0a" * 8, "0a" * 8)],
)
def test_only_a_key_is_cut(item: str, name: str):
    assert item_name(item) == name


def test_items_come_back_with_their_facts():
    outcomes: list[Outcome] = []
    for number in range(5):
        facts = {"choices": [0.1, number / 7], "gold": number, "hit": number % 2 == 0, "said": "é"}
        outcomes.append(Outcome(f"item {number}", number / 3, 2.0, facts))
    for kept in (tuple(outcomes), ()):
        assert outcomes_of(from_bytes(to_bytes(table_of(kept)))) == kept


def test_what_each_item_gave_is_put_in_order_once_and_cannot_be_changed():
    score = Score("docs", "loss", 1.5, None, 2, "nats/token", "lower")
    measurement = Measurement(score, (Outcome("b", 2.0, 3.0), Outcome("a", 1.0)))
    names, values, weights = measurement.by_item
    assert names == ("a", "b")
    assert values.tolist() == [1.0, 2.0]
    assert weights.tolist() == [1.0, 3.0]
    assert measurement.by_item[1] is values
    assert not values.flags.writeable
    assert Measurement(score).by_item[1].tolist() == []
