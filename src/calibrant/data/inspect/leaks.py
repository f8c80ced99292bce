"""Finds out whether calibration data holds what is measured on: while both are at hand, and later,
when only a saved model is.

Runs of 13 words are what the field looks for: they seldom recur by chance, and a rewritten heading
doesn't hide them. They do recur in boilerplate: two files under one licence, two pages with one
cookie notice, two chats with one system prompt share dozens. So a run is no verdict. What counts is
how much of the measured row was seen, and `serious` draws the line at half. Runs that stand in more
than `COMMON` of the measured rows are nobody's content and don't count at all. Nor does a system
prompt that half of the measured conversations have.

Beside a saved model stand the `RowFingerprints` of what it was calibrated on, from which no text
can be made again.
"""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Int64

from calibrant.data._base import KnownExamples, Row, beginnings_of, caseless
from calibrant.data._words import Numbers, numbered, runs, words

COMMON: Final = 50
"""A run of words that more measured rows than this have in common is boilerplate."""

RUNS_FILE: Final = "calibrant.runs.npy"
"""The file beside a saved model that holds the runs of words that it was calibrated on: sorted
numbers, a plain array.
"""

MOST_RUNS: Final = 1 << 20
"""How many runs are stored. Of more, the smallest numbers are kept: a fair sample of each row's
runs, and 8 MB at most.
"""

_LONG_RUN: Final = 13
"""Words of a run by which texts are known."""

_SHORT_RUN: Final = 8
"""The same for texts that have fewer words than a long run."""

_LEAST_WORDS: Final = 4
"""A text of fewer words says too little to be known again."""

FEW_RUNS: Final = 8
"""Where only a sample is stored, a row is judged by no fewer of its runs than this."""

_WORDS_AT_ONCE: Final = 200_000
"""How many words are looked up at a time."""

_SENTENCE_MARK: Final = re.compile(r"^[^\W\d_]+:", re.MULTILINE)
"""What names a sentence at the beginning of its line, such as `Premise:`."""

_SIGN: Final = re.compile(r"([-+*/^=<>\u2212\u00d7\u00f7])(?=\s*\d)")
"""Signs before a number are no punctuation: 3 + 4 isn't 3 - 4."""

Indices = Int64[np.ndarray, " _"]
_NONE: Final[Numbers] = np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True)
class Leak:
    """A measured row that a calibration row gives away; both are named by `Row.example`.

    `share` is how much of the measured row's runs of words stand in the calibration row: of runs of
    13, or of 8 in a row that has fewer than 13 words; 1 if they are the same example.
    """

    row: str
    measured: str
    kind: Literal["same example", "13-gram", "8-gram"]
    share: float


def serious(leak: Leak) -> bool:
    """Return whether what is measured on that row can't be trusted: the same example, or at
    least half of it.
    """
    return leak.kind == "same example" or leak.share >= 0.5


def ngrams(text: str) -> frozenset[int]:
    """Return a number for each run of 13 words in a text; of 8 words if it has fewer than 13; for
    the whole text if it has fewer than 8.

    Words are runs of letters and digits whatever their case; in scripts without spaces, such as
    Chinese and Thai, each letter counts as a word. A text under 4 words says too little to be known
    again, and gives nothing. The numbers are the same in every process.

    >>> ngrams("To be, or not to be") == ngrams("to be or NOT to be!")
    True
    """
    numbers = numbered(words(text))
    return frozenset(runs(numbers, _run_length(len(numbers))).tolist())


def find_leaks(calibration: Iterable[Row], measured: Iterable[Row]) -> list[Leak]:
    """Return every pair of a calibration row and a measured row that have an example or a run of
    words in common, each pair once, by the gravest of what they have in common.

    What is compared is all that a model would learn from: text, question, rationale, answer and
    turns, without a frame's own words, without letters that stand for a choice, and without a
    system prompt that half of the measured conversations have. A measured row under 13 words is
    looked for by its runs of 8, inside longer rows too; one under 8 words is found only if the
    calibration row consists of just those words. The measured rows are stored; the others are read
    once and dropped.

    >>> seen = Row(question="What is 1 + 1?", answer="2")
    >>> measured = Row(question="what is 1 + 1?", answer="two")
    >>> [leak.kind for leak in find_leaks([seen], [measured])]
    ['same example']
    """

    def gravity(leak: Leak) -> tuple[bool, float]:
        return serious(leak), leak.share

    index = _Index(measured)
    leaks: dict[tuple[str, str], Leak] = {}
    for batch in _batches(calibration):
        for leak in chain(index.same(batch), index.shared(batch)):
            pair = (leak.row, leak.measured)
            if pair not in leaks or gravity(leak) > gravity(leaks[pair]):
                leaks[pair] = leak
    return list(leaks.values())


