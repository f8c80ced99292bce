"""Texts of every sort in files of every kind: they come through as they are, or are refused with
their place.
"""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pytest

from calibrant.data._files import SUFFIXES, read_records
from calibrant.errors import DataError

from tests.data.written import packed, tabled, written

TEXTS = {
    "NUL": "before\x00after",
    "controls": (
        "bell \x07 escape \x1b[31m delete \x7f next line \x85 separators \x1c\x1d\x1e form \x0b\x0c"
    ),
    "line separators": "one\u2028two\u2029three",
    "right to left": "שלום \u202eevil\u202c مرحبا",
    "combining": "e\u0301\u0327 Z\u0351\u036b\u0343",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "astral": "𝕳𝖊𝖑𝖑𝖔 𠀀 \U0010fffd",
    "mark inside": "a \ufeff b",
    "quotes": "she said \"no, 'never'\"; \\n \\u0000 is no escape here",
    "code": "\u00a0def f(x):\u200b return {'a': [1, 2]}  # \t tab",
}


def write_csv(path: Path, records: Sequence[dict[str, object]]) -> None:
    opened: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ","
        )
        writer.writeheader()
        writer.writerows(records)


def write(path: Path, records: Sequence[dict[str, object]]) -> Path:
    """The records as a file of the kind that its ending says; of a text file each record is a
    paragraph.
    """
    match path.suffixes[0]:
        case ".json":
            path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        case ".csv" | ".tsv":
            write_csv(path, records)
        case ".txt":
            path.write_bytes("\n\n".join(str(record["text"]) for record in records).encode())
        case _:
            written(path, records)
    return path


