"""GPTQ against a literal elimination in float64, one weight at a time, with the inverse Hessian
itself.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import calibrant
from calibrant.activations import Gram, Seen
from calibrant.methods import MatrixMethod, methods
from calibrant.packed import Codes
from calibrant.targets import NofM, SparseGrid, parse_target
from calibrant.testing import tiny_folder

from tests.methods.matrices import features, seeded

GRIDS = ["w4g64", "w3g32", "w2g16a", "w4a", "w8"]


def inputs(tokens: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(1)
    return features(tokens, width).to(dtype)


def packed(method: str, weight: Tensor, gram: Gram, target: str) -> Codes:
    built = methods.build(method)
    assert isinstance(built, MatrixMethod)
    result = built.compress(weight, Seen({Gram: gram}), parse_target(target))
    assert isinstance(result.packed, Codes)
    assert torch.equal(result.packed.dense(), result.weight)
    return result.packed


def literal(
    weight: Tensor, x: Tensor, found: Codes, order: list[int], removal: NofM | None = None
) -> np.ndarray:
    """The codes that the definition gives: round a column, take its error from the rest, and strike
    it from the inverse Hessian.

    Where weights go too, it is at the first column of M: those of the lowest (w / U_ii)².
    """
    w, hessian = weight.double().numpy().copy(), (x.double().T @ x.double() / len(x)).numpy()
    inverse = np.linalg.inv(hessian + 0.01 * np.diag(hessian).mean() * np.eye(len(hessian)))
    pivots = np.diag(np.linalg.cholesky(inverse))
    codes, gone, width = (
        np.zeros(w.shape),
        np.zeros(w.shape, dtype=bool),
        w.shape[1] // found.scales.shape[1],
    )
    zeros = torch.zeros_like(found.scales) if found.zeros is None else found.zeros
    for place, i in enumerate(order):
        if removal is not None and i % removal.m == 0:
            group = slice(i, i + removal.m)
            lowest = ((w[:, group] / pivots[group]) ** 2).argsort(1)[:, : removal.m - removal.n]
            np.put_along_axis(gone[:, group], lowest, True, 1)
        scale, zero = (
            found.scales[:, i // width].double().numpy(),
            zeros[:, i // width].double().numpy(),
        )
        code = np.clip(np.round(w[:, i] / scale + zero), found.grid.lowest, found.grid.highest)
        codes[:, i] = np.where(gone[:, i], zero, code)
        error = (w[:, i] - (codes[:, i] - zero) * scale) / inverse[i, i]
        left = order[place + 1 :]
        w[:, left] -= np.outer(error, inverse[i, left])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("text", GRIDS)
def test_every_code_is_that_of_the_definition(text: str, order: str):
    weight, x = seeded(64, 192), inputs(500, 192)
    found = packed(f"gptq(order={order})", weight, Gram.of(x), text)
    sizes = x.square().sum(0).tolist()
    places = (
        sorted(range(192), key=lambda i: -sizes[i]) if order == "activation" else list(range(192))
    )
    assert (found.codes.numpy() == literal(weight, x, found, places)).all()
    nearest = methods.build("rtn").compress(weight, Seen({}), parse_target(text)).packed
    assert torch.equal(found.scales, nearest.scales), (
        "the scales are chosen before anything is rounded"
    )


@pytest.mark.parametrize("text", ["w4g64", "w3g32a"])
def test_float32_gives_the_codes_of_float64(text: str):
    weight, x = seeded(128, 192, torch.float32), inputs(800, 192, torch.float32)
    single, double = (
        packed("gptq", weight, Gram.of(x), text),
        packed("gptq", weight.double(), Gram.of(x.double()), text),
    )
    assert (single.codes == double.codes).double().mean() >= 0.999
    lost = [
        float((x.double() @ (found.dense().double() - weight.double()).T).square().sum())
        for found in (single, double)
    ]
    assert lost[0] == pytest.approx(lost[1], rel=1e-3)


def test_dead_inputs_are_rounded_to_nearest_and_matter_to_no_other():
    weight, x = seeded(20, 64, torch.float32), inputs(300, 64, torch.float32)
    x[:, 5::7] = 0
    found = packed("gptq", weight, Gram.of(x), "w4g16")
    nearest = methods.build("rtn").compress(weight, Seen({}), parse_target("w4g16")).packed
    assert torch.equal(found.codes[:, 5::7], nearest.codes[:, 5::7])
    other = weight.clone()
    # The reach of a group may shrink with it, so only groups whose largest weight is elsewhere are
    # compared.
    other[:, 5::7] *= 0.99
    again = packed("gptq", other, Gram.of(x), "w4g16")
    same = (found.scales == again.scales).all(1)
    alive = torch.ones(64, dtype=torch.bool)
    alive[5::7] = False
    assert torch.equal(found.codes[same][:, alive], again.codes[same][:, alive])


@pytest.mark.parametrize("text", ["2:4+w4g64", "1:4+w3g32a", "4:8+w2"])
def test_removing_and_rounding_in_one_elimination_is_that_of_the_definition(text: str):
    weight, x, target = seeded(48, 192), inputs(500, 192), parse_target(text)
    assert isinstance(target, SparseGrid)
    assert isinstance(target.removal, NofM)
    found = packed("sparsegpt", weight, Gram.of(x), text)
    assert (
        found.codes.numpy() == literal(weight, x, found, list(range(192)), target.removal)
    ).all()


def test_a_model_is_pruned_and_quantized_at_once(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model"))
    asked: dict[str, Any] = {"samples": 4, "length": 32, "dtype": "float32"}
    done = calibrant.quantize(
        folder,
        data="random_tokens",
        method="sparsegpt",
        target="2:4+w4g16",
        out=tmp_path / "out",
        export=["compressed_tensors"],
        **asked,
    )
    assert {matrix["bits_a_weight"] for matrix in done.record.weights} == {6.0}
    assert all(matrix["sparsity"] >= 0.5 for matrix in done.record.weights)
