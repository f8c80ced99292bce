"""Where results lie, as everything above sees it: runs with their measurements as plain data, and
large files (masks, edits, profiles), each once under the hash of its content.

There are two such places. A study writes into a database (`live`); a store that isn't written any
more may be published as tables (`published`). A store reads both through this one interface. In it
`run` and `measurement` are ids; the empty text in the place of a measurement stands for none.
"""

import hashlib
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from calibrant.errors import DataError
from calibrant.results.items import COLUMNS, ItemNumbers, numbers_of
from calibrant.system.durable import UNFINISHED, compact_json, opened, replacing, short
from calibrant.system.seals import BrokenSealError

PROFILE: Final = "profile.json"
"""The words and characters of a run's calibration set, with quotations where they are allowed. Only
a report reads it."""
MASK: Final = "mask.npz"
"""The mask of a run. With it the weights are made again without pruning. It may be deleted to save
room."""
EDITS: Final = "edits.safetensors"
"""The edits of a run whose kept weights changed, or that removed whole parts. They serve as a mask
does."""
BLOBS: Final = "blobs"
"""The folder of all these files."""

_DIGEST: Final = re.compile("[0-9a-f]{64}")
_MISUNDERSTOOD: Final = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    NotImplementedError,
)
"""What reading made-up data may raise. The last is Arrow's, for types that it knows and can't work
with."""


@dataclass(frozen=True)
class StoredRun:
    """A run as it is stored. `record` is the record without `weights` and `provenance`, which stand
    beside it; `files` are contents of files by name."""

    id: str
    record: Mapping[str, Any]
    weights: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


@dataclass(frozen=True)
class StoredMeasurement:
    """A measurement as it is stored: `score` is a `ScoreEntry` as plain data, `items` an Arrow
    table with a row an item."""

    run: str
    id: str
    score: Mapping[str, Any]
    items: Any
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])


