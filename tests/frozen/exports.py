"""What every export writes of a tiny model: the bytes where they are ours, and what they say where
a library has a say in them.

Safetensors and GGUF files are written by libraries, in an order and with a header of their own: of
those it is each tensor by name, type, shape and bytes. A configuration is transformers'; of it it
is what we changed. Files that the library wrote to the model's own folder already (tokenizer,
template, generation) are left out, and so are `calibrant.json` and the card, which name versions,
and `calibrant.runs.npy`.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import gguf
import numpy as np
from safetensors import safe_open

from calibrant.compress import export, prune, quantize
from calibrant.exports import exports
from calibrant.models.imatrix import Imatrix, ImatrixEntry, read_imatrix
from calibrant.testing import tiny_gguf

from tests.frozen.formula import LARGEST, by_formula, formula_folder, formula_texts

CONFIG: Final = "config.json"
OF_VERSIONS: Final = ("calibrant.json", "calibrant.runs.npy", "README.md")
"""Files that name versions, or of which another test says that they hold what they should."""
DENSE: Final = (CONFIG, "model.safetensors")
"""What is always written, and frozen of the form `hf` alone."""
TOLD: Final = ("calibrant.method", "calibrant.target")
"""What we add to the metadata of a GGUF file, but for what names versions."""
DIGITS: Final = 16
"""Of the hash of each tensor."""
OPTIONS: Final[dict[str, Any]] = {"samples": 3, "length": 16, "dtype": "float32"}


@final
@dataclass(frozen=True)
class Made:
    """A model that is compressed and written: by which method, at which target, in which form;
    `largest` is the largest input of its groups."""

    method: str
    target: str
    form: str
    largest: float = LARGEST

    def __str__(self) -> str:
        return f"{self.form} of {self.method} at {self.target}"


GGUF: Final = "gguf(like='template.gguf')"
HALF: Final = "gguf(like='template.gguf', plain=f16)"
MADE: Final = (
    Made("magnitude", "0.5", "hf"),
    Made("rtn", "w4g32", "hf"),
    Made("rtn", "w4g32", "compressed_tensors"),
    Made("rtn", "w3g16", "compressed_tensors"),
    Made("rtn", "w8", "compressed_tensors"),
    Made("rtn", "w4g32", GGUF),
    Made("rtn", "w8g32", GGUF, largest=127.5 * 2.0**-8),
    Made("magnitude", "0.5", GGUF),
    Made("magnitude", "0.5", HALF),
    Made("magnitude", "0.5", "sparse"),
    Made("magnitude", "2:4", "sparse"),
    Made("rtn", "w4g32", "sparse"),
    Made("rtn", "w3g16a", "sparse"),
    Made("rtn(scales=importance)", "w4g16", "imatrix"),
    Made("rtn(scales=importance)", "w4g16", "imatrix(form=dat)"),
)
"""None of these computes more than sums, products and roundings of single numbers, but for the last
two, whose sums are compared nearly."""


def names() -> set[str]:
    """Return the names of the exports that something here is made with."""
    return {type(exports.build(made.form)).spec_name() for made in MADE}


def written() -> Iterator[tuple[str, Any]]:
    """Yield what is frozen of each export of `MADE`, by what it is."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        template = tiny_gguf(folder / "template.gguf", "F32")
        texts = formula_texts(folder / "texts.jsonl")
        for number, made in enumerate(MADE):
            dense = formula_folder(folder / f"model-{number}", largest=made.largest)
            out = folder / f"out-{number}"
            _compress(made, dense, template, texts, out)
            told = _told(out, dense)
            if made.form != "hf":
                told = {name: content for name, content in told.items() if name not in DENSE}
            yield str(made), told
        export(str(folder / "out-0"), folder / "again", "sparse")
        yield f"sparse again of {MADE[0]}", _told(folder / "again", folder / "model-0")
    yield "imatrix(form=dat) of numbers by formula", _legacy_imatrix()


