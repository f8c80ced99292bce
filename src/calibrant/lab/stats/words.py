"""What each calibration set kept of which words, or of which languages' neurons, means over
draws: the groups of a `words` measurement, or the languages of a `lape` one, by the sets of a
study.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrant.errors import DataError
from calibrant.lab.stats.results import Results, Setting, grouped, read
from calibrant.results import Score, Store

COLUMNS = {"words": "word", "languages": "language"}
"""Under which fact a measurement stores columns, and what the column of names is called; beside
it stand `count` and `kept`.
"""


@dataclass(frozen=True)
class KeptWords:
    """For one model, method, target and propagation: groups of words, and what each set kept of
    them.

    `kept` is by set in the order of the study, and by word in the order of `words`; NaN where a set
    lacks it. `counts` say how often each group stands in the text that `measured` names, and
    `draws` over how many draws each set's figures are means. Where languages take the place of
    words, `counts` are how many neurons of the untouched model are specific to each.
    """

    model: str
    method: str
    target: str
    propagate: str
    measured: str
    words: tuple[str, ...]
    counts: tuple[int, ...]
    sets: tuple[str, ...]
    kept: tuple[tuple[float, ...], ...]
    draws: tuple[int, ...]

    @property
    def means(self) -> tuple[float, ...]:
        """What the sets keep of each word, on average over those that have it."""
        return tuple(_mean([row[at] for row in self.kept]) for at in range(len(self.words)))

    @property
    def best(self) -> tuple[str, ...]:
        """The set that kept most of each word; of equals the first, nothing where no set has it.
        Descriptive: no difference is tested here.
        """
        return tuple(self._best(at) for at in range(len(self.words)))

    def _best(self, at: int) -> str:
        known = [
            (row[at], name)
            for row, name in zip(self.kept, self.sets, strict=True)
            if not math.isnan(row[at])
        ]
        return max(known, key=lambda one: one[0])[1] if known else ""

    def worst_first(self) -> "KeptWords":
        """Return the same with the words of which least is kept first."""
        means = self.means
        order = sorted(
            range(len(self.words)),
            key=lambda at: (math.isnan(means[at]), means[at], self.words[at]),
        )
        take = lambda values: tuple(values[at] for at in order)  # noqa: E731
        kept = tuple(take(row) for row in self.kept)
        return KeptWords(
            self.model,
            self.method,
            self.target,
            self.propagate,
            self.measured,
            take(self.words),
            take(self.counts),
            self.sets,
            kept,
            self.draws,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data; None for what isn't known."""
        where = {
            name: getattr(self, name)
            for name in ("model", "method", "target", "propagate", "measured")
        }
        words = [
            {
                "word": word,
                "count": count,
                "best": best,
                "kept": {
                    name: None if math.isnan(row[at]) else row[at]
                    for name, row in zip(self.sets, self.kept, strict=True)
                },
            }
            for at, (word, count, best) in enumerate(
                zip(self.words, self.counts, self.best, strict=True)
            )
        ]
        return {**where, "draws": dict(zip(self.sets, self.draws, strict=True)), "words": words}


def kept_words(study: str | Path | Store) -> tuple[KeptWords, ...]:
    """Return a table for each setting and each evaluator that measured words in a study's folder,
    the words of which least is kept first.

    Raises `OutputError` for a folder that holds no results, `DataError` where no words were
    measured.
    """
    store = study if isinstance(study, Store) else Store(study, create=False)
    found = kept_words_in(read(store, items=False))
    if not found:
        raise DataError(
            f"{str(store.folder)!r} holds no measurement of words with a calibration set; add words(source=…) to what the study evaluates, and run "
            f"it again",
            subject=str(store.folder),
        )
    return found


def kept_words_in(results: Results) -> tuple[KeptWords, ...]:
    """Return the same of results that were read; nothing where no words were measured."""
    return tuple(_tables(results, "words"))


def kept_languages_in(results: Results) -> tuple[KeptWords, ...]:
    """Return what each set kept of the neurons that are specific to each language; nothing where
    no study measured `lape`.
    """
    return tuple(_tables(results, "languages"))


def _tables(results: Results, kind: str) -> Iterator[KeptWords]:
    for setting, cells in grouped(results.cells).items():
        for text in dict.fromkeys(text for cell in cells for text in cell.measures):
            # By set and run: a run that answers several cells of a set is one draw of it.
            found = {
                (cell.data, cell.run): results.scores.get(cell.run, {}).get(
                    cell.measures.get(text, "")
                )
                for cell in cells
                if cell.data
            }
            sound = [
                (data, one.score)
                for (data, _), one in found.items()
                if one is not None and _sound(one.score.facts.get(kind), COLUMNS[kind])
            ]
            if sound:
                yield _table(setting, sound, kind).worst_first()


def _sound(columns: Any, named: str) -> bool:
    """Whether these are columns of words, as long as one another: a store may come from
    anywhere.
    """
    names = (named, "count", "kept")
    if not isinstance(columns, Mapping) or not all(
        isinstance(columns.get(name), list) for name in names
    ):
        return False
    words, counts, kept = (columns[name] for name in names)
    kinds = all(isinstance(word, str) for word in words) and all(isinstance(n, int) for n in counts)
    return (
        kinds
        and len(words) == len(counts) == len(kept)
        and all(isinstance(value, int | float) and math.isfinite(value) for value in kept)
    )


def _table(setting: Setting, sound: Sequence[tuple[str, Score]], kind: str) -> KeptWords:
    by_draw: dict[str, list[dict[str, float]]] = {}
    counts: dict[str, int] = {}
    for data, score in sound:
        columns = score.facts[kind]
        names = columns[COLUMNS[kind]]
        by_draw.setdefault(data, []).append(dict(zip(names, columns["kept"], strict=True)))
        counts |= dict(zip(names, columns["count"], strict=True))
    kept = tuple(
        tuple(_mean([draw[word] for draw in each if word in draw]) for word in counts)
        for each in by_draw.values()
    )
    draws = tuple(len(each) for each in by_draw.values())
    return KeptWords(
        *setting,
        sound[0][1].measured,
        tuple(counts),
        tuple(counts.values()),
        tuple(by_draw),
        kept,
        draws,
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
