"""Forest plots: how much worse than the baseline each calibration set is, and what the answer to
a question rests on. No torch here.
"""

from collections.abc import Mapping, Sequence
from typing import Final

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
    counted,
    cut,
    ends,
    known,
    plotted,
    sentence,
    signed,
    spread,
)
from calibrant.lab.report.plots.theme import FAMILIES, VERDICTS
from calibrant.lab.report.sentences import short
from calibrant.lab.stats import (
    MEAN,
    Estimate,
    Evidence,
    PaperQuestion,
    Ranking,
    RankingEntry,
    describe_target,
)
from calibrant.numerics import percent
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
    entries = (*ranking.entries, *ranking.baselines, *ranking.partial)
    if not any(known(numbers.of(e, m)) for e in entries for m in numbers.panels):
        return None
    rows = tuple(
        PanelRow(f"{e.name} (incomplete)" if e in ranking.partial else e.name) for e in entries
    )
    return _plot(
        numbers,
        rows,
        dict(enumerate(entries)),
        "forest",
        f"{numbers.title}, by what was measured",
        narrow,
    )


def formats(ranking: Ranking) -> Plot | None:
    """Return the formats of each source that appears in two or more, side by side. None where
    there is no such source.
    """
    numbers = _ForestNumbers(ranking)
    by_source: dict[str, dict[SetLabel, RankingEntry]] = {}
    for entry in (*ranking.entries, *ranking.baselines, *ranking.partial):
        if (
            entry.label
            and not entry.label.mixed
            and any(known(numbers.of(entry, m)) for m in numbers.panels)
        ):
            by_source.setdefault(entry.label.source, {})[entry.label] = entry
    rows: list[PanelRow] = []
    entries: dict[int, RankingEntry] = {}
    for source, labels in by_source.items():
        if len({label.rest if label.format else "" for label in labels}) < 2:
            continue
        rows.append(PanelRow(source, head=True))
        for label, entry in labels.items():
            entries[len(rows)] = entry
            rows.append(PanelRow(label.rest or "as it is"))
    if not entries:
        return None
    title = f"The same source in several formats: {numbers.title[0].lower() + numbers.title[1:]}"
    return _plot(numbers, tuple(rows), entries, "formats", title)


class _ForestNumbers:
    """The numbers of a ranking's forest: differences to the baseline set, else increases over
    the dense model, else losses.
    """

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.relative = bool(ranking.baseline) and any(
            e.to_baseline for e in (*ranking.entries, *ranking.baselines, *ranking.partial)
        )
        self.reference = (
            ranking.baseline if self.relative else "dense" if ranking.dense is not None else ""
        )
        self.panels = (*([MEAN] if len(ranking.averaged) > 1 else []), *ranking.measured)
        self.comparisons = (
            ranking.baseline_comparisons if self.relative else 1
        )  # that the intervals cover together
        if self.relative:
            self.title = f"How much worse than {self.reference}"
        else:
            self.title = (
                "Increase over the dense model" if self.reference else "The models' own numbers"
            )

    def of(self, entry: RankingEntry, measured: str) -> Estimate | None:
        """The number of one row in one panel; None where there is none."""
        if self.is_baseline(entry):
            return Estimate(0.0, None, 0.0, 0)
        if self.relative:
            return entry.to_baseline.get(measured)
        return entry.mean if measured == MEAN else (entry.increases or entry.losses).get(measured)

    def is_baseline(self, entry: RankingEntry) -> bool:
        """Whether a row is the one that all others are compared with."""
        return self.relative and entry.name == self.ranking.baseline

    def interval(self, estimate: Estimate) -> Interval:
        """The interval of a number, wide enough for all comparisons of its panel."""
        return ends(estimate, self.ranking.level, self.comparisons)

    def open(self, entry: RankingEntry, estimate: Estimate) -> bool:
        """Whether a row is not significantly different from the reference; false where there is
        none, and for the reference itself.
        """
        return (
            bool(self.reference)
            and not self.is_baseline(entry)
            and not estimate.significant(self.ranking.level, self.comparisons)
        )

    def unit(self, measured: str) -> str:
        """The unit of a panel."""
        return (
            self.ranking.unit
            if measured == MEAN
            else self.ranking.units.get(measured, self.ranking.unit)
        )


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
    marks: dict[str, dict[int, Mark]] = {m: {} for m in numbers.panels}
    for row, entry in entries.items():
        for m in numbers.panels:
            estimate = numbers.of(entry, m)
            if estimate is not None and known(estimate):
                aside = entry.family in ("control", "none")
                marks[m][row] = Mark(
                    estimate.value,
                    numbers.interval(estimate),
                    entry.family,
                    numbers.open(entry, estimate),
                    aside,
                )
    units = {m: numbers.unit(m) for m in numbers.panels}
    mixed = len(set(units.values())) > 1
    about = (
        f"← better · worse than {cut(numbers.reference)} →"
        if numbers.relative
        else "increase over the dense model"
        if numbers.reference
        else ""
    )
    about = about if mixed else f"{about}, {ranking.unit}".removeprefix(", ")
    spans = _spans(numbers.panels, units, marks, bool(numbers.reference))
    titles = {m: "mean" if m == MEAN else short(m, ranking.measured) for m in numbers.panels}
    shown = numbers.panels[:1] if narrow else numbers.panels
    drawn = tuple(Panel(titles[m], marks[m], spans[m], units[m] if mixed else "") for m in shown)
    present = {entry.family for entry in entries.values()}
    styles = {family: style for family, style in FAMILIES.items() if family in present}
    panels = Panels(
        rows, drawn, styles, about, numbers.reference, width=NARROW if narrow else WIDTH
    )
    where = f"{ranking.model}, {ranking.method} at {describe_target(ranking.target)}"
    description = _description(numbers, tuple(entries.values()), where, title)
    caption = [
        *_caption(numbers, len({spans[m] for m in shown}) > 1, marks),
        *([f"Here the {titles[shown[0]]} alone; the table has all"] * narrow),
    ]
    return plotted(
        (kind, ranking.method, ranking.target),
        f"{title}: {where}",
        description,
        panels.chart,
        panels.data,
        caption,
        present,
    )


