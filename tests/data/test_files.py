"""Texts of every sort in files of every kind: they come through as they are, or are refused with their place."""

import csv
import gzip
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pytest
from pyarrow.parquet import write_table

from calibrant.data._files import SUFFIXES, read_records, short
from calibrant.errors import DataError

from tests.effort import quick

TEXTS = {
    "NUL": "before\x00after",
    "controls": "bell \x07 escape \x1b[31m delete \x7f next line \x85 separators \x1c\x1d\x1e form \x0b\x0c",
    "line separators": "one\u2028two\u2029three",
    "right to left": "שלום \u202eevil\u202c مرحبا",
    "combining": "e\u0301\u0327 Z\u0351\u036b\u0343",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "astral": "𝕳𝖊𝖑𝖑𝖔 𠀀 \U0010fffd",
    "mark inside": "a \ufeff b",
    "quotes": "she said \"no, 'never'\"; \\n \\u0000 is no escape here",
    "code": "\u00a0def f(x):\u200b return {'a': [1, 2]}  # \t tab",
}


def write_jsonl(path: Path, records: Sequence[dict[str, object]]) -> None:
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    if path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_csv(path: Path, records: Sequence[dict[str, object]]) -> None:
    opened: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(records)


def write_arrow(path: Path, records: Sequence[dict[str, object]], stream: bool = True) -> None:
    table = pyarrow.Table.from_pylist(list(records))
    with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table)


def write(path: Path, records: Sequence[dict[str, object]]) -> Path:
    """The records as a file of the kind that its ending says; of a text file each record is a paragraph."""
    match path.suffixes[0]:
        case ".jsonl":
            write_jsonl(path, records)
        case ".json":
            path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        case ".csv" | ".tsv":
            write_csv(path, records)
        case ".parquet":
            write_table(pyarrow.Table.from_pylist(list(records)), path)
        case ".arrow":
            write_arrow(path, records)
        case _:
            path.write_bytes("\n\n".join(str(record["text"]) for record in records).encode())
    return path


