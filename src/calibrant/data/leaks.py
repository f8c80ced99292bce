"""Does calibration data hold what is measured on? Rows that are the same example, and rows that share long runs of words.

Runs of 13 words are what the field looks for: they seldom recur by chance, and a rewritten heading doesn't hide them. They do recur in
boilerplate: two files under one licence, two pages with one cookie notice, two chats with one system prompt share dozens. So a run is no verdict.
What counts is how much of the measured row was seen, and `serious` draws the line at half; and runs that stand in more than `COMMON` of the
measured rows are nobody's content and don't count at all.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal

import numpy as np
from jaxtyping import Int64

from calibrant.data._base import Row
from calibrant.data._words import Numbers, numbered, runs, words

COMMON: Final = 50
"""A run of words that more measured rows than this have in common is boilerplate."""

_BATCH: Final = 200_000
"""How many words are looked up at a time."""

_MARK: Final = re.compile(r"^[^\W\d_]+:", re.MULTILINE)

Indices = Int64[np.ndarray, " _"]


@dataclass(frozen=True)
class Leak:
    """A measured row that a calibration row gives away; both are named by `Row.example`.

    `share` is how much of the measured row's runs of words stand in the calibration row: of runs of 13, or of 8 in a row that has fewer than 13
    words; 1 if they are the same example.
    """

    row: str
    measured: str
    kind: Literal["same example", "13-gram", "8-gram"]
    share: float


def serious(leak: Leak) -> bool:
    """Whether what is measured on that row can't be trusted: the same example, or at least half of it."""
    return leak.kind == "same example" or leak.share >= 0.5


def ngrams(text: str) -> frozenset[int]:
    """A number for each run of 13 words in a text; of 8 words if it has fewer than 13; for the whole text if it has fewer than 8.

    Words are runs of letters and digits whatever their case; in scripts without spaces, such as Chinese and Thai, each letter counts as a word.
    A text under 4 words says too little to be known again, and gives nothing. The numbers are the same in every process.
    """
    numbers = numbered(words(text))
    return frozenset(runs(numbers, run_length(len(numbers))).tolist())


def find_leaks(calibration: Iterable[Row], measured: Iterable[Row]) -> list[Leak]:
    """Every pair of a calibration row and a measured row that have an example or a run of words in common, each with the gravest that was found.

    What is compared is all that a model would learn from: text, question, rationale, answer and turns, without a frame's own words and without
    letters that stand for a choice. A measured row under 13 words is looked for by its runs of 8, inside longer rows too; one under 8 words is
    found only if the calibration row consists of just those words. The measured rows are kept, as numbers; the others are read once and forgotten.
    """
    index = _Index(measured)
    found: dict[tuple[str, str], Leak] = {}
    for batch in _batches(calibration):
        for leak in chain(index.same(batch), index.shared(batch)):
            known = found.get((leak.row, leak.measured))
            if known is None or (serious(leak), leak.share) > (serious(known), known.share):
                found[leak.row, leak.measured] = leak
    return list(found.values())


@dataclass(frozen=True)
class _Seen:
    """A calibration row as it is compared: its example, and a number for each of its words."""

    example: str
    numbers: Numbers


class _Index:
    """The measured rows by their examples and by their runs of words."""

    def __init__(self, measured: Iterable[Row]) -> None:
        self.examples: list[str] = []
        held: defaultdict[int, _Runs] = defaultdict(_Runs)
        for at, row in enumerate(measured):
            self.examples.append(row.example)
            numbers = compared(row)
            length = run_length(len(numbers))
            held[length if length in (13, 8) else 0].add(at, runs(numbers, length))
        self._known = frozenset(self.examples)
        self._tables = {length: _Table(kept) for length, kept in held.items() if kept.numbers}

    def same(self, batch: list[_Seen]) -> Iterator[Leak]:
        """The rows that are an example which is measured."""
        return (Leak(row.example, row.example, "same example", 1.0) for row in batch if row.example in self._known)

    def shared(self, batch: list[_Seen]) -> Iterator[Leak]:
        """The rows that have runs of words in common with what is measured."""
        for length, table in self._tables.items():
            owners, found = _whole(batch) if length == 0 else _inside(batch, length)
            for row, measured, share in table.shares(owners, found, len(self.examples)):
                yield Leak(batch[row].example, self.examples[measured], "13-gram" if length == 13 else "8-gram", share)


