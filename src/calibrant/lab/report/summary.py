"""The answer of a whole study: which set is best how often, one table of methods by sets, and
what ought to make a reader doubt it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from calibrant.errors import SpecError
from calibrant.lab.report.sentences import (
    NAMED,
    NOTHING_TO_RANK,
    ONLY_MEASURED,
    rise,
    short,
    worse_sign,
)
from calibrant.lab.report.tables.table import HOLE, Column, Figure, Table, TableRow, heading
from calibrant.lab.stats import (
    LEVEL,
    Comparison,
    Estimate,
    Ranking,
    RankingEntry,
    describe_target,
    is_rounded,
    join_names,
    sparsity_of,
    target_noun,
)
from calibrant.numerics import counted, decimals, percent, probability
from calibrant.results import Cell
from calibrant.results.records import UNTOUCHED
from calibrant.spec.grammar import pieces

LONGEST: Final = 20
"""Letters of a name that stands in a table as it is."""
BEST: Final = "*"
TIED: Final = "~"
"""The marks of a best set, and of one that cannot be distinguished from it."""


# Short names.


def short_method_names(texts: Iterable[str]) -> dict[str, str]:
    """Return a short name for each method, perhaps with an allocation behind it, by its text.

    >>> texts = ["gptq", "gptq(scales='importance')", "wanda + owl(spread=0.05)"]
    >>> short_method_names(texts).values()
    dict_values(['gptq', 'gptq importance', 'wanda + owl'])
    """
    return _short_names(texts, _kind_of_method)


def short_set_names(texts: Iterable[str]) -> dict[str, str]:
    """Return a short name for each calibration set, by its text.

    >>> short_set_names(["c4", "0.5*c4 + 0.5*python_code"]).values()
    dict_values(['c4', 'mixture'])
    """
    return _short_names(texts, _kind_of_set)


def _short_names(texts: Iterable[str], kind_of: Callable[[str], str]) -> dict[str, str]:
    kinds: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        kinds.setdefault(kind_of(text), []).append(text)
    names: dict[str, str] = {}
    for kind, alike in kinds.items():
        for number, text in enumerate(alike, 1):
            if "(" not in text and len(text) <= LONGEST:
                names[text] = text
            elif len(alike) == 1:
                names[text] = kind
            else:
                names[text] = _told_apart(text, kind, number)
    return names


def _told_apart(text: str, kind: str, number: int) -> str:
    """The short name of one of several of a kind: by its arguments, or where these are long by its
    number.
    """
    numbered = f"{kind} {number}"
    names = kind.split(" + ")
    parts = _parts_of(text)
    # All mixtures have one name, however many parts there are.
    if len(parts) != len(names):
        return numbered
    short_parts: list[str] = []
    for part, name in zip(parts, names, strict=True):
        arguments = part.removeprefix(name).strip("()")
        # `scales='importance'` is understood without its key, `swaps=25` is not.
        values = re.sub(r"\w+='([^']*)'", r"\1", arguments)
        words = f"{name} {values}".strip()
        if len(words) > LONGEST + len(name):
            return numbered
        short_parts.append(words)
    return " + ".join(short_parts)


def _parts_of(text: str) -> list[str]:
    """The parts between plus signs: of a method, itself and its allocation."""
    try:
        parts = pieces(text, "+")
    except SpecError:
        parts = [text]
    return [part.strip() for part in parts]


def _kind_of_method(text: str) -> str:
    return " + ".join(part.partition("(")[0].strip() for part in _parts_of(text))


def _kind_of_set(text: str) -> str:
    if len(text) > LONGEST and " + " in text.partition("(")[0]:
        return "mixture"
    return text.partition("(")[0]


Way = tuple[str, str, str, str]
"""What a ranking is about: model, method, target and propagation."""


def way_of(ranking: Ranking) -> Way:
    """Return what a ranking is about."""
    return ranking.model, ranking.method, ranking.target, ranking.propagate


def way_names(ways: Iterable[Way]) -> dict[Way, str]:
    """Return each way in short: `gptq w3g64`, `wanda 50 %`.

    The model and the propagation are named only where they tell two ways apart.
    """
    every = list(dict.fromkeys(ways))
    methods = short_method_names(method for _, method, _, _ in every)
    models = {model for model, _, _, _ in every}
    settings = Counter(way[:3] for way in every)
    names: dict[Way, str] = {}
    for way in every:
        model, method, target, propagate = way
        parts = [methods[method]]
        if target:
            parts.append(short_target(target))
        if settings[way[:3]] > 1:
            parts.append(propagate)
        if len(models) > 1:
            parts.insert(0, f"{model}:")
        names[way] = " ".join(parts)
    return names


def short_target(target: str) -> str:
    """Return a sparsity in per cent, and any other target as it is written."""
    share = sparsity_of(target)
    if share is None or ":" in target:
        return target
    return percent(share)


def spelled_out(ways: Iterable[Way], sets: Mapping[str, str]) -> list[str]:
    """Return in words what short names of ways and sets stand for, each once."""
    every = list(ways)
    meanings: dict[str, str] = {}
    methods = [method for _, method, _, _ in every]
    for text, name in short_method_names(methods).items():
        meanings[name] = text
    for _, _, target, _ in every:
        words = describe_target(target).removesuffix(f" ({target})")
        # A sparsity in per cent needs no words.
        if short_target(target) == target and not words.startswith(target):
            meanings[target] = words
    for text, name in sets.items():
        meanings[name] = text
    return [f"{name}: {text}" for name, text in meanings.items() if name != text]


# The answer.


def overall(comparison: Comparison) -> str:
    """Return which sets came first over all rankings, and which were significantly better than
    every other.
    """
    ranked = [ranking for ranking in comparison.of_sets if ranking.entries]
    if not ranked:
        return ONLY_MEASURED if comparison.only_measured else NOTHING_TO_RANK
    first: Counter[str] = Counter()
    certain: Counter[str] = Counter()
    for ranking in ranked:
        first[ranking.best.name] += 1
        others = ranking.entries[1:]
        if others and not any(entry.tied for entry in others):
            certain[ranking.best.name] += 1
    names = set_names(ranked)
    kind = target_noun(ranking.target for ranking in ranked)
    answer = (
        f"Over {len(ranked)} combinations of model, method and {kind}, "
        f"the best was {_tally(first, names)}"
    )
    if certain:
        answer = f"{answer}; significantly better than every other set: {_tally(certain, names)}."
    else:
        answer = f"{answer}; in none is the best significantly better than every other."
    caveat = _drawn_once(ranked)
    return f"{answer} {caveat}" if caveat else answer


def _drawn_once(rankings: Sequence[Ranking]) -> str:
    """Say where an answer can't speak for other draws; nothing if it can everywhere."""
    count = sum(ranking.one_draw for ranking in rankings)
    if not count:
        return ""
    if count == len(rankings):
        return "Some sets were drawn once, so nothing here speaks for other draws of them."
    return f"In {count} of them some sets were drawn once: nothing there speaks for other draws."


