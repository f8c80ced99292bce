"""What a file may be at most, and what is refused before it is opened."""

import gzip
import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

from calibrant.data import _files, _folders, mirror
from calibrant.data._files import ALLOWED, LONGEST_LINE, MOST_COLUMNS
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError

from tests.effort import quick

ROW = json.dumps({"text": "some words"}) + "\n"


def refused(path: Path | str, match: str) -> str:
    with quick(300), pytest.raises(DataError, match=match) as caught:
        UserFile(str(path)).size()
    return str(caught.value)


def of_type(kind: Any, number: int = 2**62) -> Any:
    return pyarrow.array([None, None, number]).cast(kind)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (of_type(pyarrow.timestamp("us")), "timestamp.us."),
        (of_type(pyarrow.timestamp("s"), 2**40), "timestamp.ms."),
        (of_type(pyarrow.timestamp("us", tz="Mars/Olympus"), 0), "timestamp.us, tz=Mars/Olympus."),
        (of_type(pyarrow.duration("s")), "duration.s."),
        (pyarrow.array([None, None, 2**31 - 1], pyarrow.int32()).cast(pyarrow.date32()), "date32.day."),
    ],
)
def test_a_value_that_python_has_nothing_for_is_named_by_row_and_column(tmp_path: Path, column: Any, kind: str):
    write_table(pyarrow.table({"text": ["a", "b", "c"], "when": column}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", rf"a.parquet', row 3: the column 'when' of the type {kind} can't be read \(.+\); leave it out")


def test_dates_that_python_has_are_read(tmp_path: Path):
    table = {"text": ["a", "b"], "when": [datetime(2020, 1, 1, tzinfo=UTC)] * 2, "last": pyarrow.array([1, 2]).cast(pyarrow.timestamp("ns"))}
    write_table(pyarrow.table(table), tmp_path / "a.parquet")
    assert UserFile(str(tmp_path / "a.parquet")).size() == 2


def test_types_within_types(tmp_path: Path):
    nested = pyarrow.array(["a"])
    for _ in range(150):
        nested = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1], pyarrow.int32()), nested)
    write_table(pyarrow.table({"text": nested}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "a.parquet' can't be read as Parquet: .*too deeply nested")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"text": "a", "answer": 1' + "0" * 100_000 + "}", "a.jsonl:1: .*digits"),
        ('{"question": "a", "answer": 1e400}', "row 1: 'answer' is 'inf'; it must be a text or a finite number"),
        ('{"question": "a", "answer": -Infinity}', "row 1: 'answer' is '-inf'; it must be a text or a finite number"),
        ('{"text\\ud800\\u001b[2J": "a"}', r"no column 'text' .*its columns are text\\ud800\\x1b\[2J:"),
        ('{"text": "a\\ud800"}', r"row 1: 'text' is 'a\\ud800'; it must be text without half surrogates"),
        (
            '{"turns": [{"role": "user", "content": [{"type": "text", "text": ' + "[" * 800 + "]" * 800 + '}]}], "text": 5}',
            "row 1: 'text' is '5'; it must be a text",
        ),
    ],
)
def test_odd_json(tmp_path: Path, text: str, match: str):
    (tmp_path / "a.jsonl").write_text(text)
    message = refused(tmp_path / "a.jsonl", match)
    assert "\x1b" not in message
    message.encode()


def test_half_a_surrogate_in_a_role_is_refused(tmp_path: Path):
    turns = [{"role": "u\ud800", "content": "x"}]
    (tmp_path / "a.jsonl").write_text(
        "\n".join([json.dumps({"text": "a", "turns": [{"role": "user", "content": "x"}]}), json.dumps({"turns": turns})])
    )
    refused(tmp_path / "a.jsonl", r"row 2: 'turns' is .*without half surrogates such as '\\ud800'")


def test_labels_that_are_no_list_are_passed_over(tmp_path: Path):
    rows = [{"question": f"q{label}", "answer": "b", "choices": {"text": ["b", "c"], "label": label}} for label in (5, "AB", {"b": 1}, None)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = UserFile(str(tmp_path / "a.jsonl"))
    assert {row.answer for part in ("calibrate", "measure", "exemplars") for row in source.rows(part)} == {"A"}


def write_columns(path: Path, names: list[str]) -> None:
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(dict.fromkeys(names, "a")))
    elif path.suffix == ".csv":
        path.write_text(",".join(names) + "\n" + ",".join("a" for _ in names))
    else:
        write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * len(names), names=names), path)


@pytest.mark.parametrize(("ending", "count"), [("jsonl", 60_000), ("csv", 60_000), ("parquet", MOST_COLUMNS + 1)])
def test_very_many_columns_are_refused_at_once(tmp_path: Path, ending: str, count: int):
    write_columns(tmp_path / f"a.{ending}", [f"column {i}" for i in range(count)])
    refused(tmp_path / f"a.{ending}", f"a.{ending}'?(:1)?: there are {count:,} columns, and at most 10,000 are read")


