"""What many tests take: files of texts, and which kinds of model, or other names, they go
through every time (`make slow` takes the others); and what plain transformers makes of a model
that was saved.
"""

import json
import random
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet
from transformers import AutoModelForCausalLM, PreTrainedModel

from calibrant.models import Opened, save, view
from calibrant.testing.tiny import tiny_tokenizer

FAMILIES: Final = frozenset({"llama", "gpt2", "gemma3", "opt", "qwen3_moe"})
"""The plain one, transposed matrices, windows, biases and positions of its own, and experts."""
LETTERS: Final = {"early": "abcdefghijklm", "late": "nopqrstuvwxyz"}
"""Those of two made-up languages."""


def usually(names: Iterable[str], usual: Collection[str] = FAMILIES) -> list[ParameterSet]:
    """Parameters of which those that aren't usual are slow."""
    return [pytest.param(name, marks=() if name in usual else pytest.mark.slow) for name in names]


def two_languages(folder: Path) -> dict[str, Path]:
    """Files of two "languages" of thirteen letters each, in lines of many lengths."""
    files: dict[str, Path] = {}
    for name, known in LETTERS.items():
        chance = random.Random(name)
        lines: list[str] = []
        for _ in range(80):
            text = "".join(chance.choices(known, k=chance.randint(5, 60)))
            lines.append(json.dumps({"text": text}) + "\n")
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(lines))
    return files


def two_hundred_lines(folder: Path) -> str:
    """A file of texts, none like another, that anything can be calibrated or measured on."""
    lines: list[str] = []
    for i in range(200):
        told = f"line {i} says that {i} and {i + 1} make {2 * i + 1}"
        lines.append(json.dumps({"text": f"{told}, and then some more words follow"}))
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def reopened(model: PreTrainedModel, place: Path) -> PreTrainedModel:
    """The same model opened anew, its experts one by one as in `model`."""
    save(Opened(model, tiny_tokenizer(), "", "", "", model.dtype), place, {})
    again = AutoModelForCausalLM.from_pretrained(place)
    view(again)
    return again