def _tally(counts: Counter[str], names: Mapping[str, str]) -> str:
    most = 2 * NAMED
    several = counts.most_common()
    parts = [f"{names[name]} in {count}" for name, count in several[:most]]
    rest = sum(count for _, count in several[most:])
    if rest:
        parts.append(f"others in {rest}")
    return join_names(parts)


def set_names(rankings: Iterable[Ranking]) -> dict[str, str]:
    """Return a short name for each calibration set of these rankings, by its name. A label of a
    finished model stays as it is.
    """
    texts: list[str] = []
    labels: list[str] = []
    for ranking in rankings:
        names = labels if ranking.finished else texts
        names.extend(entry.name for entry in (*ranking.entries, *ranking.partial))
    as_they_are = {label: label for label in labels}
    return as_they_are | short_set_names(texts)


@dataclass(frozen=True)
class Matrix:
    """What each set cost with each method: the mean of a ranking for each pair that there is.

    `rankings` are those with sets, and of one unit. `meanings` are what sets are made of that the
    study's file gives a name.
    """

    rankings: tuple[Ranking, ...]
    meanings: Mapping[str, str]

    @cached_property
    def names(self) -> dict[str, str]:
        """The short name of each set, by its name."""
        return set_names(self.rankings)

    @cached_property
    def ways(self) -> dict[Way, str]:
        """The short name of each way."""
        return way_names(map(way_of, self.rankings))

    @cached_property
    def order(self) -> list[str]:
        """The sets: those that come early first, then those that few methods were tried with,
        controls last.
        """
        places: dict[str, list[float]] = {}
        controls: set[str] = set()
        for ranking in self.rankings:
            for place, entry in enumerate(ranking.entries):
                # A share of the ranking's length, since rankings hold different numbers of sets.
                places.setdefault(entry.name, []).append(place / len(ranking.entries))
                if entry.control:
                    controls.add(entry.name)

        def rank(name: str) -> tuple[bool, bool, float]:
            count = len(places[name])
            rare = 2 * count < len(self.rankings)
            mean_place = sum(places[name]) / count
            return name in controls, rare, mean_place

        return sorted(places, key=rank)

    @property
    def title(self) -> str:
        """What the figures are."""
        first = self.rankings[0]
        figures = rise(first)
        if len(first.averaged) > 1:
            figures = f"mean {figures}"
        if first.unit:
            figures = f"{figures}, {first.unit}"
        return f"What each calibration set costs: {figures}"

    @property
    def legend(self) -> tuple[str, ...]:
        """How the table is read."""
        level = percent(self.rankings[0].level)
        lines = [
            f"{BEST}: the best of its method",
            f"{TIED}: cannot be distinguished from it ({level}, all pairs of a method together)",
            *spelled_out(self.ways, self.names),
        ]
        for name, text in self.meanings.items():
            if name in self.names:
                lines.append(f"{name}: {text}")
        return tuple(lines)

    def by_method(self) -> Table:
        """Return a row for each method and a column for each set."""
        rows: list[TableRow] = []
        for ranking in self.rankings:
            figures = _figures(ranking)
            cells = tuple(figures.get(name, Figure()) for name in self.order)
            rows.append(TableRow(self._way_name(ranking), cells))
        columns = tuple(Column(self.names[name]) for name in self.order)
        return Table(self.title, "method", columns, tuple(rows), self.legend)

    def by_set(self) -> Table:
        """Return a row for each set and a column for each method."""
        figures = [_figures(ranking) for ranking in self.rankings]
        rows: list[TableRow] = []
        for name in self.order:
            cells = tuple(column.get(name, Figure()) for column in figures)
            rows.append(TableRow(self.names[name], cells))
        columns = tuple(Column(self._way_name(ranking)) for ranking in self.rankings)
        return Table(self.title, "calibrated on", columns, tuple(rows), self.legend)

    def table(self) -> Table:
        """Return the table with the longer side down the page, where there is room for it."""
        if len(self.order) > len(self.rankings):
            return self.by_set()
        return self.by_method()

    def ends(self) -> Table:
        """Return the best and the worst set of each method alone, for a narrow screen."""
        columns = (
            Column("best", words=True),
            Column("costs"),
            Column("not distinguishable"),
            Column("worst", words=True),
            Column("costs more by"),
        )
        names: dict[str, str] = {}
        rows: list[TableRow] = []
        for ranking in self.rankings:
            best = self.names[ranking.best.name]
            worst = ranking.entries[-1]
            tied = sum(entry.tied for entry in ranking.entries)
            certain = tied == 0 and len(ranking.entries) > 1
            gap = HOLE if worst.to_best is None else decimals(worst.to_best.value)
            figures = (
                Figure(best, best=certain),
                Figure(decimals(ranking.best.mean.value)),
                Figure(f"{tied}"),
                Figure(self.names[worst.name]),
                Figure(gap),
            )
            rows.append(TableRow(self._way_name(ranking), figures))
            names[ranking.best.name] = best
        legend = (
            "bold: significantly better than every other set",
            *spelled_out(self.ways, names),
        )
        return Table(self.title, "method", columns, tuple(rows), legend)

    def _way_name(self, ranking: Ranking) -> str:
        return self.ways[way_of(ranking)]


