"""Importance matrices as llama.cpp reads and writes them: for each tensor the sums of its squared
inputs, column by column.

There are two forms, chosen by the file's ending. `.gguf` is llama.cpp's own. It has for each tensor
NAME the float32 tensors `NAME.in_sum2` [matrix, column] and `NAME.counts` [matrix, 1], with a
matrix for each expert, and under `imatrix.*` what text they were made of. `.dat` is the older form,
which ik_llama.cpp reads: it has no counts of experts.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import gguf
import numpy as np
from jaxtyping import Float, Int

from calibrant.activations import FeatureNorms, Seen
from calibrant.errors import DataError, NumericsError, OutputError
from calibrant.models.gguf_file import MAGIC, read_header
from calibrant.models.viewing import ModelView, Weight
from calibrant.numerics import ceil_div
from calibrant.spec.foreign import brief, user_path
from calibrant.system.durable import content, line_of_json, reason, replacing
from calibrant.system.seals import BrokenSealError, seal_of

SUFFIXES: Final = (".gguf", ".dat")
SEALED: Final = "calibrant.seal"
"""The key of a GGUF file's seal. The older form has no place for one."""
SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
LARGEST: Final = 2**32
"""How many bytes a file may have: that of the largest model has a tenth."""
LONGEST_NAME: Final = 2**12


@final
@dataclass(frozen=True, eq=False)
class ImatrixEntry:
    """What one tensor saw: Σ x² of each column, and the number of tokens. A tensor of experts has a
    row for each of them, any other has one row.
    """

    sums: Float[np.ndarray, "matrix column"]
    counts: Int[np.ndarray, "matrix"]

    @property
    def importance(self) -> Float[np.ndarray, "matrix column"]:
        """The mean x² of each column, as quantizers use it; 1 in all columns of an expert that no
        token reached.
        """
        counts = self.counts[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), 1).astype(np.float32)


