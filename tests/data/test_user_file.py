"""A user's own data: which columns, rows and files are used for what, and everything that can be
wrong with them.
"""

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from transformers import PreTrainedTokenizerBase

from calibrant.data import PARTS, CalibrationSet, Message, Row, _rows, parse_source, user_file
from calibrant.data._files import read_records
from calibrant.data._rows import LOOKED_AT, RowReader, layout_of
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError
from calibrant.testing.sources import check_source

from tests.data.written import tabled, written


def all_texts(path: Path | str) -> set[str]:
    source = UserFile(str(path))
    return {row.need("text") for part in PARTS for row in source.rows(part)}


def rows_of(source: UserFile) -> list[Row]:
    return sorted(
        (row for part in PARTS for row in source.rows(part)),
        key=lambda row: (row.question or "", row.text or ""),
    )


def texts(count: int, begin: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"text {i}"} for i in range(begin, begin + count)]


def texts_by_part(source: UserFile) -> dict[str, set[str]]:
    return {part: {row.text or "" for row in source.rows(part)} for part in PARTS}


def test_a_text_file_without_empty_lines_gives_lines(tmp_path: Path):
    path = tmp_path / "A.TXT"
    path.write_text("one\ntwo\nthree, with é and “quotes”\n")
    assert all_texts(path) == {"one", "two", "three, with é and “quotes”"}
    path.write_text("one\nparagraph\n\nanother\n")
    assert all_texts(path) == {"one\nparagraph", "another"}


def test_columns_are_found_by_name_or_renamed(jsonl: Callable[..., Path]):
    path = jsonl(
        [
            {"prompt": f"q{i}", "answer": i, "choices": ["a", "b"], "cot": "r" * (i % 2)}
            for i in range(300)
        ]
    )
    source = UserFile(str(path), question="prompt")
    assert (source.kind, source.fields, source.sometimes) == (
        "questions",
        ("question", "answer", "choices"),
        ("rationale",),
    )
    assert {(row.question, row.answer, row.choices) for row in rows_of(source)} == {
        (f"q{i}", str(i), ("a", "b")) for i in range(300)
    }
    check_source(source)


def test_a_changed_file_or_folder_is_read_anew(jsonl: Callable[..., Path]):
    path = jsonl(({"text": f"old {i}"} for i in range(20)), "data/a*[b].jsonl")
    source, folder = UserFile(str(path)), UserFile(str(path.parent))
    assert all("old" in row.need("text") for row in source.rows("calibrate"))
    jsonl(({"text": f"new text {i}"} for i in range(20)), "data/a*[b].jsonl")
    assert all("new" in row.need("text") for row in source.rows("calibrate"))
    assert len(rows_of(folder)) == 20
    jsonl(texts(9), "data/b.jsonl")
    assert len(rows_of(folder)) == 29


