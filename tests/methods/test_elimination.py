"""The compiled kernel and the column loop take the same steps."""

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
from calibrant.methods._elimination import eliminate, eliminate_columns, eliminate_rows
from calibrant.methods._factor import Factor, factorise
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import by_threads, features

TARGETS = [Sparsity(0.5), Sparsity(0.0), Sparsity(0.93), NofM(2, 4), NofM(7, 10), NofM(1, 160)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def made(inputs: int, dtype: torch.dtype, rows: int = 70) -> tuple[Tensor, Factor]:
    return torch.randn(rows, inputs, dtype=dtype), factorise(Gram.of(features(3 * inputs, inputs, dtype)), 0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("block", [128, 30])
def test_kernel_and_loop_agree(target: Target, dtype: torch.dtype, block: int):
    weight, factor = made(320, dtype)
    rows, columns = (eliminate(weight, factor, target, block, step) for step in (eliminate_rows, eliminate_columns))
    assert ((rows == 0) == (columns == 0)).double().mean() >= (1 if dtype == torch.float64 else 0.9995)
    assert (rows - columns).norm() <= TOLERANCE[dtype] * columns.norm() or dtype == torch.float32
    assert torch.equal(rows, eliminate(weight, factor, target, block))


@pytest.mark.parametrize("target", [NofM(2, 4), NofM(3, 5), NofM(10, 32), NofM(1, 160)], ids=str)
def test_the_width_of_a_block_changes_no_pattern(target: NofM):
    """A block that M doesn't divide is narrowed to whole groups; one that is smaller than M is widened to it."""
    weight, factor = made(160, torch.float64)
    plain = eliminate(weight, factor, target, 160)
    for block in (1, 7, 33, 128):
        assert torch.allclose(eliminate(weight, factor, target, block), plain, rtol=1e-10, atol=1e-12)
    assert ((plain != 0).reshape(-1, target.m).sum(-1) == target.n).all()


@pytest.mark.parametrize("rows", [1, 63, 200])
@pytest.mark.parametrize("target", [Sparsity(0.5), NofM(2, 4)], ids=str)
def test_threads_and_tiles_change_nothing(rows: int, target: Target):
    weight, factor = made(160, torch.float64, rows)
    columns = eliminate(weight, factor, target, 128, eliminate_columns)
    for result in by_threads(lambda: eliminate(weight, factor, target, 128)):
        assert torch.allclose(result, columns, rtol=1e-10, atol=1e-12)


def test_of_equal_scores_the_lowest_index_goes():
    one = Factor(torch.eye(8), torch.ones(8), {})
    for step in (eliminate_rows, eliminate_columns):
        assert eliminate(torch.ones(2, 8), one, NofM(1, 4), 128, step).tolist() == [[0, 0, 0, 1, 0, 0, 0, 1]] * 2
        assert eliminate(torch.ones(2, 8), one, Sparsity(0.5), 128, step).tolist() == [[0] * 8, [1] * 8]


SCRIPT = """
import torch
from calibrant.methods import _kernel
from calibrant.methods._elimination import eliminate
from calibrant.methods._factor import Factor
from calibrant.targets import NofM
print(type(_kernel.eliminate._cache).__name__, eliminate(torch.ones(1, 4), Factor(torch.eye(4), torch.ones(4), {}), NofM(1, 4), 4).tolist())
"""


@pytest.mark.slow
def test_it_compiles_where_no_folder_can_be_written(tmp_path: Path):
    shutil.copytree(Path(calibrant.__file__).parent, tmp_path / "calibrant", ignore=shutil.ignore_patterns("__pycache__"))
    # A file where the cache's folder would be: unwritable even for the superuser, who may run the tests in a container.
    (tmp_path / "calibrant/methods/__pycache__").write_text("")
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | nowhere
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.split(" ", 1) == ["NullCache", "[[0.0, 0.0, 0.0, 1.0]]\n"], ran.stderr


@pytest.mark.slow
def test_listing_methods_imports_no_compiler():
    script = "import sys; from calibrant.methods import methods; methods.get('sparsegpt'); assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