@final
@dataclass(frozen=True, eq=False)
class Imatrix:
    """An importance matrix: `entries` by the name of the tensor in GGUF. `datasets` says what text
    it was made of, `chunks` in how many windows, and `chunk_size` how many tokens each had.

    Three fields aren't written to files. `left_out` has the matrices that couldn't be followed,
    with the reason. `note` says what was on disk for want of memory. `few_tokens` says that there
    were fewer tokens than inputs.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    note: str = ""
    few_tokens: str = ""

    def write(self, path: str | Path) -> Path:
        """Write it to `path`, whole or not at all, in the form that the ending says, and return the
        path. Raises `OutputError` for another ending, and for a file that can't be written.
        """
        path = check_imatrix_path(path)
        try:
            with replacing(path) as unfinished:
                if path.suffix == ".gguf":
                    self._write_gguf(unfinished)
                else:
                    unfinished.write_bytes(b"".join(self._legacy()))
        except OSError as error:
            raise OutputError(
                f"{str(path)!r} can't be written ({reason(error)})", subject=str(path)
            ) from error
        return path

    def _write_gguf(self, path: Path) -> None:
        writer = gguf.GGUFWriter(path, "")
        # The writer insists on an architecture, but an imatrix has none.
        writer.kv_data[0].pop("general.architecture", None)
        writer.add_type("imatrix")
        # An empty list would leave the entry out, and readers want it.
        writer.add_array("imatrix.datasets", list(self.datasets) or [""])
        writer.add_uint32("imatrix.chunk_count", self.chunks)
        writer.add_uint32("imatrix.chunk_size", self.chunk_size)
        writer.add_string(SEALED, self._seal())
        for name, entry in sorted(self.entries.items()):
            writer.add_tensor(name + SUMS, _floats(entry.sums))
            writer.add_tensor(name + COUNTS, _floats(entry.counts[:, None]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _seal(self) -> str:
        """The seal of all that is written to a GGUF file."""
        facts = [list(self.datasets), self.chunks, self.chunk_size]
        contents: list[bytes | memoryview] = [line_of_json(facts).encode()]
        for name, entry in sorted(self.entries.items()):
            contents.append(name.encode())
            contents.append(_floats(entry.sums).tobytes())
            contents.append(_floats(entry.counts).tobytes())
        return seal_of({"kind": "imatrix"}, *contents)

    def _legacy(self) -> Iterator[bytes]:
        """The older form, whose numbers have 32 bits, low byte first. It stores each mean times the
        number of calls, by which readers divide.
        """
        entries = [entry for entry in sorted(self.entries.items()) if entry[1].counts.any()]
        yield struct.pack("<i", len(entries))
        for name, entry in entries:
            # Any number of calls would do, since it cancels; this is about that of llama.cpp.
            calls = ceil_div(int(entry.counts.max()), max(1, self.chunk_size))
            values = (entry.importance.astype(np.float64) * calls).astype("<f4").tobytes()
            text = name.encode()
            yield struct.pack("<i", len(text)) + text
            yield struct.pack("<ii", calls, len(values) // 4) + values
        datasets = "; ".join(self.datasets).encode()
        yield struct.pack("<ii", self.chunks, len(datasets)) + datasets


def _floats(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers, dtype=np.float32)


def importance_of(
    view: ModelView, seen: Mapping[Weight, Seen], names: Mapping[str, tuple[str, ...]]
) -> dict[str, ImatrixEntry]:
    """Return what the matrices saw as entries by GGUF's names, which are given for each matrix. An
    expert that saw nothing has the count 0. A tensor that no token reached has no entry.
    """
    sums: dict[str, list[np.ndarray]] = {}
    counts: dict[str, list[int]] = {}
    for weight in view.weights:
        row, count = _sums(weight, seen.get(weight))
        for name in names[weight.name]:
            sums.setdefault(name, []).append(row)
            counts.setdefault(name, []).append(count)
    entries: dict[str, ImatrixEntry] = {}
    for name, rows in sums.items():
        if any(counts[name]):
            entries[name] = ImatrixEntry(np.stack(rows), np.array(counts[name]))
    return entries


def _sums(weight: Weight, seen: Seen | None) -> tuple[np.ndarray, int]:
    """Σ x² of a matrix's inputs and the number of tokens. Where tokens have weights, the sum is
    scaled as if their mean weight were 1, since readers divide by the number.
    """
    if seen is None or not seen[FeatureNorms].mass > 0:
        return np.zeros(weight.shape[1], dtype=np.float32), 0
    norms = seen[FeatureNorms]
    # In float64, as they were summed. They are rounded once, to the float32 of llama.cpp's file.
    sums = norms.norms().cpu().double() * (norms.tokens / norms.mass)
    rounded = sums.numpy().astype(np.float32)
    if not np.isfinite(rounded).all():
        raise NumericsError(
            f"the inputs of {weight.name} hold NaN or infinity; open the model in a wider dtype",
            subject=weight.name,
        )
    return rounded, norms.tokens


def check_imatrix_path(path: str | Path) -> Path:
    """Return the path of an importance matrix to write. Raises `OutputError` for a wrong ending, a
    folder that doesn't exist, and a path that is a folder.
    """
    path = user_path(path, OutputError)
    if path.suffix not in SUFFIXES:
        raise OutputError(
            f"{str(path)!r} is no name for an imatrix; let it end with .gguf (llama.cpp) or .dat "
            "(ik_llama.cpp)",
            subject=str(path),
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(
            f"{str(path)!r} can't be written; name a file in a folder that exists",
            subject=str(path),
        )
    return path


def read_imatrix(path: str | Path) -> Imatrix:
    """Return the importance matrix in a file, made by us or by llama.cpp. Raises `DataError` for a
    file that is none, is cut off or damaged.
    """
    path = user_path(path, DataError)
    try:
        with path.open("rb") as file:
            begins = file.read(len(MAGIC))
        if begins == MAGIC:
            return _read_gguf(path)
        return _read_legacy(content(path, LARGEST))
    except OSError as error:
        raise DataError(
            f"{str(path)!r} can't be read ({error.strerror}); give an imatrix, a .gguf or .dat "
            "file",
            subject=str(path),
        ) from error
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise DataError(
            f"{str(path)!r} is truncated or damaged, or no imatrix of llama.cpp ({error}); "
            "download it or make it again",
            subject=str(path),
        ) from error


def _read_gguf(path: Path) -> Imatrix:
    kind = read_header(path).values.get("general.type")
    if kind != "imatrix":
        if not isinstance(kind, str) or not kind:
            kind = "model"
        # Without the quotes around it.
        shown = brief(f"a {kind}")[1:-1]
        raise DataError(
            f"{str(path)!r} is {shown} and no imatrix; make one with calibrant imatrix",
            subject=str(path),
        )
    reader = gguf.GGUFReader(path)
    facts: dict[str, Any] = {}
    for name in ("datasets", "chunk_count", "chunk_size"):
        field = reader.get_field(f"imatrix.{name}")
        if field is None:
            raise ValueError(f"it lacks imatrix.{name}")
        facts[name] = field.contents()
    _check_facts(facts)
    tensors = {str(tensor.name): tensor for tensor in reader.tensors}
    entries: dict[str, ImatrixEntry] = {}
    for key, tensor in tensors.items():
        if not key.endswith(SUMS):
            continue
        name = key.removesuffix(SUMS)
        sums = np.array(tensor.data).reshape(-1, int(tensor.shape[0]))
        counts = np.zeros(0, np.int64)
        if name + COUNTS in tensors:
            counts = np.rint(tensors[name + COUNTS].data.reshape(-1)).astype(np.int64)
        if len(counts) != len(sums):
            raise ValueError(
                f"{brief(name)} has sums of {len(sums)} matrices and counts of {len(counts)}"
            )
        entries[name] = ImatrixEntry(_sound(sums, name), counts)
    if not entries:
        raise ValueError(f"it holds no {SUMS}")
    datasets = tuple(str(dataset) for dataset in facts["datasets"] if dataset)
    found = Imatrix(entries, datasets, int(facts["chunk_count"]), int(facts["chunk_size"]))
    # A file that llama.cpp made has no seal.
    sealed = reader.get_field(SEALED)
    if sealed is not None and sealed.contents() != found._seal():
        raise BrokenSealError
    return found


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a fact of another type than llama.cpp's."""
    if not isinstance(facts["datasets"], list):
        raise ValueError(f"imatrix.datasets is {brief(facts['datasets'])}, and no list")
    for name in ("chunk_count", "chunk_size"):
        if not isinstance(facts[name], int) or isinstance(facts[name], bool):
            raise ValueError(f"imatrix.{name} is {brief(facts[name])}, and no whole number")


