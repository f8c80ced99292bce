"""GPTQ against a literal elimination in float64, one weight at a time, with the inverse Hessian itself."""

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram, Seen
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.methods import MatrixMethod, methods
from calibrant.methods._factor import Factor, factorise
from calibrant.methods._quantizing import quantize, round_columns, round_rows
from calibrant.methods._rounding import Scales, absmax
from calibrant.packed import Codes
from calibrant.targets import Grid, NofM, Sparsity, parse_target

GRIDS = ["w4g64", "w3g32", "w2g16a", "w4a", "w8"]


def inputs(tokens: int, features: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, features, generator=chance, dtype=torch.float64) @ (
        torch.eye(features, dtype=torch.float64) + torch.randn(features, features, generator=chance, dtype=torch.float64) / features**0.5
    )
    return (mixed * (0.1 + torch.rand(features, generator=chance, dtype=torch.float64))).to(dtype)


def random(rows: int, columns: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def packed(method: str, weight: Tensor, gram: Gram, target: str) -> Codes:
    built = methods.build(method)
    assert isinstance(built, MatrixMethod)
    result = built.compress(weight, Seen({Gram: gram}), parse_target(target))
    assert isinstance(result.packed, Codes)
    assert torch.equal(result.packed.dense(), result.weight)
    return result.packed


def literal(weight: Tensor, x: Tensor, scales: Tensor, zeros: Tensor, bits: int, damp: float, order: list[int]) -> np.ndarray:
    """The codes that the definition gives: round a column, take its error from the rest, and strike it from the inverse Hessian."""
    w = weight.double().numpy().copy()
    hessian = (x.double().T @ x.double() / len(x)).numpy()
    used = np.diag(hessian) > 0
    mean = np.diag(hessian)[used].mean()
    hessian[~used, ~used] = 1
    inverse = np.linalg.inv(hessian + damp * mean * np.eye(len(hessian)))
    codes, width = np.zeros(w.shape), w.shape[1] // scales.shape[1]
    left = list(order)
    while left:
        i = left.pop(0)
        scale, zero = scales[:, i // width].double().numpy(), zeros[:, i // width].double().numpy()
        codes[:, i] = np.clip(np.round(w[:, i] / scale + zero), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = (w[:, i] - (codes[:, i] - zero) * scale) / inverse[i, i]
        w[:, left] -= np.outer(error, inverse[i, left])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("text", GRIDS)
def test_every_code_is_that_of_the_definition(text: str, order: str):
    weight, x = random(64, 192), inputs(500, 192)
    found = packed(f"gptq(order={order})", weight, Gram.of(x), text)
    zeros = torch.zeros_like(found.scales) if found.zeros is None else found.zeros
    sizes = x.square().sum(0).tolist()
    places = sorted(range(192), key=lambda i: -sizes[i]) if order == "activation" else list(range(192))
    expected = literal(weight, x, found.scales, zeros, found.grid.bits, 0.01, places)
    assert (found.codes.numpy() == expected).all()
    assert torch.equal(found.scales, absmax(weight, found.grid).scales), "the scales are chosen before anything is rounded"


@pytest.mark.parametrize("text", ["w4g64", "w3g32a"])
def test_float32_gives_the_codes_of_float64(text: str):
    weight, x = random(128, 192, torch.float32), inputs(800, 192, torch.float32)
    single, double = packed("gptq", weight, Gram.of(x), text), packed("gptq", weight.double(), Gram.of(x.double()), text)
    assert (single.codes == double.codes).double().mean() >= 0.999
    lost = [float((x.double() @ (found.dense().double() - weight.double()).T).square().sum()) for found in (single, double)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-3)


def test_inputs_that_know_nothing_of_each_other_are_rounded_to_nearest():
    weight = random(40, 96, torch.float32)
    for text in ("w4g32", "w3g16a", "w8"):
        identity = Gram(torch.eye(96), 96, 96.0)
        for order in ("natural", "activation"):
            rtn = methods.build("rtn").compress(weight, Seen({}), parse_target(text)).packed
            assert torch.equal(packed(f"gptq(order={order})", weight, identity, text).codes, rtn.codes)


@pytest.mark.parametrize("text", GRIDS)
def test_what_lies_on_the_stored_grid_is_left_alone(text: str):
    grid, x = parse_target(text), inputs(600, 192, torch.float32)
    assert isinstance(grid, Grid)
    first = absmax(random(32, 192, torch.bfloat16), grid).nearest(random(32, 192, torch.bfloat16))
    scales = Scales(grid, first.scales.float(), first.zeros)
    on_it = scales.nearest(first.dense().float())
    again = quantize(on_it.dense(), factorise(Gram.of(x), 0.01), scales)
    assert torch.equal(again.codes, on_it.codes)
    assert torch.equal(again.dense(), on_it.dense())


def test_a_whole_asymmetric_grid_comes_back():
    codes = torch.randint(-8, 8, (6, 32), generator=torch.Generator().manual_seed(3)).to(torch.int8)
    codes[:, ::8], codes[:, 1::8] = -8, 7
    weight = Codes(Grid(4, 8, symmetric=False), codes, torch.full((6, 4), 0.75), torch.zeros(6, 4, dtype=torch.int8)).dense()
    found = packed("gptq", weight, Gram.of(inputs(90, 32, torch.float32)), "w4g8a")
    assert torch.equal(found.dense(), weight)


@pytest.mark.parametrize("order", ["natural", "activation"])
def test_outputs_err_less_than_those_of_nearest_values(order: str):
    x, lost = inputs(4 * 128, 128, torch.float32), dict[str, list[float]]()
    for seed in range(8):
        weight = random(48, 128, torch.float32, seed)
        for method in ("rtn", f"gptq(order={order})"):
            result = methods.build(method).compress(weight, Seen({Gram: Gram.of(x)}), parse_target("w4g64")).weight
            lost.setdefault(method, []).append(float((x @ (result - weight).T).square().sum()))
    rtn, gptq = lost.values()
    assert sum(gptq) < 0.7 * sum(rtn)
    assert all(fewer < more for fewer, more in zip(gptq, rtn, strict=True))


def test_dead_inputs_are_rounded_to_nearest_and_matter_to_no_other():
    weight, x = random(20, 64, torch.float32), inputs(300, 64, torch.float32)
    x[:, 5::7] = 0
    found = packed("gptq", weight, Gram.of(x), "w4g16")
    nearest = methods.build("rtn").compress(weight, Seen({}), parse_target("w4g16")).packed
    assert torch.equal(found.codes[:, 5::7], nearest.codes[:, 5::7])
    other = weight.clone()
    other[:, 5::7] *= 0.99  # the reach of a group may shrink with it, so only groups whose largest weight is elsewhere are compared
    again = packed("gptq", other, Gram.of(x), "w4g16")
    same = (found.scales == again.scales).all(1)
    alive = torch.ones(64, dtype=torch.bool)
    alive[5::7] = False
    assert torch.equal(found.codes[same][:, alive], again.codes[same][:, alive])


@pytest.mark.parametrize("removal", [None, NofM(2, 4), Sparsity(0.4)], ids=str)
@pytest.mark.parametrize("text", ["w4g32", "w3g80a"])
def test_kernel_and_loop_take_the_same_steps(text: str, removal: NofM | Sparsity | None):
    weight, factor, grid = random(70, 320), factorise(Gram.of(inputs(900, 320)), 0.01), parse_target(text)
    assert isinstance(grid, Grid)
    scales = absmax(weight, grid)
    rows, columns = (quantize(weight, factor, scales, removal, step=step) for step in (round_rows, round_columns))
    assert torch.equal(rows.codes, columns.codes)
    for block in (40, 320):
        assert removal == Sparsity(0.4) or torch.equal(quantize(weight, factor, scales, removal, block=block).codes, rows.codes)


@pytest.mark.parametrize("rows", [1, 63, 65, 200])
def test_threads_and_tiles_change_nothing(rows: int):
    weight, factor = random(rows, 160), factorise(Gram.of(inputs(500, 160)), 0.01)
    before, found = torch.get_num_threads(), list[Tensor]()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(quantize(weight, factor, absmax(weight, Grid(4, 32))).codes)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


def test_sparsegpt_and_gptq_factor_a_gram_once(monkeypatch: pytest.MonkeyPatch):
    made: list[float] = []

    def counted(gram: Gram, damp: float) -> Factor:
        made.append(damp)
        return factorise(gram, damp)

    monkeypatch.setattr("calibrant.methods._factor.factorise", counted)
    seen, weight = Seen({Gram: Gram.of(inputs(200, 64, torch.float32))}), random(8, 64, torch.float32)
    for method, target in (("sparsegpt", "0.5"), ("gptq", "w4g64"), ("gptq(scales=importance)", "w3g32"), ("gptq(damp=0.05)", "w4g64")):
        methods.build(method).compress(weight, seen, parse_target(target))
    assert made == [0.01, 0.05]


def test_the_factor_is_that_of_the_papers_code():
    """Cholesky of H, its inverse, and the upper Cholesky of that."""
    x = inputs(500, 120)
    hessian = x.T @ x / 500
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(120, dtype=torch.float64)
    theirs = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    assert ((factorise(Gram.of(x), 0.01).upper - theirs).norm() / theirs.norm()) <= 1e-12


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gptq(damp=0.0)", "damp must be above 0; 0.01 is the paper's"),
        ("gptq(order=best)", r"gptq\(order='best'\): inputs are taken in natural order or by activation; write one"),
    ],
)
def test_parameters_that_cannot_be_are_refused(spec: str, said: str):
    with pytest.raises(SpecError, match=said):
        methods.build(spec)


def test_what_cannot_be_rounded_is_refused():
    gptq, seen = methods.build("gptq"), Seen({Gram: Gram.of(inputs(30, 12, torch.float32))})
    with pytest.raises(TargetError, match=r"gptq can't be asked for 0\.5: it accepts a grid of 2 to 8 bits"):
        gptq.check(Sparsity(0.5))
    with pytest.raises(TargetError, match="the matrix has 12 inputs, which groups of 8 don't divide"):
        gptq.compress(random(3, 12, torch.float32), seen, Grid(4, 8))
    with pytest.raises(NumericsError, match="no token reached the matrix"):
        gptq.compress(random(3, 12, torch.float32), Seen({Gram: Gram(torch.zeros(12, 12), 0, 0.0)}), Grid(4, 4))
