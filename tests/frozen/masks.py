"""Masks and codes: of a method that goes matrix by matrix on one matrix, of all others on a tiny
model."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from calibrant.activations import InputStatistic, Seen
from calibrant.compress import Recipe, compress
from calibrant.data import CalibrationSet
from calibrant.methods import MatrixMethod, Method, ModelMethod, TokenUse, methods
from calibrant.models import open_model, view
from calibrant.packed import Codes
from calibrant.spec import is_foreign
from calibrant.targets import parse_target

from tests.frozen.formula import by_formula, formula_folder, formula_texts

LLAMA_CPP: Final = ("ggml", "llama_cpp")
"""Methods whose numbers are llama.cpp's own."""
EXPERTS: Final = ("mc_suite", "cd_moe")
"""Methods for models with experts."""
PAIRS: Final = ("fips", "basis_sharing")
"""Methods that take the blocks of a model two by two."""


LEARNED: Final = ("autoround",)
"""Methods whose codes follow from the signs of gradients, which last bits of float32 may turn.
Those that go matrix by matrix are computed in float64 too."""


def ours() -> list[str]:
    """List the methods of this package, whatever others are installed beside it."""
    return [name for name in methods.names() if not is_foreign(methods.get(name))]


def matrix_methods() -> list[str]:
    """List the methods of this package that go matrix by matrix."""
    return [name for name in ours() if issubclass(methods.get(name), MatrixMethod)]


def other_methods() -> list[str]:
    """List the methods of this package that don't, but for those whose numbers are llama.cpp's."""
    others = set(ours()).difference(matrix_methods(), LLAMA_CPP)
    return sorted(others)


def methods_of_both() -> list[str]:
    """List those that go matrix by matrix and do more to a model than compress its matrices: they
    have edits of their own, or see its tokens in a way of their own."""
    found = list[str]()
    for name in matrix_methods():
        method = methods.build(name)
        if isinstance(method, ModelMethod) or method.token_use != TokenUse():
            found.append(name)
    return found


def keys() -> set[str]:
    """Return what everything is kept under that is frozen of the methods."""
    found = {key_of(name) for name in (*matrix_methods(), *other_methods())}
    found.update(map(model_key_of, methods_of_both()))
    return found


def key_of(name: str) -> str:
    """Return what a method's numbers are kept under: its name at its revision."""
    return f"{name}@{methods.build(name).revision}"


def model_key_of(name: str) -> str:
    """Return what a method's numbers on a model are kept under, where those on a matrix have the
    other key."""
    return f"{key_of(name)} on a model"


def matrix_numbers(name: str) -> dict[str, str]:
    """Return the digests of a method that goes matrix by matrix, by target."""
    method = methods.build(name)
    return {target: _digest(method, target) for target in _asked(method)}


def _asked(method: MatrixMethod) -> tuple[str, ...]:
    """What a method's numbers are known of; what leaves everything as it is accepts all, and needs
    no grid to be known by."""
    tried = ("0.5", "2:4", "w4g32", "w3g80a", "w8")
    accepted = [target for target in tried if isinstance(parse_target(target), method.accepts)]
    return tuple(target for target in accepted if method.prunes or ":" in target or "." in target)


def _digest(method: MatrixMethod, target: str) -> str:
    """The hash of a mask; of codes, where there are some, with their scales and zero points."""
    x = by_formula(400, 160, 61, 8)
    kinds = [kind for kind in method.observes if issubclass(kind, InputStatistic)]
    seen = Seen({kind: kind.of(x) for kind in kinds})
    found = method.compress(by_formula(24, 160, 211, 64), seen, parse_target(target))
    if isinstance(found.packed, Codes):
        parts = (found.packed.codes, found.packed.scales, found.packed.zeros)
        stored = [part.numpy().tobytes() for part in parts if part is not None]
    else:
        stored = [np.packbits((found.weight != 0).numpy()).tobytes()]
    return hashlib.sha256(b"".join(stored)).hexdigest()


def model_numbers(name: str) -> dict[str, Any]:
    """Return what a method makes of a tiny model: its edits, the hash of all masks, and the sum of
    all sizes, which may differ a little."""
    method: Method = methods.build(name)
    sizes = {"num_hidden_layers": 4} if name in PAIRS else {}
    family = "qwen3_moe" if name in EXPERTS else "llama"
    dtype = "float32"
    if name in LEARNED or isinstance(method, MatrixMethod):
        dtype = "float64"
    with tempfile.TemporaryDirectory() as place:
        folder = formula_folder(Path(place) / "model", family, **sizes)
        opened = open_model(str(folder), dtype, "cpu")
        texts = formula_texts(Path(place) / "texts.jsonl")
        batch = CalibrationSet(str(texts), samples=4, length=24).tokens(opened.tokenizer)
    edits = list[str]()
    target = "0.5" if isinstance(parse_target("0.5"), method.accepts) else "w3g16a"
    recipe = Recipe.parse(method, target)
    compress(opened, view(opened.model), batch, recipe, keep=lambda edit: edits.append(edit.kind))
    masks = hashlib.sha256()
    total = 0.0
    for parameter, numbers in sorted(opened.model.state_dict().items()):
        masks.update(f"{parameter} {list(numbers.shape)}".encode())
        masks.update(np.packbits((numbers != 0).numpy()).tobytes())
        total += float(numbers.to(torch.float64).abs().sum())
    return {"edits": edits, "masks": masks.hexdigest(), "total": float(f"{total:.10g}")}


def numbers() -> Iterator[tuple[str, Any]]:
    """Yield what is frozen of every method, by its name at its revision."""
    for name in matrix_methods():
        yield key_of(name), matrix_numbers(name)
    for name in other_methods():
        yield key_of(name), model_numbers(name)
    for name in methods_of_both():
        yield model_key_of(name), model_numbers(name)
