"""Folders of the export `sparse`: matrices without their zeros, codes and factors as they are, read
into an ordinary model of transformers.

`sparse.json` says which tensors a model's checkpoint has and how each is stored: in one of the
layouts of `compact`, or in a packed form whose tensors are in such layouts. The numbers are in
`sparse-00001.safetensors` and so on. No reader of plain checkpoints looks for these names, so none
fills what it lacks with random numbers. Each tensor has the SHA-256 of its bytes beside it: what is
read is what was written, or an error.
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
from calibrant.packed import Codes, GgmlBlocks, Packed, from_stored, to_stored
from calibrant.spec.foreign import brief
from calibrant.system.durable import usual_rights

SHEET: Final = "sparse.json"
FORMAT: Final = "calibrant-sparse"
VERSION: Final = 1
MOST: Final = 2**32
"""Bytes after which a file is full; a tensor that is larger has one of its own."""

_AGAIN: Final = "copy or download the folder again, or export it once more"


@final
@dataclass(frozen=True)
class SparseFolder:
    """A folder whose sheet was read: its files, what the sheet says of each tensor, and every
    tensor as it will be when it is whole.
    """

    ref: str
    files: tuple[Path, ...]
    entries: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, StoredTensor]

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the checkpoint. Raises `ModelError`, by its name, for one that
        isn't stored as the sheet says.
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

    Raises `ModelError` for a sheet that is damaged, of another version, or asks for more numbers
    than the files have bits, and for files that lack something which it names, or hold what it
    doesn't.
    """
    names = check_plain(folder, ref)
    # A folder with plain weights too is a plain one.
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
    """The files that the sheet lists: plain ones of the folder, and all safetensors that are
    there.
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
    """Every tensor as it will be, once it is clear that the files hold its parts and that there
    is room for it.
    """
    stored = stored_tensors(files)
    used: set[str] = set()
    tensors: dict[str, StoredTensor] = {}
    inside = 0
    for name, entry in entries.items():
        with Refusal(f"{folder / SHEET} says of {brief(name)} what can't be", f"; {_AGAIN}", name):
            shape, dtype = declared(entry)
            for layout in _layouts(entry):
                inside += prod(declared(layout)[0])
                used.update(layout["parts"].values())
            word = WORDS.get(dtype, str(dtype).removeprefix("torch."))
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
    numbers = max(inside, sum(tensor.count for tensor in tensors.values()))
    # A number takes a bit at least, in every layout but that of zeros.
    most = 8 * sum(path.stat().st_size for path in files) + SPARE
    if numbers > most:
        raise ModelError(
            f"{folder / SHEET} asks for {numbers:,} numbers, and its files have room for {most:,} "
            f"at most; {_AGAIN}",
            subject=SHEET,
        )
    return tensors


def _layouts(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is said of each tensor in a layout: of the tensor itself, or of those of its packed
    form.
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
        # Numbers of its own, whatever other tensors are stored by the same part.
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
    """Return a packed form as plain JSON data and tensors in which the code of a removed weight
    is 0, also where its group has a zero point.
    """
    facts, tensors = to_stored(packed)
    if not isinstance(packed, Codes) or packed.zeros is None:
        return facts, tensors
    zeros = _by_input(packed.zeros, packed.codes)
    codes = _turned(packed.codes, -zeros, packed.grid.bits)
    return {**facts, "around_zeros": True}, {**tensors, "codes": codes}


def read_form(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Packed:
    """Return the packed form again. `KeyError` for one that nothing here defines, `ValueError`
    for what is none of it.
    """
    packed = from_stored(facts, tensors)
    if not facts.get("around_zeros"):
        return packed
    if not isinstance(packed, Codes) or packed.zeros is None:
        raise ValueError("it has no zero points")
    zeros = _by_input(packed.zeros, packed.codes)
    return replace(packed, codes=_turned(packed.codes, zeros, packed.grid.bits))


def _by_input(zeros: Int8[Tensor, "out group"], codes: Int8[Tensor, "out in"]) -> Tensor:
    """The zero point of each code."""
    return zeros.repeat_interleave(codes.shape[1] // zeros.shape[1], dim=1).to(torch.int16)


def _turned(codes: Int8[Tensor, "out in"], steps: Tensor, bits: int) -> Int8[Tensor, "out in"]:
    """Codes moved by so many steps in the circle of all codes of so many bits: it takes no more
    bits, and is undone by the opposite.
    """
    half = 2 ** (bits - 1)
    turned = (codes.to(torch.int16) + steps + half).remainder(2 * half)
    return (turned - half).to(torch.int8)


@final
class SparseWriter:
    """Writes the tensors of a checkpoint into `place`, one after the other; `finish` writes the
    sheet.

    `forms` are all packed forms that may come: what several of them share is stored once, and
    counted once for all of these.
    """

    def __init__(self, place: Path, forms: Iterable[Packed] = ()) -> None:
        self._place = place
        self._shared: Counter[str] = Counter()
        for form in forms:
            # Codes and blocks are of one matrix alone: to hash them all would take long.
            if not isinstance(form, Codes | GgmlBlocks):
                _, tensors = to_stored(form)
                self._shared.update(map(_known_by, tensors.values()))
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
        """Store a tensor without its zeros, or in a packed form of it, transposed if so, where
        that takes less; `packed.dense()` is the tensor.
        """
        about = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": digest(tensor),
        }
        plain = Compact.of(tensor)
        entry = None if packed is None else self._packed(name, packed, plain.size)
        if entry is None:
            entry = self._kept(name, plain)
        elif transposed:
            entry["transposed"] = True
        self._entries[name] = {**entry, **about}
        self._before += tensor.nbytes
        if self._after - self._written >= MOST:
            self._flush()

    def _packed(self, name: str, packed: Packed, most: int) -> dict[str, Any] | None:
        """Store a packed form; None where it takes as much as `most` bytes, or more."""
        form, tensors = write_form(packed)
        inside = {key: Compact.of(tensor) for key, tensor in tensors.items()}
        # What several forms share is counted in equal parts by each.
        size = sum(inside[key].size / self._uses(tensor) for key, tensor in tensors.items())
        if size >= most:
            return None
        kept: dict[str, Any] = {}
        for key, compact in inside.items():
            kept[key] = self._kept(f"{name}:{key}", compact, sharing=True)
        return {"form": form, "tensors": kept}

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
        return max(1, self._shared[_known_by(tensor)]) if self._shared else 1

    def _kept(self, name: str, compact: Compact, sharing: bool = False) -> dict[str, Any]:
        parts: dict[str, str] = {}
        for key, part in compact.parts.items():
            known = _known_by(part) if sharing else f"{name}:{key}"
            if known not in self._names:
                self._names[known] = f"{name}:{key}"
                self._waiting[f"{name}:{key}"] = part.contiguous()
                self._after += part.nbytes
            parts[key] = self._names[known]
        return {**compact.facts(), "parts": parts}

    def _flush(self) -> None:
        if self._waiting:
            self._files.append(f"sparse-{len(self._files) + 1:05}.safetensors")
            with usual_rights(self._place / self._files[-1]):
                save_file(self._waiting, self._place / self._files[-1], metadata={"format": FORMAT})
            self._waiting, self._written = {}, self._after


def _known_by(part: Tensor) -> str:
    return f"{part.dtype} {list(part.shape)} {digest(part)}"
