"""Importance matrices as llama.cpp reads and writes them: for each tensor the sums of its squared
inputs, column by column.

Two forms, chosen by the ending of the file. `.gguf` is llama.cpp's own: for each tensor NAME the
float32 tensors `NAME.in_sum2` [matrix, column] and `NAME.counts` [matrix, 1], a matrix for each
expert, and what it was made of under `imatrix.*`. `.dat` is the older one, which ik_llama.cpp
reads: it keeps no counts of experts.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import gguf
import numpy as np
from jaxtyping import Float, Int

from calibrant.activations import FeatureNorms, Seen
from calibrant.errors import DataError, NumericsError, OutputError
from calibrant.models.gguf_file import MAGIC, read_header
from calibrant.models.viewing import ModelView, Weight
from calibrant.spec.foreign import brief, user_path
from calibrant.system.durable import content, line_of_json, reason, replacing
from calibrant.system.seals import BrokenSealError, seal_of

SUFFIXES: Final = (".gguf", ".dat")
SEALED: Final = "calibrant.seal"
"""The key of a GGUF file's seal. The older form has no place for one."""
SUMS, COUNTS = ".in_sum2", ".counts"
LARGEST: Final = 2**32
"""Bytes of a file at most: that of the largest model takes a tenth."""
LONGEST_NAME: Final = 2**12


@final
@dataclass(frozen=True, eq=False)
class ImatrixEntry:
    """What one tensor saw: Σ x² of each column, and how many tokens came; a row for each expert,
    or one.
    """

    sums: Float[np.ndarray, "matrix column"]
    counts: Int[np.ndarray, "matrix"]

    @property
    def importance(self) -> Float[np.ndarray, "matrix column"]:
        """Mean x² of each column, as quantizers use it: 1 throughout for an expert that no token
        reached.
        """
        counts = self.counts[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), 1).astype(np.float32)


