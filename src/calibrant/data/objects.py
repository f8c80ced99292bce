"""Hands data over as objects: to a verb, or as a file to what measures on a part of them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from calibrant.data._base import Row, Source
from calibrant.data._messages import Conversation
from calibrant.data.calibration import CalibrationSet
from calibrant.data.expression import Term, written
from calibrant.data.given import Given
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError
from calibrant.spec.grammar import written_mix
from calibrant.system.durable import put

Data: TypeAlias = str | PathLike[str] | Source | CalibrationSet | Iterable[Any]
"""What can be calibrated on; `CalibrationSet` says what may be iterated over."""


def as_set(
    data: Data,
    samples: int | None = None,
    length: int = 2048,
    tokens: int | None = None,
    seed: int = 0,
) -> CalibrationSet:
    """Return data as a calibration set; one that is a set already has its own budget.

    >>> as_set(["a text", "another text"], tokens=8).budget
    8
    """
    if isinstance(data, CalibrationSet):
        return data
    return CalibrationSet(data, samples, length, tokens, seed)


def as_expression(data: Data, folder: Path) -> str:
    """Return data as an expression. What came as objects is written to a file in `folder`, so that
    it is divided as a user's file is, and a part of it can be measured.

    Raises `DataError` for token ids, which no file of rows holds.
    """

    def written_file(source: Source) -> Source:
        if not isinstance(source, Given):
            return source
        if "ids" in source.fields:
            raise DataError(
                f"{source} is token ids, of which nothing can be held out; hand over texts",
                subject=str(source),
            )
        path = folder / f"{source.digest}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(path, source.content.rows)
        return UserFile(str(path))

    return with_sources(as_set(data), written_file)


def with_sources(data: CalibrationSet, change: Callable[[Source], Source]) -> str:
    """Return the expression of a set with `change(source)` in the place of each source."""
    if data.mixed:
        texts = [with_sources(member, change) for member in data.mixed]
        return written_mix(data.names, texts, data.shares)
    terms: list[Term] = []
    for term in data.parts:
        terms.append(replace(term, source=change(term.source)))
    return written(terms)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a file of JSON Lines that reads back as the same rows, in another order.

    What fields a file has is learnt from its first rows. So the first row of each set of fields
    comes before all others: a row with other fields than those would be left out.
    """
    telling: dict[tuple[str, ...], Row] = {}
    others: list[Row] = []
    for row in rows:
        if row.present in telling:
            others.append(row)
        else:
            telling[row.present] = row
    lines: list[str] = []
    for row in (*telling.values(), *others):
        lines.append(json.dumps(record(row), ensure_ascii=False, allow_nan=False) + "\n")
    put(path, "".join(lines).encode())


def record(row: Row) -> dict[str, Any]:
    """Return a row as a file has it that reads back as the same row."""
    values = {name: getattr(row, name) for name in row.present}
    if row.turns:
        conversation = Conversation(row.turns, row.tools).record()
        values["turns"] = conversation.pop("messages")
        values |= conversation
    return values
