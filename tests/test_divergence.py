"""Divergences of logits, against a literal sum over words in float64."""

import math

import pytest
import torch
from torch import Tensor

from calibrant.models.divergence import divergences, top


def literal(old: Tensor, new: Tensor) -> list[float]:
    """Σ p·(log p - log q), word by word, in numbers that round far later."""
    found = []
    for row, other in zip(old.double().tolist(), new.double().tolist(), strict=True):
        log_a, log_b = (
            max(x) + math.log(math.fsum(math.exp(v - max(x)) for v in x)) for x in (row, other)
        )
        found.append(
            math.fsum(
                math.exp(a - log_a) * ((a - log_a) - (b - log_b))
                for a, b in zip(row, other, strict=True)
            )
        )
    return found


@pytest.mark.parametrize("words", [2, 1000, 1024, pytest.param(2500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("apart", [1e-2, pytest.param(0.3, marks=pytest.mark.slow), 3.0])
def test_they_are_the_sum_over_words(words: int, dtype: torch.dtype, apart: float) -> None:
    generator = torch.Generator().manual_seed(words)
    old = (torch.randn(2, words, generator=generator) * 4).to(dtype)
    new = (old.float() + apart * torch.randn(2, words, generator=generator)).to(dtype)
    # A logarithm in float32 is off by a few 1e-7, and a divergence grows with the square of what is
    # apart.
    rounding = 1e-6 * apart
    assert divergences(old, new).tolist() == pytest.approx(
        literal(old, new), rel=1e-5, abs=rounding
    )


def test_small_ones_survive_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(300, 5000, generator=generator) * 4
    new = old + 1e-3 * torch.randn(300, 5000, generator=generator)
    exact = (
        old.double().softmax(-1) * (old.double().log_softmax(-1) - new.double().log_softmax(-1))
    ).sum(-1)
    assert float(exact.mean()) < 1e-6, "that is less than what float32 loses in the logarithms"
    torch.testing.assert_close(divergences(old, new), exact, rtol=2e-4, atol=0)


def test_of_the_same_logits_it_is_exactly_zero_and_far_apart_it_is_finite() -> None:
    logits = torch.randn(5, 3000) * 10
    assert divergences(logits, logits.clone()).tolist() == [0.0] * 5
    for apart in (60.0, 300.0):
        assert divergences(torch.tensor([[0.0, apart]]), torch.tensor([[apart, 0.0]])).tolist() == [
            pytest.approx(apart)
        ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whose", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_is_not_finite_is_nan(bad: float, whose: int, dtype: torch.dtype) -> None:
    both = [torch.randn(3, 40, dtype=dtype), torch.randn(3, 40, dtype=dtype)]
    both[whose][1, 7] = bad
    assert divergences(*both).isnan().tolist() == [False, True, False]


def test_of_equal_words_the_first_is_on_top() -> None:
    assert top(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0]])).tolist() == [1, 0]