def _figures(ranking: Ranking) -> dict[str, Figure]:
    """The figure of each set of a ranking, by its name."""
    figures: dict[str, Figure] = {}
    for entry in ranking.entries:
        best = entry is ranking.best
        letters = ""
        if best:
            letters = BEST
        elif entry.tied:
            letters = TIED
        figures[entry.name] = Figure(decimals(entry.mean.value), letters=letters, best=best)
    return figures


def matrices(comparison: Comparison, study: Mapping[str, Any]) -> list[Matrix]:
    """Return a matrix for all rankings that have the same unit and were measured alike.

    `study` may have `names`, which the study's file gives to sets.
    """
    names: Mapping[str, str] = study.get("names") or {}
    meanings = {name: text for text, name in names.items()}
    alike: dict[tuple[str, tuple[str, ...]], list[Ranking]] = {}
    for ranking in comparison.of_sets:
        if ranking.entries:
            alike.setdefault((ranking.unit, ranking.averaged), []).append(ranking)
    return [Matrix(tuple(rankings), meanings) for rankings in alike.values()]


# What ought to make a reader doubt.


@dataclass(frozen=True)
class Doubt:
    """A result that shouldn't be there: a control beats a set with content, or a compressed model
    beats the dense one.

    `p` is one-sided, `p_holm` the same after Holm's correction over all comparisons that were
    looked at; both are None where there is no error to test with.
    """

    sentence: str
    p: float | None
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether it is significant after the correction."""
        return self.p_holm is not None and self.p_holm <= 1 - LEVEL


@dataclass(frozen=True)
class Doubts:
    """What was found in rankings that shouldn't be there, the smallest p first, and how many
    comparisons were looked at for it. `of_runs` are sentences on the runs themselves.
    """

    every: tuple[Doubt, ...]
    looked_at: int
    of_runs: tuple[str, ...] = ()

    @property
    def shown(self) -> list[str]:
        """What is to be said of the runs, and what is significant, with its p."""
        sentences = list(self.of_runs)
        for doubt in self.every:
            if doubt.significant:
                comparisons = f"{self.looked_at:,} comparisons"
                test = f"{p_in_words(doubt.p_holm)} after Holm over {comparisons}"
                sentences.append(f"{doubt.sentence} ({test}). {FIND_OUT}")
        return sentences

    @property
    def chance(self) -> list[str]:
        """What is not significant."""
        return [f"{doubt.sentence}." for doubt in self.every if not doubt.significant]

    @property
    def in_short(self) -> str:
        """How many are not significant, in a sentence; empty where there are none."""
        count = len(self.chance)
        if not count:
            return ""
        verb = "is" if count == 1 else "are"
        return (
            f"{counted(count, 'odd result')} {verb} not significant after Holm's "
            f"correction over the {self.looked_at:,} comparisons that were looked at, "
            "and may be chance"
        )


FIND_OUT: Final = "Find out why before you trust this ranking."


def p_in_words(p: float | None) -> str:
    """Return a p value for a sentence.

    >>> p_in_words(0.0123), p_in_words(0.0001)
    ('p = 0.012', 'p < 0.001')
    """
    text = probability(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def doubts_of(comparison: Comparison) -> Doubts:
    """Return what is doubtful in a comparison: in its rankings, and in the runs behind them."""
    found = doubts((*comparison.rankings, *comparison.unranked))
    of_runs = (*_other_runs(comparison), *_other_dtypes(comparison))
    return replace(found, of_runs=of_runs)


def _other_runs(comparison: Comparison) -> Iterator[str]:
    """Yield which cells have another run that doesn't count, by what differs in it."""
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for other in comparison.uncounted:
        alike.setdefault(other.differs, []).append(other.cell)
    for differs, cells in alike.items():
        names = list(dict.fromkeys(map(_name_of, cells)))
        named = "; ".join(names[:NAMED])
        if len(names) > NAMED:
            named += f"; and {len(names) - NAMED:,} more, which --format json lists"
        verb = "has" if len(names) == 1 else "have"
        yield (
            f"{counted(len(names), 'result')} {verb} another run in the store, which differs in "
            f"its {join_names(differs)}. The first one counts, the other stays as it is: {named}."
        )


