"""What a driver and its workers say to each other, and the closed list of what that may be made of.

Specs and calibration sets travel as their texts, and are built again by the registries of the process that reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from calibrant.allocations import Allocation, allocations
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.evaluators import Evaluator, evaluators
from calibrant.methods import Method, methods
from calibrant.outcomes import Measurement, Outcome, Score
from calibrant.store import Record, Run
from calibrant.study.question import Event, Failed, Job, Measured, Question, Recorded, Resolved
from calibrant.targets import Target, parse_target
from calibrant.transforms import Transform, transforms
from calibrant.walk.statistics import KINDS
from calibrant.wire import Kind, Language, fields_of, kind_of, raised


@dataclass(frozen=True)
class Told:
    """Progress."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Raised:
    """An error that no question's record can take: a model that can't be opened, a full disk."""

    error: Exception


@dataclass(frozen=True)
class Spent:
    """The last reply to everything that is asked: seconds by phase."""

    seconds: Mapping[str, float]


Reply = Told | Raised | Spent | Resolved | Event | None
"""What a worker says, piece by piece, to one thing that it is asked."""


@lru_cache(64)
def _set(expr: str, *budget: Any) -> CalibrationSet:
    """A set of the user's own files looks into them when it is built: once is enough."""
    return CalibrationSet(expr, *budget)


def _error(fault: Mapping[str, Any]) -> Raised:
    ours = raised(fault["kind"], fault["text"], fault["subject"])
    return Raised(ours or (OSError(fault["text"]) if fault["errno"] is None else OSError(fault["errno"], fault["text"], fault["file"])))


def _fault(reply: Raised) -> dict[str, Any]:
    error = reply.error
    system = {"errno": error.errno, "file": error.filename and str(error.filename)} if isinstance(error, OSError) else {"errno": None, "file": None}
    text = (error.strerror if system["errno"] is not None and isinstance(error, OSError) else None) or str(error)
    return {"kind": kind_of(error), "text": text, "subject": getattr(error, "subject", ""), **system}


_STATISTICS: Final = {kind.__name__: kind for kind in KINDS}
"""What is kept on disk, by the names of the classes."""

LANGUAGE: Final = Language(
    Kind("method", Method, str, methods.build),
    Kind("target", Target, str, parse_target),
    Kind("allocation", Allocation, str, allocations.build),
    Kind("transform", Transform, str, transforms.build),
    Kind("evaluator", Evaluator, str, evaluators.build),
    Kind("calibration", CalibrationSet, lambda s: [s.expr, s.samples, s.length, s.budget, s.seed], lambda given: _set(*given)),
    Kind("statistic", type, lambda kind: kind.__name__, _STATISTICS.__getitem__),
    Kind("Raised", Raised, _fault, _error),
    *map(fields_of, (Recipe, Question, Job, Resolved, Run, Record, Score, Outcome, Measurement)),
    *map(fields_of, (Recorded, Measured, Failed, Told, Spent)),
    fields_of(TokenBatch, without=("rows",)),  # what is saved needs them, and workers save nothing
)
"""All of it. What another package defines is said by its name, and must be installed where it is heard."""