@pytest.mark.parametrize(
    ("name", "content", "subject"),
    [
        ("a.jsonl", b"", "a.jsonl"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl', row 1"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": ["b"]}\n', "a.jsonl', row 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "half \\ud800 of one"}\n', "a.jsonl', row 2"),
        ("a.jsonl", b'{"question": "a", "choices": ["b", 1]}\n', "a.jsonl', row 1"),
        (
            "a.jsonl",
            b'{"question": "a", "choices": [' + b'"b",' * 26 + b'"b"]}\n',
            "a.jsonl', row 1",
        ),
        ("a.jsonl", b'{"question": "a", "answer": Infinity}\n', "a.jsonl', row 1"),
        ("a.jsonl", b'{"text": "a", "answer": 1' + b"0" * 100_000 + b"}", "a.jsonl:1"),
        ("a.jsonl", b'{"text\\ud800\\u001b[2J": "a"}', "a.jsonl"),
        (
            "a.jsonl",
            b'{"turns": [{"content": ' + b"[" * 800 + b"]" * 800 + b'}], "text": 5}',
            "a.jsonl', row 1",
        ),
        ("a.jsonl", b'{"text": null, "n": 1}\n', "a.jsonl"),
        ("a.pkl", b"x", "a.pkl"),
    ],
)
def test_a_bad_file_is_named_with_the_place(
    tmp_path: Path, name: str, content: bytes, subject: str
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(UserFile(str(path)).rows("calibrate"))
    assert caught.value.subject.strip("'").endswith(subject)
    said = str(caught.value)
    assert "\n" not in said
    assert "\x1b" not in said
    said.encode()


def test_a_file_that_may_not_be_read_is_refused(
    jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    path = jsonl([{"text": "a"}])
    monkeypatch.setattr("calibrant.data.user_file.os.access", lambda *_: False)
    for given in (str(path), str(path.parent)):
        with pytest.raises(DataError, match="permissions") as caught:
            UserFile(given)
        assert caught.value.subject == given


@pytest.mark.parametrize(
    ("record", "guessed", "expected"),
    [
        (
            {"prompt": "q", "output": "a"},
            {"question": "prompt", "answer": "output"},
            ("q", None, "a", None),
        ),
        ({"question": "q", "answer": "a"}, {}, ("q", None, "a", None)),
        (
            {"Question": "q", "QUESTION": "p", "answer": "a"},
            {"question": "Question"},
            ("q", None, "a", None),
        ),
        (
            {"problem": "q", "solution": "r", "answer": "a"},
            {"question": "problem", "rationale": "solution"},
            ("q", None, "a", "r"),
        ),
        (
            {"question": "q", "options": ["x", "a"], "answer": "B", "explanation": "r"},
            {"choices": "options", "rationale": "explanation"},
            ("q", None, "B", "r"),
        ),
        ({"title": "t", "Content": "c"}, {"text": "Content"}, (None, "c", None, None)),
        ({"question": "q", "article": "c", "answer": "a"}, {}, ("q", None, "a", None)),
        ({"input": None, "query": "q"}, {"question": "query"}, ("q", None, None, None)),
    ],
)
def test_usual_names_are_guessed_and_that_is_said(
    jsonl: Callable[..., Path],
    record: dict[str, Any],
    guessed: dict[str, str],
    expected: tuple[str | None, ...],
):
    source = UserFile(str(jsonl([record])))
    assert source.guessed == guessed
    assert all(
        f"{field} from {column!r}" in source.part("measure").note
        for field, column in guessed.items()
    )
    (row,) = rows_of(source)
    assert (row.question, row.text, row.answer, row.rationale) == expected
    assert set(row.present) == set(source.fields)


def test_rows_without_what_is_needed_are_left_out_and_counted(jsonl: Callable[..., Path]):
    records: list[dict[str, Any]] = [
        {"question": f"q{i}", "answer": i, "rationale": "r" if i % 2 else None} for i in range(195)
    ]
    path = jsonl(
        [
            *records,
            {"question": "  ", "answer": "a"},
            {"answer": "a"},
            {"question": None},
            {"question": "no answer", "answer": ""},
            {},
        ]
    )
    source = UserFile(str(path))
    assert (source.fields, source.sometimes) == (("question", "answer"), ("rationale",))
    assert len(rows_of(source)) == 195
    assert "1 of 200" in source.part("calibrate").note
    assert "4 of 200" in source.part("calibrate").note
    assert {row.rationale for row in rows_of(source)} == {None, "r"}


def test_a_text_needs_no_answer_and_missing_numbers_of_a_table_are_missing(tmp_path: Path):
    corpus = UserFile(
        str(
            written(
                tmp_path / "c.jsonl",
                [
                    {"text": "a", "answer": ""},
                    {"text": "b", "answer": "x"},
                    {"text": "", "answer": "y"},
                ],
            )
        )
    )
    assert (corpus.kind, corpus.fields, corpus.sometimes) == ("corpus", ("text",), ("answer",))
    assert [row.text for row in rows_of(corpus)] == ["a", "b"]
    table = pyarrow.table(
        {"question": ["p", "q", "r"], "answer": pyarrow.array([1.5, float("nan"), None])}
    )
    source = UserFile(str(tabled(tmp_path / "a.parquet", table)))
    assert [(row.question, row.answer) for row in rows_of(source)] == [("p", "1.5")]
    assert "2 of 3" in source.part("measure").note


def test_an_answer_that_is_a_choice_becomes_its_letter(jsonl: Callable[..., Path]):
    answers = ["yes", "B", "b", "maybe", 1]
    source = UserFile(
        str(
            jsonl(
                {"question": f"q{i}", "choices": ["no", "yes"], "answer": a}
                for i, a in enumerate(answers)
            )
        )
    )
    assert [row.answer for row in rows_of(source)] == ["B", "B", "b", "maybe", "1"]
    assert {(row.labels, row.choices) for row in rows_of(source)} == {(("A", "B"), ("no", "yes"))}
    named = {"label": ["1", "2", "3"], "text": ["x", "2", "y"]}
    source = UserFile(
        str(
            jsonl(
                {"question": f"q{i}", "choices": named, "answerKey": key}
                for i, key in enumerate(["1", "3", "y", "4"])
            )
        )
    )
    assert [(row.answer, row.choices) for row in rows_of(source)] == [
        (letter, ("x", "2", "y")) for letter in ("A", "C", "C", "4")
    ]


@pytest.mark.parametrize(
    ("record", "unused"),
    [
        ({"choices": ["x", "y"], "system": "Be brief.", "history": [["a", "b"]]}, "system history"),
        ({"choices": ["x", "y"], "Options": ["v", "w"], "context": "of this"}, "Options"),
        ({"rationale": "so", "system_prompt": "Be brief."}, "system_prompt"),
        ({"input": "of this", "tools": "", "id": "7"}, "input"),
        ({"system": "Be brief."}, ""),
    ],
)
def test_columns_beside_a_question_that_are_not_read_are_named(
    jsonl: Callable[..., Path], record: dict[str, Any], unused: str
):
    path = jsonl({"question": f"q{i}", "answer": "x"} | record for i in range(20))
    note = UserFile(str(path)).part("calibrate").note
    named = ", ".join(map(repr, unused.split()))
    assert note.partition("not used: ")[2] == named


CHOICES = ["3", "0", "1", "2"]
LABELLED = {"label": ["1", "2", "3", "4"], "text": CHOICES}


@pytest.mark.parametrize(
    ("choices", "answers", "letters", "by_index"),
    [
        (CHOICES, [0, 1, 2, 3], ["A", "B", "C", "D"], True),
        (["x", "y", "z", "w"], [2, None], ["C"], True),
        # Counted from 1, or choices themselves: one of them is no place.
        (CHOICES, [1, 2, 3, 4], ["C", "D", "A", "4"], False),
        (CHOICES, ["0", "1"], ["B", "C"], False),
        (LABELLED, [1, 2], ["A", "B"], False),
        (["no", "yes"], [True, False], ["True", "False"], False),
    ],
)
def test_an_answer_may_be_the_place_of_its_choice(
    jsonl: Callable[..., Path],
    choices: Any,
    answers: list[Any],
    letters: list[str],
    by_index: bool,
):
    records = [
        {"question": f"q{i}", "choices": choices, "answer": answer}
        for i, answer in enumerate(answers)
    ]
    source = UserFile(str(jsonl(records)))
    assert [row.answer for row in rows_of(source)] == letters
    assert ("counted from 0" in source.part("measure").note) == by_index


def test_the_first_of_several_choices_in_columns_is_no_answer(jsonl: Callable[..., Path]):
    record = {"question": "q", "A": "x", "b": "y", "c": "z", "d": "w", "correct": "b"}
    assert "answer" not in UserFile(str(jsonl([record]))).fields
    assert "answer" in UserFile(str(jsonl([{"q": "q", "a": "x"}], name="qa.jsonl"))).fields


@pytest.mark.parametrize(
    ("column", "role", "content"),
    [("messages", "role", "content"), ("conversations", "from", "value")],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_conversation_survives(tmp_path: Path, column: str, role: str, content: str, ending: str):
    turns = [
        {role: "system", content: "s"},
        {role: "user", content: "q"},
        {role: "assistant", content: "a"},
    ]
    source = UserFile(str(written(tmp_path / f"a.{ending}", [{column: turns, "id": 1}])))
    assert (source.kind, source.fields, source.guessed) == (
        "questions",
        ("question", "answer", "turns"),
        {"turns": column},
    )
    assert rows_of(source) == [
        Row(
            question="q",
            answer="a",
            turns=(Message("system", "s"), Message("user", "q"), Message("assistant", "a")),
        )
    ]


def test_other_speakers_and_texts_in_pieces_are_understood(jsonl: Callable[..., Path]):
    pieces = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    human = [{"from": "human", "value": pieces}, {"from": "gpt", "value": "a"}]
    assert rows_of(UserFile(str(jsonl([{"Messages": human}]))))[0].turns == (
        Message("user", "one\ntwo"),
        Message("assistant", "a"),
    )


def test_question_and_answer_are_the_first_exchange(jsonl: Callable[..., Path]):
    said = ["assistant:hello", "user:q", "user:more", "assistant:a", "user:q2", "assistant:a2"]
    turns = [dict(zip(("role", "content"), each.split(":"), strict=True)) for each in said]
    nobody = [
        {"turns": []},
        {"turns": turns[:1]},
        {"turns": turns[1:3]},
        {"turns": [*turns, {"role": "assistant", "content": None}]},
    ]
    source = UserFile(str(jsonl([{"turns": turns}, *nobody])))
    (row,) = rows_of(source)
    assert (row.question, row.answer, len(row.turns)) == ("q", "a", 6)


def test_conversations_that_begin_with_the_same_message_are_all_used(jsonl: Callable[..., Path]):
    greeting = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    talks: list[dict[str, Any]] = []
    for number in range(40):
        question = {"role": "user", "content": f"How large is {number}?"}
        talks.append({"messages": [*greeting, question, greeting[1]]})
    source = UserFile(str(jsonl(talks)))
    assert len(rows_of(source)) == 40
    assert source.part("calibrate").overlapping == 0
    check_source(source)


@pytest.mark.parametrize(
    "turns",
    [
        ["hello"],
        "hello",
        [{"speaker": "user", "content": "q"}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "u\ud800", "content": "x"}],
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(jsonl: Callable[..., Path], turns: Any):
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DataError) as caught:
        UserFile(str(jsonl([{"messages": good}, {"messages": turns}])))
    assert caught.value.subject.endswith("row 2")


def test_a_folder_or_a_pattern_is_one_source(jsonl: Callable[..., Path]):
    folder = jsonl(texts(50), "data/a.jsonl").parent
    jsonl(texts(50, 50), "data/b.jsonl")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "text 100"}\n'))
    for name in ("README.md", ".hidden.jsonl", "state.pkl", "dataset_info.json"):
        (folder / name).write_text("nothing that is data")
    everything = {f"text {i}" for i in range(101)}
    for path in (
        str(folder),
        f"{folder}/",
        f"{folder}/*.jsonl*",
        f"{folder}/../**/[abc].*",
        f"{folder}/*",
    ):
        source = UserFile(path)
        parts = texts_by_part(source)
        assert set().union(*parts.values()) == everything
        assert parts == texts_by_part(UserFile(str(folder)))
        assert path in source.part("measure").origin
        assert parse_source(str(source)) == source
    assert texts_by_part(UserFile(f"{folder}/a*")) != parts
    assert min(len(part) for part in parts.values()) > 0


def plain_and_rich(shape: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records without what goes with their field, and records that have it."""
    plain: list[dict[str, Any]] = []
    for number in range(1_100):
        question = f"q {number}"
        if shape == "instruction":
            plain.append({"instruction": question, "output": "a"})
        elif shape == "query":
            call = {"name": "clock", "arguments": {}}
            plain.append({"query": question, "answers": [call]})
        else:
            said = [{"role": "user", "content": question}, {"role": "assistant", "content": "a"}]
            plain.append({"messages": said})
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    beside: dict[str, dict[str, Any]] = {
        "instruction": {"input": "of this"},
        "query": {"tools": [tool]},
        "messages": {"system_prompt": "Be brief.", "functions": [tool]},
    }
    rich = [record | beside[shape] for record in plain[-50:]]
    return plain[:-50], rich


@pytest.mark.parametrize("shape", ["instruction", "query", "messages"])
@pytest.mark.parametrize("names", ["mine.jsonl mine.jsonl", "train.jsonl test.jsonl"])
def test_what_goes_with_a_field_is_read_wherever_it_first_occurs(
    jsonl: Callable[..., Path], shape: str, names: str
):
    plain, rich = plain_and_rich(shape)
    found: list[list[Row]] = []
    notes: list[str] = []
    for folder, records in (("late", [*plain, *rich]), ("early", [*rich, *plain])):
        # The test part has them early or late too.
        for name in names.split():
            path = jsonl(records, f"{folder}/{name}")
        source = UserFile(str(path.parent))
        found.append(rows_of(source))
        notes.append(source.part("calibrate").note)
    late, early = found
    assert late == early
    assert notes[0] == notes[1]
    assert len({row.question for row in late}) == 1_100
    whole = [row for row in late if row.tools or "of this" in (row.question or "")]
    assert len(whole) == 50


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_field_that_first_occurs_in_a_late_row_is_told_and_can_be_named(
    tmp_path: Path, suffix: str
):
    records = [{"question": f"q{i}", "answer": f"{i}", "cot": "", "id": ""} for i in range(1_200)]
    for record in records[1_100:]:
        record |= {"cot": "so", "id": "x"}
    if suffix == "jsonl":
        records = [{name: cell for name, cell in record.items() if cell} for record in records]
    path = written(tmp_path / f"late.{suffix}", records)
    (note,) = {UserFile(str(path)).part(part).note for part in PARTS}
    assert note == (
        f"'cot' holds nothing before {str(path)!r}, row 1101, too late to be found by itself: "
        "rationale=cot behind the path reads it"
    )
    named = UserFile(str(path), rationale="cot")
    assert (named.fields, named.sometimes) == (("question", "answer"), ("rationale",))
    assert [row.rationale for row in rows_of(named)].count("so") == 100
    assert named.part("calibrate").note == ""
    with pytest.raises(DataError, match="no column 'way'"):
        UserFile(str(path), rationale="way")


@pytest.mark.parametrize(("suffix", "rows_read"), [("csv", 1), ("parquet", 1), ("jsonl", 3_000)])
def test_a_column_that_a_table_lacks_is_refused_without_reading_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, rows_read: int
):
    path = tmp_path / f"rows.{suffix}"
    records = [{"question": f"q{i}", "answer": f"{i}"} for i in range(3_000)]
    if suffix == "csv":
        lines = [f"{record['question']},{record['answer']}\n" for record in records]
        path.write_text("".join(["question,answer\n", *lines]))
    else:
        written(path, records)
    read: list[int] = []

    def counted(path: Path, label: str) -> Iterator[dict[str, Any]]:
        read.append(0)
        for record in read_records(path, label):
            read[-1] += 1
            yield record

    monkeypatch.setattr(user_file, "read_records", counted)
    with pytest.raises(DataError, match="no column 'qestion', perhaps you mean 'question'"):
        UserFile(str(path), question="qestion")
    assert read == [LOOKED_AT, rows_read]


def test_few_of_very_many_late_columns_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_rows, "MOST_COLUMNS", 2)
    first = [("row 1", {"question": "q", "answer": "a"})]
    reader = RowReader(layout_of(first, {}, "rows", str))
    late: dict[str, str] = {"question": "q", "answer": "a"}
    for number in range(9):
        late[f"column {number}"] = late[f"cot{' ' * 99 * number}"] = "so"
    list(reader.rows([*first, ("row 2", late)]))
    assert len(reader._late_places) == len(reader._late_values) == 2
    assert reader.note.count("too late") == 1
    assert len(reader.note) < 200


@pytest.mark.parametrize(
    "names",
    [
        "train.jsonl test.jsonl",
        "train-0-of-2.jsonl train-1-of-2.jsonl TEST_a.jsonl",
        "train.jsonl val.jsonl",
        "train1.jsonl test1.jsonl",
        "wiki_train.jsonl wiki_test.jsonl",
        "wiki.train.1.jsonl wiki.1.DEV.jsonl",
        "unit_test-train.jsonl latest.jsonl_test.jsonl",
    ],
)
def test_files_named_as_splits_are_used_as_on_the_hub(jsonl: Callable[..., Path], names: str):
    *train, test = names.split()
    for number, name in enumerate(train):
        jsonl(texts(200, 200 * number), f"data/{name}")
    folder = jsonl([*texts(30, 1_000), *texts(2)], f"data/{test}").parent
    parts = texts_by_part(UserFile(str(folder)))
    assert parts["measure"] == {record["text"] for record in [*texts(30, 1_000), *texts(2)]}
    assert parts["calibrate"] | parts["exemplars"] == {
        record["text"] for record in texts(200 * len(train))[2:]
    }
    assert 0 < len(parts["exemplars"]) < 40


@pytest.mark.parametrize("pattern", ["*/*.jsonl", "**", "**/*.jsonl", "t*/data.jsonl"])
@pytest.mark.parametrize("above", ["all", "test", "my_train"])
def test_folders_named_as_splits_are_used_as_on_the_hub(
    jsonl: Callable[..., Path], pattern: str, above: str
):
    jsonl(texts(100), f"{above}/train_en/data.jsonl")
    file = jsonl(texts(30, 1_000), f"{above}/test/data.jsonl")
    source = UserFile(f"{file.parent.parent}/{pattern}")
    parts = texts_by_part(source)
    assert parts["measure"] == {record["text"] for record in texts(30, 1_000)}
    assert parts["calibrate"] | parts["exemplars"] == {record["text"] for record in texts(100)}
    assert source.part("calibrate").note == "'train' calibrates and 'test' measures"


def test_too_little_is_said_with_what_is_left_out_because_it_is_measured(
    jsonl: Callable[..., Path], letters: PreTrainedTokenizerBase
):
    talks: list[dict[str, Any]] = []
    for number in range(200):
        # Of so many words that they alone tell the example.
        said = ["Here is the text of which I ask you several things, one after the other", "Go on."]
        said += [f"question {number}", "answer"]
        roles = ["user", "assistant", "user", "assistant"]
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        talks.append({"messages": messages})
    path = jsonl(talks)
    left_out = UserFile(str(path)).part("calibrate").overlapping
    assert left_out > 100
    named = f"{left_out} rows are left out because they are also measured"
    with pytest.raises(DataError, match=named):
        CalibrationSet(f"{path}:qa", samples=1, length=64).tokens(letters)


@pytest.mark.parametrize(
    ("word", "home"), [("one", "calibrate"), ("two", "exemplars"), ("nine", "measure")]
)
def test_a_file_of_one_row_is_said_to_have_none_left_in_the_part_that_is_drawn(
    tmp_path: Path, letters: PreTrainedTokenizerBase, word: str, home: str
):
    book = tmp_path / "book.txt"
    book.write_text(f"{word} long line " * 100)
    drawn = CalibrationSet(str(book), tokens=1)
    if home == "calibrate":
        drawn.tokens(letters)
        drawn = drawn.held_out()
    message = rf"has no row: all of the source's \(1\) are in the part {home}; divide the data"
    with pytest.raises(DataError, match=message):
        drawn.tokens(letters)


def test_files_and_folders_that_may_hold_data_and_are_not_read_are_named(
    jsonl: Callable[..., Path],
):
    unread = ["b.ndjson", "c.json.gz", "d.txt.gz", "e.csv.zst", "f.tar", "g.pkl", "H.XZ"]
    silent = ["README.md", "run.py", ".h.ndjson", "_SUCCESS", "dataset_info.json"]
    inside = ["sub/d.jsonl", "deep/er/e.ndjson", "spark.jsonl/part-0.json"]
    empty = ["code/a.py", ".cache/d.jsonl", "_logs/d.jsonl", "other/.d.jsonl", "meta/state.json"]
    for name in (*unread, *silent, *inside, *empty):
        jsonl([], f"data/{name}")
    folder = jsonl(texts(100), "data/a.jsonl").parent
    named = [*unread, "sub/", "deep/", "spark.jsonl/"]
    for given in (folder, f"{folder}/*"):
        note = UserFile(str(given)).part("calibrate").note
        listed = ", ".join(repr(f"{folder}/{name}") for name in sorted(named))
        assert note == f"not used: {listed}"
    for name in ("spark.jsonl/part-0.json", "deep/er/e.ndjson"):
        (folder / name).unlink()
    for given in (f"{folder}/**", f"{folder}/**/*.jsonl", f"{folder}/a*"):
        note = UserFile(str(given)).part("calibrate").note
        assert "/sub" not in note
        assert ("b.ndjson" in note) == str(given).endswith("**")
    for number in range(20):
        jsonl([], f"data/{number}.gz")
    assert UserFile(str(folder)).part("calibrate").note.endswith(" and 8 more")


@pytest.mark.parametrize("names", ["contest.jsonl trains.jsonl", "test/a.jsonl test/b.jsonl"])
def test_what_only_looks_like_a_split_divides_nothing(jsonl: Callable[..., Path], names: str):
    for number, name in enumerate(names.split()):
        folder = jsonl(texts(50, 100 * number), f"train/{name}").parent
    source = UserFile(f"{folder}/*.jsonl")
    assert source.part("calibrate").note == ""
    assert 0 < len(source.part("measure").rows) < 50


def test_what_becomes_of_other_splits_and_files_is_said(jsonl: Callable[..., Path]):
    begins = {"train": 0, "test": 100, "validation": 200, "extra": 300}
    content = {
        name: {record["text"] for record in texts(10, begin)} for name, begin in begins.items()
    }
    for name, begin in begins.items():
        folder = jsonl(texts(10, begin), f"data/{name}.jsonl").parent
    for gone, shown, unused in (
        ("", "train", "validation extra"),
        ("train", "extra", "validation"),
        ("extra", "validation", ""),
    ):
        if gone:
            (folder / f"{gone}.jsonl").unlink()
        source = UserFile(str(folder))
        parts = texts_by_part(source)
        assert parts["measure"] == content["test"]
        assert parts["calibrate"] | parts["exemplars"] == content[shown]
        assert all(name in source.part("measure").note for name in unused.split())
    (folder / "validation.jsonl").unlink()
    alone = UserFile(str(folder))
    assert len(alone.part("measure").rows) == alone.size() == 10
    (folder / "test.jsonl").rename(folder / "train.jsonl")
    assert len(texts_by_part(UserFile(str(folder)))["measure"]) < 10


@pytest.mark.parametrize("name", ["test.jsonl", "validation.jsonl", "dev-1.jsonl"])
@pytest.mark.parametrize("given", ["{}", "{}/*.jsonl"])
def test_a_lone_split_that_is_measured_measures_whole_and_calibrates_nothing(
    jsonl: Callable[..., Path], name: str, given: str
):
    file = jsonl(texts(257), f"data/{name}")
    path = given.format(file.parent)
    source = UserFile(path)
    assert (len(source.part("measure").rows), len(source.part("exemplars").rows)) == (257, 0)
    for refused in (lambda: source.part("calibrate"), lambda: CalibrationSet(f"'{path}'")):
        with pytest.raises(DataError, match=re.escape(str(file))) as caught:
            refused()
        assert caught.value.subject == path
    divided = UserFile(str(file))
    assert divided.size() == 257
    assert 0 < len(divided.part("measure").rows) < 100
    jsonl(texts(50, 1_000), "data/train.jsonl")
    assert len(source.part("calibrate").rows) > 30


@pytest.mark.parametrize(("filled", "empty"), [("train", "test"), ("test", "train")])
def test_a_part_without_a_usable_row_is_refused(
    jsonl: Callable[..., Path], filled: str, empty: str
):
    folder = jsonl(texts(10), f"data/{filled}.jsonl").parent
    jsonl([{"text": ""}], f"data/{empty}.jsonl")
    with pytest.raises(DataError, match=f"in its {empty} part") as caught:
        UserFile(str(folder)).part("measure")
    assert caught.value.subject == str(folder)


@pytest.mark.parametrize(
    ("names", "subject", "named"),
    [
        ("", "data", "holds no data file"),
        ("README.md", "data", "holds no data file"),
        ("a.pkl b.pt", "data", "pickle"),
        ("a.jsonl b.csv README.txt", "data", "csv, jsonl, txt"),
        ("state.json", "data/state.json", "'_data_files'"),
        ("dataset_dict.json", "data/dataset_dict.json", "'splits'"),
    ],
)
def test_a_folder_with_nothing_to_read_is_refused(
    tmp_path: Path, names: str, subject: str, named: str
):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in names.split():
        (folder / name).write_text("{}")
    with pytest.raises(DataError, match=named) as caught:
        UserFile(str(folder))
    assert caught.value.subject == f"{tmp_path}/{subject}"
    with pytest.raises(DataError) as caught:
        UserFile(f"{folder}/*.parquet")
    assert caught.value.subject == f"{folder}/*.parquet"


def saved(folder: Path, splits: dict[str, list[dict[str, Any]]] | None = None) -> str:
    if splits is None:
        datasets.Dataset.from_list(texts(100)).save_to_disk(folder, num_shards=2)
    else:
        datasets.DatasetDict(
            {name: datasets.Dataset.from_list(records) for name, records in splits.items()}
        ).save_to_disk(folder)
    return str(folder)


def test_a_saved_data_set_is_divided_by_hash_or_by_its_splits(tmp_path: Path):
    source = UserFile(saved(tmp_path / "whole"))
    (tmp_path / "whole/cache-0123456789abcdef.arrow").write_text("a cache, of no concern")
    assert set().union(*texts_by_part(source).values()) == {record["text"] for record in texts(100)}
    assert texts_by_part(source) == texts_by_part(UserFile(str(tmp_path / "whole/data-*.arrow")))
    folder = saved(
        tmp_path / "split",
        {
            "train": texts(100),
            "validation": texts(5, 100),
            "test": texts(9, 200),
            "extra": texts(9, 300),
        },
    )
    parts = texts_by_part(UserFile(folder))
    assert parts["measure"] == {record["text"] for record in texts(9, 200)}
    assert parts["calibrate"] | parts["exemplars"] == {record["text"] for record in texts(100)}
    assert len(rows_of(UserFile(f"{folder}/extra"))) == 9


def test_an_incomplete_saved_data_set_is_refused(tmp_path: Path):
    folder = Path(saved(tmp_path / "saved"))
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow"):
        UserFile(str(folder))
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../secret.pkl"}]}')
    with pytest.raises(DataError, match=r"saved/\*\.arrow"):
        UserFile(str(folder))
    other = saved(tmp_path / "other", {"extra": texts(9), "more": texts(9)})
    with pytest.raises(DataError, match="extra, more") as caught:
        UserFile(other)
    assert caught.value.subject == other