def _caption(
    numbers: _ForestNumbers, several: bool, marks: Mapping[str, Mapping[int, Mark]]
) -> list[str]:
    """Return what is drawn, in which unit, and what the lines and hollow marks are."""
    ranking, mixed = numbers.ranking, len({numbers.unit(m) for m in numbers.panels}) > 1
    what = {
        "worse": f"how much worse than with {numbers.reference} the model is when it is calibrated on the set at the left",
        "dense": "how much worse than the dense model the model is when it is calibrated on the set at the left",
        "own": "the number of the model that is calibrated on the set at the left",
    }["worse" if numbers.relative else "dense" if numbers.reference else "own"]
    unit = "in the unit below each panel" if mixed else f"in {ranking.unit}"
    joint = (
        f", jointly for the {numbers.comparisons} comparisons of a panel"
        if numbers.comparisons > 1
        else ""
    )
    points = [mark for panel in marks.values() for mark in panel.values()]
    hollow = (
        f"Hollow: not significantly different from {numbers.reference}"
        if any(mark.hollow for mark in points)
        else ""
    )
    return list(
        filter(
            None,
            [
                f"Each mark: {what}, {unit}",
                f"Lines: {percent(ranking.level)} intervals{joint}"
                if any(mark.interval for mark in points)
                else "",
                hollow,
                "An arrow at the edge: what lies beyond the axis, with its number",
                "Panels whose numbers reach much farther have an axis of their own"
                if several
                else "",
            ],
        )
    )


def _spans(
    measured: Sequence[str],
    units: Mapping[str, str],
    marks: Mapping[str, Mapping[int, Mark]],
    reference: bool,
) -> dict[str, tuple[float, float]]:
    """Return the range of each panel's axis: one for all of a unit that reach about as far, so
    that they can be compared.
    """
    own = {m: span_of(list(marks[m].values()), reference) for m in measured}
    reach = {m: high - low for m, (low, high) in own.items()}
    groups: list[list[str]] = []
    for m in sorted(measured, key=reach.__getitem__):
        fitting = next(
            (
                group
                for group in groups
                if units[group[0]] == units[m] and reach[m] <= ALIKE * reach[group[0]]
            ),
            None,
        )
        if fitting is None:
            groups.append(fitting := [])
        fitting.append(m)
    return {
        m: span_of([mark for other in group for mark in marks[other].values()], reference)
        for group in groups
        for m in group
    }


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
    for m in numbers.panels:
        rows: list[str] = []
        for entry in entries:
            estimate = numbers.of(entry, m)
            if estimate is None or not known(estimate):
                continue
            number = (
                signed(estimate.value)
                if numbers.reference
                else signed(estimate.value).removeprefix("+")
            )
            star = "*" if numbers.open(entry, estimate) else ""
            rows.append(
                f"{entry.name} "
                + (
                    "is the baseline"
                    if numbers.is_baseline(entry)
                    else f"{number}{spread(numbers.interval(estimate))}{star}"
                )
            )
        holes = [e.name for e in entries if not known(numbers.of(e, m))]
        lacking = f"; no number for {', '.join(holes)}" if holes else ""
        parts.append(
            f"{'Mean' if m == MEAN else f'On {m}'}: {'; '.join(rows) or 'nothing'}{lacking}"
        )
    return sentence(parts)


