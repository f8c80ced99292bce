"""Matrices, the inputs that they see, and what is lost of their outputs: for the tests of
methods that go matrix by matrix.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from calibrant.activations import FeatureMoments, FeatureNorms, Gram, Seen


def features(
    tokens: int, inputs: int, dtype: torch.dtype = torch.float64, mixing: float = 1.0
) -> Tensor:
    """Correlated features of different sizes."""
    x = torch.randn(tokens, inputs, dtype=dtype)
    mixed = x @ (
        torch.eye(inputs, dtype=dtype)
        + mixing * torch.randn(inputs, inputs, dtype=dtype) / inputs**0.5
    )
    return mixed * (0.1 + torch.rand(inputs, dtype=dtype))


def seeded(rows: int, columns: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normal numbers, the same in every type but for rounding."""
    return torch.randn(
        rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def seen_of(x: Tensor, weights: Tensor | None = None) -> Seen:
    """What a matrix sees of `x`, whichever statistic a method looks at."""
    return Seen({kind: kind.of(x, weights) for kind in (FeatureNorms, FeatureMoments, Gram)})


def relative_error(weight: Tensor, result: Tensor, x: Tensor) -> float:
    """‖(W - Ŵ)Xᵀ‖²/‖WXᵀ‖²."""
    return float((x @ (weight - result).T).square().sum() / (x @ weight.T).square().sum())


def best_where_kept(weight: Tensor, x: Tensor, keep: Tensor, damp: float = 0.01) -> Tensor:
    """The best weights where `keep`: of each row by a direct solution, (H_SS v_S = (H w)_S)."""
    inputs, w = x.double().numpy(), weight.double().numpy()
    hessian = inputs.T @ inputs / len(inputs)
    hessian += damp * hessian.diagonal().mean() * np.eye(len(hessian))
    best = np.zeros_like(w)
    for row, kept in enumerate(keep.numpy()):
        best[row, kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ w[row])
    return torch.from_numpy(best)


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
