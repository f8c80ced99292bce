"""The mixture to try methods on has learnt, and its truths hold."""

import pytest
import torch

from calibrant.activations import Routing
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.models import expert_layers, view
from calibrant.testing import tiny_tokenizer
from calibrant.walk import walk_blocks
from calibrant.walk.variants import loss

from tests.trained_mixture import plant, trained_mixture, untrained_mixture


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    return CalibrationSet(
        "0.4*python_docs + 0.3*python_code + 0.3*arithmetic", samples=9, length=128
    ).tokens(tiny_tokenizer())


def test_the_byte_mixture_has_learnt_and_uses_its_experts(batch: TokenBatch) -> None:
    assert loss(view(trained_mixture()), batch) < loss(view(untrained_mixture()), batch) - 2.5
    # It is trained where it is tested, and each processor rounds its way to another model: some
    # experts are for words that few texts have.
    more = CalibrationSet(
        "0.4*python_docs + 0.3*python_code + 0.3*arithmetic", samples=72, length=128
    ).tokens(tiny_tokenizer())
    loads = [
        seen[Routing].counts for _, seen in walk_blocks(view(trained_mixture()), more, (Routing,))
    ]
    assert all(int((load > 0).sum()) >= 12 for load in loads)
    model = trained_mixture()
    for layer in expert_layers(view(model)):
        for expert in layer.experts:
            expert[-1].set(torch.zeros(expert[-1].shape))
    assert loss(view(model), batch) > loss(view(trained_mixture()), batch) + 0.05, (
        "the routed experts matter"
    )


def test_planted_truths_hold(batch: TokenBatch) -> None:
    model = plant(trained_mixture(), dead=[(1, 3)], doubled=[(2, 0, 7)])
    layers_of = expert_layers(view(model))
    assert not any(bool(matrix.get().any()) for matrix in layers_of[1].experts[3])
    assert all(
        torch.equal(a.get(), b.get())
        for a, b in zip(layers_of[2].experts[0], layers_of[2].experts[7], strict=True)
    )
    routings = {
        block.index: seen[Routing] for block, seen in walk_blocks(view(model), batch, (Routing,))
    }
    assert float(routings[1].counts[3]) == float(routings[1].counts.min())
    assert float(routings[2].together[0, 7]) > 0, (
        "who is sent to the one first is sent to the other too"
    )
    others = trained_mixture()
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            others.model.layers[0].parameters(), model.model.layers[0].parameters(), strict=True
        )
    )
