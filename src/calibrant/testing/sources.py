"""The contract of a source, checked on rows that it gives."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from calibrant.data import (
    PARTS,
    Format,
    KnownExamples,
    Part,
    Row,
    Source,
    StoredSource,
    formats,
    parse_source,
)
from calibrant.data._base import FIELDS
from calibrant.data.sources import sources
from calibrant.errors import DataError, SpecError
from calibrant.testing.naming import mistaken, untyped
from calibrant.testing.tiny import tiny_tokenizer

LOOKED_AT: Final = 300
"""Rows of a part that are looked at, where reading all of them would take long."""


def check_source(source: Source) -> None:
    """Check what a source promises. Raises `DataError` for the first promise that is broken, or if
    there is nothing to read here.

    Licence, kind and fields are declared; its text reads back as the same source, and its identity
    is no other's; every part gives the same rows each time, each with the declared fields; no
    example is in two parts (a control, which has nothing to learn, is let off); at least one format
    can render it.
    """
    # One that is no frozen dataclass has no text, and so none for a message.
    sources.build(source)
    _check_facts(source)
    for part in PARTS:
        _check_rows(source, part)
    if source.kind != "control":
        # What is stored ends; what is generated may not.
        limit = None if isinstance(source, StoredSource) else LOOKED_AT
        parts: dict[Part, list[Row]] = {}
        for part in PARTS:
            parts[part] = list(islice(source.rows(part), limit))
        _check_disjoint(source, parts)
        _check_rendering(source, parts["calibrate"][0])


def _check_facts(source: Source) -> None:
    known = source.kind in ("corpus", "questions", "control")
    _require(source, known, f"{source.kind!r} is no kind of source")
    _require(source, bool(source.licence), "it declares no licence")
    unknown = set(source.fields) - set(FIELDS)
    fields = f"it declares the fields {sorted(source.fields)}; rows have {', '.join(FIELDS)}"
    _require(source, bool(source.fields) and not unknown, fields)
    broken = "its text doesn't read back as the same source"
    try:
        same = parse_source(str(source)) == source
    except SpecError as error:
        same = False
        broken = untyped(source, sources) or str(error)
    _require(source, same, broken)
    shared_identity = mistaken(source, sources)
    _require(source, not shared_identity, shared_identity)


def _check_rows(source: Source, part: Part) -> None:
    rows = list(islice(source.rows(part), LOOKED_AT))
    # A source needn't have exemplars.
    _require(source, bool(rows) or part == "exemplars", f"the part {part!r} has no rows")
    again = list(islice(source.rows(part), LOOKED_AT))
    _require(source, rows == again, f"the rows of {part!r} change from one reading to the next")
    for row in rows:
        missing = sorted(set(source.fields) - set(row.present))
        _require(source, not missing, f"a row of {part!r} lacks {', '.join(missing)}")


def _check_disjoint(source: Source, parts: Mapping[Part, Sequence[Row]]) -> None:
    known: dict[Part, KnownExamples] = {}
    for part, rows in parts.items():
        keys = {row.key for row in rows}
        _require(source, len(keys) == len(rows), f"{part!r} gives a row twice")
        for earlier, examples in known.items():
            for row in rows:
                # By example: one passage may have several questions.
                twice = f"{row.subject[:60]!r} is in {part!r} and in {earlier!r}"
                _require(source, row.beginnings not in examples, twice)
        known[part] = KnownExamples()
        known[part].add(row.beginnings for row in rows)


def _check_rendering(source: Source, row: Row) -> None:
    fitting: list[Format] = []
    for name in formats.names():
        kind = formats.get(name)
        if set(kind.needs) <= set(source.fields):
            fitting.append(kind())
    _require(source, bool(fitting), f"no format can render the fields {', '.join(source.fields)}")
    taking = [row_format for row_format in fitting if row_format.takes(row)]
    _require(source, bool(taking), f"no format takes the row {row.name}")
    for row_format in taking:
        text = row_format.render(row, tiny_tokenizer())
        _require(source, bool(text), "a row is rendered as nothing")


def _require(source: Source, holds: bool, broken: str) -> None:
    if not holds:
        raise DataError(f"the source {source} breaks its contract: {broken}", subject=str(source))
