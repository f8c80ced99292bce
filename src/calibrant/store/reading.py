"""How the files of a run or a measurement are read: whole, or only as far as is needed; from a folder, or (`packed`) from tables of many."""

import errno
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from calibrant.durable import LARGEST, flush, from_json, opened, read_json, read_packed, unreadable, unsealed
from calibrant.outcomes import Measurement, Outcome, Score, outcomes_of, read_table
from calibrant.seals import SEAL, BrokenSealError, Purpose
from calibrant.store.shapes import FailureFile, Matrix, ProfileFile, Provenance, RecordFile, ScoreFile, check

RECORD: Final = "record.json"
SCORE: Final = "score.json"
ITEMS: Final = "items.parquet"
"""The outcome of every item of a measurement."""
SUMS: Final = "sums.json"
PROVENANCE: Final = "provenance.json"
WEIGHTS: Final = "weights.json.gz"
"""The facts of each matrix of a run, and the sizes of what is sampled: nearly all of its record."""
PROFILE: Final = "profile.json"
"""The words and characters of a run's calibration set, with quotations where they are allowed. Only a report reads it."""
MASK: Final = "mask.npz"
"""What a run's weights can be made from again without pruning. It may be deleted to save room: then they are pruned again where that is needed."""
EDITS: Final = "edits.safetensors"
"""The same for a run whose kept weights changed, or that removed whole parts."""

_WEIGHTS: Final = b'\n "weights": '
"""How the last key of a record begins: at this depth, it stands nowhere else."""


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Raise `DataError`, saying that the file is damaged, for JSON that isn't what we write."""
    try:
        yield
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path, error) from error


