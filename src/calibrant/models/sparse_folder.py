"""Folders of the export `sparse`: matrices without their zeros, or as codes or factors. They are
read into an ordinary model of transformers.

The sheet, `sparse.json`, says which tensors a model's checkpoint has and how each is stored: in one
of the layouts of `compact`, or in a packed form whose tensors are in such layouts. The numbers are
in `sparse-00001.safetensors` and so on. No reader of plain checkpoints looks for these names, so
none fills what it lacks with random numbers. The sheet has the SHA-256 of each tensor's bytes, so
what is read is what was written, or an error.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final, TypeGuard, final

import torch
from jaxtyping import Int8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from calibrant.errors import ModelError
from calibrant.models.compact import Compact, declared, digest
from calibrant.models.complete import SPARE, WORDS, StoredTensor, stored_tensors
from calibrant.models.folder import CONFIG, INDEX, WEIGHTS, check_plain, read_object
from calibrant.models.quiet import Refusal
from calibrant.numerics import type_name
from calibrant.packed import Codes, FloatCodes, GgmlBlocks, Packed, from_stored, to_stored
from calibrant.spec.foreign import brief
from calibrant.system.durable import usual_rights

SHEET: Final = "sparse.json"
FORMAT: Final = "calibrant-sparse"
VERSION: Final = 1
MOST: Final = 2**32
"""A file gets no further tensors once it has so many bytes."""

_AGAIN: Final = "copy or download the folder again, or export it once more"


@final
@dataclass(frozen=True)
class SparseFolder:
    """A folder whose sheet was read: its files, the sheet's entry of each tensor, and what each
    tensor is once it is whole.
    """

    ref: str
    files: tuple[Path, ...]
    entries: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, StoredTensor]

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the checkpoint, whole, with its name. Raises `ModelError`, naming
        it, for one that isn't stored as the sheet says.
        """
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for path in self.files:
                file = stack.enter_context(safe_open(path, framework="pt"))
                files |= dict.fromkeys(file.keys(), file)

            def get(name: str) -> Tensor:
                return files[name].get_tensor(name)

            for name, entry in self.entries.items():
                label = f"{self.ref}: {brief(name)}"
                with Refusal(f"{label} isn't stored as {SHEET} says", f"; {_AGAIN}", name):
                    tensor = _tensor_of(entry, get)
                if digest(tensor) != entry.get("sha256"):
                    raise ModelError(
                        f"{label} isn't what it was when it was saved (its SHA-256 differs); "
                        f"{_AGAIN}",
                        subject=name,
                    )
                yield name, tensor


def sparse_folder(folder: Path, ref: str) -> SparseFolder | None:
    """Return what a folder of the export `sparse` holds; None for every other folder.

    Raises `ModelError` for a sheet that is damaged, is of another version, or asks for more numbers
    than the files have bits. It does so too for files that lack a tensor which the sheet names, or
    hold one that it doesn't name.
    """
    names = check_plain(folder, ref)
    # A folder that has plain weights too is read as a plain one.
    if SHEET not in names or WEIGHTS in names or INDEX in names:
        return None
    sheet = read_object(folder / SHEET)
    if sheet.get("format") != FORMAT:
        return None
    if sheet.get("version") != VERSION:
        version = brief(sheet.get("version"))
        raise ModelError(
            f"{folder / SHEET} is of version {version}, and {VERSION} can be read; upgrade "
            "calibrant",
            subject=SHEET,
        )
    if CONFIG not in names:
        raise ModelError(
            f"{ref} holds no {CONFIG}, without which its {SHEET} is of no use; {_AGAIN}",
            subject=CONFIG,
        )
    files = _files(folder, ref, names, sheet.get("files"))
    entries = sheet.get("tensors")
    if not _describes_tensors(entries):
        raise ModelError(
            f"{folder / SHEET} doesn't say how its tensors are stored ({brief(entries)}); {_AGAIN}",
            subject=SHEET,
        )
    tensors = _checked(folder, ref, files, entries)
    return SparseFolder(ref, files, entries, tensors)


def _describes_tensors(entries: Any) -> TypeGuard[dict[str, dict[str, Any]]]:
    if not isinstance(entries, dict) or not entries:
        return False
    return all(isinstance(entry, dict) for entry in entries.values())


def _files(folder: Path, ref: str, names: Sequence[str], listed: Any) -> tuple[Path, ...]:
    """The files that the sheet lists. Raises `ModelError` unless they are just the safetensors
    files of the folder.
    """
    present = sorted(name for name in names if name.endswith(".safetensors"))
    texts = isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    if not texts or sorted(listed) != present:
        raise ModelError(
            f"{ref} holds {brief(present)}, but its {SHEET} lists {brief(listed)}; {_AGAIN}",
            subject=SHEET,
        )
    return tuple(folder / name for name in present)


