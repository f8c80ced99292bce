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
from typing import Any, Final, final

import torch
from jaxtyping import Int8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models.compact import Compact, declared, digest
from calibrant.models.complete import SPARE, StoredTensor, stored_tensors
from calibrant.models.converting import from_state
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

_WORDS: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_AGAIN: Final = "copy or download the folder again, or export it once more"


@final
@dataclass(frozen=True)
class SparseFolder:
    """A folder whose sheet was read: its files, what the sheet says of each tensor, and every
    tensor as it will be when it is whole.
    """

    folder: Path
    ref: str
    files: tuple[Path, ...]
    entries: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, StoredTensor]

    def model(
        self,
        kind: type[PreTrainedModel],
        folder: Path,
        weights: Sequence[Path],
        config: PreTrainedConfig,
        dtype: torch.dtype,
    ) -> Any:
        """Return the model with all numbers in their places, and what transformers says of its
        loading.
        """
        return from_state(kind, dict(self.state()), folder, config, dtype)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the checkpoint. Raises `ModelError`, by its name, for one that
        isn't stored as the sheet says.
        """
        with ExitStack() as stack:
            places: dict[str, Any] = {}
            for path in self.files:
                file = stack.enter_context(safe_open(path, framework="pt"))
                places |= dict.fromkeys(file.keys(), file)
            for name, entry in self.entries.items():
                with Refusal(
                    f"{self.ref}: {brief(name)} isn't stored as {SHEET} says", f"; {_AGAIN}", name
                ):
                    tensor = _tensor_of(entry, lambda part: places[part].get_tensor(part))
                if digest(tensor) != entry.get("sha256"):
                    raise ModelError(
                        f"{self.ref}: {brief(name)} isn't what it was when it was saved (its SHA-256 differs); {_AGAIN}",
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
    if SHEET not in names or WEIGHTS in names or INDEX in names:
        return None
    sheet = read_object(folder / SHEET)
    if sheet.get("format") != FORMAT:
        return None
    if sheet.get("version") != VERSION:
        raise ModelError(
            f"{folder / SHEET} is of version {brief(sheet.get('version'))}, and {VERSION} can be read; upgrade calibrant",
            subject=SHEET,
        )
    if CONFIG not in names:
        raise ModelError(
            f"{ref} holds no {CONFIG}, without which its {SHEET} is of no use; {_AGAIN}",
            subject=CONFIG,
        )
    files, entries = _files(folder, ref, names, sheet.get("files")), sheet.get("tensors")
    if (
        not isinstance(entries, dict)
        or not entries
        or not all(isinstance(entry, dict) for entry in entries.values())
    ):
        raise ModelError(
            f"{folder / SHEET} doesn't say how its tensors are stored ({brief(entries)}); {_AGAIN}",
            subject=SHEET,
        )
    tensors = _checked(folder, ref, files, entries)
    return SparseFolder(folder, ref, files, entries, tensors)


def _files(folder: Path, ref: str, names: Sequence[str], listed: Any) -> tuple[Path, ...]:
    """The files that the sheet lists: plain ones of the folder, and all safetensors that are
    there.
    """
    there = {name for name in names if name.endswith(".safetensors")}
    if (
        not isinstance(listed, list)
        or not all(isinstance(name, str) for name in listed)
        or set(listed) != there
        or len(listed) != len(there)
    ):
        raise ModelError(
            f"{ref} holds {brief(sorted(there))}, but its {SHEET} lists {brief(listed)}; {_AGAIN}",
            subject=SHEET,
        )
    return tuple(folder / name for name in sorted(there))


def _checked(
    folder: Path, ref: str, files: Sequence[Path], entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, StoredTensor]:
    """Every tensor as it will be, once it is clear that the files hold its parts and that there
    is room for it.
    """
    stored, used = stored_tensors(files), Counter[str]()
    tensors, inside = dict[str, StoredTensor](), 0
    for name, entry in entries.items():
        with Refusal(f"{folder / SHEET} says of {brief(name)} what can't be", f"; {_AGAIN}", name):
            shape, dtype = declared(entry)
            for layout in _layouts(entry):
                inside += prod(declared(layout)[0])
                used.update(layout["parts"].values())
            tensors[name] = StoredTensor(
                shape, _WORDS.get(dtype, str(dtype).removeprefix("torch.")), SHEET
            )
    if missing := used.keys() - stored.keys():
        raise ModelError(
            f"{ref} lacks {brief(min(missing))}, which its {SHEET} names; {_AGAIN}",
            subject=str(min(missing)),
        )
    if unused := stored.keys() - used.keys():
        raise ModelError(
            f"{ref} holds {brief(min(unused))}, which its {SHEET} doesn't name; {_AGAIN}",
            subject=min(unused),
        )
    numbers, most = (
        max(inside, sum(tensor.count for tensor in tensors.values())),
        8 * sum(path.stat().st_size for path in files) + SPARE,
    )
    if numbers > most:
        raise ModelError(
            f"{folder / SHEET} asks for {numbers:,} numbers, and its files have room for {most:,} at most; {_AGAIN}",
            subject=SHEET,
        )
    return tensors


def _layouts(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is said of each tensor in a layout: of the tensor itself, or of those of its packed
    form.
    """
    layouts = list(entry["tensors"].values()) if "form" in entry else [entry]
    if not all(isinstance(one, dict) and isinstance(one["parts"], dict) for one in layouts):
        raise ValueError("its parts are no names")
    if not all(isinstance(name, str) for one in layouts for name in one["parts"].values()):
        raise ValueError("its parts have no names")
    return layouts


