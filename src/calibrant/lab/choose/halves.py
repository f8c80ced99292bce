"""A held-out sibling of a user's file: its rows in two halves that have as few templates in common
as can be.

A set that was drawn from the file on which it is judged knows more than the kind of text: it knows
the file's templates, its names, its way of putting things. What it would be on other text of the
same kind can be seen where the file is divided not by chance but by template: calibrated on one
half and judged by the other, and the other way round.

Rows are compared by runs of three words in which numbers are masked, or by words where the rows
have hardly a run in common. Rows that are alike are put into clusters (k-means with the cosine,
begun from the rows that are farthest from one another), and of all ways to deal the clusters onto
two halves of similar size, that with the smallest likeness between the halves is taken. Nothing is
random.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from calibrant.data import CalibrationSet, Row, Source
from calibrant.data._words import words
from calibrant.data.expression import Term, parse_source, written
from calibrant.data.user_file import UserFile
from calibrant.spec.grammar import written_mix, written_path
from calibrant.system.durable import put

MOST_ROWS: Final = 5_000
"""Rows that are clustered; the others go to the cluster that they are most like."""
CLUSTERS: Final = 10
FEWEST: Final = 10
"""Rows that a half must have in each of its parts."""
COMMON: Final = 0.5
"""From this share of runs of words in common on, texts are said to have templates in common."""

_FEATURES: Final = 4_000
_LEAST_SHARE: Final = 0.35
"""Of the tokens, in the smaller half."""
_TURNS: Final = 20


@dataclass(frozen=True)
class Halves:
    """The halves of `source`: a folder each, with a train file to calibrate on and a test file to
    judge by, and the names of the measured rows.

    `inside` is how much of a measured row, in runs of five words with masked numbers, stands in
    what its own half calibrates on; `across`, how much of it stands in the other half.
    """

    source: UserFile
    folders: tuple[str, str]
    items: tuple[frozenset[str], frozenset[str]]
    inside: float
    across: float

    def of(self, data: str, side: int) -> str:
        """Return the expression with the rows of half `side` (0 or 1) in the place of the
        file's.
        """
        return self._halved(CalibrationSet(data), parse_source(self.folders[side]))

    def _halved(self, data: CalibrationSet, half: Source) -> str:
        if data.mixed:
            texts = [self._halved(part, half) for part in data.mixed]
            return written_mix(data.names, texts, data.shares)
        return written(
            [replace(term, source=half) if self.holds(term) else term for term in data.parts]
        )

    def holds(self, term: Term) -> bool:
        """Whether a part of a set is of the file."""
        return term.source == self.source


def halves_of(source: UserFile, place: Path) -> Halves | str:
    """Divide a file and write its halves into folders of `place`; or say why that can't be done."""
    parts = source.part("calibrate").rows, source.part("measure").rows
    if min(map(len, parts)) < 2 * FEWEST:
        return f"{source} has {len(parts[0])} rows to calibrate on and {len(parts[1])} to measure, too few to be divided"
    texts = [text_of(row) for part in parts for row in part]
    sides = divide(texts)
    calibrating, measuring = sides[: len(parts[0])], sides[len(parts[0]) :]
    rows = [
        [
            [row for row, of in zip(part, on, strict=True) if of == side]
            for part, on in zip(parts, (calibrating, measuring), strict=True)
        ]
        for side in (0, 1)
    ]
    if min(len(part) for half in rows for part in half) < FEWEST:
        return f"the rows of {source} are so alike that no two halves of them are different"
    folders: list[str] = []
    for number, (train, test) in enumerate(rows, 1):
        folder = place / f"half-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in (("train", train), ("test", test)):
            records = map(record, part)
            lines = [json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in records]
            put(folder / f"{name}.jsonl", "".join(lines).encode())
        folders.append(written_path(str(folder)))
    seen = [runs_of(map(text_of, half[0])) for half in rows]
    inside, across = (
        float(
            np.mean(
                [
                    held(text_of(row), seen[side if own else 1 - side])
                    for side in (0, 1)
                    for row in rows[side][1]
                ]
            )
        )
        for own in (True, False)
    )
    names = frozenset(row.name for row in rows[0][1]), frozenset(row.name for row in rows[1][1])
    return Halves(source, (folders[0], folders[1]), names, inside, across)


def in_common(source: UserFile) -> float:
    """Return how much of the rows that a file measures on stands in what it calibrates on, in
    runs of five words with masked numbers: 0 to 1.
    """
    seen = runs_of(map(text_of, source.part("calibrate").rows))
    return float(np.mean([held(text_of(row), seen) for row in source.part("measure").rows]))


