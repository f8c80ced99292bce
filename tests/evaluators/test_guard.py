"""A model is not measured on what it was calibrated on, unless somebody asks for that."""

import json
import random
from pathlib import Path

import pytest

from calibrant.compress import prune
from calibrant.data import CalibrationSet
from calibrant.errors import DataError
from calibrant.evaluators import evaluate, evaluators, leaks, refuse
from calibrant.models import read_manifest
from calibrant.testing import tiny_folder, tiny_tokenizer

from tests.refusing import refused


def file_of(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model pruned on a file, and the file."""
    folder = tmp_path_factory.mktemp("pruned")
    file = file_of(
        folder / "mine.jsonl",
        [f"The {i}th text says {i * i} and nothing else that matters here." for i in range(80)],
    )
    prune(
        str(tiny_folder(folder / "model")),
        data=file,
        method="wanda",
        target=0.5,
        out=folder / "pruned",
        samples=2,
        length=48,
        dtype="float32",
    )
    return str(folder / "pruned"), file


def test_a_pruned_model_knows_its_rows_by_their_hashes(pruned: tuple[str, str]):
    folder, file = pruned
    manifest = read_manifest(folder)
    drawn = CalibrationSet(file, samples=2, length=48).rows(tiny_tokenizer())[0]
    assert manifest is not None
    assert manifest["examples"] == sorted({row.example for row in drawn})
    assert "text says" not in Path(folder, "calibrant.json").read_text()
    (measured,) = evaluate(
        folder, tasks=f"loss(source={file!r}, tokens=100, length=64)", dtype="float32"
    )
    assert "leaked" not in measured.provenance, (
        "it may be measured on the rows that it has not seen"
    )


def test_what_it_was_calibrated_on_is_refused_and_can_be_allowed(
    pruned: tuple[str, str], tmp_path: Path
):
    folder, file = pruned
    drawn = CalibrationSet(file, samples=2, length=48).rows(tiny_tokenizer())[0]
    # Another file in which a row of the calibration stands, whatever its case, and is measured.
    others = [f"Text {i} of another file, {i * 7} words from home." for i in range(60)]
    number = 0
    while True:
        other = file_of(
            tmp_path / f"other{number}.jsonl",
            [*others, *((row.text or "").upper() + " " * number for row in drawn)],
        )
        task = f"loss(source={other!r}, tokens=100, length=64)"
        leaked = sum(
            row.example in {r.example for r in drawn} for row in evaluators.build(task).rows()
        )
        if leaked:
            break
        number += 1
    with refused(DataError, folder):
        evaluate(folder, tasks=task, dtype="float32")
    assert (
        evaluate(folder, tasks=task, dtype="float32", allow_leak=True)[0].provenance["leaked"]
        == leaked
    )


def words(seed: int) -> str:
    return " ".join(random.Random(seed).choices([f"word{i}" for i in range(300)], k=24))


def test_a_users_file_is_compared_with_what_is_measured(tmp_path: Path):
    task = evaluators.build(
        f"loss(source={file_of(tmp_path / 'measured.jsonl', [words(i) for i in range(90)])!r})"
    )
    measured = {row.text for row in task.rows()}
    clean = CalibrationSet(file_of(tmp_path / "clean.jsonl", [words(i) for i in range(1000, 1090)]))
    dirty = CalibrationSet(
        file_of(tmp_path / "dirty.jsonl", [f"It says: {words(i)}!" for i in range(90)])
    )
    seen = [row.text or "" for row in dirty.parts[0].source.rows("calibrate")]
    assert leaks([clean, CalibrationSet("random_tokens")], [task]) == {}
    found = leaks([dirty, clean], [task])
    assert found == {
        str(dirty): {
            str(task): sum(
                text.removeprefix("It says: ").removesuffix("!") in measured for text in seen
            )
        }
    }
    assert found[str(dirty)][str(task)] > 5
    refuse({})
    with refused(DataError, dirty):
        refuse(found)


@pytest.mark.parametrize("left_out", [0, 2], ids=["respaced", "shortened"])
def test_rows_that_are_nearly_those_of_the_calibration_are_refused(
    pruned: tuple[str, str], tmp_path: Path, left_out: int
):
    folder, file = pruned
    drawn = CalibrationSet(file, samples=2, length=48).rows(tiny_tokenizer())[0]
    (tmp_path / "measured").mkdir()
    near = ["\t".join([*str(row.text).split()[: 12 - left_out], "!"]) for row in drawn]
    texts = [f"Text {i} of another file, {i * 7} words from home." for i in range(60)] + near
    file_of(tmp_path / "measured/train.jsonl", ["a text that trains"])
    file_of(tmp_path / "measured/test.jsonl", texts)
    task = f"loss(source={str(tmp_path / 'measured')!r}, tokens=100, length=64)"
    with refused(DataError, folder):
        evaluate(folder, tasks=task, dtype="float32")
    assert evaluate(folder, tasks=task, dtype="float32", allow_leak=True)[0].provenance[
        "leaked"
    ] == len(drawn)
