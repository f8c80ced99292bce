"""Matrices, the inputs that they see, and what is lost of their outputs: for the tests of methods that go matrix by matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from calibrant.activations import FeatureMoments, FeatureNorms, Gram, Seen


def features(tokens: int, inputs: int, dtype: torch.dtype = torch.float64, mixing: float = 1.0) -> Tensor:
    """Correlated features of different sizes."""
    x = torch.randn(tokens, inputs, dtype=dtype)
    mixed = x @ (torch.eye(inputs, dtype=dtype) + mixing * torch.randn(inputs, inputs, dtype=dtype) / inputs**0.5)
    return mixed * (0.1 + torch.rand(inputs, dtype=dtype))


def seeded(rows: int, columns: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normal numbers, the same in every type but for rounding."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def seen_of(x: Tensor, weights: Tensor | None = None) -> Seen:
    """What a matrix sees of `x`, whichever statistic a method looks at."""
    return Seen({kind: kind.of(x, weights) for kind in (FeatureNorms, FeatureMoments, Gram)})


def error(weight: Tensor, result: Tensor, x: Tensor) -> float:
    """‖(W - Ŵ)Xᵀ‖²/‖WXᵀ‖²."""
    return float((x @ (weight - result).T).square().sum() / (x @ weight.T).square().sum())


def spoilt(numbers: Tensor, bad: float) -> Tensor:
    """A copy in which one number is `bad`."""
    found = numbers.clone()
    found[1, 2] = bad
    return found


def by_threads(make: Callable[[], Tensor]) -> list[Tensor]:
    """What is made on one thread, on two and on five."""
    before, found = torch.get_num_threads(), list[Tensor]()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(make())
    finally:
        torch.set_num_threads(before)
    return found
