"""What is compiled for the processor takes the steps that plain torch takes on other devices,
whatever the threads; it compiles anywhere.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import calibrant
from calibrant.activations import Gram
from calibrant.methods import MatrixMethod, methods
from calibrant.methods._elimination import eliminate, eliminate_columns, eliminate_rows, factorise
from calibrant.methods.pruning import _admm, _gradients, _swaps
from calibrant.methods.pruning._gradients import damped, descend, masked
from calibrant.methods.quantization import _rounding
from calibrant.methods.quantization._quantizing import quantize, round_columns, round_rows
from calibrant.methods.quantization._rounding import absmax, scales_by
from calibrant.targets import Grid, NofM, Sparsity, Target, parse_target

from tests.methods.matrices import by_threads, features, seeded, seen_of


@pytest.mark.parametrize(
    ("dtype", "least_agreement"), [(torch.float64, 1), (torch.float32, 0.9995)]
)
@pytest.mark.parametrize(
    "target", [Sparsity(0.5), Sparsity(0.93), NofM(2, 4), NofM(7, 10), NofM(1, 160)], ids=str
)
@pytest.mark.parametrize("block", [128, 30])
def test_columns_are_eliminated_alike(
    target: Target, dtype: torch.dtype, least_agreement: float, block: int
):
    weight, factor = (
        torch.randn(70, 320, dtype=dtype),
        factorise(Gram.of(features(960, 320, dtype)), 0.01),
    )
    rows, columns = (
        eliminate(weight, factor, target, block, step)
        for step in (eliminate_rows, eliminate_columns)
    )
    assert ((rows == 0) == (columns == 0)).double().mean() >= least_agreement
    if dtype == torch.float64:
        assert (rows - columns).norm() <= 1e-12 * columns.norm()


@pytest.mark.parametrize("removal", [None, NofM(2, 4), Sparsity(0.4)], ids=str)
@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 80, symmetric=False)], ids=str)
def test_columns_are_rounded_alike(grid: Grid, removal: NofM | Sparsity | None):
    weight, factor = seeded(70, 320), factorise(Gram.of(features(900, 320)), 0.01)
    scales = absmax(weight, grid)
    rows, columns = (
        quantize(weight, factor, scales, removal, step=step) for step in (round_rows, round_columns)
    )
    assert torch.equal(rows.codes, columns.codes)
    if removal != Sparsity(0.4):  # whose weights are chosen block by block
        for block in (40, 320):
            assert torch.equal(
                quantize(weight, factor, scales, removal, block=block).codes, rows.codes
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", ["w2g8", "w3g16a", "w8g48"])
@pytest.mark.parametrize(("how", "power"), [("mse", 2.4), ("importance", 3.0)])
def test_scales_are_searched_alike(
    how: str, power: float, text: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Rows of more than one tile, one of them all zeros. Where the errors of two reaches differ
    only by rounding, either may be chosen.
    """
    weight, grid, sizes = (
        (seeded(300, 48) ** 3).to(dtype),
        parse_target(text),
        seeded(1, 48, seed=5)[0].square().float(),
    )
    assert isinstance(grid, Grid)
    weight[7] = 0
    fast = scales_by(how, weight, grid, sizes)
    monkeypatch.setattr(_rounding, "_best_compiled", _rounding._best)
    plain = scales_by(how, weight, grid, sizes)
    same = fast.scales == plain.scales
    assert float(same.double().mean()) > 0.995
    costs = [
        ((scales.nearest(weight).dense() - weight).double().abs() ** power)
        for scales in (fast, plain)
    ]
    counted = [
        (cost * sizes if how == "importance" else cost).unflatten(1, (same.shape[1], -1)).sum(2)
        for cost in costs
    ]
    torch.testing.assert_close(*counted, rtol=1e-5, atol=0)


def matrix_to_fit(
    rows: int, inputs: int, group: int = 0
) -> tuple[Tensor, _gradients.Masked, Tensor]:
    """A matrix of which the larger half of each row or group is kept, beside rows of which all
    and nothing is; and its Hessian.
    """
    weight = torch.randn(rows, inputs, dtype=torch.float64)
    order = weight.abs().reshape(-1, group or inputs).argsort(dim=1).argsort(dim=1)
    keep = (order >= order.shape[1] // 2).reshape(weight.shape)
    keep[0], keep[1] = False, True
    hessian = damped(Gram.of(features(3 * inputs, inputs)), 0.01)
    return weight, masked(weight, weight, keep, hessian), hessian


@pytest.mark.parametrize("inputs", [1, 65, 200])
def test_weights_are_fitted_alike_and_the_loss_is_what_is_claimed(inputs: int):
    weight, start, hessian = matrix_to_fit(30, inputs)
    in_rows, all_rows = (
        descend(start, hessian, 7, advance=advance)
        for advance in (_gradients._in_rows, _gradients._all_rows)
    )
    for left, right in (
        (in_rows.weight, all_rows.weight),
        (in_rows.pull, all_rows.pull),
        (in_rows.loss, all_rows.loss),
    ):
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-12)
    lost = weight - in_rows.weight
    assert torch.allclose(in_rows.loss, (lost @ hessian * lost).sum(1), rtol=1e-9)
    assert (in_rows.loss <= start.loss).all()