def text_of(row: Row) -> str:
    """Return all that a row says."""
    return "\n".join(
        filter(
            None,
            (
                row.text,
                row.question,
                row.rationale,
                row.answer,
                *(content for _, content in row.turns),
            ),
        )
    )


def record(row: Row) -> dict[str, Any]:
    """Return a row as a file has it that reads back as the same row."""
    values = {name: getattr(row, name) for name in row.present if name != "turns"}
    turns = [{"role": role, "content": content} for role, content in row.turns]
    return {**values, **({"turns": turns} if turns else {})}


def masked(text: str) -> list[str]:
    """Return the words of a text, each number as 0.

    >>> masked("Ana has 12 pens.")
    ['ana', 'has', '0', 'pens']
    """
    return ["0" if any(map(str.isdigit, word)) else word for word in words(text)]


def runs_of(texts: Iterable[str], length: int = 5) -> frozenset[tuple[str, ...]]:
    """Return all runs of `length` masked words."""
    return frozenset(run for text in texts for run in _runs(masked(text), length))


def held(text: str, seen: frozenset[tuple[str, ...]], length: int = 5) -> float:
    """Return the share of a text's runs that are among those seen; 0 for a text without."""
    own = {*_runs(masked(text), length)}
    return len(own & seen) / len(own) if own else 0.0


def divide(texts: Sequence[str]) -> Int[np.ndarray, " text"]:
    """Return for each text the half, 0 or 1, that it belongs to."""
    features = _features(texts)
    clusters = _clustered(features)
    sizes = np.bincount(clusters, weights=[len(text) for text in texts])
    sums = np.stack([features[clusters == cluster].sum(0) for cluster in range(len(sizes))])
    likeness = sums @ sums.T
    rows = np.bincount(clusters)
    best, chosen = (np.inf, np.inf), np.zeros(len(sizes), dtype=np.int64)
    for rest in itertools.product((0, 1), repeat=len(sizes) - 1):
        side = np.array((0, *rest))
        share = sizes[side == 1].sum() / sizes.sum()
        if 0 < share < 1:
            # What one large cluster leaves too little for is divided as evenly as can be.
            lacking = max(0.0, _LEAST_SHARE - min(share, 1 - share))
            across = likeness[side == 0][:, side == 1].sum() / (
                rows[side == 0].sum() * rows[side == 1].sum()
            )
            if (lacking, across) < best:
                best, chosen = (lacking, across), side
    return chosen[clusters]


def _features(texts: Sequence[str]) -> Float[np.ndarray, "text feature"]:
    """Return which of the usual runs of three words each text has, as vectors of length one."""
    spoken = [masked(text) for text in texts]
    kinds: list[set[tuple[str, ...]]] = [{*_runs(each, 3)} for each in spoken]
    counts = Counter(run for each in kinds for run in each)
    if sum(count for count in counts.values() if count > 2) < 3 * len(
        texts
    ):  # hardly a run that recurs: divided by words
        kinds = [{(word,) for word in each} for each in spoken]
        counts = Counter(run for each in kinds for run in each)
    # What nearly all have tells nothing apart, and what one has links it to no other.
    usual = sorted(
        (run for run, count in counts.items() if 2 < count < 0.9 * len(texts)),
        key=lambda run: (-counts[run], run),
    )[:_FEATURES]
    places = {run: place for place, run in enumerate(usual)}
    features = np.zeros((len(texts), max(1, len(usual))), dtype=np.float32)
    for number, each in enumerate(kinds):
        features[number, [places[run] for run in each if run in places]] = 1
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1)


def _clustered(features: Float[np.ndarray, "text feature"]) -> Int[np.ndarray, " text"]:
    """Return the cluster of each text, numbered without gaps."""
    looked_at = features[:: 1 + (len(features) - 1) // MOST_ROWS]
    centres = looked_at[:1]
    while len(centres) < min(CLUSTERS, len(looked_at)):
        nearest = (looked_at @ centres.T).max(1)
        centres = np.concatenate([centres, looked_at[[int(nearest.argmin())]]])
    for _ in range(_TURNS):
        own = (looked_at @ centres.T).argmax(1)
        sums = np.stack([looked_at[own == number].sum(0) for number in range(len(centres))])
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return np.unique((features @ centres.T).argmax(1), return_inverse=True)[1]


def _runs(spoken: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return (
        zip(*(spoken[begin:] for begin in range(length)), strict=False)
        if len(spoken) >= length
        else [tuple(spoken)] * bool(spoken)
    )
