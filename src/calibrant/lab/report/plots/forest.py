"""Forest plots: how much worse than the baseline each calibration set is, and what the answer to
a question rests on. No torch here.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from calibrant.lab.report.plots.panels import (
    NARROW,
    WIDTH,
    Mark,
    Panel,
    PanelRow,
    Panels,
    span_of,
    stacked,
)
from calibrant.lab.report.plots.picture import (
    Interval,
    Plot,
    cut,
    ends,
    known,
    plainly,
    plotted,
    sentence,
    signed,
    spread,
)
from calibrant.lab.report.plots.theme import VERDICTS, styles_of
from calibrant.lab.report.sentences import panel_name, setting_words
from calibrant.lab.stats import (
    MEAN,
    Estimate,
    Evidence,
    PaperQuestion,
    Ranking,
    RankingEntry,
)
from calibrant.numerics import counted, percent
from calibrant.spec.grammar import SetLabel

ALIKE: Final = 4.0
"""How many times as far as the nearest the farthest panel on an axis may reach: beyond that the
other would be a column of dots.
"""

NAMES: Final[Mapping[str, str]] = {
    "own": "own-data",
    "cot": "chain-of-thought",
    "icl": "in-context",
}
"""The name of a question's plot, where not the question's own."""

MOST: Final = 60
"""Rows of evidence that a plot shows."""

LETTERS: Final[Mapping[str, int]] = {"where": 60, "label": 40, "on": 24}
"""What distinguishes one piece of evidence from another, and the letters that each may take."""


def forest(ranking: Ranking, narrow: bool = False) -> Plot | None:
    """Return how much worse than the baseline set each other one is: a panel for the mean and for
    each measured set, in the tables' order.

    A `narrow` one, for a telephone, has the first of these panels alone.

    Without a baseline it is the increase over the dense model, without that the loss. None where no
    set has a number.
    """
    numbers = _ForestNumbers(ranking)
    entries: dict[int, RankingEntry] = {}
    rows: list[PanelRow] = []
    for entry in numbers.entries:
        entries[len(rows)] = entry
        name = f"{entry.name} (incomplete)" if entry in ranking.partial else entry.name
        rows.append(PanelRow(name))
    if not any(map(numbers.has_any, numbers.entries)):
        return None
    title = f"{numbers.title}, by what was measured"
    return _plot(numbers, tuple(rows), entries, "forest", title, narrow)


def formats(ranking: Ranking) -> Plot | None:
    """Return the formats of each source that appears in two or more, side by side. None where
    there is no such source.
    """
    numbers = _ForestNumbers(ranking)
    by_source: dict[str, dict[SetLabel, RankingEntry]] = {}
    for entry in numbers.entries:
        label = entry.label
        if label is not None and not label.mixed and numbers.has_any(entry):
            by_source.setdefault(label.source, {})[label] = entry
    rows: list[PanelRow] = []
    entries: dict[int, RankingEntry] = {}
    for source, labels in by_source.items():
        different: set[str] = set()
        for label in labels:
            shown = label.rest if label.format else ""
            different.add(shown)
        if len(different) < 2:
            continue
        rows.append(PanelRow(source, head=True))
        for label, entry in labels.items():
            entries[len(rows)] = entry
            rows.append(PanelRow(label.rest or "as it is"))
    if not entries:
        return None
    lead = numbers.title[0].lower() + numbers.title[1:]
    title = f"The same source in several formats: {lead}"
    return _plot(numbers, tuple(rows), entries, "formats", title)


class _ForestNumbers:
    """The numbers of a ranking's forest: differences to the baseline set, else increases over
    the dense model, else losses.
    """

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.entries = (*ranking.entries, *ranking.baselines, *ranking.partial)
        compared = any(entry.to_baseline for entry in self.entries)
        self.relative = bool(ranking.baseline) and compared
        self.panels = list(ranking.measured)
        if len(ranking.averaged) > 1:
            self.panels.insert(0, MEAN)
        # How many comparisons the intervals of a panel cover together.
        self.comparisons = 1
        if self.relative:
            self.reference = ranking.baseline
            self.comparisons = ranking.baseline_comparisons
            self.title = f"How much worse than {self.reference}"
        elif ranking.dense is not None:
            self.reference = "dense"
            self.title = "Increase over the dense model"
        else:
            self.reference = ""
            self.title = "The models' own numbers"

    def value(self, entry: RankingEntry, measured: str) -> Estimate | None:
        """Return the number of one row in one panel; None where there is none."""
        if self.is_baseline(entry):
            return Estimate(0.0, None, 0.0, 0)
        if self.relative:
            estimate = entry.to_baseline.get(measured)
        elif measured == MEAN:
            estimate = entry.mean
        else:
            estimate = (entry.increases or entry.losses).get(measured)
        return estimate if known(estimate) else None

    def has_any(self, entry: RankingEntry) -> bool:
        """Whether a row has a number in some panel."""
        return any(self.value(entry, measured) is not None for measured in self.panels)

    def is_baseline(self, entry: RankingEntry) -> bool:
        """Whether a row is the one that all others are compared with."""
        return self.relative and entry.name == self.ranking.baseline

    def interval(self, estimate: Estimate) -> Interval:
        """The interval of a number, wide enough for all comparisons of its panel."""
        return ends(estimate, self.ranking.level, self.comparisons)

    def undecided(self, entry: RankingEntry, estimate: Estimate) -> bool:
        """Whether a row is not significantly different from the reference; false where there is
        none, and for the reference itself.
        """
        if not self.reference or self.is_baseline(entry):
            return False
        return not estimate.significant(self.ranking.level, self.comparisons)

    def unit(self, measured: str) -> str:
        """Return the unit of a panel."""
        return self.ranking.units.get(measured, self.ranking.unit)

    @property
    def mixed(self) -> bool:
        """Whether panels have several units."""
        return len(set(map(self.unit, self.panels))) > 1


def _plot(
    numbers: _ForestNumbers,
    rows: tuple[PanelRow, ...],
    entries: Mapping[int, RankingEntry],
    kind: str,
    title: str,
    narrow: bool = False,
) -> Plot:
    """Return the plot of `rows`, in which `entries` stand at their places; the others are heads."""
    ranking = numbers.ranking
    marks: dict[str, dict[int, Mark]] = {measured: {} for measured in numbers.panels}
    for row, entry in entries.items():
        aside = entry.family in ("control", "none")
        for measured in numbers.panels:
            estimate = numbers.value(entry, measured)
            if estimate is not None:
                interval = numbers.interval(estimate)
                hollow = numbers.undecided(entry, estimate)
                mark = Mark(estimate.value, interval, entry.family, hollow, aside)
                marks[measured][row] = mark
    spans = _spans(numbers, marks)
    shown = numbers.panels[:1] if narrow else numbers.panels
    drawn: list[Panel] = []
    for measured in shown:
        unit = numbers.unit(measured) if numbers.mixed else ""
        name_above = panel_name(measured, ranking)
        drawn.append(Panel(name_above, marks[measured], spans[measured], unit))
    present = {entry.family for entry in entries.values()}
    width = NARROW if narrow else WIDTH
    about = _about(numbers)
    panels = Panels(rows, tuple(drawn), styles_of(present), about, numbers.reference, width=width)
    where = setting_words(ranking)
    several = len({spans[measured] for measured in shown}) > 1
    caption = _caption(numbers, several, marks)
    if narrow:
        caption.append(f"Here the {panel_name(shown[0], ranking)} alone; the table has all")
    name = (kind, ranking.method, ranking.target)
    words = _description(numbers, tuple(entries.values()), where, title)
    whole = f"{title}: {where}"
    return plotted(name, whole, words, panels.chart, panels.data, caption, present)


def _about(numbers: _ForestNumbers) -> str:
    """What the axes are about."""
    about = ""
    if numbers.relative:
        about = f"← better · worse than {cut(numbers.reference)} →"
    elif numbers.reference:
        about = "increase over the dense model"
    if numbers.mixed:
        return about
    return f"{about}, {numbers.ranking.unit}".removeprefix(", ")


def _caption(
    numbers: _ForestNumbers, several: bool, marks: Mapping[str, Mapping[int, Mark]]
) -> list[str]:
    """Return what is drawn, in which unit, and what the lines and hollow marks are."""
    ranking = numbers.ranking
    model = "the model that is calibrated on the set at the left"
    it_is = "the model is when it is calibrated on the set at the left"
    other = f"with {numbers.reference}"
    if ranking.finished:
        model = "the model at the left"
        it_is = f"{model} is"
        other = numbers.reference
    if numbers.relative:
        shown = f"how much worse than {other} {it_is}"
    elif numbers.reference:
        shown = f"how much worse than the dense model {it_is}"
    else:
        shown = f"the number of {model}"
    unit = "in the unit below each panel" if numbers.mixed else f"in {ranking.unit}"
    caption = [f"Each mark: {shown}, {unit}"]
    points: list[Mark] = []
    for panel in marks.values():
        points.extend(panel.values())
    if any(mark.interval for mark in points):
        joint = ""
        if numbers.comparisons > 1:
            joint = f", jointly for the {numbers.comparisons} comparisons of a panel"
        caption.append(f"Lines: {percent(ranking.level)} intervals{joint}")
    if any(mark.hollow for mark in points):
        caption.append(f"Hollow: not significantly different from {numbers.reference}")
    caption.append("An arrow at the edge: what lies beyond the axis, with its number")
    if several:
        caption.append("Panels whose numbers reach much farther have an axis of their own")
    return caption


def _spans(
    numbers: _ForestNumbers, marks: Mapping[str, Mapping[int, Mark]]
) -> dict[str, tuple[float, float]]:
    """Return the range of each panel's axis: one for all of a unit that reach about as far, so
    that they can be compared.
    """
    zero = bool(numbers.reference)
    reach: dict[str, float] = {}
    for measured in numbers.panels:
        low, high = span_of(list(marks[measured].values()), zero)
        reach[measured] = high - low
    groups: list[list[str]] = []
    for measured in sorted(numbers.panels, key=reach.__getitem__):
        for group in groups:
            same_unit = numbers.unit(group[0]) == numbers.unit(measured)
            if same_unit and reach[measured] <= ALIKE * reach[group[0]]:
                group.append(measured)
                break
        else:
            groups.append([measured])
    spans: dict[str, tuple[float, float]] = {}
    for group in groups:
        together: list[Mark] = []
        for measured in group:
            together.extend(marks[measured].values())
        spans |= dict.fromkeys(group, span_of(together, zero))
    return spans


def _description(
    numbers: _ForestNumbers, entries: Sequence[RankingEntry], where: str, title: str
) -> str:
    """Return all that a forest shows, in words: each number with its interval."""
    together = ", jointly over all rows" if numbers.comparisons > 1 else ""
    parts = [
        f"{title}, for {where}, in {numbers.ranking.unit}",
        f"In brackets {percent(numbers.ranking.level)} intervals{together}",
    ]
    if numbers.reference:
        parts.append(
            f"An asterisk marks what is not significantly different from {numbers.reference}"
        )
    write = signed if numbers.reference else plainly
    for measured in numbers.panels:
        rows: list[str] = []
        holes: list[str] = []
        for entry in entries:
            estimate = numbers.value(entry, measured)
            if estimate is None:
                holes.append(entry.name)
            elif numbers.is_baseline(entry):
                rows.append(f"{entry.name} is the baseline")
            else:
                number = f"{write(estimate.value)}{spread(numbers.interval(estimate))}"
                star = "*" if numbers.undecided(entry, estimate) else ""
                rows.append(f"{entry.name} {number}{star}")
        panel = "Mean" if measured == MEAN else f"On {measured}"
        lacking = f"; no number for {', '.join(holes)}" if holes else ""
        parts.append(f"{panel}: {'; '.join(rows) or 'nothing'}{lacking}")
    return sentence(parts)


def evidence(question: PaperQuestion) -> Plot | None:
    """Return what the answer to a question rests on: each difference with its joint interval,
    and its verdict as a word. None without a number.
    """
    pieces = [piece for piece in question.evidence if known(piece.difference)]
    if not pieces:
        return None
    rows = pieces
    fewer = ""
    if len(pieces) > MOST:
        on_mean = [piece for piece in pieces if piece.on == MEAN]
        rows = (on_mean or pieces)[:MOST]
        shown = counted(len(rows), "row")
        fewer = f"Shown: {shown} of {len(pieces)}, on the mean where there is one"
    blocks: list[Panels] = []
    data: dict[str, list[dict[str, Any]]] = {}
    units = dict.fromkeys(piece.unit for piece in rows)
    for number, unit in enumerate(units):
        alike = [piece for piece in rows if piece.unit == unit]
        block = _block(alike, unit, f"unit{number}-")
        blocks.append(block)
        data |= block.data
    each: list[str] = []
    for piece in rows:
        value = f"{signed(piece.difference.value)} {piece.unit}".rstrip()
        number = f"{value}{spread(_interval(piece))}"
        each.append(f"{piece.label}, {piece.where}, on {piece.on}: {number}, {piece.verdict}")
    answer = f"Answer: {question.answer}"
    words = sentence([question.question, answer, question.explanation, fewer, "; ".join(each)])
    caption = [
        "Each mark: a difference between two sets, the first against the second",
        "Lines: joint intervals",
        "Hollow: not significant",
        fewer,
    ]
    name = (NAMES.get(question.name, question.name),)
    return plotted(name, question.question, words, partial(stacked, blocks), data, caption)


def _interval(piece: Evidence) -> Interval:
    """Return the joint interval of a piece of evidence; None where there is none, or where an
    end of it is NaN.
    """
    if piece.interval is None or any(map(math.isnan, piece.interval)):
        return None
    return piece.interval


def _block(pieces: Sequence[Evidence], unit: str, key: str) -> Panels:
    """Return the rows of one unit. What is the same in all stands above them; where they are of
    several runs, each run's name above its own.
    """
    texts: dict[str, list[str]] = {}
    same: list[str] = []
    differing: list[str] = []
    for part in LETTERS:
        texts[part] = [str(getattr(piece, part)) for piece in pieces]
        if len(set(texts[part])) == 1:
            same.append(part)
        else:
            differing.append(part)
    telling = list(differing) or ["label"]
    # A label that the rows tell isn't told above them.
    above = [cut(texts[part][0], LETTERS[part]) for part in same if part != telling[0]]
    rows: list[PanelRow] = []
    marks: dict[int, Mark] = {}
    runs = texts["where"]
    headed = "where" in telling and len(telling) > 1
    if headed:
        telling.remove("where")

    def order(number: int) -> int:
        # One run after the other, in each as they come.
        return runs.index(runs[number])

    run = ""
    for number in sorted(range(len(pieces)), key=order):
        if headed and runs[number] != run:
            run = runs[number]
            rows.append(PanelRow(run, head=True))
        piece = pieces[number]
        verdict = piece.verdict
        hollow = verdict == "not significant"
        value = piece.difference.value
        marks[len(rows)] = Mark(value, _interval(piece), verdict, hollow, word=verdict)
        names = [cut(texts[part][number], LETTERS[part]) for part in telling]
        rows.append(PanelRow(" · ".join(names)))
    panel = Panel(" · ".join(above), marks, span_of(list(marks.values())))
    about = f"← better · worse →, {unit}".removesuffix(", ")
    return Panels(tuple(rows), (panel,), VERDICTS, about, "no difference", room=66, key=key)
