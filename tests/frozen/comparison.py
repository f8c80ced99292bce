"""What a published study says: the comparison of its results as plain data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from calibrant.lab.report import report

PROJECT: Final = Path(__file__).parents[2]
STORE: Final = "studies/draws/results"
"""The example of the page of studies: three contrasts, draws, and tasks, and read in less than a
second."""


def told() -> Iterator[tuple[str, Any]]:
    """Yield the parts of the report on the study, with numbers of twelve digits."""
    for name, part in sorted(report(PROJECT / STORE).to_json().items()):
        yield name, rounded(part)


def rounded(value: Any) -> Any:
    """Return plain data with all its numbers rounded to twelve digits, since another processor adds
    in another order."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {str(name): rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value