def _checked(
    folder: Path, ref: str, files: Sequence[Path], entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, StoredTensor]:
    """What every tensor is once it is whole. Raises `ModelError` unless the files hold just the
    parts of these tensors, and have room for so many numbers.
    """
    stored = stored_tensors(files)
    used: set[str] = set()
    tensors: dict[str, StoredTensor] = {}
    stored_numbers = 0
    for name, entry in entries.items():
        with Refusal(f"{folder / SHEET} says of {brief(name)} what can't be", f"; {_AGAIN}", name):
            shape, dtype = declared(entry)
            for layout in _layouts(entry):
                layout_shape, _ = declared(layout)
                stored_numbers += prod(layout_shape)
                used.update(layout["parts"].values())
            word = WORDS.get(dtype, type_name(dtype))
            tensors[name] = StoredTensor(shape, word, SHEET)
    missing = used - stored.keys()
    if missing:
        name = min(missing)
        raise ModelError(
            f"{ref} lacks {brief(name)}, which its {SHEET} names; {_AGAIN}", subject=name
        )
    unused = stored.keys() - used
    if unused:
        name = min(unused)
        raise ModelError(
            f"{ref} holds {brief(name)}, which its {SHEET} doesn't name; {_AGAIN}", subject=name
        )
    numbers = max(stored_numbers, sum(tensor.count for tensor in tensors.values()))
    # A number takes at least one bit in every layout but `zeros`, to which `SPARE` sets a limit.
    most = 8 * sum(path.stat().st_size for path in files) + SPARE
    if numbers > most:
        raise ModelError(
            f"{folder / SHEET} asks for {numbers:,} numbers, and its files have room for {most:,} "
            f"at most; {_AGAIN}",
            subject=SHEET,
        )
    return tensors