def contents_of(row: Row) -> tuple[str, ...]:
    """Return what `Row.beginnings` does, of words alone: punctuation doesn't count either. A text
    without words stands for itself.

    >>> contents_of(Row(text="Peel an onion.")) == contents_of(Row(text="peel  an ONION?"))
    True
    >>> contents_of(Row(text="3 + 4")) == contents_of(Row(text="3 - 4"))
    False
    """
    return beginnings_of(row, _words_alone)


def _words_alone(text: str) -> str:
    text = caseless(text)
    return " ".join(words(_SIGN.sub(_spelled_sign, text))) or text


def _spelled_sign(sign: re.Match[str]) -> str:
    return f" sign{ord(sign[1])} "


@dataclass(frozen=True)
class LeakCount:
    """How many measured rows a model was calibrated on.

    These are `same` examples, `respaced` ones that differ in spaces and punctuation only, and
    `alike` ones of whose runs of words it saw at least half; `rows` is how many rows were compared.
    """

    same: int = 0
    respaced: int = 0
    alike: int = 0
    rows: int = 0

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def count(self) -> int:
        """How many rows leaked, each counted once, by the gravest kind."""
        return self.same + self.respaced + self.alike

    def __str__(self) -> str:
        kinds = {
            "the same example": self.same,
            "the same but for spaces and punctuation": self.respaced,
            "sharing half of their words or more": self.alike,
        }
        counts = [f"{count:,} {kind}" for kind, count in kinds.items() if count]
        return f"{self.count:,} of {self.rows:,} measured rows: {', '.join(counts)}"


