"""Attention of the newest token of each row against its definition."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from calibrant.models.attending import attend, newest_attending
from calibrant.testing import tiny_model

ROWS, COLUMNS = 5, 37


def by_hand(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """One head of one row at a time, in float64."""
    rows, heads = query.shape[:2]
    group = heads // key.shape[1]
    found = torch.zeros(rows, 1, heads, value.shape[3], dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            scores = key[row, head // group].double() @ query[row, head, 0].double() * scaling
            shares = scores[seen[row]].softmax(0)
            found[row, 0, head] = shares @ value[row, head // group, seen[row]].double()
    return found


def inputs(dtype: torch.dtype, heads: int, shared: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=heads // shared, is_causal=True)
    query = torch.randn(ROWS, heads, 1, 20).to(dtype)
    # There is room behind what is filled, as in a cache.
    key = (3 * torch.randn(ROWS, shared, COLUMNS + 9, 20)).to(dtype)[:, :, :COLUMNS]
    value = torch.randn(ROWS, shared, COLUMNS + 9, 33).to(dtype)[:, :, :COLUMNS]
    return module, query, key, value


@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("masked", [True, False])
def test_the_newest_token_attends_as_is_defined(
    dtype: torch.dtype, bound: float, heads: int, shared: int, masked: bool
) -> None:
    module, query, key, value = inputs(dtype, heads, shared)
    seen = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    mask = None
    if masked:
        seen = torch.rand(ROWS, COLUMNS) < 0.4
        seen[:, -1] = True
        mask = seen[:, None, None]
        # What isn't seen may be anything.
        key.transpose(1, 2)[~seen] = torch.nan
        value.transpose(1, 2)[~seen] = torch.nan
    found, _ = attend(module, query, key, value, mask, scaling=0.4)
    expected = by_hand(query, key, value, seen, 0.4)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= bound * expected.abs().max()


def test_of_several_tokens_it_is_the_fused_attention() -> None:
    module, _, key, value = inputs(torch.float32, 6, 2)
    query = torch.randn(ROWS, 6, 3, 20)
    mask = torch.ones(ROWS, 1, 3, COLUMNS, dtype=torch.bool).tril(COLUMNS - 3)
    found, _ = attend(module, query, key, value, mask, scaling=0.4)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.4)
    assert torch.equal(found, expected)


def test_afterwards_the_model_attends_as_before() -> None:
    model = tiny_model("llama")
    with newest_attending(model):
        assert model.config._attn_implementation != "sdpa"
    assert model.config._attn_implementation == "sdpa"
