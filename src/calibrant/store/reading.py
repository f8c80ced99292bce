"""How the files of a store are read: whole, or only as far as is needed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from calibrant.durable import LARGEST, from_json, opened, read_json, read_packed, unreadable
from calibrant.outcomes import Measurement, Outcome, Score, read_items
from calibrant.store.shapes import FailureFile, Matrix, ProfileFile, Provenance, RecordFile, ScoreFile, check
from calibrant.store.staging import PROVENANCE, WEIGHTS

_WEIGHTS: Final = b'\n "weights": '
"""How the last key of a record begins: at this depth, it stands nowhere else."""


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Say of a file that is JSON and not what we write that it is damaged."""
    try:
        yield
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path, error) from error


def read_record(folder: Path) -> dict[str, Any]:
    """A record with its weights. In format 1 they stood in the same file."""
    with understood(folder / "record.json"):
        kept = read_json(folder / "record.json")
        if "weights" in check(kept, RecordFile):
            return kept
    with understood(folder / WEIGHTS):
        return {**kept, "weights": check(read_packed(folder / WEIGHTS), list[Matrix])}


def without_weights(path: Path) -> dict[str, Any]:
    """A record but for its weights, which in format 1 are nearly all of its file. `DataError` for a file that can't be read."""
    try:
        with opened(path) as file:
            head = b""
            while _WEIGHTS not in head and len(head) < LARGEST and (more := file.read(2**14)):
                head += more
        begun, found, _ = head.partition(_WEIGHTS)
        kept = check(from_json((begun.rstrip(b",") + b"}" if found else head).decode()), RecordFile)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return {**kept, "weights": ()}


def provenance_of(folder: Path) -> Mapping[str, Any]:
    """What is kept beside a record or a measurement, outside every hash."""
    path = folder / PROVENANCE
    with understood(path):
        return check(read_json(path), Provenance) if path.exists() else {}


def score_file(folder: Path) -> Mapping[str, Any]:
    """What `score.json` of a measurement holds."""
    with understood(folder / "score.json"):
        return check(read_json(folder / "score.json"), ScoreFile)


def read_failure(path: Path) -> Mapping[str, Any]:
    """Why something isn't there."""
    with understood(path):
        return check(read_json(path), FailureFile)


def read_profile(content: bytes) -> Mapping[str, Any]:
    """What is kept of a calibration set. Raises `ValueError` for anything else."""
    return check(from_json(content.decode()), ProfileFile)


def read_scores(folder: Path, outcomes: tuple[Outcome, ...] = (), provenance: Mapping[str, Any] | None = None) -> Measurement:
    """A measurement without its items and provenance, unless they are given."""
    with understood(folder / "score.json"):
        kept = score_file(folder)
        beside = tuple(Score(**score) for score in kept.get("beside", ()))
        return Measurement(Score(**kept["score"]), outcomes, provenance or {}, beside)


def read_measurement(folder: Path) -> Measurement:
    """All of a measurement."""
    return read_scores(folder, read_items(folder / "items.parquet"), provenance_of(folder))
