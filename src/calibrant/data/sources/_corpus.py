"""What corpora share: texts out of records, the parts of a corpus, the choice of its subsets, and
the parts of texts that are translations of each other.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

from calibrant.data._base import (
    PARTS,
    Part,
    Row,
    SourceRows,
    divide,
    joined,
    part_of,
    train_and_test,
    train_part_of,
)
from calibrant.data._conversations import encodable
from calibrant.data.hub import HubDataset, records
from calibrant.errors import DataError
from calibrant.spec.foreign import did_you_mean

Keep = Callable[[dict[str, Any]], bool]


def corpus(
    hub: HubDataset,
    folder: str,
    train: str,
    test: str = "",
    note: str = "",
    keep: Keep | None = None,
    columns: tuple[str, ...] = ("text",),
) -> SourceRows:
    """Return a corpus of two splits, of which the second measures, or of one, which is divided by
    hash. The mirror's `folder` has splits of the same names.

    `keep` chooses records; the first of `columns` that a record has is its text. `note` is about
    the mirror's excerpt.
    """
    rows, origin = _split(hub, train, folder, keep, columns)
    if not test:
        return SourceRows(divide(rows), origin, mirror_note(origin, note))
    measured, place = _split(hub, test, folder, keep, columns)
    both = f"{origin}; measured on {place}"
    return SourceRows(train_and_test(rows, measured), both, mirror_note(both, note))


def text_rows(
    entries: Iterable[dict[str, Any]], where: str, columns: tuple[str, ...] = ("text",)
) -> Iterator[Row]:
    """Yield a row for each record that isn't blank."""
    for record in entries:
        text = text_field(record, where, *columns)
        if text.strip():
            yield Row(text=text)


def text_field(record: dict[str, Any], where: str, *names: str) -> str:
    """Return the text in the first of the fields `names` that a record has; `DataError` if it
    has none of them, or one that can't be encoded.
    """
    for name in names:
        if isinstance(record.get(name), str):
            try:
                return encodable(record[name])
            except ValueError as error:
                message = f"{where}: {name!r} of a record must be {error}"
                raise DataError(message, subject=where) from error
    wanted = " or ".join(map(repr, names))
    present = ", ".join(record) or "nothing"
    raise DataError(
        f"{where}: a record has no text called {wanted}, only {present}; is this another data set?",
        subject=where,
    )


def mirror_note(origin: str, note: str) -> str:
    """Return the note on the mirror's excerpt if something came from the mirror, else nothing."""
    if "mirror: " not in origin:
        return ""
    return note


def subset_names(
    source: str, subsets: str | Iterable[str], known: Iterable[str]
) -> tuple[str, ...]:
    """Return the subsets that were asked for, each once and in the order of `known`, so that the
    same choice is the same source however it is written.
    """
    known = tuple(known)
    names = [subsets] if isinstance(subsets, str) else list(subsets)
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise DataError(
                f"{source} has no subset {name!r}{near}; write subsets={list(known[:2])!r} or "
                f"others of {', '.join(known)}",
                subject=name,
            )
    return tuple(name for name in known if name in names)


def checked_subsets(content: SourceRows, source: object) -> SourceRows:
    """Return the content, with a note where nothing of the chosen subsets is to calibrate or to
    measure on. `DataError` if there is nothing of them at all.
    """
    if not any(content.rows.values()):
        raise DataError(
            f"{source}: there is nothing of it in what was read ({content.origin}); choose other "
            "subsets",
            subject=str(source),
        )
    note = content.note
    parts: tuple[Part, ...] = ("calibrate", "measure")
    for part in parts:
        if not content.rows.get(part):
            note = joined(note, f"nothing in the chosen subsets to {part}")
    return replace(content, note=note)


def divide_by_place(passages: Iterable[tuple[str, Row]]) -> dict[Part, list[Row]]:
    """Return (place, row) pairs of one split, 70 % to calibrate on, 25 % to measure on, 5 %
    exemplars; all of a place in one part.
    """
    # The hash of a row differs from language to language. So texts that are translations of each
    # other are divided by where they come from: otherwise a model could be calibrated on the German
    # of what it is measured on in English.
    parts: dict[Part, list[Row]] = {part: [] for part in PARTS}
    for place, row in passages:
        parts[part_of(_hash(place))].append(row)
    return parts


def train_and_test_by_place(
    train: Iterable[tuple[str, Row]], test: Iterable[tuple[str, Row]]
) -> dict[Part, list[Row]]:
    """Return (place, row) pairs that come divided: 5 % of the places of train are exemplars."""
    parts: dict[Part, list[Row]] = {"calibrate": [], "measure": [], "exemplars": []}
    for place, row in train:
        parts[train_part_of(_hash(place))].append(row)
    parts["measure"] = [row for _, row in test]
    return parts


def _hash(place: str) -> str:
    return sha256(place.encode()).hexdigest()


def _split(
    hub: HubDataset, split: str, folder: str, keep: Keep | None, columns: tuple[str, ...]
) -> tuple[Iterator[Row], str]:
    entries, origin = records(hub, split, [(folder, split)])
    if keep:
        entries = filter(keep, entries)
    return text_rows(entries, origin, columns), origin