def _compress(made: Made, dense: Path, template: Path, texts: Path, out: Path) -> None:
    verb: Callable[..., Any] = prune if made.method == "magnitude" else quantize
    form = made.form.replace("template.gguf", str(template))
    verb(str(dense), None, str(texts), made.method, made.target, out, export=form, **OPTIONS)


def _told(out: Path, dense: Path) -> dict[str, Any]:
    """What each file of a folder holds, by its path."""
    told = dict[str, Any]()
    for path in sorted(out.rglob("*")):
        decoded = path.name == CONFIG or path.suffix == ".safetensors"
        theirs = not decoded and (dense / path.name).exists()
        if path.is_dir() or theirs or path.name in OF_VERSIONS:
            continue
        told[path.relative_to(out).as_posix()] = _content(path, dense)
    return told


def _content(path: Path, dense: Path) -> Any:
    """What one file holds, or the hash of its bytes."""
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.name == CONFIG:
        return _changed(path, dense / CONFIG)
    if path.stem == "imatrix":
        return _importance(path)
    if path.suffix == ".gguf":
        return _gguf(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tensors(path: Path) -> dict[str, str]:
    """The tensors of a safetensors file by name, each with its type, its shape and the first digits
    of the hash of its bytes."""
    told = dict[str, str]()
    with safe_open(path, framework="np") as file:
        for name in sorted(file.keys()):
            told[name] = _tensor(file.get_tensor(name))
    return told


def _tensor(array: Any) -> str:
    whole = np.ascontiguousarray(array)
    digest = hashlib.sha256(whole.tobytes()).hexdigest()[:DIGITS]
    return f"{whole.dtype} {list(whole.shape)} {digest}"


def _changed(path: Path, before: Path) -> dict[str, Any]:
    """The keys of a configuration that the model's own hasn't, or has with another value."""
    own, now = json.loads(before.read_text("utf-8")), json.loads(path.read_text("utf-8"))
    changed = {name: value for name, value in now.items() if own.get(name) != value}
    gone = {name: None for name in own if name not in now}
    return changed | gone


def _gguf(path: Path) -> dict[str, Any]:
    """The tensors of a GGUF file by name, and what we add to its metadata."""
    reader = gguf.GGUFReader(path)
    told = dict[str, Any]()
    for name in TOLD:
        if name in reader.fields:
            told[name] = reader.fields[name].contents()
    told["keys"] = sorted(name for name in reader.fields if name.startswith("calibrant."))
    for tensor in sorted(reader.tensors, key=lambda tensor: str(tensor.name)):
        shape = [int(size) for size in tensor.shape]
        told[str(tensor.name)] = f"{tensor.tensor_type.name} {shape} {_tensor(tensor.data)}"
    return told


def _importance(path: Path) -> dict[str, Any]:
    """The entries of an importance matrix by name: tokens, shape, and the sum of all sums, which
    another processor makes a little different."""
    made = read_imatrix(path)
    told: dict[str, Any] = {"windows": [made.chunks, made.chunk_size]}
    for name, entry in sorted(made.entries.items()):
        counts = [int(count) for count in entry.counts]
        total = float(entry.sums.astype(np.float64).sum())
        told[name] = [counts, list(entry.sums.shape), float(f"{total:.10g}")]
    return told


def _legacy_imatrix() -> str:
    """The hash of a `.dat` file of sums by formula: this form is written without a library."""
    sums = by_formula(3, 32, 61, 8).abs().numpy().astype(np.float32)
    entry = ImatrixEntry(sums, np.array([7, 8, 9]))
    with tempfile.TemporaryDirectory() as place:
        made = Imatrix({"blk.0.ffn_up.weight": entry}, ("formula",), 2, 16)
        path = made.write(Path(place) / "formula.dat")
        return hashlib.sha256(path.read_bytes()).hexdigest()
