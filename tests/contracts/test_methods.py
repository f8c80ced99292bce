"""Every method keeps its contract. Its numbers stay those of its revision:
`tests/test_frozen_models.py`.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from calibrant.activations import Seen
from calibrant.errors import CalibrantError
from calibrant.methods import Compressed, MatrixMethod, methods
from calibrant.methods.pruning.magnitude import Magnitude
from calibrant.targets import Target, parse_target
from calibrant.testing import check_edits, check_method, tiny_folder, tiny_gguf

from tests.frozen.masks import EXPERTS, LLAMA_CPP, PAIRS
from tests.usual import usually

NAMES = [name for name in methods.names() if issubclass(methods.get(name), MatrixMethod)]


@pytest.fixture(autouse=True)
def _needs_llama_cpp(request: pytest.FixtureRequest) -> None:
    if "name" in request.fixturenames and request.getfixturevalue("name") in LLAMA_CPP:
        pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")


class Telling(Magnitude):
    """Leaves a tensor in its notes."""

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        compressed = super().compress(weight, seen, target)
        return replace(compressed, notes={"largest": weight.max()})


def test_notes_that_are_no_json_break_the_contract(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(CalibrantError, match="no JSON"):
        check_edits(Telling(), parse_target("0.5"), str(folder))


USUAL = (
    "wanda",
    "awq",
    "svd",
    "short_gpt",
    "basis_sharing",
    "mc_suite",
    "reconstructed",
    "llama_cpp",
)
"""One of each kind of edit."""


@pytest.mark.parametrize("name", usually(NAMES, ("magnitude", "sparsegpt", "gptq")))
def test_method_keeps_its_contract(name: str):
    check_method(methods.build(name))


@pytest.mark.parametrize(
    "name",
    usually(methods.names(), USUAL),
)
def test_its_edits_keep_theirs(name: str, tmp_path: Path):
    method = methods.build(name)
    target = next(
        target
        for target in map(parse_target, ("0.5", "w3g16a", "q4_0", "Q4_K_M"))
        if isinstance(target, method.accepts)
    )
    sizes = {"num_hidden_layers": 4} if name in PAIRS else {}
    family = "qwen3_moe" if name in EXPERTS else "llama"
    folder = (
        tiny_gguf(tmp_path / "model.gguf", "F32")
        if name in LLAMA_CPP
        else tiny_folder(tmp_path / "model", family, **sizes)
    )
    check_edits(method, target, str(folder))
