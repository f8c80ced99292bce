"""What a file may be at most, and what is refused before it is opened."""

import json
import os
import socket
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

from calibrant.data import _files, _folders, mirror
from calibrant.data._files import LONGEST_LINE, MOST_COLUMNS
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError

from tests.data.written import packed, tabled
from tests.effort import quick

ROW = json.dumps({"text": "some words"}) + "\n"


def refused(path: Path | str, subject: Path | str, named: str | None = None) -> str:
    """What is said, which is about `subject` and names `named`."""
    with quick(300), pytest.raises(DataError, match=named) as caught:
        UserFile(str(path)).size()
    assert caught.value.subject == str(subject)
    assert "\x1b" not in str(caught.value)
    return str(caught.value)


def of_type(kind: Any, number: int = 2**62) -> Any:
    return pyarrow.array([None, None, number]).cast(kind)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (of_type(pyarrow.timestamp("us")), "timestamp"),
        (pyarrow.array([None, None, 2**31 - 1], pyarrow.int32()).cast(pyarrow.date32()), "date32"),
    ],
)
def test_a_value_that_python_has_nothing_for_is_named_by_row_and_column(
    tmp_path: Path, column: Any, kind: str
):
    path = tabled(tmp_path / "a.parquet", pyarrow.table({"text": ["a", "b", "c"], "when": column}))
    refused(path, path, f"row 3: the column 'when'.*{kind}")


def test_types_within_types_and_an_offset_out_of_its_memory(tmp_path: Path):
    nested = pyarrow.array(["a"])
    for _ in range(150):
        nested = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1], pyarrow.int32()), nested)
    path = tabled(tmp_path / "a.parquet", pyarrow.table({"text": nested}))
    refused(path, path, "Parquet")
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 10**8, 3))
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"abc")]
    )
    path = tabled(
        tmp_path / "a.arrow", pyarrow.Table.from_arrays([bad], names=["text"]), stream=False
    )
    refused(path, path, "Arrow")


@pytest.mark.parametrize(("ending", "place"), [("jsonl", ":1"), ("csv", ":1"), ("parquet", "")])
def test_very_many_columns_are_refused_at_once(tmp_path: Path, ending: str, place: str):
    path, names = tmp_path / f"a.{ending}", [f"column {i}" for i in range(MOST_COLUMNS + 1)]
    if ending == "parquet":
        tabled(path, pyarrow.Table.from_arrays([pyarrow.array(["a"])] * len(names), names=names))
    else:
        path.write_text(
            json.dumps(dict.fromkeys(names, "a")) if ending == "jsonl" else ",".join(names) + "\n"
        )
    refused(path, f"{path}{place}" if place else repr(str(path)), "10,001")


def test_a_long_line_works_and_one_that_is_far_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "word " * 500_000}))
    assert UserFile(str(path)).size() == 1
    assert 20 * path.stat().st_size < LONGEST_LINE
    monkeypatch.setattr(_files, "LONGEST_LINE", 1 << 20)
    path.write_text(ROW + path.read_text())
    refused(path, path, "a.jsonl:2.* 1 MiB")
    path = tmp_path / "a.csv"
    path.write_text('text\n"' + "abc\n" * 300_000)
    refused(path, path, "field limit")


@pytest.mark.parametrize(
    ("ending", "limit"),
    [
        ("jsonl", ":1: .* 1 MiB"),
        ("csv", ":1: .* 1 MiB"),
        ("txt", " 1,024 MiB"),
        ("json", " 1,024 MiB"),
    ],
)
def test_a_hole_of_any_size_is_refused_before_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, limit: str
):
    monkeypatch.setattr(_files, "LONGEST_LINE", 1 << 20)
    path = tmp_path / f"a.{ending}"
    path.touch()
    os.truncate(path, 1 << 40)
    refused(path, path, limit)


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz", "jsonl.zst"])
@pytest.mark.parametrize("empty", [False, True])
def test_what_unpacks_without_end_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, empty: bool
):
    assert UserFile(
        str(
            packed(
                tmp_path / f"good.{ending}",
                b"text\n" + ROW.encode() * 5_000 if "csv" in ending else ROW.encode() * 5_000,
            )
        )
    ).size()
    monkeypatch.setattr(_files, "ALWAYS_UNPACKED", 1 << 18)
    row = b"a" * 500 if ending == "csv.gz" else json.dumps({"text": "a" * 500}).encode()
    piece = b"\n" if empty else row + b"\n"
    path = packed(tmp_path / f"a.{ending}", piece * ((1 << 20) // len(piece)))
    records = _files.read_records(path, path.name)
    with pytest.raises(DataError, match="200 times") as caught:
        list(records)
    assert caught.value.subject == path.name


def test_columns_that_unpack_without_end_are_refused_before_any_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_files, "ALWAYS_UNPACKED", 1 << 20)
    path = tmp_path / "a.parquet"
    text = pyarrow.array(["a" * ((1 << 19) + i) for i in range(3)])
    write_table(pyarrow.table({"text": text}), path, compression="zstd", use_dictionary=False)
    refused(path, path, "200 times")


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_of_one_text_again_and_again_are_counted_as_often_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, dictionary: bool
):
    monkeypatch.setattr(_files, "ALWAYS_UNPACKED", 1 << 20)
    text = pyarrow.array(["a" * (1 << 12)] * 2_000)
    table = pyarrow.table({"text": text.dictionary_encode() if dictionary else text})
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        write_table(table, path)
    else:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_file(path, table.schema, options=options) as file:
            file.write_table(table)
    refused(path, path, "200 times")


