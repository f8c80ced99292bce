"""Every method keeps its contract, and its numbers stay those of its revision."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import InputStatistic, Seen
from calibrant.methods import MatrixMethod, methods
from calibrant.packed import Codes
from calibrant.targets import parse_target
from calibrant.testing import check_edits, check_method, tiny_folder, tiny_gguf

GOLDEN = Path(__file__).parent / "golden_masks.json"
NAMES = [name for name in methods.names() if issubclass(methods.get(name), MatrixMethod)]


def by_formula(rows: int, columns: int, modulus: int, scale: float) -> Tensor:
    """The same numbers on every machine and in every release of torch; none is zero."""
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return ((r * 37 + c * 101 + r * c * 13 + (r * r) % 7 * (c % 11)) % modulus - modulus // 2 - 0.5).double() / scale


def asked(method: MatrixMethod) -> tuple[str, ...]:
    """What a method's numbers are known of; what leaves everything as it is accepts all, and needs no grid to be known by."""
    accepted = [t for t in ("0.5", "2:4", "w4g32", "w3g80a", "w8") if isinstance(parse_target(t), method.accepts)]
    return tuple(t for t in accepted if method.prunes or ":" in t or "." in t)


def digest(method: MatrixMethod, target: str) -> str:
    """The hash of a mask; of codes, where there are some, with their scales and zero points."""
    x = by_formula(400, 160, 61, 8)
    seen = Seen({kind: kind.of(x) for kind in method.observes if issubclass(kind, InputStatistic)})
    found = method.compress(by_formula(24, 160, 211, 64), seen, parse_target(target))
    if isinstance(found.packed, Codes):
        parts = (found.packed.codes, found.packed.scales, found.packed.zeros)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts if part is not None)).hexdigest()
    return hashlib.sha256(np.packbits((found.weight != 0).numpy()).tobytes()).hexdigest()


LLAMA_CPP = ("ggml", "llama_cpp")
"""Methods that need the package llama-cpp-py-sync."""
EXPERTS = ("mc_suite", "cd_moe")
"""Methods for models with experts."""

PAIRS = ("fips", "basis_sharing")
"""Methods that take the blocks of a model two by two."""


@pytest.fixture(autouse=True)
def _needs_llama_cpp(request: pytest.FixtureRequest) -> None:
    if "name" in request.fixturenames and request.getfixturevalue("name") in LLAMA_CPP:
        pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")


@pytest.mark.parametrize("name", NAMES)
def test_method_keeps_its_contract(name: str):
    check_method(methods.build(name))


@pytest.mark.parametrize("name", methods.names())
def test_its_edits_keep_theirs(name: str, tmp_path: Path):
    method = methods.build(name)
    target = next(target for target in map(parse_target, ("0.5", "w3g16a", "q4_0")) if isinstance(target, method.accepts))
    sizes = {"num_hidden_layers": 4} if name in PAIRS else {}
    family = "qwen3_moe" if name in EXPERTS else "llama"
    folder = tiny_gguf(tmp_path / "model.gguf", "F32") if name in LLAMA_CPP else tiny_folder(tmp_path / "model", family, **sizes)
    check_edits(method, target, str(folder))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_move_only_with_the_revision(name: str):
    method = methods.build(name)
    key = key_of(name)
    found = {target: digest(method, target) for target in asked(method)}
    known = json.loads(GOLDEN.read_text())
    assert known.get(key) == found, (
        f"{name} gives other numbers than revision {method.revision} did, or it is new. If that is meant, raise `revision` in the class of a "
        f'method that was there, let `make generate` write {GOLDEN.name}, and say why in the changelog under "numbers that changed".'
    )


def test_golden_masks_belong_to_methods_that_exist():
    assert {key.partition("@")[0] for key in json.loads(GOLDEN.read_text())} == set(NAMES)


def key_of(name: str) -> str:
    """What a method's golden masks are found by: its name and its revision."""
    return f"{name}@{methods.build(name).revision}"


def keys() -> list[str]:
    """The keys that the golden masks must have, for `python -m tools.generate --check`."""
    return [key_of(name) for name in NAMES]


def numbers() -> dict[str, dict[str, str]]:
    """The digests of every method at its revision: what `make generate` adds to the known ones for a method that is new."""
    found: dict[str, dict[str, str]] = {}
    for name in NAMES:
        method = methods.build(name)
        found[key_of(name)] = {target: digest(method, target) for target in asked(method)}
    return found
