"""What the errors of data say: the sentences that a user most likely meets."""

import json
from pathlib import Path

import pytest

from calibrant.data import CalibrationSet
from calibrant.errors import DataError, InputError
from calibrant.testing import tiny_tokenizer

FILES = [
    ("a.jsonl", b"", "a.jsonl' is empty; a data file needs at least one row"),
    ("a.jsonl", b'{"text": "fine"}\nnot json\n', "a.jsonl:2: 'not json' is no JSON"),
    (
        "a.jsonl",
        b'{"text": "caf\xe9"}\n',
        "a.jsonl:1: this is no UTF-8 text (byte 0xe9 at 14); save the file as UTF-8",
    ),
    (
        "a.jsonl",
        b'{"words": "a text", "n": 1}\n',
        "no column 'text' or 'question'; its columns are words, n",
    ),
    (
        "a.jsonl",
        b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        "a.jsonl can't be rendered as qa: that needs answer, and its columns are chosen, prompt, "
        "rejected; say which to read, as in {path}(answer=COLUMN), or take {path}:question",
    ),
    (
        "a.jsonl",
        b'{"id": "b-7", "note": "a text", "remark": "a longer text", "all": {"text": "words"}}\n',
        "has no column 'text' or 'question'; its columns are id, note, remark, all: say which to "
        "read, as in {path}(text=remark)",
    ),
    (
        "a.jsonl",
        b'{"custom_id": "b-7", "body": {"messages": []}}\n',
        "its columns are custom_id, body, and none of them holds several words: say which to read, "
        "as in {path}(text=COLUMN), or put the text of each row into a column 'text', or its ",
    ),
    ("a.jsonl", b'{"text": 3}\n', "a.jsonl', row 1: 'text' is '3'; it must be a text"),
    ("a.csv", b"text,n\na\n", "a.csv:2: this line has not the 2 columns of the first line but 1"),
    (
        "a.csv",
        b"text;n\na, b;1\n",
        "a.csv:2: ';' is between columns; write ',' there",
    ),
    ("a.csv", b"text;n\na b;1\n", "a.csv:2: ';' is between columns; write ',' there"),
    ("a.csv", b"a; b\none, two\n", "a.csv:2: this line has not the 1 column of the first line but"),
    ("a.csv", b"text\tn\na, b\t1\n", "a.csv:2: a tab is between columns; write ',' there"),
    ("a.csv", b"My text,n\na b,1\n", "say which to read, as in {path}(text='My text')"),
    (
        "a.csv",
        b"It was a bright cold day in April and no clock struck,n\na b,1\n",
        "and no…, n: put the text of each row into a column called 'text'",
    ),
    (
        "a.jsonl",
        b'{"messages": "[{\\"role\\": \\"user\\", \\"content\\": \\"Hi.\\"}]"}\n',
        "are messages: 'messages' holds JSON as a text; write it as a list of messages",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "guide", "content": "So"}, {"role": "system", "content": "."}]}',
        "no conversation in which a user says something among its first 1, only the roles guide, "
        "system; give what is asked the role 'user'",
    ),
    (
        "a.json",
        b'{"text": "a"}\n{"text": "b"}\n',
        "is no JSON (Extra data); a file that has a JSON object in every line is called .jsonl",
    ),
    (
        "a.json",
        b'{"n": 1, "data": [{"text": "a"}]}',
        "it must hold a list of objects, so put it in [ ], or write what is in 'data' alone",
    ),
    (
        "a.jsonl",
        b'[{"text": "a"}]',
        'is no JSON object such as {"text": …}, and a file that is one JSON list is called .json',
    ),
    (
        "a.json",
        b'{"messages": [{"role": "user", "content": "Hi."}]}',
        "holds one JSON object; it must hold a list of objects, so put it in [ ]",
    ),
    ("a.csv", b"from,n\na b,1\n", "say which to read, as in {path}(text='from')"),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "So"}]}',
        "among its first 1; fill the messages of the user",
    ),
    (
        "a.jsonl",
        b'[\n{"text": "a"}]',
        "every line must be one JSON object, and a file that is one JSON list is called .json",
    ),
    ("notes (1).txt", b"a\nb\n", "write its name in quotes of its own, as in '{path}'"),
    ("a(1).txt", b"a\nb\n", "write its name in quotes of its own, as in '{path}'"),
    ("a:b.txt", b"a\nb\n", "write its name in quotes of its own, as in '{path}'"),
    ("a@b.txt", b"a\nb\n", "write its name in quotes of its own, as in '{path}'"),
    ("a+b.txt", b"a\nb\n", "write its name in quotes of its own, as in '{path}'"),
    ("a.xlsx", b"x", "'.xlsx' is no known ending; a data file ends in .jsonl"),
    ("a.pkl", b"x", "a.pkl' may hold a pickle, which can run any program when it is read"),
]
SETS = [
    (
        "longest(d/prose.txt)",
        "'d/prose.txt' stands without its parameter; write name=value, as in "
        "longest(source='d/prose.txt')",
    ),
    ("wikitxt", "there is no source called 'wikitxt', perhaps you mean 'wikitext'"),
    ("gsm8k:cott", "there is no format called 'cott', perhaps you mean 'cot'"),
    ("wikitext@croq", "there is no packing called 'croq', perhaps you mean 'crop'"),
    (
        "wikitext@many(seperator=' ')",
        "many has no parameter 'seperator', perhaps you mean 'separator'",
    ),
    (
        "data/*.jsonl",
        "'data/' is no weight; write a number, as in 0.3*gsm8k:cot + 0.7*wikitext, and quote a "
        "path that has * in it",
    ),
    ("0.5*wikitext + gsm8k", "some parts have a weight and some have none; give each one, or none"),
    (
        "wikitext:qa",
        "wikitext can't be rendered as qa: that needs question, answer, and wikitext has text",
    ),
    (
        "race:cot",
        "race can't be rendered as cot: that needs rationale, and race has question, answer, "
        "choices; sets that have it: anli_r1",
    ),
    (
        "nowhere/mine.jsonl",
        "there is no file 'nowhere/mine.jsonl'; give the path of a data file or of a folder of "
        "them, or the name of a source",
    ),
    (
        "mix(a=gsm8k)",
        "'mix(a=gsm8k)' has the sets a and no weights; write each set with its weight, "
        "mix(gsm8k:cot=0.3, c4=0.7), or",
    ),
    ("mix(c4, gsm8k)", "'c4' is no name=value of its own; write each set with its weight"),
    (
        "mix(a=c4, gsm8k=0.5)",
        "gsm8k=0.5 is a set with its weight and a=c4 is not; write all sets so or none; a file "
        "called 0.5 is written '0.5' or",
    ),
    ("pile(subsets=['GitHub'])", "pile has no subset 'GitHub', perhaps you mean 'Github'"),
    (
        "flores(language='deu_Latin')",
        "is none of the mirror's languages, perhaps you mean 'deu_Latn'",
    ),
]
OBJECTS = [
    ([], "data is empty; give at least one row, and a list in the place of a generator that was"),
    ([{"words": "a text"}], "as in data.rename_column('words', 'text')"),
    (["a text", 5], "data holds str, int; it must be all texts, all conversations, all token ids"),
    ([[4, -1]], "row 1 of data has '-1' among its token ids; an id is a whole number of at least"),
    ({"test": ["a"]}, "hand over one, as in data=splits['test'], and of rows a list, as in data=["),
    ([{"role": "user", "content": "Hi."}], "put the messages of a conversation into a list of"),
    (
        "This is a text.",
        "is a text and no expression; to calibrate on it, give a list, data=[text]",
    ),
    ("'my notes.jsonl'(text=body)", "there is no file 'my notes.jsonl'; give the path of a data"),
    ("given(digest='0123')", "data that were handed over in another process; hand them over again"),
]


