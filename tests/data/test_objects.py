"""Data that come as objects: every kind of them, what they are in a set, and what is refused."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from calibrant import prune
from calibrant.data import CalibrationSet, TokenBatch, as_set, as_source, parse_source
from calibrant.data._rows import LOOKED_AT
from calibrant.data.given import Given
from calibrant.data.inspect import inspect
from calibrant.data.objects import as_expression, record, write_rows
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError, InputError
from calibrant.evaluators.loss import Loss
from calibrant.testing import tiny_folder, tiny_tokenizer
from calibrant.testing.sources import check_source

TEXTS = [f"This is text number {number} of forty." for number in range(40)]
CONVERSATIONS = [
    [
        {"role": "user", "content": f"What is {number} + {number}?"},
        {"role": "assistant", "content": f"It is {2 * number}."},
    ]
    for number in range(10)
]
IDS = torch.arange(3, 163).reshape(5, 32)
ROWS = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]

TEXT_OBJECTS: dict[str, Callable[[], Any]] = {
    "list": lambda: TEXTS,
    "reversed": lambda: TEXTS[::-1],
    "twice": lambda: [*TEXTS, *TEXTS],
    "generator": lambda: (text for text in TEXTS),
    "array": lambda: np.array(TEXTS),
    "with empty ones": lambda: ["", *TEXTS, None, " \n"],
    "rows": lambda: ROWS,
    "Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "a column of it": lambda: datasets.Dataset.from_list(ROWS)["text"],
    "Dataset of tables": lambda: datasets.Dataset.from_list(ROWS).with_format("pandas"),
    "IterableDataset": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "DatasetDict": lambda: splits(train=ROWS, test=ROWS[:3]),
    "other column": lambda: [{"content": text} for text in TEXTS],
    "pandas": lambda: pandas.DataFrame(ROWS),
    "polars": lambda: polars.DataFrame(ROWS),
}


def splits(**rows: list[dict[str, Any]]) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_list(part) for name, part in rows.items()}
    )


ID_OBJECTS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: IDS,
    "int32": lambda: IDS.int(),
    "array": lambda: IDS.numpy(),
    "lists": lambda: IDS.tolist(),
    "list of tensors": lambda: list(IDS),
    "rows": lambda: [{"input_ids": ids} for ids in IDS.tolist()],
    "batches of one": lambda: [{"input_ids": ids[None]} for ids in IDS],
    "batch": lambda: {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
    "Dataset": lambda: datasets.Dataset.from_dict({"input_ids": IDS.tolist()}),
    "Dataset of tensors": lambda: datasets.Dataset.from_dict(
        {"input_ids": IDS.tolist()}
    ).with_format("torch"),
}


def tokens(data: Any, **budget: Any) -> TokenBatch:
    return CalibrationSet(data, **budget).tokens(tiny_tokenizer())


def decoded(batch: TokenBatch) -> str:
    return str(tiny_tokenizer().decode(batch.ids[batch.mask]))


@pytest.mark.parametrize("kind", TEXT_OBJECTS)
def test_texts_are_the_same_set_however_they_come(kind: str):
    batch = tokens(TEXT_OBJECTS[kind]())
    assert batch.fingerprint == tokens(TEXTS).fingerprint
    assert batch.facts["data"] == str(CalibrationSet(TEXTS))
    assert sorted(decoded(batch).split("\n\n")) == sorted(TEXTS)


@pytest.mark.parametrize("kind", ID_OBJECTS)
def test_token_ids_are_used_as_they_are(kind: str):
    batch = tokens(ID_OBJECTS[kind]())
    assert torch.equal(batch.ids, IDS)
    assert bool(batch.mask.all())
    assert batch.fingerprint == tokens(IDS).fingerprint


@pytest.mark.parametrize(
    "data",
    [
        CONVERSATIONS,
        [{"messages": messages} for messages in CONVERSATIONS],
        datasets.Dataset.from_dict({"conversations": CONVERSATIONS}),
    ],
    ids=["list", "rows", "Dataset"],
)
def test_conversations_are_in_the_models_own_template(data: Any):
    tokenizer = tiny_tokenizer()
    drawn = CalibrationSet(data)
    assert drawn.parts[0].format.spec_name() == "chat"
    wanted = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in CONVERSATIONS]
    ends = str(tokenizer.eos_token) + "user"
    found = decoded(drawn.tokens(tokenizer)).replace(ends, str(tokenizer.eos_token) + "\nuser")
    assert sorted(found.splitlines()) == sorted(map(str, wanted))


def test_another_format_or_a_share_is_asked_for_with_the_objects_text():
    asked = as_source(CONVERSATIONS)
    drawn = CalibrationSet(f"{asked}:qa@one", length=64)
    assert str(CalibrationSet(str(drawn))) == str(drawn)
    first = decoded(tokens(f"{asked}:qa@one", samples=1, length=64))
    assert first.startswith("Question: What is")
    both = tokens(f"0.25*{asked}:qa + 0.75*random_tokens", tokens=400, length=64)
    assert [part["tokens"] for part in both.facts["parts"]] == [100, 300]
    mixed = tokens(f"mix({asked}:qa=0.5, random_tokens=0.5)", length=64, samples=4)
    assert len(mixed.mixed) == 2


def test_rows_are_those_of_a_file_with_the_same_rows(jsonl: Callable[..., Path]):
    """A file keeps a part for measuring; the rest are the same rows in the same order."""
    questions = [{"prompt": f"What is {n}?", "answer": n, "cot": "So.\nIt is."} for n in range(60)]
    for name, rows in (("texts", ROWS), ("questions", questions)):
        file = UserFile(str(jsonl(rows, f"{name}.jsonl")))
        calibrated = [record(row) for row in file.rows("calibrate")]
        assert tokens(calibrated, tokens=300, length=50).fingerprint == (
            tokens(file, tokens=300, length=50).fingerprint
        )


def test_rows_have_the_format_that_they_have_in_a_file(jsonl: Callable[..., Path]):
    for row in ({"text": "a text", "question": "What?", "answer": "That."}, {"q": "?", "a": "!"}):
        (in_memory,) = CalibrationSet([row]).parts
        (in_file,) = CalibrationSet(jsonl([row] * 30)).parts
        assert in_memory.format == in_file.format
        assert in_memory.source.kind == in_file.source.kind


def test_drawn_tokens_come_back_as_objects(letters: PreTrainedTokenizerBase):
    drawn = CalibrationSet("python_docs:text@one", samples=6, length=80).tokens(letters)
    again = CalibrationSet(drawn.ids).tokens(letters)
    padded = [ids[mask].tolist() for ids, mask in zip(drawn.ids, drawn.mask, strict=True)]
    assert CalibrationSet(padded).tokens(letters).fingerprint == drawn.fingerprint
    masked = [
        {"input_ids": ids, "attention_mask": mask}
        for ids, mask in zip(drawn.ids, drawn.mask, strict=True)
    ]
    assert CalibrationSet(masked).tokens(letters).fingerprint == drawn.fingerprint
    assert torch.equal(again.ids, drawn.ids)


@pytest.mark.parametrize("ids", [[5, 6, 7], np.array([5, 6, 7]), torch.tensor([5, 6, 7])])
def test_one_sequence_of_token_ids_is_a_list_of_one(ids: Any):
    assert tokens(ids).ids.tolist() == [[5, 6, 7]]
    assert tokens(list(ids)).ids.tolist() == [[5, 6, 7]]


def test_arrays_within_rows_are_lists_at_any_depth():
    choices = {"label": np.array(["1", "2"]), "text": np.array(["red", "green"], dtype=object)}
    questions = pandas.DataFrame([{"question": "Grass?", "choices": choices, "answerKey": "2"}])
    (row,) = as_source(questions).rows("calibrate")
    assert (row.choices, row.answer) == (("red", "green"), "B")
    call = {"name": "weather", "arguments": {"days": np.array([1, 2])}}
    calling = {"role": "assistant", "tool_calls": np.array([call], dtype=object)}
    talk = np.array([{"role": "user", "content": "Rain?"}, calling], dtype=object)
    (row,) = as_source(pandas.DataFrame([{"messages": talk}])).rows("calibrate")
    assert row.turns[1].calls[0].arguments == '{"days": [1, 2]}'


def test_more_rows_than_are_held_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("calibrant.data.given.MOST_GIVEN", 39)
    for kind in ("list", "Dataset", "array", "pandas"):
        with pytest.raises(DataError, match="40"):
            CalibrationSet(TEXT_OBJECTS[kind]())


def test_no_start_token_is_put_before_token_ids(started: PreTrainedTokenizerBase):
    drawn = CalibrationSet(IDS)
    assert torch.equal(drawn.tokens(started).ids, IDS)
    with_start = CalibrationSet([[0, 5, 6], [0, 7]])
    batch = with_start.tokens(started)
    assert batch.ids.tolist() == [[0, 5, 6], [0, 7, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, True, False]]
    kinds = with_start.kinds(started)
    assert kinds.tolist() == [[2, 0, 0], [2, 0, 0]]


def test_the_order_of_token_ids_counts_and_that_of_texts_does_not():
    assert str(CalibrationSet(IDS)) != str(CalibrationSet(IDS.flip(0)))
    assert torch.equal(tokens(IDS.flip(0)).ids, IDS.flip(0))
    assert str(CalibrationSet(TEXTS)) == str(CalibrationSet(TEXTS[::-1]))
    assert str(CalibrationSet(TEXTS)) != str(CalibrationSet(TEXTS[1:]))
    assert len(tokens([[5, 6], [5, 6]]).ids) == 2


def test_without_a_budget_all_is_used_and_128_windows_at_most():
    few = tokens(TEXTS, length=64)
    assert few.facts["parts"][0]["rows"] == 40
    assert sorted(decoded(few).split("\n\n")) == sorted(TEXTS)
    many = tokens([f"{number} is a number" for number in range(3000)], length=64)
    assert (many.facts["windows"], many.facts["tokens"]) == (128, 128 * 64)
    assert len(tokens(torch.ones(200, 4, dtype=torch.long) * 5).ids) == 128
    # A later draw has no other rows, and says so.
    assert tokens(TEXTS, length=64, seed=1).facts["overlap"] == 1
    assert CalibrationSet(TEXTS, length=64).disjoint_draws(tiny_tokenizer()) == 1


def test_a_budget_is_exact():
    assert tokens(TEXTS, tokens=100, length=64).facts["tokens"] == 100
    assert tokens(TEXTS, samples=3, length=64).facts["windows"] == 3
    assert torch.equal(tokens(IDS, samples=2).ids, IDS[:2])
    for budget in ({"samples": 128}, {"tokens": 100_000}):
        with pytest.raises(DataError, match="too little"):
            tokens(TEXTS, length=64, **budget)
        with pytest.raises(DataError, match="too little"):
            tokens(IDS, **budget)


def test_what_is_left_out_is_counted_and_noted():
    def note(data: Any) -> str:
        return tokens(data).facts["parts"][0]["note"]

    assert note(["a text", "", None]) == "2 of 3 rows without a text left out"
    assert note([[5, 6], []]) == "1 of 2 rows without a token left out"
    assert "train" in note(splits(train=ROWS))
    assert tokens(["same", "same"]).facts["parts"][0]["duplicates_dropped"] == 1


def test_of_a_stream_the_first_rows_are_read(monkeypatch: pytest.MonkeyPatch):
    def endless() -> Iterable[str]:
        while True:
            yield from TEXTS

    monkeypatch.setattr("calibrant.data.given.FIRST_GIVEN", 7)
    batch = tokens(endless())
    assert batch.facts["parts"][0]["rows"] == 7
    assert "first 7 rows" in batch.facts["parts"][0]["note"]


def test_a_set_or_source_stays_what_it_is():
    drawn = CalibrationSet(TEXTS, tokens=50)
    assert as_set(drawn, tokens=70) is drawn
    source = as_source(TEXTS)
    assert as_source(source) is source
    assert str(as_set(source)) == str(source)
    assert parse_source(str(source)) == source


def test_a_path_is_the_file_that_is_there(jsonl: Callable[..., Path]):
    path = jsonl(ROWS)
    assert as_set(path).parts[0].source == UserFile(str(path))


def test_the_source_is_what_sources_are():
    for data in (TEXTS, CONVERSATIONS):
        source = as_source(data)
        assert isinstance(source, Given)
        assert source.family == "own"
        assert list(source.rows("calibrate")) == list(source.rows("calibrate"))


def test_nothing_of_it_is_held_out():
    source = as_source(TEXTS)
    with pytest.raises(DataError, match="all of it is calibrated on"):
        list(source.rows("measure"))
    with pytest.raises(DataError, match="all of it is calibrated on"):
        list(Loss(str(source)).rows())


def test_written_to_a_file_a_part_of_it_is_held_out(tmp_path: Path):
    for data, form in ((TEXTS, "text"), (CONVERSATIONS, "chat")):
        text = as_expression(data, tmp_path)
        (term,) = CalibrationSet(text).parts
        assert isinstance(term.source, UserFile)
        check_source(term.source)
        assert term.format.spec_name() == form
        written = {row.key for part in ("calibrate", "measure") for row in term.source.rows(part)}
        assert written <= {row.key for row in as_source(data).rows("calibrate")}
        assert as_expression(f"0.5*{as_source(data)} + 0.5*c4", tmp_path).count(".jsonl") == 1
    assert as_expression("gsm8k:cot", tmp_path) == "gsm8k:cot"
    with pytest.raises(DataError, match="token ids"):
        as_expression(IDS, tmp_path)


def test_no_row_is_lost_in_the_file_whatever_fields_it_has(tmp_path: Path):
    rows: list[dict[str, str]] = [{"text": f"text {number}"} for number in range(LOOKED_AT)]
    rows.append({"question": "1 + 1?", "answer": "2"})
    rows.append({"text": "the last", "question": "1 + 2?", "answer": "3"})
    write_rows(tmp_path / "rows.jsonl", as_source(rows).rows("calibrate"))
    source = UserFile(str(tmp_path / "rows.jsonl"))
    found = {row.key for part in ("calibrate", "measure", "exemplars") for row in source.rows(part)}
    assert found == {row.key for row in as_source(rows).rows("calibrate")}


def test_another_process_says_that_it_was_not_handed_the_data():
    text = str(as_source(TEXTS))
    code = f"from calibrant.data import CalibrationSet; CalibrationSet({text!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DataError" in done.stderr
    assert "hand them over again" in done.stderr


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "empty"),
        (iter([]), "empty"),
        (["", None, "  "], "text"),
        ([[]], "token"),
        (datasets.Dataset.from_dict({"words": ["a"], "n": [1]}), "words, n"),
        (["a text", 5], "str, int"),
        ([{"text": "a"}, "b"], "dict, str"),
        ([{"text": 5}], "row 1"),
        ([[0.5, 1.0]], "0.5"),
        (torch.ones(2, 3), "1.0"),
        ([[4, -1]], "-1"),
        ([[True, False]], "True"),
        ([["a", "b"]], "'a'"),
        (torch.ones(1, 1, 2, 3, dtype=torch.long), "row 1"),
        ("my notes.jsonl", "no file"),
        ([{"input_ids": [4, 5], "attention_mask": [1]}], "attention_mask"),
        ([{"input_ids": [4, 5]}, {"text": "a"}], "row 2"),
        (CONVERSATIONS[0], "[messages]"),
        ([[{"speaker": "me"}]], "row 1"),
        (splits(test=ROWS), "test"),
        ({"text": TEXTS}, "text"),
        (Path("nowhere/rows.jsonl"), "nowhere/rows.jsonl"),
        ("This is a text and no expression.", "[text]"),
        ("a\nb", "[text]"),
        ("long " * 50_000, "[text]"),
        ("given(digest='0123')", "0123"),
        ("'my notes.jsonl'(text=body)", "'my notes.jsonl'"),
        ("0.5*python_docs + 0.5*python docs", "'python docs'"),
        ({"question": "What?", "answer": "That."}, "[row]"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, named: str):
    with pytest.raises(InputError) as caught:
        CalibrationSet(data)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [5, None, b"bytes", object()])
def test_what_holds_nothing_is_refused(data: Any):
    with pytest.raises(DataError, match=type(data).__name__):
        as_source(data)


def test_a_type_is_named_in_a_sentence():
    with pytest.raises(DataError, match=r"^an object of type int is no data; give an expression"):
        as_source(5)


@pytest.mark.parametrize("texts", [["", ""], ["  ", None]])
def test_empty_texts_are_no_table(texts: list[str | None]):
    with pytest.raises(DataError, match=r"^data has 2 texts without a word; give texts with words"):
        as_source(texts)


def test_advice_about_a_budget_is_for_the_command_line_and_for_python():
    data = CalibrationSet(TEXTS, tokens=100_000, length=64)
    with pytest.raises(DataError, match=r"; lower length, or tokens to at most \d+$"):
        data.tokens(tiny_tokenizer())
    data = CalibrationSet(TEXTS, samples=1_000, length=64)
    with pytest.raises(DataError, match=r"; lower length, or samples .* \d+ tokens instead$"):
        data.tokens(tiny_tokenizer())


def test_a_generator_that_was_used_up_is_refused():
    texts = (text for text in TEXTS)
    CalibrationSet(texts)
    with pytest.raises(DataError, match="used up"):
        CalibrationSet(texts)


def test_token_ids_must_be_of_this_model_and_fit_the_windows():
    with pytest.raises(DataError, match="999"):
        tokens([[5, 999]])
    with pytest.raises(DataError, match="32"):
        CalibrationSet(IDS, length=16)
    with pytest.raises(DataError, match="qa"):
        CalibrationSet(f"{as_source(IDS)}:qa")


@pytest.mark.parametrize(
    "data",
    [TEXTS, CONVERSATIONS, IDS, datasets.Dataset.from_list(ROWS), as_set(TEXTS, tokens=200)],
    ids=["texts", "conversations", "ids", "Dataset", "CalibrationSet"],
)
def test_a_model_is_pruned_with_each_kind(data: Any, tmp_path: Path):
    model = str(tiny_folder(tmp_path / "tiny", num_hidden_layers=1))
    done = prune(model, data=data, method="wanda", target=0.5, dtype="float32")
    facts = done.record.data_facts
    assert facts["data"] == str(as_set(data))
    assert facts["parts"][0]["licence"] == "the user's own"
    again = prune(model, data=str(as_set(data)), target=0.5, dtype="float32", **_budget(data))
    assert again.record.run.id == done.record.run.id


def _budget(data: Any) -> dict[str, Any]:
    return {"tokens": 200} if isinstance(data, CalibrationSet) else {}


def test_a_model_that_saw_the_rows_is_not_measured_on_them(tmp_path: Path):
    """As with a user's file: the model's folder knows the rows that it was calibrated on."""
    from calibrant import evaluate

    rows = [{"text": f"{text} It has some more words so that it can be told."} for text in TEXTS]
    model = str(tiny_folder(tmp_path / "tiny", num_hidden_layers=1))
    prune(model, data=rows, out=str(tmp_path / "pruned"), dtype="float32")
    path = tmp_path / "rows" / "test.jsonl"
    path.parent.mkdir()
    datasets.Dataset.from_list(rows).to_json(path)
    with pytest.raises(DataError, match="allow"):
        evaluate(str(tmp_path / "pruned"), tasks=[Loss(str(path), tokens=64, length=32)])


def test_objects_can_be_looked_at(tmp_path: Path):
    model = str(tiny_folder(tmp_path / "tiny", num_hidden_layers=1))
    found = inspect(iter(TEXTS), model=model, length=64)
    assert (found.rows, found.tokens) == (40, tokens(TEXTS, length=64).facts["tokens"])
    assert found.data == str(as_source(TEXTS))
