"""What each calibration set kept: of which words, of which languages' neurons, and which experts of
a mixture.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from calibrant.errors import DataError
from calibrant.lab.stats.results import Results, Setting, grouped, read
from calibrant.results import Cell, Score, Store

NAMED_BY: Final = {"words": "word", "languages": "language"}
"""The facts of a score that hold columns, and what their column of names is called. The other two
columns are `count` and `kept`.
"""

DROPPED: Final = "drop_experts"
"""What an edit that drops experts is called in a record."""

Experts = Mapping[int, frozenset[int]]
"""The numbers of the experts that are left, by block."""


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
        return tuple(_mean(column) for column in zip(*self.kept, strict=True))

    @property
    def best(self) -> tuple[str, ...]:
        """The set that kept most of each word; of equals the first, nothing where no set has it.
        Descriptive: no difference is tested here.
        """
        found: list[str] = []
        for column in zip(*self.kept, strict=True):
            best = ""
            most = -math.inf
            for name, share in zip(self.sets, column, strict=True):
                # Never so for a share that isn't a number.
                if share > most:
                    best = name
                    most = share
            found.append(best)
        return tuple(found)

    def worst_first(self) -> "KeptWords":
        """Return the same with the words of which least is kept first."""
        means = self.means

        def place(index: int) -> tuple[bool, float, str]:
            return math.isnan(means[index]), means[index], self.words[index]

        order = sorted(range(len(self.words)), key=place)
        words = tuple(self.words[index] for index in order)
        counts = tuple(self.counts[index] for index in order)
        kept: list[tuple[float, ...]] = []
        for row in self.kept:
            kept.append(tuple(row[index] for index in order))
        return replace(self, words=words, counts=counts, kept=tuple(kept))

    def to_json(self) -> dict[str, Any]:
        """Return plain data; None for what isn't known."""
        words: list[dict[str, Any]] = []
        columns = zip(*self.kept, strict=True)
        for word, count, best, column in zip(
            self.words, self.counts, self.best, columns, strict=True
        ):
            kept: dict[str, float | None] = {}
            for name, share in zip(self.sets, column, strict=True):
                kept[name] = None if math.isnan(share) else share
            words.append({"word": word, "count": count, "best": best, "kept": kept})
        return {
            "model": self.model,
            "method": self.method,
            "target": self.target,
            "propagate": self.propagate,
            "measured": self.measured,
            "draws": dict(zip(self.sets, self.draws, strict=True)),
            "words": words,
        }


