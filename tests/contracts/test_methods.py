"""Every method keeps its contract. Its numbers stay those of its revision:
`tests/test_frozen_models.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen, Statistic
from calibrant.edits import DropBlocks, Edit, StoredEdit
from calibrant.errors import CalibrantError
from calibrant.job import Job
from calibrant.methods import BlockMethod, Compressed, MatrixMethod, ModelMethod, methods
from calibrant.methods.pruning.magnitude import Magnitude
from calibrant.models import ModelView, Weight
from calibrant.targets import Sparsity, Target, parse_target
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


class Numbering(Magnitude):
    """Leaves notes whose keys are numbers, which JSON doesn't have."""

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        compressed = super().compress(weight, seen, target)
        return replace(compressed, notes={"counts": {3: 0.5}, "shape": tuple(weight.shape)})


def test_notes_that_are_read_back_otherwise_break_the_contract(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(CalibrantError, match=r"notes\.counts was {3: 0\.5} and is {'3': 0\.5}"):
        check_edits(Numbering(), parse_target("0.5"), str(folder))


@dataclass(frozen=True)
class Forgetting(DropBlocks):
    """Drops blocks, and is read back without its notes."""

    kind = "drop_blocks_and_forget"

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Forgetting":
        return cls(tuple(stored.facts["blocks"]))


@dataclass(frozen=True, repr=False)
class DropsTheFirst(BlockMethod):
    """Drops the first block."""

    def edits(self, job: Job) -> Iterator[Edit]:
        if not job.done:
            yield Forgetting((0,), {"why": "it is the first"})


def test_notes_that_are_not_read_back_break_the_contract(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(CalibrantError, match=r"notes was {'why': 'it is the first'} and is {}"):
        check_edits(DropsTheFirst(), parse_target("blocks 0.5"), str(folder))


@dataclass(frozen=True)
class Silence(Edit):
    """Some inputs of a matrix count no more."""

    kind: ClassVar[str] = "silence_inputs"

    weight: Weight
    inputs: tuple[int, ...]

    @property
    def block(self) -> int | None:
        return self.weight.block

    def apply(self, view: ModelView) -> None:
        matrix = self.weight.get().clone()
        matrix[:, list(self.inputs)] = 0
        self.weight.set(matrix)

    def undo(self, view: ModelView) -> Callable[[], None]:
        before = self.weight.get().clone()
        return lambda: self.weight.set(before)

    def report(self, view: ModelView) -> dict[str, Any]:
        return {"edit": self.kind, "name": self.weight.name, "notes": {}}

    def stored(self) -> StoredEdit:
        return StoredEdit(self.kind, {"name": self.weight.name, "inputs": list(self.inputs)})

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Silence":
        return cls(view.named[stored.facts["name"]], tuple(stored.facts["inputs"]))


@dataclass(frozen=True, repr=False)
class SilencesSmallInputs(ModelMethod):
    """Removes of each matrix the inputs that are smallest, by an edit of its own."""

    accepts: ClassVar[tuple[type[Target], ...]] = (Sparsity,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)

    def edits(self, job: Job) -> Iterator[Edit]:
        for weight, seen in job.walk(self.observes):
            norms = seen[FeatureNorms].norms()
            yield Silence(weight, tuple(norms.argsort(stable=True)[: len(norms) // 4].tolist()))


def test_edits_of_ones_own_wait_for_the_end_of_a_walk_through_the_dense_model(tmp_path: Path):
    """Asked again after a kill: those that are done must not change what later blocks see."""
    folder = tiny_folder(tmp_path / "model")
    check_edits(SilencesSmallInputs(), parse_target("0.25"), str(folder))


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