@pytest.mark.parametrize(("data", "said"), OBJECTS)
def test_an_object(data: object, said: str):
    with pytest.raises(InputError) as caught:
        CalibrationSet(data)  # pyright: ignore[reportArgumentType]  # what is no data is refused
    assert said in str(caught.value)


@pytest.mark.parametrize(("name", "content", "said"), FILES)
def test_a_file(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        CalibrationSet(str(tmp_path / name)).rows(tiny_tokenizer())
    assert said.replace("{path}", str(tmp_path / name)) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "term", "said"),
    [
        ({"input_ids": [3, 4]}, "{path}:qa", "that needs question and answer, and it holds token"),
        ({"K": "a b", "R": "c"}, "{path}(question=K):qa", "as in {path}(question=K, answer=COLUMN"),
        ({"text": "a b"}, "{path}:qa", "and its columns are text; take {path}:text"),
    ],
)
def test_what_a_file_lacks(
    tmp_path: Path, content: dict[str, object], term: str, said: str
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        CalibrationSet(term.replace("{path}", str(file)))
    assert said.replace("{path}", str(file)) in str(caught.value)


@pytest.mark.parametrize(("text", "said"), SETS)
def test_a_set(text: str, said: str):
    with pytest.raises(InputError) as caught:
        CalibrationSet(text)
    assert said in str(caught.value)


def test_token_ids_longer_than_a_window(tmp_path: Path):
    file = tmp_path / "ids.jsonl"
    file.write_text(json.dumps({"input_ids": [3] * 80}))
    with pytest.raises(DataError, match="give a length of 80, or cut it yourself"):
        CalibrationSet(str(file), length=64)
    with pytest.raises(DataError, match="give a length of 80, or cut it yourself"):
        CalibrationSet([[3] * 80], length=64)