def kept_words(study: str | Path | Store) -> tuple[KeptWords, ...]:
    """Return a table for each setting and each evaluator that measured words in a study's folder,
    the words of which least is kept first.

    Raises `OutputError` for a folder that holds no results, `DataError` where no words were
    measured.
    """
    if not isinstance(study, Store):
        with Store(study, create=False) as store:
            return kept_words(store)
    found = kept_words_in(read(study, items=False))
    if not found:
        raise DataError(
            f"{str(study.folder)!r} holds no measurement of words with a calibration set; "
            "add words(source=…) to what the study evaluates, and run it again",
            subject=str(study.folder),
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
        texts: dict[str, None] = {}
        for cell in cells:
            texts |= dict.fromkeys(cell.measures)
        for text in texts:
            scores = _scores(results, cells, text, kind)
            if scores:
                yield _table(setting, scores, kind).worst_first()


def _scores(
    results: Results, cells: Sequence[Cell], text: str, kind: str
) -> list[tuple[str, Score]]:
    """Return the sets' names and scores that hold columns of words, one for each draw."""
    scores: list[tuple[str, Score]] = []
    for cell in _one_a_draw(cells):
        measure_id = cell.measures.get(text, "")
        measurement = results.scores.get(cell.run, {}).get(measure_id)
        if measurement and _readable(measurement.score.facts.get(kind), NAMED_BY[kind]):
            scores.append((cell.data, measurement.score))
    return scores


def _one_a_draw(cells: Sequence[Cell]) -> Iterable[Cell]:
    """Return a cell for each draw of a set: a run that answers several cells of it is one draw."""
    draws = {(cell.data, cell.run): cell for cell in cells if cell.data}
    return draws.values()


def _readable(columns: Any, name_column: str) -> bool:
    """Say whether these are columns of words of one length. A store may come from anywhere, so
    nothing about them is certain.
    """
    if not isinstance(columns, Mapping):
        return False
    words = columns.get(name_column)
    counts = columns.get("count")
    kept = columns.get("kept")
    if not isinstance(words, list) or not isinstance(counts, list) or not isinstance(kept, list):
        return False
    if not len(words) == len(counts) == len(kept):
        return False
    if not all(isinstance(word, str) for word in words):
        return False
    if not all(isinstance(count, int) for count in counts):
        return False
    return all(isinstance(share, int | float) and math.isfinite(share) for share in kept)


def _table(setting: Setting, scores: Sequence[tuple[str, Score]], kind: str) -> KeptWords:
    draws_by_set: dict[str, list[dict[str, float]]] = {}
    counts: dict[str, int] = {}
    for data, score in scores:
        columns = score.facts[kind]
        words = columns[NAMED_BY[kind]]
        shares = dict(zip(words, columns["kept"], strict=True))
        draws_by_set.setdefault(data, []).append(shares)
        counts |= dict(zip(words, columns["count"], strict=True))
    kept: list[tuple[float, ...]] = []
    for draws in draws_by_set.values():
        row: list[float] = []
        for word in counts:
            by_draw = [shares.get(word, math.nan) for shares in draws]
            row.append(_mean(by_draw))
        kept.append(tuple(row))
    _, first_score = scores[0]
    return KeptWords(
        **setting._asdict(),
        measured=first_score.measured,
        words=tuple(counts),
        counts=tuple(counts.values()),
        sets=tuple(draws_by_set),
        kept=tuple(kept),
        draws=tuple(map(len, draws_by_set.values())),
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    return math.fsum(known) / len(known)


@dataclass(frozen=True)
class KeptExperts:
    """One group of runs. `kept` is the share of a set's draws that keep an expert, numbered as in
    the dense model.

    `jaccard` is the share of the experts of a layer that both keep among those that either keeps,
    the mean over layers and over all pairs of draws of the two sets, never a draw with itself: the
    diagonal is between draws of one set, and NaN for a set that was drawn once. `chance` is what
    two sets of as many experts have that are drawn at random.
    """

    model: str
    method: str
    target: str
    propagate: str
    sets: tuple[str, ...]
    draws: tuple[int, ...]
    blocks: tuple[int, ...]
    kept: Float[np.ndarray, "set block expert"]
    jaccard: Float[np.ndarray, "set set"]
    chance: float


def kept_experts(results: Results) -> Iterator[KeptExperts]:
    """Yield every group of the grid whose runs dropped experts, in the order of its rankings.

    Where runs of a group have layers of other blocks or numbers of experts, those of the first are
    compared.
    """
    for setting, cells in grouped(results.cells).items():
        runs: dict[str, list[Experts]] = {}
        shape: dict[int, int] = {}
        for cell in _one_a_draw(cells):
            record = results.records.get(cell.run)
            if record is None:
                continue
            counts, left = survivors(record.edits)
            shape = shape or counts
            if counts and counts == shape:
                runs.setdefault(cell.data, []).append(left)
        if runs:
            yield _kept(setting, runs, shape)


def _kept(
    setting: Setting, runs: Mapping[str, Sequence[Experts]], shape: Mapping[int, int]
) -> KeptExperts:
    """Return what the runs of each set kept, where `shape` is how many experts each block had."""
    sets = tuple(runs)
    blocks = tuple(sorted(shape))
    kept = np.zeros((len(sets), len(blocks), max(shape.values())))
    jaccard = np.zeros((len(sets), len(sets)))
    chances: list[float] = []
    for row, draws in enumerate(runs.values()):
        for left in draws:
            for column, block in enumerate(blocks):
                kept[row, column, list(left[block])] += 1
                chances.append(overlap_by_chance(shape[block], len(left[block])))
        kept[row] /= len(draws)
        for column, name in enumerate(sets):
            jaccard[row, column] = _mean_overlap(draws, runs[name], same=row == column)
    return KeptExperts(
        **setting._asdict(),
        sets=sets,
        draws=tuple(map(len, runs.values())),
        blocks=blocks,
        kept=kept,
        jaccard=jaccard,
        chance=float(np.mean(chances)),
    )


def survivors(
    edits: Sequence[Mapping[str, Any]],
) -> tuple[dict[int, int], dict[int, frozenset[int]]]:
    """Return by block how many experts there were and which are left, by their first numbers. A
    later edit counts those that the earlier ones left.

    >>> first = {"edit": "drop_experts", "experts": {"0": [1]}, "of": 4}
    >>> survivors([first, {"edit": "drop_experts", "experts": {"0": [1]}, "of": 3}])
    ({0: 4}, {0: frozenset({0, 3})})
    """
    counts: dict[int, int] = {}
    left: dict[int, list[int]] = {}
    for edit in edits:
        if edit.get("edit") != DROPPED:
            continue
        for block, dropped_places in edit["experts"].items():
            number = int(block)
            count = edit["of"]
            counts.setdefault(number, count)
            before = left.get(number, list(range(count)))
            after: list[int] = []
            for place, expert in enumerate(before):
                if place not in dropped_places:
                    after.append(expert)
            left[number] = after
    return counts, {block: frozenset(experts) for block, experts in left.items()}


def overlap(first: Experts, second: Experts) -> float:
    """Return |A ∩ B| / |A ∪ B| of the experts that two runs keep, the mean over blocks."""
    shares: list[float] = []
    for block in first:
        both = first[block] & second[block]
        either = first[block] | second[block]
        shares.append(len(both) / len(either))
    return float(np.mean(shares))


def overlap_by_chance(experts: int, kept: int) -> float:
    """Return the mean of |A ∩ B| / |A ∪ B| over sets of `kept` of so many `experts`, each as likely
    as any other (hypergeometric).

    >>> f"{overlap_by_chance(16, 8):.3f}"
    '0.343'
    """
    from scipy.stats import hypergeom

    shared = np.arange(max(0, 2 * kept - experts), kept + 1)
    likely = hypergeom.pmf(shared, experts, kept, kept)
    return float((likely * shared / (2 * kept - shared)).sum())


def _mean_overlap(left: Sequence[Experts], right: Sequence[Experts], same: bool) -> float:
    """Return the mean overlap over pairs of draws; of a set with itself no draw with itself."""
    pairs = combinations(left, 2) if same else product(left, right)
    found = [overlap(first, second) for first, second in pairs]
    if not found:
        return math.nan
    return float(np.mean(found))
