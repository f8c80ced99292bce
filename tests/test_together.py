"""Walks in step see what each would see alone in a model that is changed as the loop changes it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram, Seen
from calibrant.data import TokenBatch
from calibrant.models import view
from calibrant.testing import tiny_model
from calibrant.walk import walk
from calibrant.walk.walking import together


def batch_of(lengths: tuple[int, ...], seed: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return TokenBatch(
        ids=ids.masked_fill(~mask, 0),
        mask=mask,
        weights=mask.float(),
        fingerprint="sha256:test",
        facts={},
    )


def halved(matrix: Tensor) -> Tensor:
    """A rule that looks at the weights alone, so that every walk makes the same of them."""
    return matrix.masked_fill(matrix.abs() < matrix.abs().median(), 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen3_moe"])
def test_each_sees_what_it_would_see_alone(family: str):
    batches = [batch_of((12, 7, 10), 0), batch_of((5, 12), 1), batch_of((3,), 2)]
    alone: list[dict[str, Seen]] = []
    for batch in batches:
        model = tiny_model(family, dtype=torch.float64)
        found: dict[str, Seen] = {}
        weights = {weight.name: weight for weight in view(model).weights}
        for weight, seen in walk(view(model), batch, (Gram,)):
            found[weight.name] = seen
            weight.set(halved(weight.get()))
        alone.append(found)
        assert weights.keys() >= found.keys()
    model = tiny_model(family, dtype=torch.float64)
    shown = view(model)
    names: list[str] = []
    for weight, seen in together(shown, [walk(shown, batch, (Gram,)) for batch in batches]):
        names.append(weight.name)
        for one, expected in zip(seen, alone, strict=True):
            assert (one is None) == (weight.name not in expected)
            # An expert that only another batch reaches is halved here, and isn't there: behind it
            # this batch sees the same.
            if one is not None:
                assert torch.allclose(
                    one[Gram].matrix, expected[weight.name][Gram].matrix, rtol=1e-9, atol=1e-12
                )
                assert one.tokens == expected[weight.name].tokens
        weight.set(halved(weight.get()))
    assert len(names) == len(set(names))
    assert set(names) == set().union(*alone)
    assert any(len(found) < len(names) for found in alone) == (family in ("mixtral", "qwen3_moe"))


def test_the_loop_ends_early_and_no_forward_stays():
    model = tiny_model("llama", dtype=torch.float64)
    shown = view(model)
    walks = together(shown, [walk(shown, batch_of((12, 7), seed), (Gram,)) for seed in (0, 1)])
    first = next(walks)
    walks.close()
    again = next(together(shown, [walk(shown, replace(batch_of((12, 7), 0)), (Gram,))]))
    assert first[0] is again[0]
    assert torch.equal(first[1][0][Gram].matrix, again[1][0][Gram].matrix)
