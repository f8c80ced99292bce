"""Methods that go matrix by matrix know tensors alone."""

import subprocess
import sys

import pytest

APART = ("calibrant.walk", "calibrant.models", "calibrant.data", "calibrant.edits", "calibrant.job")


@pytest.mark.parametrize(
    "method",
    [
        "pruning.wanda",
        "pruning.sparsegpt",
        "pruning.refined",
        "pruning.robust",
        "pruning.held_out",
        "quantization.gptq",
        "quantization.rsq",
    ],
)
def test_a_matrix_method_brings_neither_walk_nor_models_nor_data(method: str):
    code = f"import sys, calibrant.methods.{method}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith(APART)] == []
