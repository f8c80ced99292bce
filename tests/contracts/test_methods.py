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
from calibrant.targets import parse_target
from calibrant.testing import check_edits, check_method, tiny_folder

GOLDEN = Path(__file__).parent / "golden_masks.json"
NAMES = [name for name in methods.names() if issubclass(methods.get(name), MatrixMethod)]


def by_formula(rows: int, columns: int, modulus: int, scale: float) -> Tensor:
    """The same numbers on every machine and in every release of torch; none is zero."""
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return ((r * 37 + c * 101 + r * c * 13 + (r * r) % 7 * (c % 11)) % modulus - modulus // 2 - 0.5).double() / scale


def mask_digest(method: MatrixMethod, target: str) -> str:
    x = by_formula(400, 160, 61, 8)
    seen = Seen({kind: kind.of(x) for kind in method.observes if issubclass(kind, InputStatistic)})
    mask = method.compress(by_formula(24, 160, 211, 64), seen, parse_target(target)).weight != 0
    return hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_method_keeps_its_contract(name: str):
    check_method(methods.build(name))


@pytest.mark.parametrize("name", methods.names())
def test_its_edits_keep_theirs(name: str, tmp_path: Path):
    check_edits(methods.build(name), parse_target(0.5), str(tiny_folder(tmp_path / "model")))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_move_only_with_the_revision(name: str):
    method = methods.build(name)
    key = f"{name}@{method.revision}"
    found = {target: mask_digest(method, target) for target in ("0.5", "2:4")}
    known = json.loads(GOLDEN.read_text())
    assert known.get(key) == found, (
        f"{name} chooses other weights than revision {method.revision} did, or it is new. If that is meant, raise `revision` in the class of a "
        f'method that was there, let `make generate` write {GOLDEN.name}, and say why in the changelog under "numbers that changed".'
    )


def test_golden_masks_belong_to_methods_that_exist():
    assert {key.partition("@")[0] for key in json.loads(GOLDEN.read_text())} == set(NAMES)


def numbers() -> dict[str, dict[str, str]]:
    """The digests of every method at its revision: what `make generate` adds to the known ones for a method that is new."""
    return {f"{name}@{(method := methods.build(name)).revision}": {t: mask_digest(method, t) for t in ("0.5", "2:4")} for name in NAMES}