class ResultFiles(ABC):
    """The files of one run or of one measurement, by their names, wherever they lie.

    What can't be read, and what isn't as it was written, raises `DataError`.
    """

    @property
    @abstractmethod
    def bare_id(self) -> str:
        """The id of the run or measurement, without its tag."""

    @abstractmethod
    def where(self, name: str) -> Path:
        """Return the path that a message names."""

    @abstractmethod
    def names(self) -> list[str]:
        """List the files that are there, in order."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Return whether a file is there."""

    @abstractmethod
    def content(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if there is none."""

    @abstractmethod
    def json(self, name: str) -> Any:
        """Return what a file of JSON holds, also where that is compressed."""

    @abstractmethod
    def beginning(self, name: str, end: bytes) -> bytes:
        """Return as much of a file as reaches beyond `end`, or all of it. Raises `OSError`."""

    @abstractmethod
    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file that is there."""

    @abstractmethod
    def table(self) -> Any:
        """Return the items of a measurement as an Arrow table."""

    @abstractmethod
    def copy(self, folder: Path, without: Collection[str] = ()) -> None:
        """Write everything into a folder that is there, but for what is named in `without`. Raises `OSError`."""

    def record(self) -> dict[str, Any]:
        """Return a record with its weights. In format 1 they stood in the same file."""
        with understood(self.where(RECORD)):
            record = self._checked(check(self.json(RECORD), RecordFile))
            if "weights" in record:
                return record
        with understood(self.where(WEIGHTS)):
            return {**record, "weights": check(self.json(WEIGHTS), list[Matrix])}

    def record_without_weights(self) -> dict[str, Any]:
        """Return a record but for its weights, which in format 1 are nearly all of its file."""
        path = self.where(RECORD)
        try:
            head, separator, _ = self.beginning(RECORD, _WEIGHTS).partition(_WEIGHTS)
            record = check(from_json((head.rstrip(b",") + b"}" if separator else head).decode()), RecordFile)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        with understood(path):
            return {**self._checked(record), "weights": ()}

    def provenance(self) -> Mapping[str, Any]:
        """Return what is known beside a record or a measurement, outside every hash."""
        with understood(self.where(PROVENANCE)):
            if not self.has(PROVENANCE):
                return {}
            fields = self.json(PROVENANCE)
            if fields and SEAL not in fields and "seconds" not in fields:  # one from before there were seals says how long it took
                raise BrokenSealError
            return check(unsealed(fields, provenance_purpose(self.bare_id)), Provenance)

    def score_file(self) -> Mapping[str, Any]:
        """Return what `score.json` of a measurement holds."""
        with understood(self.where(SCORE)):
            return self._checked(check(self.json(SCORE), ScoreFile))

    def measurement(self, whole: bool = True) -> Measurement:
        """Return a measurement; not `whole`, without its items and provenance, for which one small file is read."""
        with understood(self.where(SCORE)):
            fields = self.score_file()
            beside = tuple(Score(**score) for score in fields.get("beside", ()))
            score = Score(**fields["score"])
        return Measurement(score, self.outcomes(), self.provenance(), beside) if whole else Measurement(score, beside=beside)

    def outcomes(self) -> tuple[Outcome, ...]:
        """Return the outcome of every item of a measurement."""
        return outcomes_of(self.table(), self.where(ITEMS))

    def _checked(self, fields: Any) -> Any:
        """The fields of a record or a score. Raises `BrokenSealError` where they are of another run or measurement than was asked for."""
        if fields.get("id", self.bare_id).rpartition(":")[2] != self.bare_id:
            raise BrokenSealError
        return fields


@dataclass(frozen=True)
class LooseFiles(ResultFiles):
    """ResultFiles in a folder of their own, each compared with its sum whenever it is read; a folder from before there were sums has none."""

    folder: Path

    @property
    def bare_id(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @cached_property
    def _sums(self) -> Mapping[str, str] | None:
        path = self.folder / SUMS
        if not path.exists():
            return None
        with understood(path):
            return check(read_json(path), Mapping[str, str])

    def lacks_sums(self) -> bool:
        """Return whether there must have been sums: they are missing, and the provenance has a seal, which came later."""
        path = self.folder / PROVENANCE
        if (self.folder / SUMS).exists() or not path.exists():
            return False
        with understood(path):
            return SEAL in read_json(path)

    def check_unchanged(self, name: str) -> None:
        """Raise `DataError` for a file that isn't as it was written."""
        path = self.folder / name
        # Provenance is no part of a result and has a seal of its own; the sums are what all else is compared with.
        if self._sums is None or name in (SUMS, PROVENANCE):
            return
        with understood(path), opened(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self._sums.get(name):
                raise BrokenSealError

    def where(self, name: str) -> Path:
        """Return the file's own path."""
        return self.folder / name

    def names(self) -> list[str]:
        """List what the folder holds, but for folders."""
        return sorted(p.name for p in self.folder.iterdir() if p.is_file()) if self.folder.is_dir() else []

    def has(self, name: str) -> bool:
        """Return whether a file is there."""
        return (self.folder / name).exists()

    def content(self, name: str) -> bytes | None:
        """Read the file."""
        path = self.folder / name
        if not path.exists():
            return None
        self.check_unchanged(name)
        with understood(path), opened(path) as file:
            return file.read()

    def json(self, name: str) -> Any:
        """Read the file, up to a size that no such file exceeds."""
        self.check_unchanged(name)
        return (read_packed if name.endswith(".gz") else read_json)(self.folder / name)

    def beginning(self, name: str, end: bytes) -> bytes:
        """Read as much of the file as reaches beyond `end`."""
        self.check_unchanged(name)
        with opened(self.folder / name) as file:
            head = b""
            while end not in head and len(head) < LARGEST and (more := file.read(2**14)):
                head += more
        return head

    def digest(self, name: str) -> str:
        """Hash the file, which is never in memory whole."""
        with (self.folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def table(self) -> Any:
        """Read `items.parquet`."""
        self.check_unchanged(ITEMS)
        return read_table(self.folder / ITEMS)

    def copy(self, folder: Path, without: Collection[str] = ()) -> None:
        """Copy files and folders; unlike `copytree` it stops at the first complaint of the disk, and sees everything to it."""
        for path in sorted(self.folder.iterdir()):
            if path.name in without or path.name.startswith("."):  # file managers leave hidden files everywhere
                continue
            if path.is_dir():
                (folder / path.name).mkdir()
                LooseFiles(path).copy(folder / path.name, without)
            elif not path.is_file():  # a device may have no end
                raise OSError(errno.EINVAL, "it is no file", str(path))
            else:
                shutil.copyfile(path, folder / path.name)
            flush(folder / path.name)


def missing(path: Path) -> OSError:
    """Return the error that opening a file raises that isn't there."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def provenance_purpose(digits: str) -> Purpose:
    """Return what the provenance of a run or a measurement is sealed for."""
    return {"kind": "provenance", "of": digits}


def failure_purpose(digits: str) -> Purpose:
    """Return what the failure of a run or a measurement is sealed for."""
    return {"kind": "failure", "of": digits}


def read_failure(path: Path) -> Mapping[str, Any]:
    """Return why something isn't there."""
    with understood(path):
        return check(read_json(path, failure_purpose(path.stem)), FailureFile)


def read_profile(content: bytes) -> Mapping[str, Any]:
    """Return what is known of a calibration set. Raises `ValueError` for anything else."""
    return check(from_json(content.decode()), ProfileFile)
