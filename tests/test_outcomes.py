"""Journals lose nothing that was scored, and items come back as they were."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.errors import DataError, OutputError
from calibrant.outcomes import Journal, Measurement, Outcome, Score, read_items, write_items


def test_a_journal_opened_again_knows_what_was_kept(tmp_path: Path):
    path = tmp_path / "deep" / "a.jsonl"
    journal = Journal(path, "question")
    journal.add({"one": 0.1 + 0.2, "two": [1.5, float("inf")]})
    journal.add({"three": {"hit": True}})
    again = Journal(path, "question")
    assert (len(again), again["one"], again["two"], again["three"]) == (3, 0.1 + 0.2, [1.5, float("inf")], {"hit": True})
    assert "four" not in again
    again.remove()
    assert not path.exists()
    again.remove()


@pytest.mark.parametrize("cut", [1, 9])
def test_a_line_that_was_cut_off_is_dropped_and_the_next_one_is_whole(tmp_path: Path, cut: int):
    path = tmp_path / "a.jsonl"
    Journal(path, "q").add({"one": 1, "two": 2222222})
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, "q")
    assert "one" in journal
    assert "two" not in journal
    journal.add({"two": 3})
    assert Journal(path, "q")["two"] == 3
    assert [json.loads(line)[:2] for line in path.read_text().splitlines()] == [["q"], ["one", 1], ["two", 3]]


@pytest.mark.parametrize("content", ["", "[", '["other"]\n["one", 1]\n', "\x00\x01\n"])
def test_what_answers_another_question_is_forgotten(tmp_path: Path, content: str):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    assert len(Journal(path, "q")) == 0
    assert not path.exists()


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")  # which is not waited for
    for path in (tmp_path / "file" / "a.jsonl", tmp_path / "pipe"):
        with pytest.raises(OutputError) as refused:
            Journal(path, "q").add({"one": 1})
        assert refused.value.subject == str(path)
    nowhere = Journal()
    nowhere.add({"one": 1})
    assert nowhere["one"] == 1
    nowhere.remove()


def test_a_full_disk_cuts_no_line_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a disk with room for half a line; what is written when there is room again stands alone, and what was not written isn't known."""
    path = tmp_path / "a.jsonl"
    journal = Journal(path, "q")
    journal.add({"one": 1})
    whole, opened = path.read_bytes(), Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, text: bytes) -> int:
            if len(text) < 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(text[: len(text) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda path, *rest, **named: Full(opened(path, *rest, **named)))
        with pytest.raises(OutputError) as refused:
            journal.add({"two": "x" * 99})
    assert refused.value.subject == str(path)
    assert path.read_bytes() == whole
    assert "two" not in journal
    journal.add({"three": 3})
    assert [json.loads(line)[:2] for line in path.read_text().splitlines()] == [["q"], ["one", 1], ["three", 3]]


def test_two_that_write_one_journal_at_once_spoil_nothing(tmp_path: Path):
    first, second = Journal(tmp_path / "a.jsonl", "q"), Journal(tmp_path / "a.jsonl", "q")
    first.add({"one": 1})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('["q"]\n')  # both found no journal, and began one
    second.add({"two": 2})
    again = Journal(tmp_path / "a.jsonl", "q")
    assert (again["one"], again["two"], len(again)) == (1, 2, 2)


def test_items_come_back_with_their_facts(tmp_path: Path):
    outcomes = tuple(Outcome(f"i{n}", n / 3, 2.0, {"choices": [0.1, n / 7], "gold": n, "hit": n % 2 == 0, "said": "é"}) for n in range(5))
    write_items(tmp_path / "items.parquet", outcomes)
    assert read_items(tmp_path / "items.parquet") == outcomes
    write_items(tmp_path / "none.parquet", ())
    assert read_items(tmp_path / "none.parquet") == ()


def test_items_of_other_kinds_are_refused(tmp_path: Path):
    path = tmp_path / "items.parquet"
    path.write_text("no")
    with pytest.raises(DataError) as refused:
        read_items(path)
    assert refused.value.subject == str(path)
    for columns, said in (
        ({"item": ["a"], "value": [1.0]}, "'weight'"),
        ({"item": [1], "value": [1.0], "weight": [1.0]}, "item: int64"),
        ({"item": ["a"], "value": ["1"], "weight": [1.0]}, "value: string"),
        ({"item": ["a", None], "value": [1.0, 2.0], "weight": [1.0, 1.0]}, "no name"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(DataError) as refused:
            read_items(path)
        assert said in str(refused.value)
        assert refused.value.subject == str(path)


@pytest.mark.parametrize(
    "spoilt",
    ["3", "[3, 4]", '[["a"], 1]', "[" * 100_000, '["x", ' + "9" * 5000 + "]", '["x", "\\ud800'],
    ids=lambda text: text[:12],
)
def test_a_damaged_line_of_a_journal_costs_no_other(tmp_path: Path, spoilt: str, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "journal"
    Journal(path, "question").add({"first": 1.5, "second": [2, math.inf]})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], spoilt + "\n", lines[2]]))
    again = Journal(path, "question")
    assert (len(again), again["first"], again["second"]) == (2, 1.5, [2, math.inf])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    again.add({"second": 3})
    assert (len(Journal(path, "question")), Journal(path, "question")["second"]) == (2, 3)


def test_a_line_of_a_journal_that_says_something_else_or_is_of_another_is_not_believed(tmp_path: Path):
    for written, read in (("1.5", "0.5"), ("first", "third"), ("1.5", "1.50")):
        path = tmp_path / read
        Journal(path, "question").add({"first": 1.5, "second": 2.5})
        path.write_text(path.read_text().replace(written, read, 1))
        again = Journal(path, "question")
        assert again.known == ({"first": 1.5, "second": 2.5} if read == "1.50" else {"second": 2.5})
    Journal(tmp_path / "one", "question").add({"first": 1.5})
    Journal(tmp_path / "other", "another").add({"first": 0.5})
    lines = [(tmp_path / name).read_text().splitlines(keepends=True) for name in ("one", "other")]
    (tmp_path / "one").write_text(lines[0][0] + lines[1][1])
    assert "first" not in Journal(tmp_path / "one", "question")


def test_what_each_item_gave_is_put_in_order_once_and_cannot_be_changed():
    score = Score("docs", "loss", 1.5, None, 2, "nats/token", "lower")
    measurement = Measurement(score, (Outcome("b", 2.0, 3.0), Outcome("a", 1.0)))
    names, values, weights = measurement.by_item
    assert (names, values.tolist(), weights.tolist()) == (("a", "b"), [1.0, 2.0], [1.0, 3.0])
    assert measurement.by_item[1] is values
    assert not values.flags.writeable
    assert Measurement(score).by_item[1].tolist() == []
