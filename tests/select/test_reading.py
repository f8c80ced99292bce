"""Reading with the model, against one sequence at a time in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from calibrant.data.select._reading import nats, pooled
from calibrant.models import Opened
from calibrant.testing import FAMILIES, tiny_model, tiny_tokenizer

from tests.usual import usually

SEQUENCES = [
    [5, 6, 7],
    [9],
    [],
    list(range(3, 120)),
    [10, 20, 30, 40],
    [77] * 33,
    list(range(90, 3, -1)),
    [8, 8],
]


def opened(family: str = "llama", dtype: torch.dtype = torch.float32) -> Opened:
    return Opened(tiny_model(family, dtype), tiny_tokenizer(), family, "", "", dtype)


def slow_nats(family: str, ids: list[int]) -> float:
    if len(ids) < 2:
        return math.nan
    with torch.no_grad():
        logits = tiny_model(family, torch.float64)(torch.tensor([ids])).logits[0]
    chances = torch.softmax(logits, -1)
    return -sum(math.log(chances[at, ids[at + 1]].item()) for at in range(len(ids) - 1)) / (
        len(ids) - 1
    )


@pytest.mark.parametrize("family", usually(FAMILIES, {"llama", "gpt2", "qwen3_moe"}))
def test_nats_are_those_of_each_sequence_alone(family: str) -> None:
    assert nats(opened(family), SEQUENCES) == pytest.approx(
        [slow_nats(family, ids) for ids in SEQUENCES], rel=1e-5, nan_ok=True
    )


def states(model: Any, ids: list[int]) -> tuple[list[Tensor], Tensor]:
    """What each block of a llama put out, and what its head read, by spies of the test's own."""
    seen: list[Tensor] = []
    head: list[Tensor] = []
    spies: list[tuple[Any, Callable[..., None]]] = [
        (block, lambda m, args, out: seen.append(out[0])) for block in model.model.layers
    ]
    handles = [part.register_forward_hook(spy) for part, spy in spies]
    handles.append(model.model.norm.register_forward_hook(lambda m, args, out: head.append(out[0])))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen, head[0]


def test_pooled_are_the_means_that_spies_see() -> None:
    last, every = pooled(opened(), SEQUENCES), pooled(opened(), SEQUENCES, "all")
    assert last.shape == (len(SEQUENCES), 32)
    assert every.shape == (len(SEQUENCES), 3 * 32)
    assert pooled(opened(), []).shape[0] == len(nats(opened(), [])) == 0
    assert pooled(opened(), [[], []], "all").shape == (2, 0)
    model = tiny_model("llama", torch.float64)
    for ids, one, all_of_it in zip(SEQUENCES, last, every, strict=True):
        if not ids:
            assert not one.any()
            assert not all_of_it.any()
            continue
        blocks, head = states(model, ids)
        torch.testing.assert_close(one.double(), head.mean(0), rtol=1e-4, atol=1e-5)
        means = [state.mean(0) for state in (*blocks[:-1], head)]
        torch.testing.assert_close(
            all_of_it.double(),
            torch.cat([mean / mean.norm() for mean in means]),
            rtol=1e-4,
            atol=1e-5,
        )
