"""What a record says of a matrix: the error of its outputs against outputs, its sampled mask and
inputs against the whole ones.
"""

import hashlib
import math
import struct
from itertools import combinations

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, InputStatistic, Seen
from calibrant.edits.changes import FEATURES, SAMPLED, SILENT, input_sizes, mask_bits, output_error
from calibrant.errors import NumericsError


def pruned(weight: Tensor, share: float, by: Tensor | None = None) -> Tensor:
    scores = weight.abs() if by is None else by
    return weight.masked_fill(
        scores <= scores.flatten().kthvalue(int(weight.numel() * share)).values, 0
    )


def case(
    dtype: torch.dtype = torch.float32, width: int = 24
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, width, generator=generator).to(dtype) @ torch.randn(
        width, width, generator=generator
    ).to(dtype)
    weight = torch.randn(16, width, generator=generator).to(dtype)
    return x, torch.rand(200, generator=generator), weight, pruned(weight, 0.5)


@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 24), (torch.float64, 600), (torch.bfloat16, 600)]
)
def test_from_a_gram_and_from_norms_it_is_the_error_of_the_outputs(
    dtype: torch.dtype, width: int
) -> None:
    x, weights, before, after = case(dtype, width)
    told = output_error(before, after, Seen({Gram: Gram.of(x, weights)}))
    rows = x.double() * weights.double().sqrt()[:, None]
    expected = ((rows @ (before - after).double().T) ** 2).sum() / (
        (rows @ before.double().T) ** 2
    ).sum()
    assert told == {"error": pytest.approx(float(expected), rel=1e-4), "error_from": "gram"}
    # From norms it is that of uncorrelated inputs.
    told = output_error(before, after, Seen({FeatureNorms: FeatureNorms.of(x, weights)}))
    squares = (weights[:, None].double() * x.double() ** 2).sum(0)
    expected = ((before - after).double() ** 2 @ squares).sum() / (
        before.double() ** 2 @ squares
    ).sum()
    assert told == {"error": pytest.approx(float(expected), rel=1e-4), "error_from": "norms"}


def test_where_nothing_was_seen_or_nothing_comes_out_there_is_no_error() -> None:
    x, _, before, after = case()
    assert output_error(before, after, Seen({})) == {}
    assert output_error(before, after, Seen({FeatureNorms: FeatureNorms.of(x * 0)})) == {}
    assert output_error(before, before, Seen({FeatureNorms: FeatureNorms.of(x)}))["error"] == 0
    seen = Seen({Gram: Gram.of(x)})
    assert output_error(before, after.double(), seen) == output_error(before, after, seen)


@pytest.mark.parametrize("kind", [Gram, FeatureNorms])
def test_outputs_that_overflow_are_named_and_no_error_of_zero(kind: type[InputStatistic]) -> None:
    x, _, before, _ = case(torch.float64)
    before[0, 0] = 1e200
    after = before.clone()
    after[1] = 0
    with pytest.raises(NumericsError) as caught:
        output_error(before, after, Seen({kind: kind.of(x)}), "up_proj")
    assert caught.value.subject == "up_proj"


def test_the_bits_are_those_of_the_places_that_a_hash_of_the_name_gives() -> None:
    matrix = case()[3]
    stream = hashlib.shake_256(b"model.layers.0.mlp.up_proj").digest(8 * 256)
    places = [
        int.from_bytes(stream[8 * i : 8 * i + 8], "little") % matrix.numel() for i in range(256)
    ]
    kept = "".join("1" if matrix.flatten()[place] != 0 else "0" for place in places)
    bits = mask_bits("model.layers.0.mlp.up_proj", matrix)
    assert bits == f"{int(kept, 2):064x}"
    assert mask_bits("model.layers.0.mlp.up_proj", matrix.T.contiguous().T) == bits, (
        "a matrix that is stored the other way round is the same one"
    )
    assert mask_bits("model.layers.1.mlp.up_proj", matrix) != bits
    assert (mask_bits("x", torch.ones(3, 5)), mask_bits("x", torch.zeros(3, 5))) == (
        "f" * 64,
        "0" * 64,
    )


def test_bits_tell_how_much_two_masks_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(40)]
    weights = [torch.randn(48, 64, generator=generator) for _ in names]
    masks = [
        [
            pruned(w, share, w.abs() + noise * torch.rand(w.shape, generator=generator)) != 0
            for w in weights
        ]
        for share, noise in ((0.5, 0), (0.5, 1), (0.6, 0), (0.5, 50))
    ]
    for one, other in combinations(masks, 2):
        true = float((torch.stack(one) == torch.stack(other)).double().mean())
        differing = 0
        for name, a, b in zip(names, one, other, strict=True):
            differing += (
                int(mask_bits(name, a.float()), 16) ^ int(mask_bits(name, b.float()), 16)
            ).bit_count()
        count = SAMPLED * len(names)
        assert abs(1 - differing / count - true) < 4 * math.sqrt(true * (1 - true) / count)


def sizes_of(told: dict[str, str]) -> list[float]:
    return [
        struct.unpack("<e", bytes.fromhex(told["inputs"])[i : i + 2])[0]
        for i in range(0, 2 * FEATURES, 2)
    ]


@pytest.mark.parametrize("kind", [FeatureNorms, Gram])
def test_the_sizes_are_those_of_the_features_that_a_hash_of_the_name_gives(
    kind: type[InputStatistic],
) -> None:
    x, weights, _, _ = case(width=600)
    stream = hashlib.shake_256(b"model.layers.0.mlp.up_proj inputs").digest(8 * FEATURES)
    places = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") % 600 for i in range(FEATURES)]
    squares = (weights.double()[:, None] * x.double() ** 2).sum(0) / weights.double().sum()
    told = input_sizes("model.layers.0.mlp.up_proj", Seen({kind: kind.of(x, weights)}))
    assert sizes_of(told) == pytest.approx([0.5 * math.log(squares[p]) for p in places], abs=2e-3)
    assert input_sizes("model.layers.1.mlp.up_proj", Seen({kind: kind.of(x, weights)})) != told


def test_a_silent_feature_has_a_size_and_what_saw_nothing_has_none() -> None:
    x = case()[0]
    assert set(sizes_of(input_sizes("m", Seen({FeatureNorms: FeatureNorms.of(x * 0)})))) == {SILENT}
    assert input_sizes("m", Seen({})) == {}
    assert input_sizes("m", Seen({FeatureNorms: FeatureNorms.of(x, torch.zeros(200))})) == {}
