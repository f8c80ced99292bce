"""No model is measured on what it was calibrated on, unless somebody asks for exactly that."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from calibrant.data import CalibrationSet, PerDraw, Row, Source
from calibrant.data.leaks import find_leaks, serious
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError
from calibrant.evaluators._base import Evaluator


def leaks(sets: Iterable[CalibrationSet], evaluators: Sequence[Evaluator]) -> dict[str, dict[str, int]]:
    """How many rows of the users' own files in each set are also measured, by set and evaluator; what has none is left out.

    The sources that Calibrant knows take such rows out of themselves. A file's whole calibrate part is looked at, whatever the draw.
    """
    found: dict[str, dict[str, int]] = {}
    measured: dict[str, list[Row]] = {}
    files: dict[tuple[UserFile, str], int] = {}
    for chosen in {str(s): s for s in sets}.values():
        for evaluator in evaluators:
            for file in {source for part in chosen.parts for source in _within(part.source) if isinstance(source, UserFile)}:
                name = str(evaluator)
                if (file, name) not in files:
                    measured.setdefault(name, list(evaluator.rows()))
                    rows = file.holding("calibrate").rows
                    files[file, name] = len({leak.row for leak in find_leaks(rows, measured[name]) if serious(leak)})
                if files[file, name]:
                    held = found.setdefault(str(chosen), {})
                    held[name] = held.get(name, 0) + files[file, name]
    return found


def _within(source: Source) -> Iterator[Source]:
    """The source, or those that its rows are chosen from."""
    if not isinstance(source, PerDraw):
        yield source
        return
    for inner in source.origins:
        yield from _within(inner)


def refuse(found: Mapping[str, Mapping[str, int]]) -> None:
    """`DataError` for the first calibration set, or compressed model, that has leaks."""
    for data, counts in found.items():
        evaluator, count = next(iter(counts.items()))
        raise DataError(
            f"{count} rows of {data} are also measured by {evaluator}; take them out or measure something else, "
            f"or allow it with --allow-leak (in Python allow_leak=True), which the record keeps",
            subject=data,
        )


def calibrated_on(manifest: Mapping[str, Any] | None, evaluator: Evaluator) -> int:
    """How many of the rows that `evaluator` measures on a compressed model was calibrated on, by the manifest beside it."""
    examples: set[str] = set((manifest or {}).get("examples", ()))
    return sum(row.example in examples for row in evaluator.rows()) if examples else 0
