"""What a model was calibrated on is known again without its text."""

from pathlib import Path

import numpy as np
import pytest

from calibrant.data import Message, Row
from calibrant.data.inspect import LeakCount, RowFingerprints
from calibrant.data.inspect import leaks as module
from calibrant.data.inspect.leaks import RUNS_FILE


def text(count: int, seed: int) -> str:
    return " ".join(f"w{seed}x{i}" for i in range(count))


def test_a_row_is_known_whatever_its_case_spaces_and_punctuation():
    rows = [
        Row(text="Peel an onion. Then, cut it!"),
        Row(question="Who (on Earth) was it?", answer="he"),
    ]
    measured = [
        Row(text="peel an ONION - then cut it"),
        Row(question="who on earth was it", answer="she"),
        Row(text="Peel an apple."),
    ]
    assert RowFingerprints.of(rows).leaks(measured) == LeakCount(same=0, respaced=2, rows=3)
    assert RowFingerprints.of(rows).leaks(
        [Row(text="peel an  onion. then, cut it!"), *measured]
    ) == LeakCount(same=1, respaced=2, rows=4)


def test_what_differs_in_more_than_punctuation_is_another_row():
    for one, other in (
        ("3 + 4", "3 - 4"),
        ("-5", "5"),
        ("1.5", "15"),
        ("?!", "!!"),
        ("今天天气", "今天天晴"),
    ):
        assert not RowFingerprints.of([Row(text=one)]).leaks([Row(text=other)]), (one, other)
    assert RowFingerprints.of([Row(text="?!")]).leaks([Row(text="?!")]).same == 1


def test_half_of_the_runs_of_words_leak_where_a_users_file_has_a_part_in_it():
    seen = Row(text=text(200, 1))
    half, less, short = (
        " ".join([*text(200, 1).split()[:n], text(m, 2)]) for n, m in ((62, 50), (61, 51), (10, 2))
    )
    measured = [Row(text=half), Row(text=less), Row(text=short), Row(text=text(300, 3))]
    assert RowFingerprints.of([seen]).leaks(measured) == LeakCount(rows=4)
    assert RowFingerprints.of([seen]).leaks(measured, own_files=True) == LeakCount(alike=2, rows=4)
    assert RowFingerprints.of([seen], own_files=True).leaks(measured) == LeakCount(alike=2, rows=4)


def test_of_very_many_runs_a_sample_is_remembered_that_still_tells_rows_apart(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "MOST_RUNS", 2_000)
    rows = [Row(text=text(500, i)) for i in range(20)]
    shown = RowFingerprints.of(rows, own_files=True)
    assert len(shown.runs) == 2_000
    measured = [
        *(Row(text=f"{row.text} and more") for row in rows),
        *(Row(text=text(500, 100 + i)) for i in range(20)),
    ]
    assert shown.leaks(measured) == LeakCount(alike=20, rows=40)


def test_a_folder_brings_back_what_was_kept(tmp_path: Path):
    talk = Row(question="f", turns=(Message("user", "f"), Message("user", "g!")))
    shown = RowFingerprints.of(
        [Row(text=text(100, 1)), Row(text="a b c d e"), talk], own_files=True
    )
    for name, content in shown.files.items():
        (tmp_path / name).write_bytes(content)
    again = RowFingerprints.read(shown.entries, tmp_path)
    assert (again.examples, again.contents, again.own_files) == (
        shown.examples,
        shown.contents,
        True,
    )
    assert again.examples.begun == shown.examples.begun == {Row(question="f").example}
    assert again.contents.begun == shown.contents.begun == {Row(question="f").example}
    assert again.runs.tolist() == shown.runs.tolist()
    assert len(again.runs) == 88 + 93 + 1


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "promises", "text", "pickle", "unsorted", "missing"]
)
def test_a_damaged_array_falls_back_to_the_keys(tmp_path: Path, damage: str):
    shown = RowFingerprints.of([Row(text=text(100, 1))], own_files=True)
    content = shown.files[RUNS_FILE]
    path = tmp_path / RUNS_FILE
    match damage:
        case "cut":
            path.write_bytes(content[:-100])
        case "flipped":
            path.write_bytes(b"\xff" + content[1:])
        case "promises":
            path.write_bytes(content.replace(b"(181,)", b"(9" + b"9" * 3 + b",)"))
        case "text":
            np.save(path, np.array(["a"]))
        case "pickle":
            np.save(path, np.array([object()], dtype=object))
        case "unsorted":
            np.save(path, shown.runs[::-1])
        case _:
            pass
    again = RowFingerprints.read(shown.entries, tmp_path)
    assert len(again.runs) == 0
    assert again.leaks([Row(text=text(100, 1).upper() + "!"), Row(text=text(99, 1))]) == LeakCount(
        respaced=1, rows=2
    )


@pytest.mark.parametrize(
    "manifest",
    [None, {}, {"examples": 5}, {"examples": [[1]], "contents": {"a": 1}, "own_files": "yes"}],
)
def test_a_manifest_of_another_shape_says_nothing_and_an_older_one_is_believed(
    tmp_path: Path, manifest: dict[str, object] | None
):
    assert (
        RowFingerprints.read(manifest, tmp_path).leaks([Row(text="a")], own_files=True)
        == LeakCount()
    )
    older = RowFingerprints.read({"examples": [Row(text="a b").example]}, tmp_path)
    assert older.leaks([Row(text="A  b"), Row(text="a, b")]) == LeakCount(same=1, rows=2)