def read(path: Path) -> list[str]:
    return [record["text"] for record in read_records(path, path.name)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_text_comes_through(tmp_path: Path, suffix: str):
    path = write(
        tmp_path / f"a{suffix}", [{"text": text} for text in ("first", *TEXTS.values(), "last")]
    )
    assert read(path) == ["first", *TEXTS.values(), "last"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_anything_has_no_rows(tmp_path: Path, suffix: str):
    path = tmp_path / f"a{suffix}"
    if suffix in (".parquet", ".arrow"):
        assert (
            list(
                read_records(
                    tabled(path, pyarrow.table({"text": pyarrow.array([], pyarrow.string())})),
                    path.name,
                )
            )
            == []
        )
        return
    for content in (b"", b"\n", b" \r\n\t\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"):
        packed(path, content)
        assert list(read_records(path, path.name)) == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_end_of_line_and_a_byte_order_mark(tmp_path: Path, end: str, mark: str):
    tables = {
        "a.csv": ["n,text", "1,one", '2,"t,w\no"'],
        "a.tsv": ["n\ttext", "1\tone", '2\t"t,w\no"'],
    }
    for name, lines in {**tables, "a.txt": ["one", "", "t,w", "o"]}.items():
        (tmp_path / name).write_bytes((mark + end.join(lines) + end).encode())
        assert read(tmp_path / name) == ["one", "t,w\no"]
    for name, text in {
        "a.jsonl": '{"text": "one"}\n\n{"text": "two"}\n',
        "a.json": '[{"text": "one"},\n{"text": "two"}]',
    }.items():
        if end != "\r":
            (tmp_path / name).write_bytes((mark + text.replace("\n", end)).encode())
            assert read(tmp_path / name) == ["one", "two"]
    (tmp_path / "a.csv").write_bytes(f"{mark}text{end}1".encode())
    assert read(tmp_path / "a.csv") == ["1"]


def test_numbers_as_text_and_what_pandas_writes_for_nothing(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "007", "n": NaN, "m": -Infinity, "d": {"x": NaN}}\n'
    )
    assert list(read_records(tmp_path / "a.jsonl", "a")) == [
        {"text": "007", "n": None, "m": float("-inf"), "d": {"x": None}}
    ]
    (tmp_path / "a.csv").write_text("text,n\n007,1e5\n")
    assert list(read_records(tmp_path / "a.csv", "a")) == [{"text": "007", "n": "1e5"}]


DEEP = b"[" * 200_000 + b"]" * 200_000
BAD = {
    "broken line": ("a.jsonl", b'{"text": "fine"}\n{"text": \n', "a.jsonl:2"),
    "broken document": ("a.json", '[{"text": "a\u2028b"},\n oops]'.encode(), "a.json:2"),
    "control in JSON": ("a.jsonl", b'{"text": "a\x07b"}', "a.jsonl:1"),
    "deep line": ("a.jsonl", b'{"text": ' + DEEP + b"}", "a.jsonl:1"),
    "fairly deep": ("a.jsonl", b"[" * 400 + b"]" * 400, "a.jsonl:1"),
    "long number": ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5_000 + b"}", "a.jsonl:1"),
    "key twice": ("a.jsonl", b'{"n": 1}\n{"text": "a", "text": "b"}', "a.jsonl:2"),
    "no UTF-8 in JSON": ("a.jsonl", b'{"n": 1}\n\n{"text": "caf\xe9"}', "a.jsonl:3"),
    "no UTF-8 in text": ("a.txt", b"fine\n\xed\xa0\x80", "a.txt:2"),
    "no gzip": ("a.jsonl.gz", b"plain", "a.jsonl.gz"),
    "half a gzip": (
        "a.csv.gz",
        gzip.compress(b"text\n" + bytes(range(97, 120)) * 99)[:-9],
        "a.csv.gz",
    ),
    "spoilt gzip": ("a.jsonl.gz", gzip.compress(b"{}")[:10] + b"\xff" * 20, "a.jsonl.gz"),
    "half a zstd file": (
        "a.jsonl.zst",
        pyarrow.compress(b'{"text": "a"}\n' * 3_000, codec="zstd", asbytes=True)[:-9],
        "a.jsonl.zst",
    ),
    "short CSV line": ("a.csv", b"text,n\n\na,1\nb\n", "a.csv:4"),
    "open quote": ("a.csv", b'text\nfine\n"open\n', "a.csv:3"),
    "column twice": ("a.csv", b"text,n,text\na,1,b\n", "a.csv:1"),
    "column twice, behind blank lines": ("a.csv", b"\n\ntext,text\na,b\n", "a.csv:3"),
    "no Parquet": ("a.parquet", b"PAR1nonsense", "a.parquet"),
    "no Arrow": ("a.arrow", b"nonsense, and more of it", "a.arrow"),
    "half an Arrow file": ("a.arrow", b"ARROW1\x00\x00nonsense", "a.arrow"),
    "unknown": ("a.xlsx", b"x", "a.xlsx"),
    "pickle": ("a.pkl", b"x", "a.pkl"),
    "not a list": ("a.json", b'{"text": "a"}', "a.json"),
    "not an object": ("a.json", b"[3]", "a.json, record 1"),
}


@pytest.mark.parametrize(("name", "content", "place"), BAD.values(), ids=BAD)
def test_what_can_not_be_read_is_named_with_its_place(
    tmp_path: Path, name: str, content: bytes, place: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_records(tmp_path / name, name))
    said = str(caught.value)
    assert caught.value.subject in (name, place)
    assert said.lstrip("'").startswith(place)
    assert len(said.splitlines()) == 1
    assert len(said) < 300


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_table_with_a_text_that_is_no_utf8_or_two_columns_of_one_name(
    tmp_path: Path, suffix: str
):
    texts = pyarrow.array([b"fine", b"fine", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    for columns, names, named in (
        ([texts], ["text"], "row 3.*0xe9"),
        ([texts, texts], ["a", "a"], "'a'"),
    ):
        path = tabled(tmp_path / f"a{suffix}", pyarrow.table(columns, names=names))
        with pytest.raises(DataError, match=named) as caught:
            list(read_records(path, path.name))
        assert caught.value.subject == path.name
