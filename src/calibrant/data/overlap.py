"""Rows that stand where they shouldn't: in what is measured too, or twice in one set."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from calibrant.data._base import Format, Row, Source, Stored
from calibrant.data.duplicates import near_duplicates
from calibrant.data.expression import Term, parse_expression
from calibrant.data.leaks import Leak, find_leaks, serious
from calibrant.errors import DataError

UNASKED_ROWS: Final = 5_000
"""A measured part with more rows than this is compared only where somebody asks for it."""

_NEAR_ROWS: Final = 10_000
"""How many rows of a set are compared with each other."""

_NEAR_LETTERS: Final = 50_000
"""How much of a row is compared: a book's first pages tell it from any other."""

_QUOTED: Final = 100


def content(row: Row, form: Format) -> str:
    """What a format shows of the row itself, without its own words."""
    turns = [text for _, text in row.turns] if form.spec_name() == "chat" else []
    fields = [] if turns else [getattr(row, name) for name in form.needs]
    choices = row.choices if row.labels and not turns and "question" in form.needs else ()
    return "\n".join(text for text in (*fields, *choices, *turns) if isinstance(text, str))


def quoted(row: Row, form: Format, letters: int = _QUOTED) -> str:
    """The beginning of a row's content in one line."""
    text = " ".join(content(row, form).split())
    return text if len(text) <= letters else text[:letters] + "…"


def measurable(against: Sequence[str]) -> list[Source]:
    """The sources that these texts, each `source[:format]` or a sum of such, name. `DataError` for a control, or for one that can't be read."""
    found: list[Source] = []
    for text in against:
        for term in parse_expression(text):
            if term.source.kind == "control":
                raise DataError(f"{text!r} is a control: nothing is measured on it; compare with a corpus or a question set", subject=text)
            next(iter(term.source.rows("measure")), None)
            found.append(term.source)
    return found


def overlaps(terms: Sequence[Term], drawn: Sequence[Sequence[Row]], asked: Sequence[Source] = ()) -> Iterator[dict[str, Any]]:
    """Each part compared with what its own source measures on, and with what each source that was asked for does."""
    for term, rows in zip(terms, drawn, strict=True):
        for source in _places(term.source, asked):
            yield _compared(term, rows, source, asked=source in asked)


def _places(source: Source, asked: Sequence[Source]) -> list[Source]:
    """What a part of `source` is compared with, each once; a control has nothing that could be in two places."""
    places = [source, *asked] if isinstance(source, Stored) else [*asked]
    return [] if source.kind == "control" else list(dict.fromkeys(places))


def repeats(terms: Sequence[Term], drawn: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Rows of the whole set that are nearly alike: how many have one before them, and the pairs, each row as its part and number in it."""
    places: list[tuple[Term, int, Row]] = []
    for term, rows in zip(terms, drawn, strict=True):
        distinct = {row.key: (term, number, row) for number, row in reversed(list(enumerate(rows, 1)))}
        if term.source.kind != "control":
            places += sorted(distinct.values(), key=lambda place: place[1])[: _NEAR_ROWS // len(terms)]
    pairs = near_duplicates([content(row, term.format)[:_NEAR_LETTERS] for term, _, row in places])
    return {"examined": len(places), "rows": len({j for _, j, _ in pairs}), "pairs": [_pair(places[i], places[j], share) for i, j, share in pairs]}


def _pair(first: tuple[Term, int, Row], second: tuple[Term, int, Row], share: float) -> dict[str, Any]:
    (one, number, row), (other, again, _) = first, second
    shown = one.source.shown and other.source.shown
    return {"parts": [str(one), str(other)], "numbers": [number, again], "share": share, "quote": quoted(row, one.format) if shown else ""}


def _compared(term: Term, rows: Sequence[Row], source: Source, asked: bool) -> dict[str, Any]:
    about = {"part": str(term), "against": str(source)}
    measured = list(source.rows("measure") if asked else islice(source.rows("measure"), UNASKED_ROWS + 1))
    if len(measured) > UNASKED_ROWS and not asked:
        return {**about, "unchecked": f"it measures on more than {UNASKED_ROWS:,} rows; --against {source} compares them all the same"}
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        numbers.setdefault(row.example, number)
    found = sorted(find_leaks(rows, measured), key=lambda leak: (not serious(leak), -leak.share, numbers[leak.row], leak.measured))
    same = {leak.row for leak in found if leak.kind == "same example"}
    grave = {leak.row for leak in found if serious(leak)} - same
    return {
        **about,
        "measured_rows": len(measured),
        "same": len(same),
        "half": len(grave),
        "slight": len({leak.row for leak in found} - grave - same),
        "given_away": len({leak.measured for leak in found if serious(leak)}),
        "leaks": [_leak(leak, numbers[leak.row], rows, term, source) for leak in found],
    }


def _leak(leak: Leak, number: int, rows: Sequence[Row], term: Term, source: Source) -> dict[str, Any]:
    shown = term.source.shown and source.shown  # what both have in common is a quotation of both
    return {
        "number": number,
        "row": leak.row,
        "measured": leak.measured,
        "kind": leak.kind,
        "share": leak.share,
        "serious": serious(leak),
        "quote": quoted(rows[number - 1], term.format) if shown else "",
    }
