"""Published question sets: what their splits are called and hold, and which choice a record says
is right.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from calibrant.data._base import Row, SourceRows, train_and_test
from calibrant.data.hub import HubDataset, records
from calibrant.errors import DataError

Make = Callable[[dict[str, Any]], Row | None]
"""A record as a row; none if it lacks what makes it one, usually its label."""

Made = TypeVar("Made")

_BETWEEN_SENTENCES: Final = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Split:
    """One split of a published set.

    `name` is what the hub calls it; `places` says where a mirror may keep it, best first, and how
    many records were published there. A place that is called otherwise stands in for the split,
    `because` of something that the note then says.
    """

    name: str
    places: Mapping[tuple[str, str], int]
    because: str = ""


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split, where they were found, and in what they differ from the published
    ones.
    """

    rows: list[Row]
    origin: str
    note: str


def published(
    hub: HubDataset, train: Split, test: Split, make: Make, lacking: str = "a label"
) -> SourceRows:
    """Return both splits: train calibrates but for the exemplars, test measures."""
    learnt, measured = read(hub, train, make, lacking), read(hub, test, make, lacking)
    origin = f"{learnt.origin}; measured on {measured.origin}"
    return SourceRows(
        train_and_test(learnt.rows, measured.rows), origin, joined(learnt.note, measured.note)
    )


def read(hub: HubDataset, split: Split, make: Make, lacking: str = "a label") -> SplitRows:
    """One split. Records without what is `lacking` are left out and counted."""
    entries, origin = records(hub, split.name, list(split.places))
    results = each(entries, origin, make)
    rows = [row for row in results if row is not None]
    left_out = len(results) - len(rows)
    counted = (
        f"{left_out:,} record{'s' * (left_out > 1)} of {origin} without {lacking} left out"
        * bool(left_out)
    )
    return SplitRows(rows, origin, joined(_excerpt(split, origin, len(results)), counted))


def each(
    entries: Iterable[dict[str, Any]], origin: str, make: Callable[[dict[str, Any]], Made]
) -> list[Made]:
    """Return what is made of each record; a record without a field that is needed is a
    `DataError` that names both.
    """
    results: list[Made] = []
    for number, record in enumerate(entries, 1):
        try:
            results.append(make(record))
        except KeyError as error:
            raise DataError(
                f"record {number} of {origin} has no field {error.args[0]!r}, only {', '.join(record)}; is this another data set?",
                subject=origin,
            ) from error
    return results


def _excerpt(split: Split, origin: str, number: int) -> str:
    """Return what a mirror's file is compared with the published split; nothing if it is that,
    or if it came from the hub.
    """
    notes: list[str] = []
    for (folder, name), size in split.places.items():
        if origin == f"mirror: {folder}/{name}":
            if not split.name.startswith(name):
                notes.append(
                    f"{folder}/{name} stands in for {split.name}"
                    + f", because {split.because}" * bool(split.because)
                )
            if number < size:
                notes.append(f"{folder}/{name} has {number:,} of the {size:,} published records")
    return joined(*notes)


def with_note(content: SourceRows, sentence: str) -> SourceRows:
    """Return the same with one more thing to know about it."""
    return replace(content, note=joined(content.note, sentence))


def joined(*notes: str) -> str:
    """Notes as one sentence; empty ones are passed over."""
    return "; ".join(filter(None, notes))


def gold(label: Any, names: Sequence[str]) -> int | None:
    """Return which of `names` a label means: it may be the name or its number. None for a record
    without a label: null, an empty text or -1.

    Raises `DataError` for a label that means none of them.
    """
    text = str(label).strip()
    if label is None or text in ("", "-1"):
        return None
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise DataError(
        f"the label {label!r} is none of {', '.join(names)}; is this another data set?",
        subject=text,
    )


def multiple_choice(
    question: str,
    choices: Sequence[str],
    right: int | None,
    labels: tuple[str, ...] = (),
    frame: tuple[str, str] = ("Question: ", "Answer:"),
) -> Row | None:
    """A question with its choices, of which `right` is the number of the right one. Listed
    choices, which have labels, are answered by the label.
    """
    if right is None:
        return None
    texts = tuple(choice.strip() for choice in choices)
    return Row(
        question=question.strip(),
        answer=(labels or texts)[right],
        choices=texts,
        labels=labels,
        frame=frame,
    )


def with_rationale(row: Row, rationale: str | None) -> Row:
    """Return the same row with this rationale, whose sentences are its steps; as it was if there
    is none.
    """
    text = (rationale or "").strip()
    return replace(row, rationale=text, steps=len(_BETWEEN_SENTENCES.split(text))) if text else row