def test_rows_are_counted_before_they_are_made_or_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_files, "MOST_ROWS", 10)
    for name in ("a.parquet", "a.arrow"):
        path = tabled(tmp_path / name, pyarrow.table({"text": pyarrow.nulls(11)}), stream=False)
        refused(path, path, " 11 .* 10 ")
    path = tmp_path / "a.jsonl"
    path.write_text(ROW * 11)
    refused(path, path, " 10 ")


def a_socket(path: Path) -> None:
    place = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may be 100 letters long
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(place)


ODD: dict[str, Callable[[Path], None]] = {
    "device": lambda path: path.symlink_to("/dev/zero"),
    "pipe": lambda path: os.mkfifo(path),
    "socket": a_socket,
    "link": lambda path: path.symlink_to("nowhere"),
    "symbolic links": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", ODD)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str):
    path = tmp_path / "a.jsonl"
    ODD[kind](path)
    for given in (path, tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(DataError, match=kind) as caught:
            UserFile(str(given))
        assert caught.value.subject in (str(path), str(given))


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("~nobody-of-this-name/a.jsonl", "home"),
        ("~nobody-of-this-name/*.jsonl", "home"),
        ("a\0b.jsonl", "NUL"),
        ("a" * 5_000 + ".jsonl", "path"),
        ("a/" * 3_000 + "b.jsonl", "3,001"),
        ("/dev/stdin", "/dev/stdin"),
    ],
)
def test_what_no_file_and_no_mirror_can_be_called(path: str, named: str):
    with pytest.raises(DataError, match=named):
        UserFile(path)
    with pytest.raises(DataError):
        mirror(path)


def test_a_folder_of_very_many_files_and_a_pattern_over_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number in range(30):
        (tmp_path / f"{number}.jsonl").write_text(ROW)
    assert UserFile(str(tmp_path)).size() == 1
    for limit, named in (("MOST_FILES", "30.*29"), ("LOOKED_THROUGH", "29")):
        monkeypatch.setattr(_folders, limit, 29)
        for given in (tmp_path, tmp_path / "*.jsonl"):
            refused(given, given, named)
    refused("/**/*.jsonl", "/**/*.jsonl", " 29 ")


def test_patterns_mean_what_they_mean_to_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in (
        "a.jsonl",
        "b.csv",
        "x/c.jsonl",
        "x/y/d.jsonl",
        "x/.hidden/e.jsonl",
        ".f.jsonl",
        "x/z[1].jsonl",
        "y/train/g.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(ROW)
    monkeypatch.chdir(tmp_path)
    everywhere = [
        "*.jsonl",
        "**/*.jsonl",
        "**/y/*.jsonl",
        "**/train/g.jsonl",
        "*/*/*.jsonl",
        ".*",
        "./*.csv",
        "[ab].*",
    ]
    patterns = [*everywhere, "x/*", "x/**", "x/z[[]1].jsonl", "q/*", "x/../*.csv"]
    for pattern in [*patterns, *(f"{tmp_path}/{one}" for one in patterns)]:
        files = {
            os.path.normpath(name) for name in glob(pattern, recursive=True) if os.path.isfile(name)
        }
        assert {
            os.path.normpath(name)
            for name in _folders._matching(pattern, pattern)
            if os.path.isfile(name)
        } == files, pattern


SHAPES = [
    "[]",
    "5",
    '{"splits": 5}',
    '{"splits": [5]}',
    '{"splits": [{"filename": 5}]}',
    '{"splits": ["\\u0000"]}',
    '{"splits": {"a": 1}}',
]


@pytest.mark.parametrize("text", [*SHAPES, "[" * 100_000, "\xff"])
def test_descriptions_of_another_shape(tmp_path: Path, text: str):
    (tmp_path / "dataset_dict.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        UserFile(str(tmp_path))
    assert caught.value.subject in (str(tmp_path), f"{tmp_path}/dataset_dict.json")


def test_a_description_is_not_read_if_it_is_huge(tmp_path: Path):
    (tmp_path / "state.json").touch()
    os.truncate(tmp_path / "state.json", 1 << 40)
    refused(tmp_path, tmp_path / "state.json", "'_data_files'")


def test_a_fault_that_nobody_foresaw_names_file_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def reader(path: Path, shown: str):
        yield {"text": "a"}
        raise KeyError("something odd \x1b[2J")

    monkeypatch.setattr(_files, "_read_jsonl", reader)
    path = tmp_path / "a.jsonl"
    path.write_text(ROW)
    refused(path, path, "row 2.*something odd")