def _name_of(cell: Cell) -> str:
    """What a sentence calls a cell."""
    if cell.method == UNTOUCHED:
        return f"{cell.model}, the dense model"
    way = " ".join(filter(None, (cell.method, cell.target, cell.propagate)))
    if not cell.data:
        return f"{cell.model}, {way}"
    return f"{cell.model}, {way}, {cell.data} (draw {cell.seed})"


def _other_dtypes(comparison: Comparison) -> Iterator[str]:
    """Yield which models' runs were computed in several types of numbers."""
    for model, dtypes in comparison.dtypes.items():
        yield (
            f"The runs of {model} were computed in {join_names(dtypes)}: "
            "a difference between two of them may come from the types alone."
        )


def doubts(rankings: Sequence[Ranking]) -> Doubts:
    """Return what is doubtful in these rankings.

    Everything that could have been doubtful counts in the correction: every set and baseline on
    everything that was measured, and every control against every set with content.
    """
    ways = way_names(map(way_of, rankings))
    names = set_names(rankings)
    found: list[Doubt] = []
    looked_at = 0
    for ranking in rankings:
        where = f"{ranking.model}, {ways[way_of(ranking)]}"
        if ranking.finished:
            where = heading(ranking)
        compared = [*_controls(ranking, names), *_against_dense(ranking, names)]
        looked_at += len(compared)
        for sentence, difference in compared:
            if difference.value < 0:
                change = decimals(-difference.value)
                p = _one_sided(difference)
                found.append(Doubt(f"{sentence} by {change} ({where})", p))
    return Doubts(tuple(_corrected(found, looked_at)), looked_at)


