"""How the files of a store are read: whole, or only as far as is needed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from calibrant.durable import from_json, read_json, read_packed, unreadable
from calibrant.outcomes import Measurement, Outcome, Score, read_items
from calibrant.store.staging import PROVENANCE, WEIGHTS

_WEIGHTS: Final = b'\n "weights": '
"""How the last key of a record begins: at this depth, it stands nowhere else."""


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Say of a file that is JSON and not what we write that it is damaged."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, error) from error


def read_record(folder: Path) -> dict[str, Any]:
    """A record with its weights. In format 1 they stood in the same file."""
    with understood(folder / "record.json"):
        kept = read_json(folder / "record.json")
        return kept if "weights" in kept else {**kept, "weights": read_packed(folder / WEIGHTS)}


def without_weights(path: Path) -> dict[str, Any]:
    """A record but for its weights, which in format 1 are nearly all of its file. `DataError` for a file that can't be read."""
    try:
        with path.open("rb") as file:
            head = b""
            while _WEIGHTS not in head and (more := file.read(2**14)):
                head += more
        begun, found, _ = head.partition(_WEIGHTS)
        kept = from_json((begun.rstrip(b",") + b"}" if found else head).decode())
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return {**kept, "weights": ()}


def provenance_of(folder: Path) -> Mapping[str, Any]:
    """What is kept beside a record or a measurement, outside every hash."""
    return read_json(folder / PROVENANCE) if (folder / PROVENANCE).exists() else {}


def read_scores(folder: Path, outcomes: tuple[Outcome, ...] = (), provenance: Mapping[str, Any] | None = None) -> Measurement:
    """A measurement without its items and provenance, unless they are given."""
    with understood(folder / "score.json"):
        kept = read_json(folder / "score.json")
        beside = tuple(Score(**score) for score in kept.get("beside", ()))
        return Measurement(Score(**kept["score"]), outcomes, provenance or {}, beside)


def read_measurement(folder: Path) -> Measurement:
    """All of a measurement."""
    return read_scores(folder, read_items(folder / "items.parquet"), provenance_of(folder))