@dataclass(frozen=True, eq=False)
class RowFingerprints:
    """The rows that a model was calibrated on, without their texts: enough to know them again when
    it is measured.

    Three things are stored of a row. Its `Row.example`; its content, which is its words without
    case, spaces and punctuation; and its runs of 13 and of 8 words, as numbers. The first two say
    that a measured row is the same, the last that half of it was seen. Of a conversation the first
    two are stored of how it begins, too. Runs recur between the published sets as well, which take
    care of each other, so they are compared only where a file of the user's has a part in it:
    `own_files`.
    """

    examples: KnownExamples = field(default_factory=KnownExamples)
    contents: KnownExamples = field(default_factory=KnownExamples)
    runs: Numbers = field(default_factory=lambda: _NONE)
    own_files: bool = False

    @classmethod
    def of(cls, rows: Iterable[Row], own_files: bool = False) -> "RowFingerprints":
        """Return what is stored of these rows."""
        distinct = list({row.key: row for row in rows}.values())
        stored = _NONE
        new_runs: list[Numbers] = []
        for row in distinct:
            numbers = _words_to_compare(row)
            # The runs by which a measured row could be known in this one: of 13 words, of 8, and
            # the whole of a short one.
            new_runs += [runs(numbers, _LONG_RUN), runs(numbers, _SHORT_RUN)]
            if _LEAST_WORDS <= len(numbers) < _SHORT_RUN:
                new_runs.append(runs(numbers, len(numbers)))
            if sum(map(len, new_runs)) > MOST_RUNS:
                stored = _smallest([stored, *new_runs])
                new_runs = []
        examples = KnownExamples()
        examples.add(row.beginnings for row in distinct)
        contents = KnownExamples()
        contents.add(map(contents_of, distinct))
        return cls(examples, contents, _smallest([stored, *new_runs]), own_files)

    @classmethod
    def read(cls, manifest: Mapping[str, Any] | None, folder: str | Path) -> "RowFingerprints":
        """Return what `manifest`, the `calibrant.json` of a saved model, and the array beside it
        say; what can't be read counts as empty.
        """
        entries = manifest or {}
        return cls(
            KnownExamples(_texts(entries.get("examples")), _texts(entries.get("begun_examples"))),
            KnownExamples(_texts(entries.get("contents")), _texts(entries.get("begun_contents"))),
            _read_runs(Path(folder) / RUNS_FILE),
            entries.get("own_files") is True,
        )

    @property
    def entries(self) -> dict[str, Any]:
        """What a saved model's manifest says of them."""
        return {
            "examples": sorted(self.examples.whole),
            "contents": sorted(self.contents.whole),
            "own_files": self.own_files,
            "begun_examples": sorted(self.examples.begun),
            "begun_contents": sorted(self.contents.begun),
        }

    @property
    def files(self) -> dict[str, bytes]:
        """What stands in files beside the manifest: none for a model that was calibrated on
        nothing.
        """
        if not len(self.runs):
            return {}
        buffer = io.BytesIO()
        np.save(buffer, self.runs, allow_pickle=False)
        return {RUNS_FILE: buffer.getvalue()}

    def leaks(self, measured: Iterable[Row], own_files: bool = False) -> LeakCount:
        """Return how many of the measured rows these are; `own_files` says that the measured
        ones come from a file of the user's.
        """
        if not self.examples.whole and not self.contents.whole:
            return LeakCount()
        rows = list(measured)
        same: set[int] = set()
        respaced: set[int] = set()
        for place, row in enumerate(rows):
            if row.beginnings in self.examples:
                same.add(place)
            elif contents_of(row) in self.contents:
                respaced.add(place)
        alike: set[int] = set()
        if own_files or self.own_files:
            alike = self._alike(rows) - same - respaced
        return LeakCount(len(same), len(respaced), len(alike), len(rows))

    def _alike(self, measured: list[Row]) -> set[int]:
        """Return the places of the rows of whose runs at least half were seen; runs that stand
        in more than `COMMON` of them don't count.
        """
        prompts = _shared_prompts(measured)
        runs_by_row: list[Numbers] = []
        for row in measured:
            numbers = _words_to_compare(row, prompts)
            runs_by_row.append(np.unique(runs(numbers, _run_length(len(numbers)))))
        row_count = len(runs_by_row)
        sizes = [len(row_runs) for row_runs in runs_by_row]
        rows_of_runs = np.repeat(np.arange(row_count), sizes)
        if not len(rows_of_runs) or not len(self.runs):
            return set()
        run_numbers, number_places, counts = np.unique(
            np.concatenate(runs_by_row), return_inverse=True, return_counts=True
        )
        judged = counts <= COMMON
        # Before the sample is looked at: how many runs a row has by which it could be judged.
        judged_counts = np.bincount(rows_of_runs, judged[number_places], row_count)
        if len(self.runs) == MOST_RUNS:
            # A full array is a sample: it says nothing of numbers above its largest.
            judged &= run_numbers <= self.runs[-1]
        seen = judged & np.isin(run_numbers, self.runs)
        compared = np.bincount(rows_of_runs, judged[number_places], row_count)
        shared = np.bincount(rows_of_runs, seen[number_places], row_count)
        enough = (compared > 0) & (compared >= np.minimum(judged_counts, FEW_RUNS))
        half_seen = 2 * shared >= compared
        return set(np.flatnonzero(enough & half_seen).tolist())


def _smallest(parts: list[Numbers]) -> Numbers:
    """Return the distinct numbers of all parts, sorted, as many as are stored."""
    return np.unique(np.concatenate(parts))[:MOST_RUNS]


def _texts(entry: Any) -> set[str]:
    """Return the texts of a list in a manifest; none where it is something else."""
    if not isinstance(entry, list):
        return set()
    return {text for text in entry if isinstance(text, str)}


@dataclass(frozen=True)
class _NumberedRow:
    """A calibration row as it is compared: `Row.beginnings`, and a number for each of its words."""

    beginnings: tuple[str, ...]
    numbers: Numbers

    @property
    def example(self) -> str:
        return self.beginnings[-1]