def _tensor_of(entry: Mapping[str, Any], get: Callable[[str], Tensor]) -> Tensor:
    """The tensor that an entry of the sheet describes."""
    if "form" not in entry:
        return (
            _compact_of(entry, get).whole().clone()
        )  # numbers of its own, whatever other tensors are stored by the same part
    shape, dtype = declared(entry)
    packed = read_form(
        entry["form"],
        {key: _compact_of(facts, get).whole() for key, facts in entry["tensors"].items()},
    )
    if packed.weights != prod(shape):
        raise ValueError(f"its packed form has {packed.weights:,} numbers")
    whole = packed.dense().T.contiguous() if entry.get("transposed") else packed.dense()
    if tuple(whole.shape) != shape or whole.dtype != dtype:
        raise ValueError(f"its packed form is a {whole.dtype} of {list(whole.shape)}")
    return whole


def _compact_of(facts: Mapping[str, Any], get: Callable[[str], Tensor]) -> Compact:
    return Compact.read(facts, {part: get(name) for part, name in facts["parts"].items()})


def write_form(packed: Packed) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a packed form as plain JSON data and tensors in which the code of a removed weight
    is 0, also where its group has a zero point.
    """
    facts, tensors = to_stored(packed)
    if isinstance(packed, Codes) and packed.zeros is not None:
        return {**facts, "around_zeros": True}, {
            **tensors,
            "codes": _turned(
                packed.codes, -_by_input(packed.zeros, packed.codes), packed.grid.bits
            ),
        }
    return facts, tensors


def read_form(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Packed:
    """Return the packed form again. `KeyError` for one that nothing here defines, `ValueError`
    for what is none of it.
    """
    packed = from_stored(facts, tensors)
    if not facts.get("around_zeros"):
        return packed
    if not isinstance(packed, Codes) or packed.zeros is None:
        raise ValueError("it has no zero points")
    return replace(
        packed, codes=_turned(packed.codes, _by_input(packed.zeros, packed.codes), packed.grid.bits)
    )


def _by_input(zeros: Int8[Tensor, "out group"], codes: Int8[Tensor, "out in"]) -> Tensor:
    """The zero point of each code."""
    return zeros.repeat_interleave(codes.shape[1] // zeros.shape[1], dim=1).to(torch.int16)


def _turned(codes: Int8[Tensor, "out in"], by: Tensor, bits: int) -> Int8[Tensor, "out in"]:
    """Codes moved by so many steps in the circle of all codes of so many bits: it takes no more
    bits, and is undone by the opposite.
    """
    half = 2 ** (bits - 1)
    return ((codes.to(torch.int16) + by + half).remainder(2 * half) - half).to(torch.int8)


@final
class SparseWriter:
    """Writes the tensors of a checkpoint into `place`, one after the other; `finish` writes the
    sheet.

    `forms` are all packed forms that may come: what several of them share is stored once, and
    counted once for all of these.
    """

    def __init__(self, place: Path, forms: Iterable[Packed] = ()) -> None:
        self._place = place
        shares = (form for form in forms if not isinstance(form, Codes | GgmlBlocks))
        self._shared = Counter(
            _known_by(tensor) for form in shares for tensor in to_stored(form)[1].values()
        )
        self._entries: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._waiting: dict[str, Tensor] = {}
        self._files: list[str] = []
        self._before = self._after = self._written = 0

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
        plain, (form, tensors) = (
            Compact.of(tensor),
            ({}, {}) if packed is None else write_form(packed),
        )
        inside = {key: Compact.of(one) for key, one in tensors.items()}
        if (
            packed is not None
            and sum(inside[key].size / self._uses(one) for key, one in tensors.items()) < plain.size
        ):
            kept = {
                key: self._kept(f"{name}:{key}", compact, sharing=True)
                for key, compact in inside.items()
            }
            self._entries[name] = {
                "form": form,
                "tensors": kept,
                **({"transposed": True} if transposed else {}),
                **about,
            }
        else:
            self._entries[name] = {**self._kept(name, plain), **about}
        self._before += tensor.nbytes
        if self._after - self._written >= MOST:
            self._flush()

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
