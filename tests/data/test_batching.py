"""Micro-batches hold every real token once, in order, with its weight, and little else."""

import pytest
import torch

from calibrant.data import TokenBatch, micro_batches


def batch(lengths: list[int], holes: bool = False) -> TokenBatch:
    width = 10
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    if holes:
        mask = mask[:, torch.randperm(width, generator=torch.Generator().manual_seed(1))]
    ids = torch.arange(1, len(lengths) * width + 1).reshape(len(lengths), width) * mask
    return TokenBatch(ids, mask, ids / 7 * mask, "sha256:test", {})


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("tokens_per_pass", [1, 7, 16, 1000])
def test_every_real_token_once_in_order_and_first(holes: bool, tokens_per_pass: int) -> None:
    given = batch([3, 10, 0, 7, 7, 1], holes)
    expected = {
        tuple(row[m].tolist()) for row, m in zip(given.ids, given.mask, strict=True) if m.any()
    }
    found = set()
    for ids, mask, weights in micro_batches(given, tokens_per_pass):
        assert ids.shape == mask.shape == weights.shape
        assert len(ids) == 1 or ids.numel() <= tokens_per_pass
        assert int(mask.sum(1).max()) == ids.shape[1], "cut to the longest"
        for row, real, mass in zip(ids, mask, weights, strict=True):
            length = int(real.sum())
            assert bool(real[:length].all()), "real tokens come first"
            assert torch.equal(mass[:length], row[:length] / 7)
            assert not mass[length:].any()
            found.add(tuple(row[:length].tolist()))
    assert found == expected