class _Index:
    """The measured rows by their examples and by their runs of words."""

    def __init__(self, measured: Iterable[Row]) -> None:
        self.examples: list[str] = []
        # By the length of the runs: 13, 8, or 0 for a row of 4 to 7 words, which is one run.
        by_length: defaultdict[int, list[tuple[int, Numbers]]] = defaultdict(list)
        rows = list(measured)
        prompts = _shared_prompts(rows)
        # The measured conversations by each of their beginnings.
        self._by_beginning: defaultdict[str, set[str]] = defaultdict(set)
        for place, row in enumerate(rows):
            *begun, example = row.beginnings
            self.examples.append(example)
            for beginning in begun:
                self._by_beginning[beginning].add(example)
            numbers = _words_to_compare(row, prompts)
            length = _run_length(len(numbers))
            distinct_runs = np.unique(runs(numbers, length))
            if length not in (_LONG_RUN, _SHORT_RUN):
                length = 0
            if len(distinct_runs):
                by_length[length].append((place, distinct_runs))
        self._known = frozenset(self.examples)
        self._tables = {length: _RunTable(known) for length, known in by_length.items()}

    def same(self, batch: list[_NumberedRow]) -> Iterator[Leak]:
        """Yield the rows that are a measured example, begin one, or begin with one."""
        for row in batch:
            measured = self._known.intersection(row.beginnings)
            measured |= self._by_beginning.get(row.example, set())
            for example in sorted(measured):
                yield Leak(row.example, example, "same example", 1.0)

    def shared(self, batch: list[_NumberedRow]) -> Iterator[Leak]:
        """Yield the rows that have runs of words in common with what is measured."""
        for length, table in self._tables.items():
            if length:
                owners, numbers = _runs_of(batch, length)
            else:
                owners, numbers = _short_rows(batch)
            kind = "13-gram" if length == _LONG_RUN else "8-gram"
            for row, measured, share in table.shares(owners, numbers, len(self.examples)):
                yield Leak(batch[row].example, self.examples[measured], kind, share)


def _runs_of(batch: list[_NumberedRow], length: int) -> tuple[Indices, Numbers]:
    """Return the runs of so many words, and in which row each stands."""
    sizes = [len(row.numbers) for row in batch]
    owners = np.repeat(np.arange(len(batch), dtype=np.int64), sizes)
    numbers = runs(np.concatenate([row.numbers for row in batch]), length)
    begins = owners[: len(numbers)]
    ends = owners[len(owners) - len(numbers) :]
    # All rows were joined: a run that begins in one and ends in the next belongs to neither.
    whole = begins == ends
    return begins[whole], numbers[whole]


def _short_rows(batch: list[_NumberedRow]) -> tuple[Indices, Numbers]:
    """Return the rows of 4 to 7 words, each as one run, and which rows they are."""
    owners: list[int] = []
    numbers: list[Numbers] = [_NONE]
    for place, row in enumerate(batch):
        if _LEAST_WORDS <= len(row.numbers) < _SHORT_RUN:
            owners.append(place)
            numbers.append(runs(row.numbers, len(row.numbers)))
    return np.array(owners, dtype=np.int64), np.concatenate(numbers)