@final
@dataclass(frozen=True, eq=False)
class Imatrix:
    """An importance matrix: its entries by the name of the tensor in GGUF, what text it is of, and
    in how many windows of which length.

    `left_out` are the matrices that couldn't be followed, with the reason, `note` says what was on
    disk for want of memory, and `few_tokens` that there were fewer tokens than inputs; none of them
    is written to files.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    note: str = ""
    few_tokens: str = ""

    def write(self, path: str | Path) -> Path:
        """Write it as GGUF or as `.dat`, whole or not at all. Raises `OutputError` for another
        ending, or a file that can't be written.
        """
        path = check_imatrix_path(path)
        try:
            with replacing(path) as half:
                self._write_gguf(half) if path.suffix == ".gguf" else half.write_bytes(
                    b"".join(self._legacy())
                )
        except OSError as error:
            raise OutputError(
                f"{str(path)!r} can't be written ({reason(error)})", subject=str(path)
            ) from error
        return path

    def _write_gguf(self, path: Path) -> None:
        writer = gguf.GGUFWriter(path, "")
        writer.kv_data[0].pop(
            "general.architecture", None
        )  # the writer insists on one, and an imatrix is of none
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(self.datasets))
        writer.add_uint32("imatrix.chunk_count", self.chunks)
        writer.add_uint32("imatrix.chunk_size", self.chunk_size)
        writer.add_string(SEALED, self._seal())
        for name, entry in sorted(self.entries.items()):
            writer.add_tensor(name + SUMS, np.ascontiguousarray(entry.sums, dtype=np.float32))
            writer.add_tensor(
                name + COUNTS, np.ascontiguousarray(entry.counts[:, None], dtype=np.float32)
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _seal(self) -> str:
        """The seal of all that is written to a GGUF file."""
        contents: list[bytes | memoryview] = [
            line_of_json([list(self.datasets), self.chunks, self.chunk_size]).encode()
        ]
        for name, entry in sorted(self.entries.items()):
            contents.append(name.encode())
            contents.append(np.ascontiguousarray(entry.sums, dtype=np.float32).tobytes())
            contents.append(entry.counts.astype(np.float32).tobytes())
        return seal_of({"kind": "imatrix"}, *contents)

    def _legacy(self) -> Iterator[bytes]:
        """The older form: whole numbers of 32 bits, low byte first. What is stored is the mean
        times the number of calls, and readers divide.
        """
        entries = {
            name: entry for name, entry in sorted(self.entries.items()) if entry.counts.any()
        }
        yield struct.pack("<i", len(entries))
        for name, entry in entries.items():
            calls = -(-int(entry.counts.max()) // max(1, self.chunk_size))
            values = (entry.importance.astype(np.float64) * calls).astype("<f4").tobytes()
            yield (
                struct.pack("<i", len(name.encode()))
                + name.encode()
                + struct.pack("<ii", calls, len(values) // 4)
                + values
            )
        named = "; ".join(self.datasets).encode()
        yield struct.pack("<ii", self.chunks, len(named)) + named


def importance_of(
    view: ModelView, seen: Mapping[Weight, Seen], names: Mapping[str, tuple[str, ...]]
) -> dict[str, ImatrixEntry]:
    """Return what the matrices saw as entries by GGUF's names; experts that saw nothing have the
    count 0. A tensor that nothing reached has none.
    """
    rows = dict[str, list[tuple[np.ndarray, int]]]()
    for weight in view.weights:
        for name in names[weight.name]:
            rows.setdefault(name, []).append(_sums(weight, seen.get(weight)))
    reached = {name: parts for name, parts in rows.items() if any(count for _, count in parts)}
    return {
        name: ImatrixEntry(np.stack([sums for sums, _ in parts]), np.array([n for _, n in parts]))
        for name, parts in reached.items()
    }


def _sums(weight: Weight, seen: Seen | None) -> tuple[np.ndarray, int]:
    """Σ x² and the number of tokens. Where tokens count by weights, the sum is as large as if
    each counted once: readers divide by the number.
    """
    if seen is None or not seen[FeatureNorms].mass > 0:
        return np.zeros(weight.shape[1], dtype=np.float32), 0
    norms = seen[FeatureNorms]
    sums = (norms.norms().cpu().double() * (norms.tokens / norms.mass)).numpy().astype(np.float32)
    if not np.isfinite(sums).all():
        raise NumericsError(
            f"the inputs of {weight.name} hold NaN or infinity; open the model in a wider dtype",
            subject=weight.name,
        )
    return sums, norms.tokens


def check_imatrix_path(path: str | Path) -> Path:
    """Return the path of an importance matrix to write. Raises `OutputError` for one that can't
    be: a wrong ending, no folder, a folder itself.
    """
    path = user_path(path, OutputError)
    if path.suffix not in SUFFIXES:
        raise OutputError(
            f"{str(path)!r} is no name for an imatrix; let it end with .gguf (llama.cpp) or .dat (ik_llama.cpp)",
            subject=str(path),
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(
            f"{str(path)!r} can't be written; name a file in a folder that exists",
            subject=str(path),
        )
    return path


def read_imatrix(path: str | Path) -> Imatrix:
    """Return what an importance matrix of llama.cpp holds, ours or another's. Raises `DataError`
    for what is none, is cut off or damaged.
    """
    path = user_path(path, DataError)
    try:
        with path.open("rb") as file:
            begins = file.read(len(MAGIC))
        return _read_gguf(path) if begins == MAGIC else _read_legacy(content(path, LARGEST), path)
    except OSError as error:
        raise DataError(
            f"{str(path)!r} can't be read ({error.strerror}); give an imatrix, a .gguf or .dat file",
            subject=str(path),
        ) from error
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise DataError(
            f"{str(path)!r} is truncated or damaged, or no imatrix of llama.cpp ({error}); download it or make it again",
            subject=str(path),
        ) from error


def _read_gguf(path: Path) -> Imatrix:
    header = read_header(path)
    if (kind := header.values.get("general.type")) != "imatrix":
        what = f"a {kind}" if isinstance(kind, str) and kind else "a model"
        raise DataError(
            f"{str(path)!r} is {brief(what)[1:-1]} and no imatrix; make one with calibrant imatrix",
            subject=str(path),
        )
    reader = gguf.GGUFReader(path)
    tensors = {str(tensor.name): tensor for tensor in reader.tensors}
    fields = {
        name: reader.get_field(f"imatrix.{name}")
        for name in ("datasets", "chunk_count", "chunk_size")
    }
    if missing := [name for name, found in fields.items() if found is None]:
        raise ValueError(f"it lacks imatrix.{missing[0]}")
    facts = {name: found.contents() for name, found in fields.items() if found is not None}
    entries = dict[str, ImatrixEntry]()
    for name in [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]:
        counts = (
            np.rint(tensors[name + COUNTS].data.reshape(-1)).astype(np.int64)
            if name + COUNTS in tensors
            else None
        )
        sums = np.array(tensors[name + SUMS].data).reshape(-1, int(tensors[name + SUMS].shape[0]))
        if counts is None or len(counts) != len(sums):
            raise ValueError(
                f"{brief(name)} has sums of {len(sums)} matrices and counts of {0 if counts is None else len(counts)}"
            )
        entries[name] = ImatrixEntry(_sound(sums, name), counts)
    found = Imatrix(
        entries,
        tuple(map(str, facts["datasets"])),
        int(facts["chunk_count"]),
        int(facts["chunk_size"]),
    )
    # One of llama.cpp's own has no seal.
    sealed = reader.get_field(SEALED)
    if sealed is not None and sealed.contents() != found._seal():
        raise BrokenSealError
    return found


def _read_legacy(stored: bytes, path: Path) -> Imatrix:
    """The older form. It has no counts but those of calls, which are what its sums are to be
    divided by.
    """
    at = 0

    def number(least: int, most: int) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<i", stored, at)
        at += 4
        if not least <= value <= most:
            raise ValueError(
                f"it claims {value:,} of something at byte {at - 4:,}, and has {len(stored):,} bytes"
            )
        return value

    def taken(size: int) -> bytes:
        nonlocal at
        at += size
        if at > len(stored):
            raise ValueError(
                f"something of {size:,} bytes begins at byte {at - size:,}, and it has {len(stored):,}"
            )
        return stored[at - size : at]

    entries = dict[str, ImatrixEntry]()
    for _ in range(number(1, len(stored) // 12)):
        name = taken(number(1, LONGEST_NAME)).decode("utf-8")
        calls = number(0, 2**31 - 1)
        sums = np.frombuffer(taken(4 * number(1, len(stored) // 4)), dtype="<f4").astype(np.float32)
        entries[name] = ImatrixEntry(_sound(sums[None, :], name), np.array([calls]))
    chunks = number(0, 2**31 - 1) if at < len(stored) else 0
    named = taken(number(0, LARGEST)).decode("utf-8") if at < len(stored) else ""
    return Imatrix(entries, (named,) if named else (), chunks, 0)


def _sound(sums: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(sums).all() or (sums < 0).any():
        raise ValueError(f"the sums of {brief(name)} aren't all finite and positive")
    return sums
