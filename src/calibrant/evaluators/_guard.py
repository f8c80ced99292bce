"""No model is measured on what it was calibrated on, unless somebody asks for exactly that."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrant.data import CalibrationSet, Row
from calibrant.data.user_file import UserFile, files_behind
from calibrant.errors import DataError
from calibrant.evaluators._base import Evaluator
from calibrant.inspection.leaks import LeakCount, RowFingerprints, find_leaks, serious


def leaks(sets: Iterable[CalibrationSet], evaluators: Sequence[Evaluator]) -> dict[str, dict[str, int]]:
    """How many rows of the users' own files in each set are also measured, by set and evaluator; what has none is left out.

    The sources that Calibrant knows take such rows out of themselves. A file's whole calibrate part is looked at, whatever the draw.
    """
    found: dict[str, dict[str, int]] = {}
    measured: dict[str, list[Row]] = {}
    files: dict[tuple[UserFile, str], int] = {}
    for chosen in {str(s): s for s in sets}.values():
        for evaluator in evaluators:
            for file in {file for part in chosen.parts for file in files_behind(part.source)}:
                name = str(evaluator)
                if (file, name) not in files:
                    measured.setdefault(name, list(evaluator.rows()))
                    rows = file.holding("calibrate").rows
                    files[file, name] = len({leak.row for leak in find_leaks(rows, measured[name]) if serious(leak)})
                if files[file, name]:
                    held = found.setdefault(str(chosen), {})
                    held[name] = held.get(name, 0) + files[file, name]
    return found


def refuse(found: Mapping[str, Mapping[str, int | LeakCount]]) -> None:
    """`DataError` for the first calibration set, or compressed model, that has leaks."""
    for data, counts in found.items():
        evaluator, leaked = next(iter(counts.items()))
        count, kinds = (leaked.count, f" ({leaked})") if isinstance(leaked, LeakCount) else (leaked, "")
        raise DataError(
            f"{count} rows of {data} are also measured by {evaluator}{kinds}; take them out or measure something else, "
            f"or allow it with --allow-leak (in Python allow_leak=True), which the record keeps",
            subject=data,
        )


def calibrated_on(manifest: Mapping[str, Any] | None, folder: str | Path, evaluator: Evaluator) -> LeakCount:
    """Which of the rows that `evaluator` measures the compressed model in `folder` was calibrated on, by its manifest and the array beside it."""
    if manifest is None:
        return LeakCount()
    return RowFingerprints.read(manifest, folder).leaks(evaluator.rows(), isinstance(evaluator.reads(), UserFile))
