"""A held-out sibling of a user's file: its rows in two halves with few templates in common.

A set that was drawn from the file on which it is judged knows more than the kind of text. It knows
the file's templates, its names, its way of putting things. What it would be on other text of the
same kind shows where the file is divided not by chance but by template: calibrated on one half and
judged by the other, and the other way round.

Rows are compared by runs of three words, in which numbers are masked, or by words where the rows
have hardly a run in common. Rows that are alike are put into clusters: k-means with the cosine,
begun from the rows that are farthest from one another. Of all ways to deal the clusters onto two
halves of similar size, that with the smallest likeness between the halves is taken. Nothing is
random.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from jaxtyping import Float, Int

from calibrant.data import CalibrationSet, PerDraw, Row, Source
from calibrant.data._words import words
from calibrant.data.expression import Term, parse_expression, parse_source, written
from calibrant.data.objects import with_sources, write_rows
from calibrant.data.user_file import UserFile
from calibrant.lab.stats.crossed import ItemValues, Side
from calibrant.lab.stats.results import GroupResults, Results
from calibrant.results import Cell
from calibrant.spec.grammar import written_path

MOST_ROWS: Final = 5_000
"""Rows that are clustered; the others go to the cluster that they are most like."""
MOST_DIVIDED: Final = 20_000
"""Rows of a file that is divided at most: the runs of words of all rows are held at once."""
CLUSTERS: Final = 10
FEWEST: Final = 10
"""Rows that a half must have in each of its parts."""
COMMON: Final = 0.5
"""From this share of runs of words in common on, texts are said to have templates in common."""
RUN: Final = 5
"""Words of a run that tells which template a text has."""

_FEATURES: Final = 4_000
"""Runs of words that texts are compared by at most."""
_LEAST_SHARE: Final = 0.35
"""The share of the letters that the smaller half has at least, where that can be had."""
_TURNS: Final = 20
"""Steps of k-means."""

WordRun = tuple[str, ...]
"""Neighbouring words of a text, with numbers masked."""


@dataclass(frozen=True)
class Halves:
    """The two halves of the file `source`.

    Each has a folder, with a train file to calibrate on and a test file to judge by. `items` are
    the names of each half's measured rows. `inside` is how much of a measured row, in runs of five
    words, stands in what its own half calibrates on; `across`, how much stands in the other half.
    """

    source: UserFile
    folders: tuple[str, str]
    items: tuple[frozenset[str], frozenset[str]]
    inside: float
    across: float

    def replaced_in(self, data: str, side: int) -> str:
        """Return an expression with the rows of half `side` (0 or 1) in the place of the file's."""
        half = parse_source(self.folders[side])

        def halved(source: Source) -> Source:
            if source == self.source:
                return half
            # A selector takes its rows, or what the model is asked, from the half.
            drawn_from = getattr(source, "source", "")
            if isinstance(source, PerDraw) and drawn_from:
                return replace(cast(Any, source), source=_with_sources(drawn_from, halved))
            return source

        return with_sources(CalibrationSet(data), halved)


def _with_sources(drawn_from: str, change: Callable[[Source], Source]) -> str:
    """What a selector draws from, with `change(source)` in the place of each source."""
    terms = list(parse_expression(drawn_from))
    changed_terms: list[Term] = []
    for term in terms:
        changed_terms.append(replace(term, source=change(term.source)))
    if changed_terms == terms:
        return drawn_from
    # A source alone stays alone: its rows keep their fields, which a format would take.
    if len(terms) == 1 and drawn_from.strip() == str(terms[0].source):
        return str(changed_terms[0].source)
    return written(changed_terms)


def swapped(data: str, halves: Sequence[Halves], side: int) -> str:
    """Return an expression with half `side` of each file in the place of that file."""
    for file_halves in halves:
        data = file_halves.replaced_in(data, side)
    return data


def halves_of(source: UserFile, place: Path) -> Halves | str:
    """Divide a file and write its halves into folders of `place`; or say why that can't be done."""
    calibrating = source.part("calibrate").rows
    measuring = source.part("measure").rows
    if min(len(calibrating), len(measuring)) < 2 * FEWEST:
        counts = f"{len(calibrating)} rows to calibrate on and {len(measuring)} to measure"
        return f"{source} has {counts}, too few to be divided"
    total = len(calibrating) + len(measuring)
    if total > MOST_DIVIDED:
        return f"{source} has {total:,} rows, and files of up to {MOST_DIVIDED:,} are divided"
    sides = divide([whole_text(row) for row in (*calibrating, *measuring)])
    count = len(calibrating)
    first_train, second_train = _dealt(calibrating, sides[:count])
    first_test, second_test = _dealt(measuring, sides[count:])
    parts = (first_train, second_train, first_test, second_test)
    if min(map(len, parts)) < FEWEST:
        return f"the rows of {source} are so alike that no two halves of them are different"
    first_folder = _written_half(place / "half-1", first_train, first_test)
    second_folder = _written_half(place / "half-2", second_train, second_test)
    first_runs = word_runs(map(whole_text, first_train))
    second_runs = word_runs(map(whole_text, second_train))
    tests = (first_test, second_test)
    return Halves(
        source,
        folders=(first_folder, second_folder),
        items=(_names(first_test), _names(second_test)),
        inside=_held_share(tests, (first_runs, second_runs)),
        across=_held_share(tests, (second_runs, first_runs)),
    )


