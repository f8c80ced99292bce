"""What corpora share: texts out of records, the parts of a corpus, and the choice of its
subsets.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from calibrant.data._base import Part, Row, SourceRows, divide, train_and_test
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
    """A corpus of two splits, of which the second measures, or of one, which is divided by hash.
    The mirror's `folder` has splits of the same names.

    `keep` chooses records; the first of `columns` that a record has is its text. `note` is about
    the mirror's excerpt.
    """
    rows, origin = _split(hub, train, folder, keep, columns)
    if not test:
        return SourceRows(divide(rows), origin, mirrors_own(origin, note))
    measured, place = _split(hub, test, folder, keep, columns)
    both = f"{origin}; measured on {place}"
    return SourceRows(train_and_test(rows, measured), both, mirrors_own(both, note))


def texts(
    entries: Iterable[dict[str, Any]], where: str, columns: tuple[str, ...] = ("text",)
) -> Iterator[Row]:
    """Yield a row for each record that isn't blank."""
    for record in entries:
        text = value(record, where, *columns)
        if text.strip():
            yield Row(text=text)


def value(record: dict[str, Any], where: str, *names: str) -> str:
    """Return the text in the first of the fields `names` that a record has; `DataError` if it
    has none of them.
    """
    for name in names:
        if isinstance(record.get(name), str):
            return record[name]
    raise DataError(
        f"{where}: a record has no text called {' or '.join(map(repr, names))}, only {', '.join(record) or 'nothing'}; is this another data set?",
        subject=where,
    )


def mirrors_own(origin: str, note: str) -> str:
    """Return the note on the mirror's excerpt if something came from there."""
    return note if "mirror: " in origin else ""


def subset_names(
    source: str, subsets: str | Iterable[str], known: Iterable[str]
) -> tuple[str, ...]:
    """The subsets that were asked for, each once and in the order of `known`, so that the same
    choice is the same source however it is written.
    """
    known = tuple(known)
    names = [subsets] if isinstance(subsets, str) else list(subsets)
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise DataError(
                f"{source} has no subset {name!r}{near}; write subsets={list(known[:2])!r} or others of {', '.join(known)}",
                subject=name,
            )
    return tuple(name for name in known if name in names)


def with_rows(content: SourceRows, source: object) -> SourceRows:
    """Return the content, with a note on a part that has none of the chosen subsets; `DataError`
    if no part has any.
    """
    if not any(content.rows.values()):
        raise DataError(
            f"{source}: there is nothing of it in what was read ({content.origin}); choose other subsets",
            subject=str(source),
        )
    empty: list[Part] = [part for part in ("calibrate", "measure") if not content.rows.get(part)]
    return replace(
        content,
        note="; ".join(
            filter(
                None,
                [content.note, *(f"nothing in the chosen subsets to {part}" for part in empty)],
            )
        ),
    )


def _split(
    hub: HubDataset, split: str, folder: str, keep: Keep | None, columns: tuple[str, ...]
) -> tuple[Iterator[Row], str]:
    entries, origin = records(hub, split, [(folder, split)])
    return texts(filter(keep, entries) if keep else entries, origin, columns), origin