def evidence(question: PaperQuestion) -> Plot | None:
    """Return what the answer to a question rests on: each difference with its joint interval,
    and its verdict as a word. None without a number.
    """
    pieces = [e for e in question.evidence if known(e.difference)]
    if not pieces:
        return None
    rows, fewer = pieces, ""
    if len(pieces) > MOST:
        rows = ([e for e in pieces if e.on == MEAN] or pieces)[:MOST]
        fewer = (
            f"Shown: {counted(len(rows), 'row')} of {len(pieces)}, on the mean where there is one"
        )
    units = list(dict.fromkeys(e.unit for e in rows))
    blocks = [
        _block([e for e in rows if e.unit == unit], unit, f"unit{i}-")
        for i, unit in enumerate(units)
    ]
    data = {name: records for block in blocks for name, records in block.data.items()}
    numbers = [
        f"{signed(e.difference.value)}{f' {e.unit}' if e.unit else ''}{spread(_interval(e))}"
        for e in rows
    ]
    each = "; ".join(
        f"{e.label}, {e.where}, on {e.on}: {number}, {e.verdict}"
        for e, number in zip(rows, numbers, strict=True)
    )
    description = sentence(
        [question.question, f"Answer: {question.answer}", question.explanation, fewer, each]
    )
    caption = [
        "Each mark: a difference between two sets, the first against the second",
        "Lines: joint intervals",
        "Hollow: not significant",
        fewer,
    ]
    return plotted(
        (NAMES.get(question.name, question.name),),
        question.question,
        description,
        lambda: stacked(blocks),
        data,
        caption,
    )


def _interval(piece: Evidence) -> Interval:
    """Return the joint interval of a piece of evidence; None where there is none, or where an
    end of it is NaN.
    """
    return (
        None
        if piece.interval is None or any(end != end for end in piece.interval)
        else piece.interval
    )


def _block(pieces: Sequence[Evidence], unit: str, key: str) -> Panels:
    """Return the rows of one unit. What is the same in all stands above them; where they are of
    several runs, each run's name above its own.
    """
    texts = {part: [str(getattr(piece, part)) for piece in pieces] for part in LETTERS}
    same = [part for part in LETTERS if len(set(texts[part])) == 1]
    parts = [part for part in LETTERS if part not in same] or ["label"]
    rows: list[PanelRow] = []
    marks: dict[int, Mark] = {}
    order = sorted(
        range(len(pieces)), key=lambda i: texts["where"].index(texts["where"][i])
    )  # one run after the other, else as they come
    headed, run = "where" in parts and len(parts) > 1, ""
    for i in order:
        if headed and texts["where"][i] != run:
            run = texts["where"][i]
            rows.append(PanelRow(run, head=True))
        e = pieces[i]
        marks[len(rows)] = Mark(
            e.difference.value,
            _interval(e),
            e.verdict,
            e.verdict == "not significant",
            word=e.verdict,
        )
        rows.append(
            PanelRow(
                " · ".join(
                    cut(texts[part][i], LETTERS[part])
                    for part in parts
                    if not (headed and part == "where")
                )
            )
        )
    title = " · ".join(cut(texts[part][0], LETTERS[part]) for part in same if part != parts[0])
    panel = Panel(title, marks, span_of(list(marks.values())))
    return Panels(
        tuple(rows),
        (panel,),
        VERDICTS,
        f"← better · worse →{f', {unit}' if unit else ''}",
        "no difference",
        66,
        key,
    )