def read(path: Path) -> list[str]:
    return [record["text"] for record in read_records(path, path.name)]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_text_comes_through(tmp_path: Path, suffix: str, text: str):
    path = write(tmp_path / f"a{suffix}", [{"text": "first"}, {"text": text}, {"text": "last"}])
    assert read(path) == ["first", text, "last"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_megabytes_in_a_line(tmp_path: Path, suffix: str):
    text = "ab é\x00 " * 400_000
    path = write(tmp_path / f"a{suffix}", [{"text": "first"}, {"text": text.strip()}])
    with quick(20):
        assert read(path) == ["first", text.strip()]


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in (".parquet", ".arrow")])
@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_anything_has_no_rows(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"a{suffix}"
    if suffix.endswith(".zst"):
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(content)
    else:
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    assert list(read_records(path, path.name)) == []


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_table_without_rows(tmp_path: Path, suffix: str):
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    assert list(read_records(path, path.name)) == []


def test_an_arrow_file_is_read_like_a_stream(tmp_path: Path):
    write_arrow(tmp_path / "a.arrow", [{"text": "one"}, {"text": "two"}], stream=False)
    assert read(tmp_path / "a.arrow") == ["one", "two"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_end_of_line_and_a_byte_order_mark(tmp_path: Path, end: str, mark: str):
    tables = {"a.csv": ["n,text", "1,one", '2,"t,w\no"'], "a.tsv": ["n\ttext", "1\tone", '2\t"t,w\no"']}
    for name, lines in {**tables, "a.txt": ["one", "", "t,w", "o"]}.items():
        (tmp_path / name).write_bytes((mark + end.join(lines) + end).encode())
        assert read(tmp_path / name) == ["one", "t,w\no"]
    for name, text in {"a.jsonl": '{"text": "one"}\n\n{"text": "two"}\n', "a.json": '[{"text": "one"},\n{"text": "two"}]'}.items():
        if end != "\r":
            (tmp_path / name).write_bytes((mark + text.replace("\n", end)).encode())
            assert read(tmp_path / name) == ["one", "two"]


def test_a_zst_file_that_zstd_itself_wrote(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    try:
        subprocess.run(["zstd", "-q", "a.jsonl"], cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("there is no zstd here")
    assert read(tmp_path / "a.jsonl.zst") == ["one", "two"]


def test_numbers_as_text_and_what_pandas_writes_for_nothing(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "007", "n": NaN, "m": -Infinity, "d": {"x": NaN}}\n')
    assert list(read_records(tmp_path / "a.jsonl", "a")) == [{"text": "007", "n": None, "m": float("-inf"), "d": {"x": None}}]
    (tmp_path / "a.csv").write_text("text,n\n007,1e5\n")
    assert list(read_records(tmp_path / "a.csv", "a")) == [{"text": "007", "n": "1e5"}]


DEEP = b"[" * 200_000 + b"]" * 200_000
BAD = {
    "broken line": ("a.jsonl", b'{"text": "fine"}\n{"text": \n', r"^a\.jsonl:2: '{\"text\":' is no JSON"),
    "broken document": ("a.json", '[{"text": "a\u2028b"},\n oops]'.encode(), r"^a\.json:2: 'oops]' is no JSON"),
    "control in JSON": ("a.jsonl", b'{"text": "a\x07b"}', r"^a\.jsonl:1: .* is no JSON \(Invalid control character"),
    "deep line": ("a.jsonl", b'{"text": ' + DEEP + b"}", r"^a\.jsonl:1: '{\"text\": \[+…' is nested too deep"),
    "deep document": ("a.json", DEEP, r"^a\.json: '\[+…' is nested too deep"),
    "fairly deep": ("a.jsonl", b"[" * 400 + b"]" * 400, r"^a\.jsonl:1: '\[+\.\.\.\]+' is no JSON object"),
    "long number": ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5_000 + b"}", r"^a\.jsonl:1: .*can't be read \(Exceeds the limit"),
    "key twice": ("a.jsonl", b'{"n": 1}\n{"text": "a", "text": "b"}', r"^a\.jsonl:2: .*\(the key 'text' comes twice in one object\)"),
    "key twice inside": ("a.json", b'[{"text": "a", "d": {"x": 1, "x": 2}}]', r"^a\.json: .*the key 'x' comes twice"),
    "no UTF-8 in JSON": ("a.jsonl", b'{"n": 1}\n\n{"text": "caf\xe9"}', r"^a\.jsonl:3: this is no UTF-8 text \(byte 0xe9 at 14\); save"),
    "no UTF-8 in CSV": ("a.csv", b"text\nfine\n\xff\xfe", r"^a\.csv:3: this is no UTF-8 text \(byte 0xff at 1\)"),
    "no UTF-8 in text": ("a.txt", b"fine\n\xed\xa0\x80", r"^a\.txt:2: this is no UTF-8 text \(byte 0xed at 1\)"),
    "UTF-16": ("a.json", "[]".encode("utf-16"), r"^a\.json:1: this is no UTF-8 text \(byte 0xff at 1\)"),
    "no gzip": ("a.jsonl.gz", b"plain", r"^'a\.jsonl\.gz' is no whole gzip file: Not a gzipped file"),
    "half a gzip": ("a.csv.gz", gzip.compress(b"text\n" + bytes(range(97, 120)) * 99)[:-9], r"^'a\.csv\.gz' is no whole gzip file"),
    "spoilt gzip": ("a.jsonl.gz", gzip.compress(b"{}")[:10] + b"\xff" * 20, r"^'a\.jsonl\.gz' is no whole gzip file"),
    "no zstd": ("a.jsonl.zst", b"plain text", r"^'a\.jsonl\.zst' is no whole zstd file"),
    "short CSV line": ("a.csv", b"text,n\n\na,1\nb\n", r"^a\.csv:4: this line has not the 2 columns of the first line but 1"),
    "long TSV line": ("a.tsv", b"text\tn\na\t1\t2\n", r"^a\.tsv:2: this line has not the 2 columns of the first line but 3"),
    "open quote": ("a.csv", b'text\nfine\n"open\n', r"^a\.csv:3: this line is no CSV"),
    "open quote in TSV": ("a.tsv", b'text\n"open\n', r"^a\.tsv:2: this line is no TSV"),
    "column twice": ("a.csv", b"text,n,text\na,1,b\n", r"^a\.csv:1: the first line names the column 'text' twice"),
    "no Parquet": ("a.parquet", b"PAR1nonsense", r"^'a\.parquet' can't be read as Parquet"),
    "empty Parquet": ("a.parquet", b"", r"^'a\.parquet' can't be read as Parquet"),
    "no Arrow": ("a.arrow", b"nonsense, and more of it", r"^'a\.arrow' can't be read as Arrow"),
    "half an Arrow file": ("a.arrow", b"ARROW1\x00\x00nonsense", r"^'a\.arrow' can't be read as Arrow"),
    "empty Arrow": ("a.arrow", b"", r"^'a\.arrow' can't be read as Arrow"),
    "unknown": ("a.xlsx", b"x", r"^'a\.xlsx' can't be read as data: '\.xlsx' is no known ending; a data file ends in \.jsonl"),
    "nothing": ("a", b"x", "'no ending' is no known ending"),
    "pickle": ("a.pkl", b"x", r"^'a\.pkl' may hold a pickle, which can run any program"),
    "not a list": ("a.json", b'{"text": "a"}', r"^'a\.json' holds a JSON dict"),
    "not an object": ("a.json", b"[3]", r"^a\.json, record 1: '3' is no JSON object"),
}


@pytest.mark.parametrize(("name", "content", "match"), BAD.values(), ids=BAD)
def test_what_can_not_be_read_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, match: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        list(read_records(tmp_path / name, name))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_half_a_zstd_file(tmp_path: Path):
    path = write(tmp_path / "a.jsonl.zst", [{"text": f"text {i * 7919 % 10007}"} for i in range(3_000)])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"'a\.jsonl\.zst' is no whole zstd file"):
        read(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_table_with_a_text_that_is_no_utf8_or_two_columns_of_one_name(tmp_path: Path, suffix: str):
    texts = pyarrow.array([b"fine", b"fine", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    bad, twice = ([texts], ["text"], "row 3: this is no UTF-8 text .byte 0xe9 at 4"), ([texts, texts], ["a", "a"], "two columns called 'a'")
    for columns, names, match in (bad, twice):
        table, path = pyarrow.table(columns, names=names), tmp_path / f"a{suffix}"
        if suffix == ".parquet":
            write_table(table, path)
        else:
            with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table)
        with pytest.raises(DataError, match=f"a.{suffix[1:]}'.* {match}"):
            list(read_records(path, path.name))


def test_what_a_message_shows_is_short():
    nested: list[object] = []
    for _ in range(900):
        nested = [nested]
    assert [len(short(value)) <= 100 for value in ("x" * 999, nested, 10**400, {"k" * 99: "v" * 999})] == [True] * 4
    assert short("plain") == "plain"
