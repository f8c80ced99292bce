"""Where results lie, as everything above sees it: runs with their measurements, each as plain data.

There are two such places. A study writes into a database (`live`); a store that isn't written any
more may be published as tables (`published`). A store reads both through this one interface.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from calibrant.errors import DataError
from calibrant.results.items import COLUMNS, ItemNumbers, numbers_of
from calibrant.system.durable import short

PROFILE: Final = "profile.json"
"""The words and characters of a run's calibration set, with quotations where they are allowed. Only
a report reads it."""
MASK: Final = "mask.npz"
"""The mask of a run. With it the weights are made again without pruning. It may be deleted to save
room."""
EDITS: Final = "edits.safetensors"
"""The edits of a run whose kept weights changed, or that removed whole parts. They serve as a mask
does."""


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
"""What reading made-up data comes to. The last of them is Arrow's for types that it knows and can't
work with."""


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
        with understood(self.where(run, measurement)):
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
        score, items = self.score(run, measurement), self.items(run, measurement)
        return StoredMeasurement(run, measurement, score, items, self.provenance(run, measurement))


@contextmanager
def understood(where: str | Path) -> Iterator[None]:
    """Raise `DataError`, saying what is damaged, for what isn't as we write it."""
    try:
        yield
    except _MISUNDERSTOOD as error:
        raise damaged(where, error) from error


def damaged(where: str | Path, error: Exception) -> DataError:
    """Return the error for a stored result that can't be believed."""
    what = (
        str(error)
        if isinstance(error, OSError | ValueError)
        else f"not what is written there: {error!r}"
    )
    advice = "restore it from a copy, or have it computed again"
    return DataError(f"{short(Path(where))!r} can't be read ({what}); {advice}", subject=str(where))
