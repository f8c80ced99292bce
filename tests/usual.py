"""Which kinds of model, or other names, a test goes through every time: the others take the same ways, and are gone through by `make slow`."""

from collections.abc import Collection, Iterable
from typing import Final

import pytest
from _pytest.mark import ParameterSet

FAMILIES: Final = frozenset({"llama", "gpt2", "gemma3", "opt", "qwen3_moe"})
"""The plain one, transposed matrices, windows, biases and positions of its own, and experts."""


def usually(names: Iterable[str], usual: Collection[str] = FAMILIES) -> list[ParameterSet]:
    """Parameters of which those that aren't usual are slow."""
    return [pytest.param(name, marks=() if name in usual else pytest.mark.slow) for name in names]
