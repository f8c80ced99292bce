"""One mask for several sources: against `refined` on mixtures, and against what each source's
inputs say, computed in float64.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from calibrant import prune
from calibrant.activations import Gram
from calibrant.methods._arrivals import joined
from calibrant.methods._base import Sources
from calibrant.methods.pruning.refined import Refined
from calibrant.methods.pruning.robust import Robust
from calibrant.targets import NofM, Sparsity
from calibrant.testing import tiny_folder

from tests.methods.matrices import features, relative_error, seen_of

SMALL = {"samples": 4, "length": 16, "dtype": "float32"}
BOTH = "0.5*python_docs + 0.5*random_tokens"


def two_sources(inputs: int = 64) -> tuple[Tensor, Tensor]:
    """Sources that use different inputs most."""
    ramp = torch.linspace(0.1, 2, inputs).double()
    return features(300, inputs) * ramp, features(300, inputs) * ramp.flip(0)


@pytest.mark.parametrize("target", [Sparsity(0.6), NofM(2, 4)], ids=str)
def test_the_worse_source_suffers_less_than_with_the_mean(target: Any):
    weight, (one, other) = torch.randn(24, 64, dtype=torch.float64), two_sources()
    other = other * 0.3 + 0.7 * torch.randn(300, 1).double() * other.mean(0, keepdim=True)
    seen = joined([seen_of(one), seen_of(other)], [0.5, 0.5])
    mean, worst = (Robust(rounds=rounds).compress(weight, seen, target).weight for rounds in (1, 6))
    assert max(relative_error(weight, worst, x) for x in (one, other)) < max(
        relative_error(weight, mean, x) for x in (one, other)
    )
    single = [
        Refined(swaps=50, steps=20).compress(weight, seen_of(x), target).weight
        for x in (one, other)
    ]
    assert max(relative_error(weight, worst, x) for x in (one, other)) < min(
        max(relative_error(weight, found, x) for x in (one, other)) for found in single
    )


def test_with_one_source_it_is_refined():
    weight, x = torch.randn(24, 64, dtype=torch.float64), two_sources()[0]
    robust = (
        Robust(rounds=1, swaps=25, steps=10, tolerance=0.0)
        .compress(weight, seen_of(x), Sparsity(0.5))
        .weight
    )
    refined = (
        Refined(swaps=25, steps=10, rounds=1, tolerance=0.0)
        .compress(weight, seen_of(x), Sparsity(0.5))
        .weight
    )
    assert torch.equal(robust != 0, refined != 0)
    assert torch.allclose(robust, refined, rtol=1e-8, atol=1e-10)


def test_a_source_that_misses_a_matrix_has_no_say_and_one_that_gives_nothing_loses_nothing():
    weight, x = torch.randn(24, 64, dtype=torch.float64), two_sources()[0]
    alone, beside = (
        Robust().compress(weight, joined(seen, [0.5, 0.5][: len(seen)]), Sparsity(0.5))
        for seen in ([seen_of(x)], [None, seen_of(x)])
    )
    assert torch.equal(alone.weight, beside.weight)
    assert len(beside.notes["errors"]) == 1
    silent = Robust().compress(
        weight, joined([seen_of(torch.zeros_like(x)), seen_of(x)], [0.5, 0.5]), Sparsity(0.5)
    )
    assert bool(silent.weight.isfinite().all())
    assert silent.notes["errors"][0] == 0.0
    assert int((silent.weight != 0).sum()) == 24 * 32


def test_what_sources_saw_adds_and_scales():
    one, other = (
        Sources([Gram.of(torch.eye(2)), Gram.of(torch.ones(1, 2))]),
        Sources([Gram.of(torch.ones(3, 2)), Gram.of(torch.eye(2))]),
    )
    total = (one + other) * 0.5
    assert [gram.matrix.tolist() for gram in total.grams] == [
        [[2, 1.5], [1.5, 2]],
        [[1, 0.5], [0.5, 1]],
    ]
    assert (total.tokens, total.mass) == (8, 4)


def test_killed_and_asked_again_it_continues(tmp_path: Path):
    folder = tiny_folder(tmp_path / "model")
    whole = prune(
        str(folder), data=BOTH, method="robust", target=0.5, out=tmp_path / "whole", **SMALL
    )

    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(
            str(folder),
            data=BOTH,
            method="robust",
            target=0.5,
            out=tmp_path / "resumed",
            progress=killed,
            **SMALL,
        )
    resumed = prune(
        str(folder), data=BOTH, method="robust", target=0.5, out=tmp_path / "resumed", **SMALL
    )
    assert resumed.continued_from == 2
    assert resumed.record == whole.record
    assert whole.record.sparsity == pytest.approx(0.5)
    assert {len(matrix["notes"]["errors"]) for matrix in whole.record.weights} == {2}
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert saved[0] == saved[1]
