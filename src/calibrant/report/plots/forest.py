"""Forest plots: how much worse than the baseline each calibration set is, and what the answer to a question rests on. No torch here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from calibrant.compare import MEAN, Estimate, Evidence, PaperQuestion, Ranking, RankingEntry
from calibrant.grammar import SetLabel
from calibrant.report.plots.panels import AxisGroup, Mark, Panel, PanelRow, Panels, span_of, stacked
from calibrant.report.plots.picture import Plot, plotted
from calibrant.report.plots.theme import FAMILIES, VERDICTS
from calibrant.report.plots.words import Interval, counted, cut, ends, known, sentence, signed, spread
from calibrant.report.sentences import describe_target, percent, short

ALIKE: Final = 4.0
"""How many times as far as the nearest the farthest panel on an axis may reach."""

Estimates = Callable[[RankingEntry, str], Estimate | None]


class _Differences:
    """What a forest of a ranking shows: the difference to the baseline set, else the increase over the dense model, else the loss."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.everyone = (*ranking.entries, *ranking.baselines, *ranking.partial)
        self.relative = bool(ranking.baseline) and any(e.to_baseline for e in self.everyone)
        self.reference = ranking.baseline if self.relative else "dense" if ranking.dense is not None else ""
        several = len(ranking.averaged) > 1
        self.panels = (*([MEAN] if several else []), *ranking.measured)

    def of(self, entry: RankingEntry, measured: str) -> Estimate | None:
        """The number of one row in one panel; None where there is none."""
        if self.relative:
            return Estimate(0.0, None, 0.0, 0) if entry.name == self.ranking.baseline else entry.to_baseline.get(measured)
        return entry.mean if measured == MEAN else (entry.increases or entry.losses).get(measured)

    @property
    def comparisons(self) -> int:
        """Comparisons that the intervals cover together."""
        return self.ranking.baseline_comparisons if self.relative else 1

    @property
    def what(self) -> str:
        """What the numbers are."""
        if self.relative:
            return f"How much worse than {self.reference}"
        return "Increase over the dense model" if self.reference else "The models' own numbers"

    def unit(self, measured: str) -> str:
        """The unit of a panel."""
        return self.ranking.unit if measured == MEAN else self.ranking.units.get(measured, self.ranking.unit)


def forest(ranking: Ranking) -> Plot | None:
    """How much worse than the baseline set each other one is: a panel for the mean and for each measured set, on one axis where the unit is one.

    Without a baseline it is the increase over the dense model, without that the loss. None where no set has a number.
    """
    what = _Differences(ranking)
    rows = what.everyone
    if not any(known(what.of(e, m)) for e in rows for m in what.panels):
        return None
    return _drawn(
        what, rows, tuple(PanelRow(_labelled(ranking, e)) for e in rows), dict(enumerate(rows)), "forest", f"{what.what}, by what was measured"
    )


def formats(ranking: Ranking) -> Plot | None:
    """The formats of each source that appears in two or more, side by side. None where there is no such source."""
    what = _Differences(ranking)
    by_source: dict[str, dict[SetLabel, RankingEntry]] = {}
    for entry in what.everyone:
        if entry.label and not entry.label.mixed and any(known(what.of(entry, m)) for m in what.panels):
            by_source.setdefault(entry.label.source, {})[entry.label] = entry
    rows: list[PanelRow] = []
    entries: dict[int, RankingEntry] = {}
    for source, found in by_source.items():
        if len({of.rest if of.format else "" for of in found}) < 2:
            continue
        rows.append(PanelRow(source, head=True))
        for label, entry in found.items():
            entries[len(rows)] = entry
            rows.append(PanelRow(label.rest or "as it is"))
    if not entries:
        return None
    return _drawn(
        what, tuple(entries.values()), tuple(rows), entries, "formats", f"The same source in several formats: {what.what[0].lower() + what.what[1:]}"
    )


def _labelled(ranking: Ranking, entry: RankingEntry) -> str:
    return f"{entry.name} (incomplete)" if entry in ranking.partial else entry.name