@dataclass
class _Runs:
    """Runs of words on their way into a table, each with the row that it stands in."""

    rows: list[int] = field(default_factory=list[int])
    numbers: list[Numbers] = field(default_factory=list[Numbers])

    def add(self, row: int, found: Numbers) -> None:
        """Keep the runs of one row, each once."""
        if len(found):
            self.rows.append(row)
            self.numbers.append(np.unique(found))


class _Table:
    """In which measured rows a run of words stands: sorted numbers, and for each the rows that have it."""

    def __init__(self, held: _Runs) -> None:
        numbers = np.concatenate(held.numbers)
        owners = np.repeat(np.array(held.rows, dtype=np.int32), [len(each) for each in held.numbers])
        order = np.argsort(numbers, kind="stable")
        keys, begins, counts = np.unique(numbers[order], return_index=True, return_counts=True)
        rare = counts <= COMMON
        self._keys, self._begins, self._counts, self._owners = keys[rare], begins[rare], counts[rare], owners[order]
        self._sizes = np.bincount(self._owners[np.repeat(rare, counts)], minlength=max(held.rows) + 1)
        # Nearly every run that is looked up is in no measured row, and one bit of a small table says so at once.
        bits = min(24, max(8, 4 + len(keys).bit_length()))
        self._shift, self._hint = np.uint64(64 - bits), np.zeros(1 << bits, dtype=np.bool_)
        self._hint[self._keys >> self._shift] = True

    def shares(self, owners: Indices, found: Numbers, measured: int) -> Iterator[tuple[int, int, float]]:
        """Of these runs, each with the calibration row that it stands in: (that row, a measured row, the share of its runs), for rows that meet."""
        likely = np.flatnonzero(self._hint[found >> self._shift])
        at = np.searchsorted(self._keys, found[likely])
        hit = at < len(self._keys)
        hit[hit] = self._keys[at[hit]] == found[likely[hit]]
        # A run counts once, however often the calibration row repeats it.
        once = np.unique(owners[likely[hit]] * len(self._keys) + at[hit]) if hit.any() else np.zeros(0, dtype=np.int64)
        rows, keys = np.divmod(once, max(1, len(self._keys)))
        counts = self._counts[keys]
        places = np.repeat(self._begins[keys] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        pairs, shared = np.unique(np.repeat(rows, counts) * measured + self._owners[places], return_counts=True)
        for pair, count in zip(pairs.tolist(), shared.tolist(), strict=True):
            row, other = divmod(pair, measured)
            yield row, other, count / int(self._sizes[other])


def compared(row: Row) -> Numbers:
    """Return numbers for the words that a model would learn from. Where the frame is empty, the question brings its own marks, such as `Premise:`."""
    question = row.question if row.frame[0] or not row.question else _MARK.sub("", row.question)
    answer = None if row.labels else row.answer
    # The first exchange of a conversation may stand in question and answer too: each text is read once.
    texts = dict.fromkeys(filter(None, (row.text, question, row.rationale, answer, *(content for _, content in row.turns))))
    return numbered(words("\n".join(texts)))


def run_length(count: int) -> int:
    """Return how long the runs are by which a text of `count` words is known; more than it has if it is too short to be known."""
    return 13 if count >= 13 or count < 4 else 8 if count >= 8 else count


def _batches(rows: Iterable[Row]) -> Iterator[list[_Seen]]:
    """Rows in lots of some 200,000 words, so that what numpy does for each lot is worth its calls."""
    batch: list[_Seen] = []
    held = 0
    for row in rows:
        batch.append(_Seen(row.example, compared(row)))
        held += len(batch[-1].numbers) + 1
        if held >= _BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _inside(batch: list[_Seen], length: int) -> tuple[Indices, Numbers]:
    """All runs of `length` words, each with the row that it stands in."""
    owners = np.repeat(np.arange(len(batch), dtype=np.int64), [len(row.numbers) for row in batch])
    found = runs(np.concatenate([row.numbers for row in batch]), length)
    # A run that begins in one row and ends in the next isn't anybody's.
    own = owners[: len(found)] == owners[len(owners) - len(found) :]
    return owners[: len(found)][own], found[own]


def _whole(batch: list[_Seen]) -> tuple[Indices, Numbers]:
    """The rows of 4 to 7 words, each as one run."""
    short = [(at, runs(row.numbers, len(row.numbers))[0]) for at, row in enumerate(batch) if 4 <= len(row.numbers) < 8]
    return np.array([at for at, _ in short], dtype=np.int64), np.array([number for _, number in short], dtype=np.uint64)