def test_doubles_among_many_are_found_quickly(tmp_path: Path):
    names = [f"c{i}" for i in range(9_000)]
    write_columns(tmp_path / "a.csv", [*names, "c8999"])
    refused(tmp_path / "a.csv", "a.csv:1: the first line names the column 'c8999' twice")
    (tmp_path / "a.jsonl").write_text("{" + ",".join(f'"{i}":1' for i in [*range(100_000), 99_999]) + "}")
    refused(tmp_path / "a.jsonl", "the key '99999' comes twice")


def test_a_long_line_works_and_one_that_is_far_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "word " * 2_000_000}))
    assert UserFile(str(path)).size() == 1
    assert 4 * path.stat().st_size < LONGEST_LINE
    monkeypatch.setattr(_files, "LONGEST_LINE", 1 << 20)
    path.write_text(ROW + path.read_text())
    refused(path, "a.jsonl:2: this line is longer than 1 MiB")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt", "json"])
def test_a_hole_of_any_size_is_refused_before_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str):
    monkeypatch.setattr(_files, "LONGEST_LINE", 1 << 20)
    path = tmp_path / f"a.{ending}"
    path.touch()
    os.truncate(path, 1 << 40)
    refused(path, f"a.{ending}'?(:1: this line is longer than 1 MiB| is larger than 1,024 MiB)")


def test_an_open_quotation_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_files, "LONGEST_LINE", 1 << 16)
    (tmp_path / "a.csv").write_text('text\n"' + "abc\n" * 20_000)
    refused(tmp_path / "a.csv", r"a.csv:\d+: this line is no CSV \(field larger than field limit")


def bomb(path: Path, piece: bytes, times: int) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(piece * times, 6))
    else:
        path.write_bytes(pyarrow.compress(piece * times, codec="zstd", asbytes=True))
    return path


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz", "jsonl.zst"])
@pytest.mark.parametrize("empty", [False, True])
def test_what_unpacks_without_end_is_refused_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, empty: bool):
    monkeypatch.setattr(_files, "ALLOWED", 1 << 18)
    row = b"a" * 500 if ending == "csv.gz" else json.dumps({"text": "a" * 500}).encode()
    piece = b"\n" if empty else row + b"\n"
    path = bomb(tmp_path / f"a.{ending}", piece, (3 << 20) // len(piece))
    records = _files.read_records(path, path.name)
    with pytest.raises(DataError, match=rf"'a.{ending}' unpacks to more than \d+ MiB, 200 times its size"):
        list(records)


def test_what_is_compressed_well_is_read(tmp_path: Path):
    path = bomb(tmp_path / "a.jsonl.gz", ROW.encode(), 5_000)
    assert UserFile(str(path)).size() == 1


def test_columns_that_unpack_without_end_are_refused_before_any_is_read(tmp_path: Path):
    text = pyarrow.array(["a" * (ALLOWED // 2 + i) for i in range(3)])
    write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    refused(tmp_path / "a.parquet", "a.parquet' unpacks to more than 32 MiB, 200 times its size")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_rows_of_nothing_are_counted_before_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str):
    monkeypatch.setattr(_files, "MOST_ROWS", 10_000)
    table = pyarrow.table({"text": pyarrow.nulls(10_001)})
    if ending == "parquet":
        write_table(table, tmp_path / "a.parquet")
    else:
        with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    refused(tmp_path / f"a.{ending}", f"a.{ending}' has 10,001 rows, and at most 10,000 are read")


def test_rows_are_counted_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_files, "MOST_ROWS", 10)
    (tmp_path / "a.jsonl").write_text(ROW * 11)
    refused(tmp_path / "a.jsonl", "a.jsonl' has more than 10 rows")


def test_an_offset_that_points_out_of_its_memory_is_refused(tmp_path: Path):
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 10**8, 3))), pyarrow.py_buffer(b"abc")]
    )
    batch = pyarrow.RecordBatch.from_arrays([bad], names=["text"])
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    refused(tmp_path / "a.arrow", "a.arrow' can't be read as Arrow: ")


def a_socket(path: Path) -> None:
    place = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may be 100 letters long
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(place)


ODD: list[tuple[Callable[[Path], None], str]] = [
    (lambda path: path.symlink_to("/dev/zero"), "is a device and no file"),
    (lambda path: path.symlink_to("/dev/urandom"), "is a device and no file"),
    (lambda path: os.mkfifo(path), "is a pipe and no file"),
    (a_socket, "is a socket and no file"),
    (lambda path: path.symlink_to("nowhere"), "is a link to something that isn't there"),
    (lambda path: path.symlink_to(path.name), "can't be opened: .*symbolic links"),
]