def _written_half(folder: Path, train: Sequence[Row], test: Sequence[Row]) -> str:
    """Write the rows of one half into a folder, and return that as expressions name it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "test.jsonl", test)
    return written_path(str(folder))


def _dealt(rows: Sequence[Row], sides: Int[np.ndarray, " row"]) -> tuple[list[Row], list[Row]]:
    """The rows of each half."""
    halves: tuple[list[Row], list[Row]] = ([], [])
    for row, side in zip(rows, sides, strict=True):
        halves[side].append(row)
    return halves


def _names(rows: Sequence[Row]) -> frozenset[str]:
    return frozenset(row.name for row in rows)


def _held_share(tests: Sequence[Sequence[Row]], known: Sequence[frozenset[WordRun]]) -> float:
    """The mean share of a measured row's runs that stand in what is `known` for its half."""
    shares: list[float] = []
    for rows, runs in zip(tests, known, strict=True):
        shares += [held(whole_text(row), runs) for row in rows]
    return float(np.mean(shares))


def in_common(source: UserFile) -> float:
    """Return how much of a file's measured rows stands in what it calibrates on, 0 to 1.

    It is counted in runs of five words with masked numbers.
    """
    calibrating = word_runs(map(whole_text, source.part("calibrate").rows))
    return _held_share([source.part("measure").rows], [calibrating])


def whole_text(row: Row) -> str:
    """Return all that a row says."""
    texts = [row.text, row.question, row.rationale, row.answer]
    texts += row.said
    return "\n".join(filter(None, texts))


def masked(text: str) -> list[str]:
    """Return the words of a text, each number as 0.

    >>> masked("Ana has 12 pens.")
    ['ana', 'has', '0', 'pens']
    """
    masked_words: list[str] = []
    for word in words(text):
        if any(map(str.isdigit, word)):
            word = "0"
        masked_words.append(word)
    return masked_words


def word_runs(texts: Iterable[str]) -> frozenset[WordRun]:
    """Return all runs of `RUN` masked words."""
    runs: set[WordRun] = set()
    for text in texts:
        runs.update(_runs(masked(text), RUN))
    return frozenset(runs)


def held(text: str, known: frozenset[WordRun]) -> float:
    """Return the share of a text's runs that are among those known; 0 for a text without runs."""
    runs = set(_runs(masked(text), RUN))
    if not runs:
        return 0.0
    return len(runs & known) / len(runs)


def divide(texts: Sequence[str]) -> Int[np.ndarray, " text"]:
    """Return for each text the half, 0 or 1, that it belongs to."""
    features = _features(texts)
    clusters = _clustered(features)
    letters = np.bincount(clusters, weights=[len(text) for text in texts])
    rows = np.bincount(clusters)
    sums = _sums(features, clusters, len(rows))
    likeness = sums @ sums.T
    best_figures = (np.inf, np.inf)
    best = np.zeros(len(rows), dtype=np.int64)
    # Which half is called 0 makes no difference, so the first cluster is always in it.
    for others in itertools.product((0, 1), repeat=len(rows) - 1):
        half = np.array((0, *others))
        in_first = half == 0
        in_second = half == 1
        share = letters[in_second].sum() / letters.sum()
        if not 0 < share < 1:
            continue
        # What one large cluster leaves too little for is divided as evenly as can be.
        smaller_share = min(share, 1 - share)
        lacking_share = max(0.0, _LEAST_SHARE - smaller_share)
        # The mean likeness of a row of one half and a row of the other.
        pairs = rows[in_first].sum() * rows[in_second].sum()
        between = likeness[in_first][:, in_second]
        across = between.sum() / pairs
        figures = (lacking_share, across)
        if figures < best_figures:
            best_figures = figures
            best = half
    return best[clusters]


def _features(texts: Sequence[str]) -> Float[np.ndarray, "text feature"]:
    """Which of the usual runs of three words each text has, as vectors of length one."""
    word_lists = [masked(text) for text in texts]
    run_sets = [set(_runs(word_list, 3)) for word_list in word_lists]
    counts = _counted(run_sets)
    recurring = sum(count for count in counts.values() if count > 2)
    if recurring < 3 * len(texts):
        # Hardly a run recurs, so texts are compared by words.
        run_sets = [set(_runs(word_list, 1)) for word_list in word_lists]
        counts = _counted(run_sets)
    # What nearly all texts have tells none apart, and what one or two have links them to no other.
    nearly_all = 0.9 * len(texts)
    usual = [run for run, count in counts.items() if 2 < count < nearly_all]

    def order(run: WordRun) -> tuple[int, WordRun]:
        return -counts[run], run

    usual.sort(key=order)
    columns = {run: column for column, run in enumerate(usual[:_FEATURES])}
    width = max(1, len(columns))
    features = np.zeros((len(texts), width), dtype=np.float32)
    for row, runs in enumerate(run_sets):
        present = [columns[run] for run in runs if run in columns]
        features[row, present] = 1
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1)


