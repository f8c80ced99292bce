"""Measuring with the blocks on disk: the same scores as in memory, one block at a time; what
can't be done so is refused.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant import evaluate
from calibrant.compress import prune, room
from calibrant.errors import SpecError
from calibrant.evaluators import _measuring, evaluators
from calibrant.evaluators._measuring import left_on_disk
from calibrant.models import outline_of
from calibrant.results.outcomes import Measurement
from calibrant.testing import FAMILIES, tiny_folder

from tests.refusing import refused
from tests.usual import two_hundred_lines, usually


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


@contextmanager
def blocks_on_disk() -> Iterator[None]:
    """Let models be measured with their blocks on disk, whatever memory there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_measuring, "left_on_disk", lambda *_: True)
        yield


def told(found: list[Measurement]) -> Any:
    return [(one.score, one.outcomes, one.beside) for one in found]


def tasks(texts: str) -> list[str]:
    return [
        f"loss(source={texts!r}, tokens=300, length=32)",
        f"perplexity(source={texts!r}, tokens=100, length=32)",
    ]


@pytest.mark.parametrize("family", usually(FAMILIES, {"llama", "gemma3", "qwen3_moe"}))
def test_scores_are_those_of_a_model_in_memory(
    family: str, texts: str, tmp_path: Path, own_cache: Path
) -> None:
    folder = str(tiny_folder(tmp_path / family, family))
    want = evaluate(folder, tasks=tasks(texts), dtype="float32")
    with blocks_on_disk():
        got = evaluate(folder, tasks=tasks(texts), dtype="float32", memory=1000.0)
    assert told(got) == told(want)
    assert {one.provenance.get("blocks") for one in got} == {"on disk"}
    assert {one.provenance.get("blocks") for one in want} == {None}


def test_choices_answers_and_comparisons_are_the_same(
    texts: str, tmp_path: Path, own_cache: Path
) -> None:
    folder, pruned = str(tiny_folder(tmp_path / "model", "llama")), tmp_path / "pruned"
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "\n".join(
            json.dumps({"question": f"{i} and {i + 7}?", "answer": str(2 * i + 7)})
            for i in range(60)
        )
    )
    prune(
        folder,
        data=texts,
        method="wanda",
        target=0.5,
        out=pruned,
        samples=2,
        length=32,
        dtype="float32",
    )
    asked = [
        f"task(name='{questions}', limit=2)",
        f"generation(name='{questions}', shots=1, limit=1, max_tokens=2)",
        f"influence(name='{questions}', limit=1)",
        f"agreement(source={texts!r}, tokens=100, length=32)",
    ]
    want = evaluate(str(pruned), tasks=asked, dtype="float32")
    with blocks_on_disk():
        got = evaluate(str(pruned), tasks=asked, dtype="float32", memory=1000.0)
    assert told(
        [replace(one, score=replace(one.score, facts=without_floor(one))) for one in want]
    ) == told(got)
    assert "floor" in want[-1].score.facts, (
        "there is room for a second computation only where the blocks are in memory"
    )


def without_floor(one: Measurement) -> dict[str, Any]:
    return {name: value for name, value in one.score.facts.items() if not name.startswith("floor")}


def test_the_promise_decides_where_blocks_are(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 0)
    folder = str(tiny_folder(tmp_path / "model", "llama", num_hidden_layers=40))
    chosen = [evaluators.build(f"loss(source={texts!r}, length=32)")]
    outline = outline_of(folder, "float32")
    assert outline is not None
    needs = room.Needs.of(outline.shape, 2048, outline.dtype)
    logits = outline.shape.vocabulary * (2048 * 4 + 32 * 12)
    whole, part = (
        needs.model + needs.arrival + logits,
        needs.outside + 3 * needs.block + needs.arrival + logits,
    )
    assert not left_on_disk([folder], chosen, "float32", "cpu", whole)
    assert left_on_disk([folder], chosen, "float32", "cpu", whole - 1)
    assert left_on_disk([folder], chosen, "float32", "cpu", part)
    with refused(SpecError, folder):
        left_on_disk([folder], chosen, "float32", "cpu", part - 1)
    looking = [evaluators.build(f"words(source={texts!r}, length=32)")]
    with refused(SpecError, folder):
        left_on_disk([folder], looking, "float32", "cpu", part)
    twice = [evaluators.build(f"agreement(source={texts!r}, length=32)")]
    assert left_on_disk([folder, folder], twice, "float32", "cpu", whole + logits), (
        "the untouched model and its logits are there too"
    )


CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from calibrant.compress.room import held_now
from calibrant.evaluators import evaluate
model, texts, promised, room = sys.argv[1:]
torch.set_num_threads(1)
lines = Path("/proc/self/status").read_text().splitlines()
words = next(line for line in lines if line.startswith("VmData")).split()
limit = int(words[1]) * 1024 + int(room)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
memory = (held_now() + int(room)) / 1e9 if promised == "promised" else None
try:
    task = f"loss(source={texts!r}, tokens=100, length=32)"
    (done,) = evaluate(model, tasks=task, dtype="bfloat16", device="cpu", memory=memory)
    print(json.dumps([done.provenance.get("blocks"), done.score.value]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)[:300]]))
    sys.exit(3)
"""
"""Measures with so many more bytes of private memory than the libraries take; a model in memory
takes more.
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_model_is_measured_under_a_limit_that_it_cannot_be_opened_under(
    texts: str, tmp_path: Path, own_cache: Path
) -> None:
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 48,
    }
    folder = tiny_folder(tmp_path / "model", "llama", dtype=torch.bfloat16, **sizes)
    limit = (folder / "model.safetensors").stat().st_size * 3 // 4
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

    def run(promised: str) -> tuple[int, Any]:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder), texts, promised, str(limit)],
            capture_output=True,
            text=True,
            env=env,
        )
        return done.returncode, json.loads(
            done.stdout.splitlines()[-1]
        ) if done.stdout else done.stderr[-500:]

    code, said = run("")
    assert code != 0, said
    assert "memory" in str(said)
    code, said = run("promised")
    assert code == 0, said
    assert said[0] == "on disk"
    (whole,) = evaluate(
        str(folder), tasks=f"loss(source={texts!r}, tokens=100, length=32)", dtype="bfloat16"
    )
    assert said[1] == whole.score.value