def _one_sided(difference: Estimate) -> float | None:
    """The p of a difference below zero, against no difference or one above."""
    p = difference.p_value()
    return None if p is None else p / 2


def _controls(ranking: Ranking, names: Mapping[str, str]) -> Iterator[tuple[str, Estimate]]:
    """How much worse each control is than each set with content."""
    for control in ranking.entries:
        if not control.control:
            continue
        for entry in ranking.entries:
            if not entry.control:
                sentence = (
                    f"{control.name} is a control without content, "
                    f"and it did better than {names[entry.name]}"
                )
                yield sentence, _difference(control, entry, worse_sign(ranking))


def _difference(first: RankingEntry, second: RankingEntry, sign: float) -> Estimate:
    """How much worse the first is, with the errors of the two taken as independent. Means times
    `sign` are larger where a row is worse.

    Both were measured on the same documents, so the true error is smaller and the test errs on
    the side of silence. Where the first is the best, the ranking has the paired difference.
    """
    if first.to_best is None and second.to_best is not None:
        return replace(second.to_best, value=-second.to_best.value)
    value = sign * (first.mean.value - second.mean.value)
    if first.mean.stderr is None or second.mean.stderr is None:
        return Estimate(value, None, 0.0, first.mean.items)
    stderr = math.hypot(first.mean.stderr, second.mean.stderr)
    # The fewest degrees of freedom of any part of the two: never too sure.
    freedom = [first.mean.df, second.mean.df]
    for mean in (first.mean, second.mean):
        if mean.dfs is not None:
            freedom.extend(mean.dfs)
    return Estimate(value, stderr, min(freedom), first.mean.items)


def _against_dense(ranking: Ranking, names: Mapping[str, str]) -> Iterator[tuple[str, Estimate]]:
    """How much worse than the dense model each set and baseline is on each measured set."""
    verb = "quantized" if is_rounded(ranking.target) else "pruned"
    for measured in ranking.measured:
        for entry in (*ranking.entries, *ranking.baselines):
            if measured in entry.increases:
                name = names.get(entry.name, entry.name)
                model = f"the model {verb} with {name}"
                if ranking.finished:
                    model = entry.name
                where = short(measured, ranking.measured)
                sentence = f"On {where} {model} is better than the dense one"
                yield sentence, entry.increases[measured]


def _corrected(found: Sequence[Doubt], looked_at: int) -> Iterator[Doubt]:
    """Holm's step-down over everything that was looked at, the smallest p first.

    What was looked at and isn't doubtful has a one-sided p above a half, so it comes last, and
    only its number is needed.
    """

    def order(doubt: Doubt) -> float:
        return math.inf if doubt.p is None else doubt.p

    so_far = 0.0
    for place, doubt in enumerate(sorted(found, key=order)):
        if doubt.p is None:
            yield doubt
            continue
        left = looked_at - place
        so_far = max(so_far, min(1.0, left * doubt.p))
        yield replace(doubt, p_holm=so_far)