@pytest.mark.parametrize("group", [0, 4, 8])
def test_weights_are_swapped_alike_and_the_loss_is_what_is_claimed(group: int):
    weight, start, hessian = matrix_to_fit(30, 160, group)
    (rows, counts), (together, others) = (
        _swaps.swap(start, hessian, 25, 1e-4, group, search)
        for search in (_swaps._in_rows, _swaps._all_rows)
    )
    assert torch.equal(rows.keep, together.keep)
    assert torch.equal(counts, others)
    assert torch.allclose(rows.weight, together.weight, rtol=1e-9, atol=1e-12)
    for done in (rows, together):
        lost = weight - done.weight
        assert torch.allclose(done.loss, (lost @ hessian * lost).sum(1), rtol=1e-9)
        assert torch.allclose(done.pull, lost @ hessian, rtol=1e-9, atol=1e-11)
        assert torch.equal(done.keep.sum(1), start.keep.sum(1))
    assert counts[:2].tolist() == [0, 0]
    assert 0 < counts.max() <= 25


@pytest.mark.parametrize(("rows", "inputs"), [(1, 5), (30, 96)])
def test_a_step_is_the_three_steps_of_the_paper(rows: int, inputs: int):
    """ALPS (Meng et al. 2024, arXiv 2406.07831): what is pulled next is B + V/ρ, with B = W̃ +
    (D - V/ρ - W̃)P. W̃ is `dense`, P `response`.
    """
    dense, pulled, keep = (
        torch.randn(rows, inputs).double(),
        torch.randn(rows, inputs).double(),
        torch.rand(rows, inputs) > 0.5,
    )
    half = torch.randn(inputs, inputs).double()
    response = half @ half.T
    d, u = pulled * keep, pulled * ~keep  # D and V/ρ
    fits = dense + (d - u - dense) @ response
    for prepare in (_admm._in_rows, _admm._all_rows):
        rest, sparse = torch.empty_like(dense), torch.empty_like(dense)
        prepare(pulled, dense, keep, rest, sparse)
        rest.addmm_(sparse, response, alpha=2)
        assert torch.allclose(rest, fits + u, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "rows"),
    [(name, rows) for name in ("rtn(scales=mse)", "refined") for rows in (1, 63, 600)]
    + [(name, rows) for name in ("sparsegpt", "gptq", "alps") for rows in (1, 1025)],
)
def test_the_number_of_threads_does_not_change_the_result(name: str, rows: int):
    """With the most rows, each has work for a second thread."""
    # Only in float32 and bfloat16 is the search of rtn compiled.
    dtype = torch.float32 if name == "rtn(scales=mse)" else torch.float64
    method, weight, seen = (
        methods.build(name),
        torch.randn(rows, 96, dtype=dtype),
        seen_of(features(200, 96)),
    )
    target = parse_target("w4g32" if Grid in method.accepts else "0.5")
    assert isinstance(method, MatrixMethod)
    one, *others = by_threads(lambda: method.compress(weight, seen, target).weight)
    for other in others:
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


SCRIPT = """
import sys
from calibrant.methods import methods
methods.get("sparsegpt")
assert "numba" not in sys.modules, "naming a method imports no compiler"
import torch
from calibrant.methods import _kernel
from calibrant.methods._elimination import eliminate
from calibrant.methods._elimination import Factor
from calibrant.targets import NofM
cache = type(_kernel.eliminate._cache).__name__
factor = Factor(torch.eye(4), torch.ones(4), {})
print(cache, eliminate(torch.ones(1, 4), factor, NofM(1, 4), 4).tolist())
"""


@pytest.mark.slow
def test_it_compiles_where_no_folder_can_be_written(tmp_path: Path):
    shutil.copytree(
        Path(calibrant.__file__).parent,
        tmp_path / "calibrant",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    # A file where the cache's folder would be: unwritable even for the superuser, who may run the
    # tests in a container.
    (tmp_path / "calibrant/methods/__pycache__").write_text("")
    nowhere = {
        "HOME": "/dev/null",
        "XDG_CACHE_HOME": "/dev/null",
        "PYTHONPATH": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | nowhere
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stdout.split(" ", 1) == ["NullCache", "[[0.0, 0.0, 0.0, 1.0]]\n"], ran.stderr
