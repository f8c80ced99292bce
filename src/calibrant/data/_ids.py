"""Makes rows of token ids, which a user's file holds or which came as objects."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from numbers import Integral
from typing import Any, Final, cast

import numpy as np
from torch import Tensor

from calibrant.data._base import Row
from calibrant.data._files import short
from calibrant.errors import DataError

COLUMN: Final = "input_ids"
"""The column that token ids are in."""
SEQUENCES: Final = (list, tuple, Tensor, np.ndarray)


def rows_of_ids(items: Iterable[tuple[str, Any]], name: str) -> tuple[tuple[Row, ...], str]:
    """Return sequences of token ids as rows, in their order, and how many without a token were left
    out. Each item comes with what messages call it; `name` is what they call all of them.
    """
    rows: list[Row] = []
    sequences = 0
    for place, item in items:
        for sequence in _sequences(item, place):
            sequences += 1
            if sequence:
                rows.append(Row(ids=_checked_ids(sequence, place)))
    if not rows:
        raise DataError(f"{name!r} has token ids without a token; give at least one", subject=name)
    note = ""
    if len(rows) < sequences:
        note = f"{sequences - len(rows)} of {sequences} rows without a token left out"
    return tuple(rows), note


def as_list(value: Any) -> list[Any]:
    """Return what a list, a tensor or an array holds as a list."""
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    # A tensor without dimensions is a number.
    return list(value) if isinstance(value, list | tuple) else [value]


def _sequences(item: Any, place: str) -> Iterator[list[Any]]:
    """Yield the sequences of an item: one, or those of a batch as a tokenizer gives it, without
    what its attention mask leaves out.
    """
    if not isinstance(item, Mapping):
        yield from _as_sequences(item)
        return
    batch = cast("Mapping[str, Any]", item)
    if COLUMN not in batch:
        raise DataError(f"{place} has no input_ids, as the first has; add them", subject=place)
    sequences = _as_sequences(batch[COLUMN])
    if batch.get("attention_mask") is None:
        yield from sequences
        return
    masks = _as_sequences(batch["attention_mask"])
    if list(map(len, masks)) != list(map(len, sequences)):
        raise DataError(
            f"{place} has input_ids and an attention_mask of different lengths; make them equal",
            subject=place,
        )
    for sequence, mask in zip(sequences, masks, strict=True):
        yield list(compress(sequence, mask))


def _as_sequences(value: Any) -> list[list[Any]]:
    """Return one sequence, or a list of them, as a list of lists."""
    entries = as_list(value)
    if entries and all(isinstance(entry, SEQUENCES) for entry in entries):
        return list(map(as_list, entries))
    return [entries]


def _checked_ids(sequence: Sequence[Any], place: str) -> tuple[int, ...]:
    """Return token ids. `DataError` for what is none."""
    for number in sequence:
        if isinstance(number, bool) or not isinstance(number, Integral) or int(number) < 0:
            raise DataError(
                f"{place} has {short(number)!r} among its token ids; an id is a whole number of at "
                "least 0",
                subject=place,
            )
    return tuple(map(int, sequence))
