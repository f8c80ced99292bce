"""A model and data that are the same on every machine and in every release of torch: their numbers
come from a formula, not from a generator."""

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from calibrant.testing import tiny_model, tiny_tokenizer

MODULUS: Final = 211
GROUP: Final = 32
"""Inputs that share a scale in the blocks of llama.cpp."""
LARGEST: Final = 7.5 * 2.0**-4
"""Of every group: at 4 bits its scale is a power of two, so a number of float16 too, and
llama.cpp's blocks hold its codes."""


def by_formula(rows: int, columns: int, modulus: int, scale: float) -> Tensor:
    """Return the same numbers on every machine and in every release of torch; none is zero."""
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    mixed = r * 37 + c * 101 + r * c * 13 + (r * r) % 7 * (c % 11)
    return (mixed % modulus - modulus // 2 - 0.5).double() / scale


def formula_folder(
    path: Path,
    family: str = "llama",
    largest: float = LARGEST,
    **overrides: Any,
) -> Path:
    """Save a tiny model of `family` with numbers by formula at `path`, with its tokenizer, and
    return the path.

    `largest` is the largest number of each group of 32 inputs. `overrides` are entries of the
    model's configuration.
    """
    model = tiny_model(family, **overrides)
    for place, (name, parameter) in enumerate(sorted(model.named_parameters())):
        parameter.data = _numbers(place, name, tuple(parameter.shape), largest)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def formula_texts(path: Path) -> Path:
    """Write a file of texts at `path`, none like another, that a model can be calibrated on, and
    return the path."""
    lines = list[str]()
    for number in range(200):
        text = f"line {number} says that {number} and {number + 1} make {2 * number + 1}"
        lines.append(json.dumps({"text": f"{text}, and then some more words follow"}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _numbers(place: int, name: str, shape: tuple[int, ...], largest: float) -> Tensor:
    """The numbers of one parameter; those of a norm are near one."""
    rows = 1
    for size in shape[:-1]:
        rows *= size
    numbers = by_formula(rows + place, shape[-1], MODULUS, 240.0)[place:]
    if len(shape) == 1 and name.endswith("weight"):
        numbers = 1 + numbers / 4
    if len(shape) > 1:
        numbers[:, ::GROUP] = largest
    return numbers.reshape(shape).to(torch.float32)
