"""The training of experts against a plain loop in which each step is written out."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from calibrant.data import TokenBatch
from calibrant.methods.experts import _training
from calibrant.methods.experts._training import train
from calibrant.models import view
from calibrant.testing import tiny_model

RATE = 0.01


def padded(lengths: Sequence[int], seed: int) -> TokenBatch:
    """Windows of such lengths, of whose tokens none counts as much as another."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), 24)
    mask = torch.arange(24)[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 200, shape, generator=generator) * mask
    weights = (torch.rand(shape, generator=generator) + 0.1) * mask
    return TokenBatch(ids, mask, weights, f"sha256:{seed}", {})


@pytest.fixture
def mix(monkeypatch: pytest.MonkeyPatch) -> TokenBatch:
    """Three windows, each a step: one of a set that counts little, two of another."""
    monkeypatch.setattr(_training, "TOKENS_PER_STEP", 24)
    one, other = padded([20], 1), padded([24, 18], 2)
    return replace(one, mixed=((0.1, one), (2.0, other)))


def trained_by_hand(model: PreTrainedModel, mix: TokenBatch, steps: int, seed: int) -> None:
    """Train all parameters, a window a step: each once in an order that is drawn, and again."""
    windows: list[tuple[float, torch.Tensor, torch.Tensor]] = []
    masses = [factor * float(part.weights.sum()) for factor, part in mix.mixed]
    for mass, (_, part) in zip(masses, mix.mixed, strict=True):
        of_each = 3 * mass / sum(masses) / len(part.ids)
        for ids, mask, weights in zip(part.ids, part.mask, part.weights, strict=True):
            windows.append((of_each, ids[mask], weights[mask]))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in range(steps):
        if step % 3 == 0:
            order = torch.randperm(3, generator=generator).tolist()
        factor, ids, weights = windows[order.pop()]
        words = model(ids[None]).logits[0, :-1].log_softmax(-1)
        nats = -words.gather(1, ids[1:, None])[:, 0]
        loss = factor * (nats @ weights[1:]) / weights[1:].sum()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        (group,) = optimizer.param_groups
        group["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_training_is_that_of_a_plain_loop_over_the_windows_of_a_mix(mix: TokenBatch, seed: int):
    untouched, model, by_hand = (tiny_model("llama", num_hidden_layers=1) for _ in range(3))
    parameters = list(model.parameters())
    train(view(model), mix, parameters, steps=7, rate=RATE, seed=seed)
    trained_by_hand(by_hand, mix, 7, seed)
    moved: list[float] = []
    for parameter, expected, before in zip(
        parameters, by_hand.parameters(), untouched.parameters(), strict=True
    ):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=5e-4)
        moved.append(float((expected - before).detach().abs().max()))
    assert min(moved) > 0.02


def test_steps_that_bfloat16_would_lose_are_added_up(mix: TokenBatch):
    model = tiny_model("llama", torch.bfloat16, num_hidden_layers=1)
    norm = model.model.norm.weight
    assert set(norm.tolist()) == {1.0}
    train(view(model), mix, [norm], steps=24, rate=RATE / 25, seed=0)
    assert norm.dtype == torch.bfloat16
    # A step is at most a fifth of what it takes to be rounded to another number than 1.
    assert (norm != 1).any()