def _drawn(
    what: _Differences, entries: tuple[RankingEntry, ...], rows: tuple[PanelRow, ...], at: Mapping[int, RankingEntry], kind: str, title: str
) -> Plot:
    ranking = what.ranking
    kinds = {e.name: e.family for e in entries}
    found = {m: {r: p for r, e in at.items() if (p := _point(what, e, m, kinds[e.name])) is not None} for m in what.panels}
    hollow = any(p.hollow for points in found.values() for p in points.values())
    note = f"hollow: not significantly different from {cut(what.reference)}" if hollow else ""
    by_unit: dict[tuple[bool, str], list[str]] = {}
    for m in what.panels:
        by_unit.setdefault((m == MEAN or m in ranking.averaged, what.unit(m)), []).append(m)
    scaled = [alike for measured in by_unit.values() for alike in _alike(measured, found, bool(what.reference))]
    groups = [_group(what, found, measured, "" if i else note) for i, measured in enumerate(scaled)]
    styles = {k: s for k, s in FAMILIES.items() if k in kinds.values()}
    panels = Panels(rows, tuple(groups), styles)
    where = f"{ranking.model}, {ranking.method} at {describe_target(ranking.target)}"
    return plotted((kind, ranking.method, ranking.target), f"{title}: {where}", _told(what, entries, where, title), panels.chart, panels.data)


def _alike(measured: Sequence[str], found: Mapping[str, Mapping[int, Mark]], reference: bool) -> list[tuple[str, ...]]:
    """Those that one axis can show: where one reaches many times as far as another, the other would be a column of dots."""
    reach = {m: high - low for m in measured for low, high in [span_of(list(found[m].values()), reference)]}
    groups: list[list[str]] = []
    for m in sorted(measured, key=reach.__getitem__):
        if groups and reach[m] <= ALIKE * reach[groups[-1][0]]:
            groups[-1].append(m)
        else:
            groups.append([m])
    return sorted((tuple(sorted(group, key=measured.index)) for group in groups), key=lambda group: measured.index(group[0]))


def _point(what: _Differences, entry: RankingEntry, measured: str, kind: str) -> Mark | None:
    estimate = what.of(entry, measured)
    if estimate is None or not known(estimate):
        return None
    itself = what.relative and entry.name == what.ranking.baseline
    hollow = bool(what.reference) and not itself and not estimate.significant(what.ranking.level, what.comparisons)
    return Mark(estimate.value, ends(estimate, what.ranking.level, what.comparisons), kind, hollow, kind in ("control", "none"))


def _group(what: _Differences, found: Mapping[str, Mapping[int, Mark]], measured: tuple[str, ...], note: str) -> AxisGroup:
    ranking = what.ranking
    panels = tuple(Panel("mean" if m == MEAN else short(m, ranking.measured), found[m]) for m in measured)
    unit = what.unit(measured[0])
    if what.relative:
        about = f"← better · worse than {cut(what.reference)} →, {unit}"
    elif what.reference:
        about = f"increase over the dense model, {unit}"
    else:
        about = unit
    return AxisGroup(panels, about, what.reference, note)


def _told(what: _Differences, entries: tuple[RankingEntry, ...], where: str, title: str) -> str:
    level, comparisons = what.ranking.level, what.comparisons
    together = ", jointly over all rows" if comparisons > 1 else ""
    parts = [f"{title}, for {where}, in {what.ranking.unit}", f"In brackets {percent(level)} intervals{together}"]
    if what.reference:
        parts.append(f"An asterisk marks what is not significantly different from {what.reference}")
    for m in what.panels:
        said = [f"{e.name} {_said(what, e, m)}" for e in entries if known(what.of(e, m))]
        holes = [e.name for e in entries if not known(what.of(e, m))]
        lost = f"; no number for {', '.join(holes)}" if holes else ""
        parts.append(f"{'Mean' if m == MEAN else f'On {m}'}: {'; '.join(said) or 'nothing'}{lost}")
    return sentence(parts)