@pytest.mark.parametrize(("make", "match"), ODD, ids=["zero", "urandom", "pipe", "socket", "gone", "loop"])
@pytest.mark.parametrize("given", ["{}/a.jsonl", "{}", "{}/*.jsonl"])
def test_only_regular_files_are_opened(tmp_path: Path, make: Callable[[Path], None], match: str, given: str):
    make(tmp_path / "a.jsonl")
    refused(given.format(tmp_path), f"(a.jsonl' {match}|can't be a path .*symbolic links)")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("~nobody-of-this-name/a.jsonl", "names a user whose home folder isn't known"),
        ("a\0b.jsonl", "a NUL"),
        ("a" * 300 + ".jsonl", "can't be a path"),
        ("a/" * 3_000 + "b.jsonl", "is 3,001 folders deep, and 256 are the most"),
        ("~nobody-of-this-name/*.jsonl", "names a user whose home folder isn't known"),
        ("/dev/stdin", "/dev/stdin' can't be read as data"),
    ],
)
def test_what_no_file_can_be_called(path: str, match: str):
    refused(path, match)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/data", "a\0b", "a" * 5_000])
def test_what_no_mirror_can_be_called(path: str):
    with pytest.raises(DataError, match=r"names a user|can't be a path"):
        mirror(path)


def test_a_folder_of_very_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(30):
        (tmp_path / f"{number}.jsonl").write_text(ROW)
    assert UserFile(str(tmp_path)).size() == 1
    monkeypatch.setattr(_folders, "MOST_FILES", 29)
    refused(tmp_path, "stands for 30 data files, and at most 29 are read; join them")
    refused(f"{tmp_path}/*.jsonl", "stands for 30 data files, and at most 29 are read; join them")
    monkeypatch.setattr(_folders, "LOOKED_THROUGH", 29)
    refused(tmp_path, "holds more than 29 names")
    refused(f"{tmp_path}/*.jsonl", "would look through more than 29 names")


def test_a_pattern_over_everything_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_folders, "LOOKED_THROUGH", 2_000)
    refused("/**/*.jsonl", r"'/\*\*/\*.jsonl' would look through more than 2,000 names; begin it with a folder nearer")


def test_a_pattern_into_very_deep_folders_ends(tmp_path: Path):
    place = os.getcwd()
    os.chdir(tmp_path)
    for _ in range(250):
        os.mkdir("d" * 20)
        os.chdir("d" * 20)
    os.chdir(place)
    try:
        refused(f"{tmp_path}/**/*.jsonl", "nothing matches")
    finally:
        # From within, since the whole name is longer than a name may be, and what clears up after tests goes down by recursion.
        os.chdir(tmp_path)
        for _ in range(250):
            os.chdir("d" * 20)
        for _ in range(250):
            os.chdir("..")
            os.rmdir("d" * 20)
        os.chdir(place)


def test_patterns_mean_what_they_mean_to_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from glob import glob

    for name in ("a.jsonl", "b.csv", "x/c.jsonl", "x/y/d.jsonl", "x/.hidden/e.jsonl", ".f.jsonl", "x/z[1].jsonl", "y/train/g.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(ROW)
    monkeypatch.chdir(tmp_path)
    patterns = [
        "*.jsonl",
        "**/*.jsonl",
        "x/*",
        "x/**",
        "*/*/*.jsonl",
        "[ab].*",
        "x/z[[]1].jsonl",
        "**/y/*.jsonl",
        "**/train/g.jsonl",
        ".*",
        "./*.csv",
        "q/*",
        "x/../*.csv",
    ]
    for pattern in [*patterns, *(f"{tmp_path}/{one}" for one in patterns)]:
        files = {os.path.normpath(name) for name in glob(pattern, recursive=True) if os.path.isfile(name)}
        assert {os.path.normpath(name) for name in _folders._matching(pattern, pattern) if os.path.isfile(name)} == files, pattern


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "5",
        '{"splits": 5}',
        '{"splits": [5]}',
        '{"splits": [{"filename": 5}]}',
        "[" * 100_000,
        "\xff",
        '{"splits": ["\\u0000"]}',
        '{"splits": {"a": 1}}',
    ],
)
def test_descriptions_of_another_shape(tmp_path: Path, text: str):
    (tmp_path / "dataset_dict.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path, "doesn't list 'splits'|of train, validation and test it needs one")


def test_a_description_is_not_read_if_it_is_huge(tmp_path: Path):
    (tmp_path / "state.json").touch()
    os.truncate(tmp_path / "state.json", 1 << 40)
    refused(tmp_path, "state.json' doesn't list '_data_files'")


def test_a_fault_that_nobody_foresaw_names_file_and_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def reader(path: Path, shown: str):
        yield {"text": "a"}
        raise KeyError("something odd \x1b[2J")

    monkeypatch.setattr(_files, "_read_jsonl", reader)
    (tmp_path / "a.jsonl").write_text(ROW)
    refused(tmp_path / "a.jsonl", r"a.jsonl', row 2: this can't be read \('something odd .*2J'\); look at the file")