class _RunTable:
    """In which measured rows a run of words stands: sorted numbers, and for each the rows that have
    it.

    Made of (row, its distinct runs), for rows that have any.
    """

    def __init__(self, rows: list[tuple[int, Numbers]]) -> None:
        places = np.array([place for place, _ in rows], dtype=np.int32)
        sizes = [len(row_runs) for _, row_runs in rows]
        numbers = np.concatenate([row_runs for _, row_runs in rows])
        owners = np.repeat(places, sizes)
        # Stable, so that the rows of one run stand in their own order.
        order = np.argsort(numbers, kind="stable")
        keys, begins, counts = np.unique(numbers[order], return_index=True, return_counts=True)
        rare = counts <= COMMON
        self._keys = keys[rare]
        self._begins = begins[rare]
        self._counts = counts[rare]
        self._owners = owners[order]
        rare_owners = self._owners[np.repeat(rare, counts)]
        last_row, _ = rows[-1]
        self._sizes = np.bincount(rare_owners, minlength=last_row + 1)
        # Nearly every run that is looked up is in no measured row. A small table, by the first bits
        # of a run's number, says so at once for most of them.
        bits = min(24, max(8, 4 + len(keys).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._may_hold = np.zeros(1 << bits, dtype=np.bool_)
        self._may_hold[self._keys >> self._shift] = True

    def shares(
        self, owners: Indices, numbers: Numbers, measured_count: int
    ) -> Iterator[tuple[int, int, float]]:
        """Yield (calibration row, measured row, the share of the latter's runs) for rows that
        meet; `owners` says in which row each run stands.
        """
        likely = np.flatnonzero(self._may_hold[numbers >> self._shift])
        places = np.searchsorted(self._keys, numbers[likely])
        # A number above all keys would have its place behind the last.
        within = places < len(self._keys)
        likely = likely[within]
        places = places[within]
        found = self._keys[places] == numbers[likely]
        likely = likely[found]
        places = places[found]
        if not len(places):
            return
        # A run counts once, however often the calibration row repeats it.
        distinct = np.unique(owners[likely] * len(self._keys) + places)
        calibration_rows, key_places = np.divmod(distinct, len(self._keys))
        counts = self._counts[key_places]
        # A run's owners stand together. Their places, run after run, count up from its first one;
        # so what was counted for the runs before it is taken off.
        counted_before = np.cumsum(counts) - counts
        offsets = self._begins[key_places] - counted_before
        owner_places = np.repeat(offsets, counts) + np.arange(counts.sum())
        measured_rows = self._owners[owner_places]
        meetings = np.repeat(calibration_rows, counts) * measured_count + measured_rows
        pairs, shared = np.unique(meetings, return_counts=True)
        for pair, count in zip(pairs.tolist(), shared.tolist(), strict=True):
            calibration_row, measured_row = divmod(pair, measured_count)
            yield calibration_row, measured_row, count / int(self._sizes[measured_row])


def _shared_prompts(measured: list[Row]) -> frozenset[str]:
    """Return the system prompts that half of the conversations have, three at least."""
    conversations = [row.turns for row in measured if row.turns]
    counts = Counter[str]()
    for turns in conversations:
        counts.update({turn.said for turn in turns if turn.role in ("system", "developer")})
    least = max(3, len(conversations) / 2)
    return frozenset(prompt for prompt, count in counts.items() if count >= least)


def _words_to_compare(row: Row, prompts: frozenset[str] = frozenset()) -> Numbers:
    """Return numbers for the words that a model would learn from, without these system prompts.
    Where the frame is empty, the question brings its own marks, such as `Premise:`.
    """
    question = row.question
    if question and not row.frame[0]:
        question = _SENTENCE_MARK.sub("", question)
    texts = [row.text, question, row.rationale]
    # A letter that stands for a choice gives nothing away.
    if not row.labels:
        texts.append(row.answer)
    texts += row.said
    # The first exchange of a conversation may stand in question and answer too: each text is read
    # once.
    distinct = [text for text in dict.fromkeys(texts) if text and text not in prompts]
    return numbered(words("\n".join(distinct)))


def _run_length(count: int) -> int:
    """Return how long the runs are by which a text of `count` words is known; more than it has
    if it is too short to be known.
    """
    if count >= _LONG_RUN or count < _LEAST_WORDS:
        return _LONG_RUN
    return min(count, _SHORT_RUN)


def _batches(rows: Iterable[Row]) -> Iterator[list[_NumberedRow]]:
    """Yield rows in lots of some 200,000 words, so that what numpy does for each lot is worth
    its calls.
    """
    batch: list[_NumberedRow] = []
    size = 0
    for row in rows:
        numbers = _words_to_compare(row)
        batch.append(_NumberedRow(row.beginnings, numbers))
        size += len(numbers) + 1
        if size >= _WORDS_AT_ONCE:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def _read_runs(path: Path) -> Numbers:
    """Return the array; empty where there is none, as beside an older model, or one that isn't
    ours.
    """
    try:
        # Mapped, so that a header that promises more than the file holds is refused and not
        # believed.
        stored = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, OverflowError, TypeError, MemoryError):
        return _NONE
    if stored.dtype != np.uint64 or stored.ndim != 1 or len(stored) > MOST_RUNS:
        return _NONE
    if not np.all(stored[1:] > stored[:-1]):
        return _NONE
    return stored
