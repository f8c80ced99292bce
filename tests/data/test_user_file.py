"""A user's own file: every kind of it, and everything that can be wrong with one."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.data import PARTS, CalibrationSet
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError

TEXTS = {f"text number {i}, with é and “quotes”" for i in range(60)}


def all_texts(path: Path, **columns: str) -> set[str]:
    source = UserFile(str(path), **columns)
    return {row.text for part in PARTS for row in source.rows(part)}


def write(path: Path) -> Path:
    """The texts as a file of the kind that the ending says."""
    records = [{"text": text, "other": i} for i, text in enumerate(sorted(TEXTS))]
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        data = "".join(json.dumps(r) + "\n\n" for r in records).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    elif path.suffix == ".csv":
        path.write_text("other,text\n" + "".join('{},"{}"\n'.format(r["other"], r["text"].replace('"', '""')) for r in records), encoding="utf-8-sig")
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("\n \n\n".join(sorted(TEXTS)))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.txt", "A.JSONL"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str):
    path = tmp_path / name
    write(path if path.suffix != ".JSONL" else path.with_suffix(".jsonl")).rename(path)
    assert all_texts(path) == TEXTS


def test_a_text_file_without_empty_lines_gives_lines(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(sorted(TEXTS)) + "\n")
    assert all_texts(path) == TEXTS
    path.write_text("one\nparagraph\n\nanother\n")
    assert all_texts(path) == {"one\nparagraph", "another"}


def test_long_fields_of_a_csv_are_read(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 400_000 + "\n")
    assert all_texts(path) == {"x" * 400_000}


def test_columns_are_found_by_name_or_renamed(jsonl: Callable[..., Path]):
    path = jsonl([{"prompt": f"q{i}", "answer": i, "choices": ["a", "b"]} for i in range(20)])
    source = UserFile(str(path), question="prompt")
    assert (source.kind, source.fields) == ("questions", ("question", "answer", "choices"))
    rows = [row for part in PARTS for row in source.rows(part)]
    assert {(row.question, row.answer, row.choices) for row in rows} == {(f"q{i}", str(i), ("a", "b")) for i in range(20)}


def test_a_changed_file_is_read_anew(jsonl: Callable[..., Path]):
    path = jsonl({"text": f"old {i}"} for i in range(20))
    source = UserFile(str(path))
    assert all("old" in row.text for row in source.rows("calibrate"))
    jsonl({"text": f"new text {i}"} for i in range(20))
    assert all("new" in row.text for row in source.rows("calibrate"))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", b"", "a.jsonl' is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl' is empty"),
        ("a.csv", b"text\n", "a.csv' is empty"),
        ("a.json", b"", "a.json' is empty"),
        ("a.txt", b" \n", "a.txt' is empty"),
        ("a.jsonl", b'{"text": "fine"}\nnot json\n', "a.jsonl:2: 'not json' is no JSON"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": "cut\n', r"a.jsonl:3: '{\"text\": \"cut' is no JSON"),
        ("a.jsonl", b"[1, 2]\n", r"a.jsonl:1: '\[1, 2\]' is no JSON object"),
        ("a.json", b'[{"text": "a"},\n oops]', "a.json:2: 'oops]' is no JSON"),
        ("a.json", b'{"text": "a"}', "a.json' holds a JSON dict"),
        ("a.json", b"[3]", "a.json, record 1: '3' is no JSON object"),
        ("a.csv", b"text,n\na,1\nb\n", "a.csv:3: this line has not the 2 columns"),
        ("a.csv", b'text\nfine\n"open\n', "a.csv:3: this line is no CSV"),
        ("a.parquet", b"PAR1nonsense", "a.parquet' can't be read as Parquet"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "a.jsonl' is no UTF-8 text .byte 0xe9"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz' is no whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9], "a.jsonl.gz' is no whole gzip file"),
        ("a.jsonl", b'{"body": "a", "n": 1}\n', r"no column 'text' or 'question'; its columns are body, n: .*a.jsonl\(text=body\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', "a.jsonl', row 2: 'text' is 'None'; it must be a text"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "no column 'text' or 'question'; its columns are txt"),
        ("a.jsonl", b'{"question": "a", "choices": "b"}\n', "row 1: 'choices' is 'b'; it must be a list of texts"),
        ("a.xlsx", b"x", "'.xlsx' is no known ending; a data file ends in .jsonl"),
        ("a", b"x", "'no ending' is no known ending"),
        ("a.pkl", b"x", "a.pkl' may hold a pickle, which can run any program"),
        ("a.pt", b"x", "a.pt' may hold a pickle"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, name: str, content: bytes, match: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        list(UserFile(str(path)).rows("calibrate"))
    assert "\n" not in str(caught.value)


def test_most_of_it_is_found_out_when_the_set_is_built(jsonl: Callable[..., Path]):
    path = jsonl([{"body": "a", "n": 1}])
    with pytest.raises(DataError, match=r"no column 'boddy', did you mean 'body'.*its columns are body, n"):
        CalibrationSet(f"{path}(text=boddy)")
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        CalibrationSet(str(path.with_name("missing.jsonl")))


def test_a_folder_is_no_file(tmp_path: Path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"no file .*a\.jsonl"):
        UserFile(str(tmp_path / "a.jsonl"))


def test_a_file_that_may_not_be_read(jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    path = jsonl([{"text": "a"}])
    monkeypatch.setattr("calibrant.data.user_file.os.access", lambda *_: False)
    with pytest.raises(DataError, match=r"mine.jsonl' may not be read"):
        UserFile(str(path))
