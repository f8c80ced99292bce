"""Micro-batches hold every real token once, in order, with its weight, and little else; sequences
without a token that counts are left out.
"""

import pytest
import torch

from calibrant.data import TokenBatch, counted_sequences, divided, micro_batches


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


def weighed(rows: list[list[float]]) -> TokenBatch:
    weights = torch.tensor(rows, dtype=torch.float32)
    ids = torch.arange(1, weights.numel() + 1).reshape(weights.shape)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), weights, "sha256:test", {})


def test_sequences_of_which_no_token_counts_are_left_out() -> None:
    given = weighed([[0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0.5]])
    left = counted_sequences(given)
    assert left.ids.tolist() == [[4, 5, 6], [10, 11, 12]]
    assert (left.mass, left.fingerprint) == (given.mass, given.fingerprint)
    whole = weighed([[0, 1], [1, 0]])
    assert counted_sequences(whole) is whole
    # Of a mix, each set loses its own.
    mix = TokenBatch(given.ids, given.mask, given.weights, "", {}, mixed=((0.5, given),))
    ((factor, part),) = counted_sequences(mix).mixed
    assert (factor, part.ids.tolist()) == (0.5, left.ids.tolist())


def test_a_sequence_is_cut_only_where_something_counts_in_its_beginning() -> None:
    cut, _ = divided(weighed([[1, 0, 0, 1]]), 2)
    assert cut.ids.tolist() == [[1, 2]]
    whole, _ = divided(weighed([[0, 0, 0, 1]]), 2)
    assert whole.ids.tolist() == [[1, 2, 3, 4]]