def _counted(run_sets: Sequence[set[WordRun]]) -> Counter[WordRun]:
    """In how many texts each run occurs."""
    counts = Counter[WordRun]()
    for runs in run_sets:
        counts.update(runs)
    return counts


def _clustered(features: Float[np.ndarray, "text feature"]) -> Int[np.ndarray, " text"]:
    """The cluster of each text, numbered without gaps."""
    # Every row, or every second or third one where there are too many.
    stride = math.ceil(len(features) / MOST_ROWS)
    sample = features[::stride]
    centres = sample[:1]
    while len(centres) < min(CLUSTERS, len(sample)):
        nearest = (sample @ centres.T).max(1)
        farthest = int(nearest.argmin())
        centres = np.concatenate([centres, sample[[farthest]]])
    for _ in range(_TURNS):
        chosen = (sample @ centres.T).argmax(1)
        sums = _sums(sample, chosen, len(centres))
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = sums / np.maximum(lengths, 1e-9)
    chosen = (features @ centres.T).argmax(1)
    _, clusters = np.unique(chosen, return_inverse=True)
    return clusters


def _sums(
    features: Float[np.ndarray, "text feature"], clusters: Int[np.ndarray, " text"], count: int
) -> Float[np.ndarray, "cluster feature"]:
    """The sum of the texts of each of `count` clusters."""
    sums: list[Float[np.ndarray, " feature"]] = []
    for cluster in range(count):
        members = features[clusters == cluster]
        sums.append(members.sum(0))
    return np.stack(sums)


def _runs(word_list: Sequence[str], length: int) -> Iterable[WordRun]:
    """The runs of a text; a text that is shorter than one is a run itself."""
    if not word_list:
        return []
    if len(word_list) < length:
        return [tuple(word_list)]
    shifted = [word_list[begin:] for begin in range(length)]
    return zip(*shifted, strict=False)


def held_out_side(
    cells: Sequence[Cell],
    results: Results,
    group: GroupResults,
    half_runs: tuple[str, str],
    halves: Sequence[Halves],
) -> dict[str, Side] | None:
    """Return what was measured of a set on the held-out sibling, by measure; None if a half lacks.

    `half_runs` are the set calibrated on the first and on the second half of the file. Draw by
    draw, rows of the first half are taken from the second run, and rows of the second half from
    the first. Rows of neither, such as those of another goal, are the mean of both.
    """
    if not group.sides.keys() >= set(half_runs):
        return None
    first_name, second_name = half_runs
    first = _cells_by_draw(cells, group, first_name)
    second = _cells_by_draw(cells, group, second_name)
    items_by_half: list[frozenset[str]] = []
    for side in (0, 1):
        items: set[str] = set()
        for file_halves in halves:
            items |= file_halves.items[side]
        items_by_half.append(frozenset(items))
    is_overlapping = any(name in group.overlapping for name in half_runs)
    independence = "overlapping" if is_overlapping else "independent"
    sides: dict[str, Side] = {}
    for text, name in group.names.items():
        draws: list[ItemValues] = []
        for seed in sorted(first.keys() & second.keys()):
            first_cell = first[seed]
            second_cell = second[seed]
            first_values = results.items[first_cell.run][first_cell.measures[text]]
            second_values = results.items[second_cell.run][second_cell.measures[text]]
            draws.append(crossed(first_values, second_values, items_by_half))
        if not draws:
            return None
        sides[name] = Side.of(draws, independence)
    return sides


def _cells_by_draw(cells: Sequence[Cell], group: GroupResults, name: str) -> Mapping[int, Cell]:
    """The cells of a set whose runs are whole, by the number of the draw."""
    by_draw: dict[int, Cell] = {}
    for cell in cells:
        if cell.data == name and cell.run in group.runs[name]:
            by_draw[cell.seed] = cell
    return by_draw


def crossed(
    first: ItemValues, second: ItemValues, items_by_half: Sequence[frozenset[str]]
) -> ItemValues:
    """Return one measurement of two, each on the rows that it wasn't calibrated on.

    `first` was calibrated on the rows `items_by_half[0]`, so it gives the values of those in
    `items_by_half[1]`.
    """
    first_half, second_half = items_by_half
    in_first = np.array([item in first_half for item in first.items])
    in_second = np.array([item in second_half for item in first.items])
    mean = (first.values + second.values) / 2
    values = np.where(in_second, first.values, mean)
    values = np.where(in_first, second.values, values)
    return replace(first, values=values)