def _said(what: _Differences, entry: RankingEntry, measured: str) -> str:
    estimate = what.of(entry, measured)
    assert estimate is not None
    if what.relative and entry.name == what.ranking.baseline:
        return "is the baseline"
    apart = not what.reference or estimate.significant(what.ranking.level, what.comparisons)
    number = signed(estimate.value) if what.reference else signed(estimate.value).removeprefix("+")
    return f"{number}{spread(ends(estimate, what.ranking.level, what.comparisons))}{'' if apart else '*'}"


NAMES: Final[Mapping[str, str]] = {"own": "own-data", "cot": "chain-of-thought", "icl": "in-context"}
"""What the plot of a question is called, where not by the question's own name."""

MOST: Final = 60
"""Rows of evidence that a plot shows."""

PARTS: Final[Mapping[str, int]] = {"where": 60, "label": 40, "on": 24}
"""What tells one piece of evidence from another, and the letters that each may take."""


def evidence(question: PaperQuestion) -> Plot | None:
    """What the answer to a question rests on: each difference with its joint interval, and its verdict as a word. None without a number."""
    found = [e for e in question.evidence if known(e.difference)]
    if not found:
        return None
    chosen, fewer = _few(found)
    units = list(dict.fromkeys(e.unit for e in chosen))
    blocks = [_block([e for e in chosen if e.unit == unit], unit, f"unit{i}-") for i, unit in enumerate(units)]
    data = {name: records for block in blocks for name, records in block.data.items()}
    said = "; ".join(f"{e.label}, {e.where}, on {e.on}: {_difference(e)}, {e.verdict}" for e in chosen)
    told = sentence([question.question, f"Answer: {question.answer}", question.explanation, fewer, said])
    return plotted((NAMES.get(question.name, question.name),), question.question, told, lambda: stacked(blocks), data)


def _few(found: Sequence[Evidence]) -> tuple[Sequence[Evidence], str]:
    """At most `MOST` pieces of evidence, of more those on the mean, and what to say of it."""
    if len(found) <= MOST:
        return found, ""
    chosen = ([e for e in found if e.on == MEAN] or found)[:MOST]
    return chosen, f"Shown: {counted(len(chosen), 'row')} of {len(found)}, on the mean where there is one"


def _difference(piece: Evidence) -> str:
    return f"{signed(piece.difference.value)}{f' {piece.unit}' if piece.unit else ''}{spread(_interval(piece))}"


def _interval(piece: Evidence) -> Interval:
    return None if piece.interval is None or any(end != end for end in piece.interval) else piece.interval


def _block(pieces: Sequence[Evidence], unit: str, key: str) -> Panels:
    """The rows of one unit. What is the same in all stands above them; where they are of several runs, each run's name stands above its own."""
    told = {part: [str(getattr(piece, part)) for piece in pieces] for part in PARTS}
    same = [part for part in PARTS if len(set(told[part])) == 1]
    parts = [part for part in PARTS if part not in same] or ["label"]
    rows: list[PanelRow] = []
    points: dict[int, Mark] = {}
    order = sorted(range(len(pieces)), key=lambda i: told["where"].index(told["where"][i]))  # one run after the other, else as they come
    headed, run = "where" in parts and len(parts) > 1, ""
    for i in order:
        if headed and told["where"][i] != run:
            run = told["where"][i]
            rows.append(PanelRow(run, head=True))
        e = pieces[i]
        points[len(rows)] = Mark(e.difference.value, _interval(e), e.verdict, e.verdict == "not significant", word=e.verdict)
        rows.append(PanelRow(" · ".join(cut(told[part][i], PARTS[part]) for part in parts if not (headed and part == "where"))))
    title = " · ".join(cut(told[part][0], PARTS[part]) for part in same if part != parts[0])
    group = AxisGroup((Panel(title, points),), f"← better · worse →{f', {unit}' if unit else ''}", "no difference", "lines: joint intervals")
    return Panels(tuple(rows), (group,), VERDICTS, 66, key, legend=False)