def _layouts(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The facts of all tensors that an entry of the sheet stores in a layout: the tensor itself, or
    those of its packed form. Raises `ValueError` for facts without names of parts.
    """
    layouts = list(entry["tensors"].values()) if "form" in entry else [entry]
    for layout in layouts:
        if not isinstance(layout, dict) or not isinstance(layout["parts"], dict):
            raise ValueError("its parts are no names")
        if not all(isinstance(name, str) for name in layout["parts"].values()):
            raise ValueError("its parts have no names")
    return layouts


def _tensor_of(entry: Mapping[str, Any], get: Callable[[str], Tensor]) -> Tensor:
    """The tensor that an entry of the sheet describes."""
    if "form" not in entry:
        # A copy, since several tensors may be stored by the same part.
        return _whole(entry, get).clone()
    shape, dtype = declared(entry)
    parts = {key: _whole(facts, get) for key, facts in entry["tensors"].items()}
    packed = read_form(entry["form"], parts)
    if packed.weights != prod(shape):
        raise ValueError(f"its packed form has {packed.weights:,} numbers")
    tensor = packed.dense()
    if entry.get("transposed"):
        tensor = tensor.T.contiguous()
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"its packed form is a {tensor.dtype} of {list(tensor.shape)}")
    return tensor


def _whole(facts: Mapping[str, Any], get: Callable[[str], Tensor]) -> Tensor:
    parts = {part: get(name) for part, name in facts["parts"].items()}
    return Compact.read(facts, parts).whole()


def write_form(packed: Packed) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a packed form as plain JSON data and tensors. In these the code of a removed weight is
    0, also where its group has a zero point: so it needn't be stored.
    """
    facts, tensors = to_stored(packed)
    if not isinstance(packed, Codes) or packed.zeros is None:
        return facts, tensors
    zeros = _by_input(packed.zeros, packed.codes)
    codes = _rotated(packed.codes, -zeros, packed.grid.bits)
    return {**facts, "around_zeros": True}, {**tensors, "codes": codes}


def read_form(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Packed:
    """Return the packed form that `write_form` wrote. Raises `KeyError` for a form that isn't
    known, and `ValueError` for facts and tensors that don't make one.
    """
    packed = from_stored(facts, tensors)
    if not facts.get("around_zeros"):
        return packed
    if not isinstance(packed, Codes) or packed.zeros is None:
        raise ValueError("it has no zero points")
    zeros = _by_input(packed.zeros, packed.codes)
    return replace(packed, codes=_rotated(packed.codes, zeros, packed.grid.bits))


def _by_input(zeros: Int8[Tensor, "out group"], codes: Int8[Tensor, "out in"]) -> Tensor:
    """The zero point of each code, [out, in], in a type in which sums with codes don't overflow."""
    return zeros.repeat_interleave(codes.shape[1] // zeros.shape[1], dim=1).to(torch.int16)


def _rotated(codes: Int8[Tensor, "out in"], steps: Tensor, bits: int) -> Int8[Tensor, "out in"]:
    """Add `steps` to the codes, in the circle of all codes of so many bits. They take no more bits
    then, and the opposite steps undo it.
    """
    half = 2 ** (bits - 1)
    rotated = (codes.to(torch.int16) + steps + half).remainder(2 * half)
    return (rotated - half).to(torch.int8)


@final
class SparseWriter:
    """Writes the tensors of a checkpoint into the folder `place`, one after the other; `finish`
    writes the sheet.

    `forms` are all packed forms that may come. A tensor that several of them share is stored once,
    and each of them counts its part of the bytes.
    """

    def __init__(self, place: Path, forms: Iterable[Packed] = ()) -> None:
        self._place = place
        self._shared: Counter[str] = Counter()
        for form in forms:
            # Codes and blocks are of one matrix alone: to hash them all would take long.
            if not isinstance(form, Codes | FloatCodes | GgmlBlocks):
                _, tensors = to_stored(form)
                self._shared.update(map(_content_key, tensors.values()))
        self._entries: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._waiting: dict[str, Tensor] = {}
        self._files: list[str] = []
        self._before = 0
        """Bytes of the tensors as they were given."""
        self._after = 0
        """Bytes of what is stored of them."""
        self._written = 0
        """Bytes of what is stored in files already."""

    def add(
        self, name: str, tensor: Tensor, packed: Packed | None = None, transposed: bool = False
    ) -> None:
        """Store a tensor without its zeros, or in its packed form where that takes less.

        `packed.dense()` is the tensor, or its transpose with `transposed`.
        """
        description = {
            "shape": list(tensor.shape),
            "dtype": type_name(tensor.dtype),
            "sha256": digest(tensor),
        }
        plain = Compact.of(tensor)
        entry = None if packed is None else self._packed(name, packed, plain.size)
        if entry is None:
            entry = self._kept(name, plain)
        elif transposed:
            entry["transposed"] = True
        self._entries[name] = {**entry, **description}
        self._before += tensor.nbytes
        if self._after - self._written >= MOST:
            self._flush()

    def _packed(self, name: str, packed: Packed, most: int) -> dict[str, Any] | None:
        """Store a packed form, and return its entry; None where it takes `most` bytes or more."""
        form, tensors = write_form(packed)
        compacts = {key: Compact.of(tensor) for key, tensor in tensors.items()}
        sizes: list[float] = []
        for key, tensor in tensors.items():
            # Forms that share a tensor count equal parts of its bytes.
            sizes.append(compacts[key].size / self._uses(tensor))
        if sum(sizes) >= most:
            return None
        entries: dict[str, Any] = {}
        for key, compact in compacts.items():
            entries[key] = self._kept(f"{name}:{key}", compact, sharing=True)
        return {"form": form, "tensors": entries}

    def finish(self) -> None:
        """Write what is waiting, and the sheet."""
        self._flush()
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "dense_bytes": self._before,
            "bytes": self._after,
        }
        sheet = {**facts, "files": self._files, "tensors": self._entries}
        text = json.dumps(sheet, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        (self._place / SHEET).write_text(text + "\n", encoding="utf-8")

    def _uses(self, tensor: Tensor) -> int:
        """How many packed forms have this tensor."""
        # Without such forms nothing needs to be hashed.
        if not self._shared:
            return 1
        return max(1, self._shared[_content_key(tensor)])

    def _kept(self, name: str, compact: Compact, sharing: bool = False) -> dict[str, Any]:
        """Keep a tensor to be written, and return its entry. With `sharing`, a part that equals one
        that is stored already isn't stored again.
        """
        names: dict[str, str] = {}
        for key, part in compact.parts.items():
            own_name = f"{name}:{key}"
            content = _content_key(part) if sharing else own_name
            if content not in self._names:
                self._names[content] = own_name
                self._waiting[own_name] = part.contiguous()
                self._after += part.nbytes
            names[key] = self._names[content]
        return {**compact.facts(), "parts": names}

    def _flush(self) -> None:
        if not self._waiting:
            return
        name = f"sparse-{len(self._files) + 1:05}.safetensors"
        self._files.append(name)
        with usual_rights(self._place / name):
            save_file(self._waiting, self._place / name, metadata={"format": FORMAT})
        self._waiting = {}
        self._written = self._after


def _content_key(part: Tensor) -> str:
    """A text that is the same for tensors of the same type, shape and bytes."""
    return f"{part.dtype} {list(part.shape)} {digest(part)}"
