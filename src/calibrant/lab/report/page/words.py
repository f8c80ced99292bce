"""The sections of forgotten words and of languages' neurons: words or languages by calibration
sets, each cell coloured by what the set kept.

All from the store. No torch here.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from calibrant.lab.report.page.contents import Contents
from calibrant.lab.report.plots.theme import STEPS
from calibrant.lab.stats import KeptWords, describe_target

MOST: Final = 200
"""Words of a table, those of which least is kept: a page of twenty sets stays small."""


@dataclass(frozen=True)
class WordRow:
    """A group of words, how often it stands in the text, the set that kept most of it, and each
    set's share with its colour; None for a hole.
    """

    word: str
    count: int
    best: str
    cells: tuple[tuple[float, int] | None, ...]


@dataclass(frozen=True)
class WordMap:
    """A table: its title, what was measured, its sets with their draws, its rows, how many words
    there are in all, and where colours change.
    """

    title: str
    measured: str
    sets: tuple[str, ...]
    draws: tuple[int, ...]
    rows: tuple[WordRow, ...]
    words: int
    steps: tuple[float, ...]


def word_maps(contents: Contents) -> Mapping[str, WordMap]:
    """Return a table for each setting and measurement of words, by the key that a chooser has
    for it.
    """
    return {
        f"words-{number}": _map(of, f"words of {of.measured}")
        for number, of in enumerate(contents.kept_words)
    }


def language_maps(contents: Contents) -> Mapping[str, WordMap]:
    """Return a table for each setting in which the neurons of languages were measured, by the
    key that a chooser has for it.
    """
    return {
        f"languages-{number}": _map(of, of.measured)
        for number, of in enumerate(contents.kept_languages)
    }


def _map(of: KeptWords, what: str) -> WordMap:
    steps = _steps([value for row in of.kept for value in row[:MOST] if not math.isnan(value)])
    best = of.best
    rows = [
        WordRow(word, of.counts[at], best[at], tuple(_cell(row[at], steps) for row in of.kept))
        for at, word in enumerate(of.words[:MOST])
    ]
    way = f", {of.propagate}" if of.propagate else ""
    title = f"{of.model}, {of.method} at {describe_target(of.target)}{way}: {what}"
    return WordMap(title, of.measured, of.sets, of.draws, tuple(rows), len(of.words), steps)


def _cell(value: float, steps: Sequence[float]) -> tuple[float, int] | None:
    return None if math.isnan(value) else (value, bisect_right(steps, value))


def _steps(values: Sequence[float]) -> tuple[float, ...]:
    """Return where the colour changes: so that each colour has about as many cells; a single
    outlier would take most of an even scale.
    """
    ordered = sorted(values)
    return (
        tuple(ordered[len(ordered) * step // STEPS] for step in range(1, STEPS)) if ordered else ()
    )
