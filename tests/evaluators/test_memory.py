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
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant import evaluate
from calibrant.compress import prune, room
from calibrant.compress.planning import KERNEL_BYTES
from calibrant.errors import SpecError
from calibrant.evaluators import _dense, _measuring, evaluators
from calibrant.evaluators._measuring import left_on_disk
from calibrant.evaluators._planning import needs_of
from calibrant.models import ModelOutline, outline_of
from calibrant.results.outcomes import Measurement
from calibrant.testing import FAMILIES, tiny_folder, tiny_model

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
    both = whole + logits + KERNEL_BYTES
    assert left_on_disk([folder, folder], twice, "float32", "cpu", both), (
        "the untouched model and its logits are there too"
    )


def needs_with(folder: str, dtype: str, *tasks: str) -> room.Needs:
    """What it takes to measure a model, and to compare it with itself."""
    outline = outline_of(folder, dtype, "cpu")
    assert outline is not None
    return needs_of([outline, outline], [evaluators.build(task) for task in tasks])


def test_keys_and_values_of_answers_are_promised(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "model", "llama"))
    without = needs_with(folder, "float32", "loss")
    answers = needs_with(folder, "float32", "generation(name='arithmetic')")
    # Three blocks with two heads of eight numbers each, for keys and for values.
    cached = 3 * 2 * 8 * 2
    # While a batch is read they are there twice, and of one layer for all four heads.
    by_token = 2 * cached + 4 * 8 * 2
    assert answers.work - without.work == 16_384 * by_token * 4
    longer = needs_with(folder, "bfloat16", "generation(name='arithmetic', max_tokens=20000)")
    without = needs_with(folder, "bfloat16", "loss")
    assert longer.work - without.work == 20_000 * by_token * 2


@pytest.mark.parametrize(("dtype", "wider"), [("float32", 8), ("bfloat16", 4)])
def test_the_wider_copy_of_the_noise_floor_is_promised(
    dtype: str, wider: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_folder(tmp_path / "model", "llama"))
    task = "agreement(length=32)"
    needs = needs_with(folder, dtype, task)
    numbers = sum(parameter.numel() for parameter in tiny_model("llama").parameters())
    assert needs.copies == numbers * wider
    without = replace(needs, copies=0)
    assert needs.in_memory("arrival") - without.in_memory("arrival") == numbers * wider
    assert needs.on_disk("arrival") == without.on_disk("arrival"), "there is no floor then"
    assert needs_with(folder, dtype, "loss").copies == 0
    monkeypatch.setattr(_dense, "room", lambda *_: numbers * wider - 1)
    assert needs_with(folder, dtype, task).copies == 0, "no copy is made that has no room"


def test_sums_over_neurons_are_promised(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "model", "llama"))
    without = needs_with(folder, "float32", "loss(length=32)")
    task = "words(tokens=4096, length=32, least=10, most=50, shuffles=2)"
    sums = needs_with(folder, "float32", task)
    # Three blocks of 64 neurons; 50 groups, and squares; as they are and shuffled twice.
    neurons = 3 * 64
    summed = 3 * (50 + 1) * neurons * 8
    pattern = 50 * neurons * 4 + neurons * 8
    tables = 4 * 50 * 64 * 8
    assert sums.work - without.work == summed + pattern + tables
    # A hundred tokens hold ten groups of ten words at most, and fewer groups than a window tokens.
    without_few = needs_with(folder, "float32", "loss(tokens=68, length=32)")
    few = needs_with(folder, "float32", task.replace("4096", "68"))
    summed = 3 * (10 + 1) * neurons * 8
    pattern_of_few = 10 * neurons * 4 + neurons * 8
    assert few.work - without_few.work == summed + pattern_of_few + 4 * 32 * 64 * 8
    both = needs_with(folder, "float32", task, task)
    assert both.work - sums.work == pattern, "what was found of the dense model stays"


ONE_MEASUREMENT = """
import json, sys
import calibrant
from calibrant.compress.costs import peak_memory
model, reference, task = sys.argv[1:]
options = {"tasks": [task], "dtype": "float32", "device": "cpu", "reference": reference}
# Imports take memory too, and are no part of the plan.
loss = "loss(source=python_docs, tokens=64, length=32)"
calibrant.evaluate(reference, tasks=loss, dtype="float32", device="cpu")
planned = calibrant.plan(calibrant.evaluate, model, **options)
calibrant.evaluate(model, **options)
print(json.dumps([planned.memory, peak_memory()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux tells it")
@pytest.mark.parametrize(
    ("task", "hidden", "inner"),
    [
        ("generation(name='arithmetic', shots=3, max_tokens=2)", 256, 512),
        ("agreement(source=python_docs, tokens=100, length=64)", 768, 1536),
    ],
)
def test_what_is_held_was_planned(
    task: str, hidden: int, inner: int, tmp_path: Path, own_cache: Path
) -> None:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 12}
    # As many heads of keys and values as of queries.
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8}
    folder = tiny_folder(tmp_path / "model", "llama", **sizes)
    dense = tiny_folder(tmp_path / "dense", "llama", seed=1, **sizes)
    command = [sys.executable, "-c", ONE_MEASUREMENT, str(folder), str(dense)]
    done = subprocess.run(
        [*command, task],
        capture_output=True,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-500:]
    planned, peak = json.loads(done.stdout.splitlines()[-1])
    assert planned == pytest.approx(peak, rel=0.25)


def on_a_gpu(model: str, dtype: str, device: str) -> ModelOutline:
    """An outline on a GPU that isn't there."""
    outline = outline_of(model, dtype, "cpu")
    assert outline is not None
    return replace(outline, device=torch.device(device))


def test_pinned_memory_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 0)
    monkeypatch.setattr(_measuring, "outline_of", on_a_gpu)
    sizes = {"hidden_size": 48, "num_hidden_layers": 12}
    folder = str(tiny_folder(tmp_path / "model", "llama", **sizes))
    outline = on_a_gpu(folder, "float32", "cuda")
    # Of each block two matrices [48, 48], two [24, 48] and three of 48 · 64 numbers.
    rounded = 2 * (16_384 - 9216) + 2 * (8192 - 4608) + 3 * (16_384 - 12_288)
    needed = 4 * outline.shape.numbers
    chosen = [evaluators.build("loss(length=32)")]
    ask = partial(left_on_disk, [folder], chosen, "float32", "cuda")
    assert not ask(needed)
    assert ask(needed, True)
    assert not ask(needed + 12 * rounded, True)
    assert ask(needed + 12 * rounded - 1, True)


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