class StoredResults(ABC):
    """Runs and what was measured on them. What can't be read, and what isn't as it was written,
    raises `DataError`."""

    @abstractmethod
    def runs(self) -> Collection[str]:
        """Return the ids of all runs."""

    @abstractmethod
    def measurements(self, run: str) -> Collection[str]:
        """Return the ids of everything measured on a run."""

    @abstractmethod
    def has(self, run: str, measurement: str = "") -> bool:
        """Return whether a run, or a measurement on it, is there."""

    @abstractmethod
    def record(self, run: str) -> Mapping[str, Any]:
        """Return a record without `weights` and `provenance`."""

    @abstractmethod
    def weights(self, run: str) -> Sequence[Mapping[str, Any]]:
        """Return the facts of each matrix of a run, which are nearly all of its record."""

    @abstractmethod
    def provenance(self, run: str, measurement: str = "") -> Mapping[str, Any]:
        """Return what is known beside a record or a measurement."""

    @abstractmethod
    def score(self, run: str, measurement: str) -> Mapping[str, Any]:
        """Return a `ScoreEntry` as plain data."""

    def scores(self, run: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the `ScoreEntry` of everything measured on a run as plain data, by measurement."""
        return {measurement: self.score(run, measurement) for measurement in self.measurements(run)}

    @abstractmethod
    def items(self, run: str, measurement: str, columns: Sequence[str] | None = None) -> Any:
        """Return the items of a measurement as an Arrow table, or some of its columns."""

    def numbers(self, run: str, measurement: str) -> ItemNumbers:
        """Return the names, values and weights of the items of a measurement."""
        table = self.items(run, measurement, COLUMNS)
        with self.understood(run, measurement):
            return numbers_of(table)

    @abstractmethod
    def digests(self, run: str) -> Mapping[str, str]:
        """Return the SHA-256 of each file that was written beside a run, by name."""

    @abstractmethod
    def file(self, run: str, name: str) -> bytes | None:
        """Return a file that was written beside a run, or None if it isn't there."""

    @abstractmethod
    def where(self, run: str, measurement: str = "") -> str:
        """Return what a message calls the place of a run or a measurement."""

    @contextmanager
    def understood(self, run: str, measurement: str = "") -> Iterator[None]:
        """Raise `DataError`, saying which is damaged, for what isn't as we write it."""
        try:
            yield
        except _MISUNDERSTOOD as error:
            # Only here, since where it lies takes a look at the disk.
            raise damaged(self.where(run, measurement), error) from error

    def run_row(self, run: str) -> StoredRun:
        """Return all that is stored of a run."""
        files = dict[str, bytes]()
        for name in self.digests(run):
            content = self.file(run, name)
            if content is not None:
                files[name] = content
        return StoredRun(run, self.record(run), self.weights(run), self.provenance(run), files)

    def measurement_row(self, run: str, measurement: str) -> StoredMeasurement:
        """Return all that is stored of a measurement."""
        score = self.score(run, measurement)
        items = self.items(run, measurement)
        return StoredMeasurement(run, measurement, score, items, self.provenance(run, measurement))

    def parts(self, run: str, measurement: str = "") -> dict[str, str]:
        """Return what is stored of a result but its items, each part as a text by its name: where
        two places hold the same result, these are equal."""
        parts: dict[str, Any] = {"provenance": self.provenance(run, measurement)}
        if measurement:
            parts |= self.score(run, measurement)
        else:
            parts |= {**self.record(run), **self.digests(run), "weights": self.weights(run)}
        return {name: compact_json(part) for name, part in parts.items()}


class Blobs:
    """The folder of large files in a store."""

    def __init__(self, store: Path) -> None:
        self.folder = store / BLOBS

    def path(self, digest: str) -> Path:
        """Return where a file is, or would be. Raises `DataError` for a text that is no digest: it
        could name any file."""
        if not _DIGEST.fullmatch(digest):
            raise damaged(self.folder, ValueError(f"{digest[:64]!r} is no SHA-256"))
        return self.folder / digest

    def put(self, content: bytes) -> str:
        """Keep a file, whole or not at all, and return its digest. A damaged one is mended. Raises
        `OSError`."""
        digest = digest_of(content)
        path = self.path(digest)
        if path.is_file() and digest_of_file(path) == digest:
            _remove_halves(path)
        else:
            write_whole(path, content)
        return digest

    def get(self, digest: str) -> bytes | None:
        """Return a file, or None if it was deleted. Raises `DataError` if it isn't what was put."""
        path = self.path(digest)
        if not path.exists():
            return None
        # Compared each time: a mask that has changed would make another model.
        with understood(path), opened(path) as file:
            content = file.read()
            if digest_of(content) != digest:
                raise BrokenSealError
        return content

    def listed(self) -> list[str]:
        """Return the names of all files in the folder, half-written ones too."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir())


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of a content, which is what a file of it is called."""
    return hashlib.sha256(content).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file. Raises `OSError`, also for what is no file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of a store, whole or not at all; an older one is replaced. Raises `OSError`."""
    # A name of its own, since another process may be writing the same file.
    half = path.with_name(f"{UNFINISHED}-{path.name}-{secrets.token_hex(4)}")
    try:
        with replacing(path, half):
            half.write_bytes(content)
    except FileNotFoundError:
        if not path.is_file():  # else another process wrote it meanwhile, and cleared up
            raise
    _remove_halves(path)


def _remove_halves(path: Path) -> None:
    """Remove what killed writers of a file left.

    A writer that is alive finds its half gone, and the whole file in its place.
    """
    for half in path.parent.glob(f"{UNFINISHED}-{path.name}-*"):
        half.unlink(missing_ok=True)


@contextmanager
def understood(where: str | Path) -> Iterator[None]:
    """Raise `DataError`, which names `where`, for data that isn't as we write it."""
    try:
        yield
    except _MISUNDERSTOOD as error:
        raise damaged(where, error) from error


def damaged(where: str | Path, error: Exception) -> DataError:
    """Return the error for a stored result that can't be believed."""
    what = f"not what is written there: {error!r}"
    if isinstance(error, OSError | ValueError):
        what = str(error)
    return DataError(
        f"{short(Path(where))!r} can't be read ({what}); "
        "restore it from a copy, or have it computed again",
        subject=str(where),
    )