def _read_legacy(stored: bytes) -> Imatrix:
    """Read the older form. Its only counts are those of calls, by which its sums must be
    divided.
    """
    reader = _LegacyReader(stored)
    entries: dict[str, ImatrixEntry] = {}
    for _ in range(reader.number(1, len(stored) // 12)):
        name = reader.text(1, LONGEST_NAME)
        calls = reader.number(0, 2**31 - 1)
        numbers = reader.content(4 * reader.number(1, len(stored) // 4))
        sums = np.frombuffer(numbers, dtype="<f4").astype(np.float32)
        entries[name] = ImatrixEntry(_sound(sums[None, :], name), np.array([calls]))
    # Files of old versions end here.
    chunks = 0 if reader.at_end else reader.number(0, 2**31 - 1)
    dataset = "" if reader.at_end else reader.text(0, LARGEST)
    datasets = (dataset,) if dataset else ()
    return Imatrix(entries, datasets, chunks, 0)


@final
class _LegacyReader:
    """Reads a file of the older form from a place that moves on with what is read."""

    def __init__(self, stored: bytes) -> None:
        self._stored = stored
        self._place = 0

    @property
    def at_end(self) -> bool:
        return self._place >= len(self._stored)

    def number(self, least: int, most: int) -> int:
        (value,) = struct.unpack_from("<i", self._stored, self._place)
        if not least <= value <= most:
            raise ValueError(
                f"it claims {value:,} of something at byte {self._place:,}, and has "
                f"{len(self._stored):,} bytes"
            )
        self._place += 4
        return value

    def content(self, size: int) -> bytes:
        start = self._place
        self._place += size
        if self._place > len(self._stored):
            raise ValueError(
                f"something of {size:,} bytes begins at byte {start:,}, and it has "
                f"{len(self._stored):,}"
            )
        return self._stored[start : self._place]

    def text(self, least: int, most: int) -> str:
        return self.content(self.number(least, most)).decode("utf-8")


def _sound(sums: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(sums).all() or (sums < 0).any():
        raise ValueError(f"the sums of {brief(name)} aren't all finite and positive")
    return sums
