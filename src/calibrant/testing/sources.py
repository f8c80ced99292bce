"""The contract of a source, checked on rows that it gives."""

from collections.abc import Mapping, Sequence
from itertools import islice

from calibrant.data import PARTS, Part, Row, Source, StoredSource, formats, parse_source
from calibrant.data._base import FIELDS
from calibrant.data.sources import sources
from calibrant.errors import DataError
from calibrant.testing.naming import mistaken
from calibrant.testing.tiny import tiny_tokenizer

LOOKED_AT = 300


def check_source(source: Source) -> None:
    """Check what a source promises. Raises `DataError` for the first promise that is broken, or if
    there is nothing to read here.

    Licence, kind and fields are declared; its text reads back as the same source, and its identity
    is no other's; every part gives the same rows each time, each with the declared fields; no
    example is in two parts (a control, which has nothing to learn, is let off); at least one format
    can render it.
    """
    _check_facts(source)
    for part in PARTS:
        _check_rows(source, part)
    if source.kind != "control":
        limit = None if isinstance(source, StoredSource) else LOOKED_AT
        parts: dict[Part, list[Row]] = {
            part: list(islice(source.rows(part), limit)) for part in PARTS
        }
        _check_disjoint(source, parts)
        _check_rendering(source, parts["calibrate"][0])


def _check_facts(source: Source) -> None:
    _require(
        source,
        source.kind in ("corpus", "questions", "control"),
        f"{source.kind!r} is no kind of source",
    )
    _require(source, bool(source.licence), "it declares no licence")
    unknown = set(source.fields) - set(FIELDS)
    _require(
        source,
        bool(source.fields) and not unknown,
        f"it declares the fields {sorted(source.fields)}; rows have {', '.join(FIELDS)}",
    )
    _require(
        source, parse_source(str(source)) == source, "its text doesn't read back as the same source"
    )
    _require(source, not (same := mistaken(source, sources)), same)


def _check_rows(source: Source, part: Part) -> None:
    rows = list(islice(source.rows(part), LOOKED_AT))
    _require(source, bool(rows) or part == "exemplars", f"the part {part!r} has no rows")
    _require(
        source,
        rows == list(islice(source.rows(part), LOOKED_AT)),
        f"the rows of {part!r} change from one reading to the next",
    )
    for row in rows:
        missing = sorted(set(source.fields) - set(row.present))
        _require(source, not missing, f"a row of {part!r} lacks {', '.join(missing)}")


def _check_disjoint(source: Source, parts: Mapping[Part, Sequence[Row]]) -> None:
    home: dict[str, Part] = {}
    for part, rows in parts.items():
        _require(source, len({row.key for row in rows}) == len(rows), f"{part!r} gives a row twice")
        for row in rows:
            other = home.setdefault(row.subject, part)
            _require(source, other == part, f"{row.subject[:60]!r} is in {part!r} and in {other!r}")


def _check_rendering(source: Source, row: Row) -> None:
    fitting = [
        formats.get(name)
        for name in formats.names()
        if set(formats.get(name).needs) <= set(source.fields)
    ]
    _require(source, bool(fitting), f"no format can render the fields {', '.join(source.fields)}")
    _require(
        source,
        all(form().render(row, tiny_tokenizer()) for form in fitting if form().takes(row)),
        "a row is rendered as nothing",
    )


def _require(source: Source, holds: bool, broken: str) -> None:
    if not holds:
        raise DataError(f"the source {source} breaks its contract: {broken}", subject=str(source))
