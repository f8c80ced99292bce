"""How results change with the number of tokens, with sparsity, with the bits that a weight takes,
and from block to block. Only draws. No torch here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from calibrant.lab.report.plots.curves import Curve, CurvePanels, Spot
from calibrant.lab.report.plots.picture import (
    CROWDED,
    LINE,
    Axis,
    Plot,
    axis_of,
    ends,
    known,
    plotted,
    reached,
    sentence,
    share,
    signed,
    spread,
)
from calibrant.lab.report.plots.theme import DASHES
from calibrant.lab.stats import Layers, Ranking, RankingEntry, describe_target, sparsity_of
from calibrant.numerics import counted, percent
from calibrant.spec.foreign import visible_name

OUTSIDE: Final = 0.75
"""By how much of the sets' range a control may lie above them and still be inside the axis."""

UNLIKE: Final = 1.05
"""By how much the most tokens must exceed the fewest for a plot against tokens."""

MANY: Final = 14
"""Sets in a plot over sparsity; of more only some have a colour, before pale lines of the
others.
"""

WIDTHS: Final = {1: 640, 2: 320}
"""The width in pixels of each of so few panels over sparsity."""

NARROW: Final = 210
"""The width of each of more."""

FEW: Final = 8
"""Lines that the eye can distinguish; of more only the best and the worst are drawn, before the
range of all.
"""


def against_sparsity(rankings: Sequence[Ranking]) -> Plot | None:
    """Return means over sparsity, a panel for each method and a line for each set; N:M patterns
    stand at 1 − N/M. Of one model, in the first one's unit.

    None where no method was asked for two different sparsities.
    """
    if not rankings:
        return None
    first = rankings[0]
    by_method = _by_method(rankings)
    methods = [method for method, _ in by_method]
    panels: list[tuple[str, tuple[Curve, ...]]] = []
    every_line: list[Curve] = []
    # The most coloured lines that a panel has; pale ones need no room for labels.
    most_coloured = 0
    for (method, propagate), of_method in by_method.items():
        lines = _lines(of_method)
        if not lines:
            continue
        title = method
        if methods.count(method) > 1:
            title = f"{method}, {propagate}"
        panels.append((title, lines))
        every_line.extend(lines)
        coloured_here = [line for line in lines if not line.plain]
        most_coloured = max(most_coloured, len(coloured_here))
    spots: list[Spot] = []
    for line in every_line:
        spots.extend(line.spots)
    if not any(math.isfinite(spot.y) for spot in spots):
        return None
    up = axis_of(_reached(spots), max(240, round(LINE * most_coloured)))
    across = axis_of((spot.x for spot in spots), WIDTHS.get(len(panels), NARROW))
    mean = _mean_of(first)
    caption = [
        f"Each line: the {mean} of the models that were calibrated on one set, in {first.unit}, "
        "by the share of the weights that went",
        f"Upright lines: {percent(first.level)} intervals",
    ]
    if any(spot.apart for spot in spots):
        caption.append("Hollow: N:M patterns")
    if any(line.plain for line in every_line):
        caption.append("Pale: the other sets")
    ticks = tuple(sorted({spot.x for spot in spots}))
    axis = f"{mean}, {first.unit}"
    curves = CurvePanels(tuple(panels), across, up, "sparsity", axis, ticks, shares=True)
    name: tuple[str, ...] = ("sparsity",)
    if len(methods) == 1:
        name = ("sparsity", methods[0])
    title = f"{mean.capitalize()} over sparsity: {first.model}"
    words = _lines_in_words(title, first.unit, panels)
    return _drawn(name, title, words, curves, caption)


def _by_method(rankings: Sequence[Ranking]) -> dict[tuple[str, str], list[Ranking]]:
    """Rankings of a sparsity by method and propagation: what can stand on the first one's axis."""
    first = rankings[0]
    by_method: dict[tuple[str, str], list[Ranking]] = {}
    for ranking in rankings:
        comparable = ranking.model == first.model and _scale(ranking) == _scale(first)
        if comparable and sparsity_of(ranking.target) is not None:
            way = ranking.method, ranking.propagate
            by_method.setdefault(way, []).append(ranking)
    return by_method


def _scale(ranking: Ranking) -> tuple[str, bool]:
    """What numbers must have in common to stand on one axis."""
    return ranking.unit, ranking.dense is None


def _reached(spots: Sequence[Spot]) -> list[float]:
    """The values of spots and the ends of their intervals, for the axis that they stand on."""
    values = [spot.y for spot in spots]
    intervals = [spot.interval for spot in spots]
    return reached(values, intervals)


def _mean_of(ranking: Ranking) -> str:
    return "mean" if ranking.dense is None else "mean increase over the dense model"


def _drawn(
    name: tuple[str, ...], title: str, words: str, curves: CurvePanels, caption: Sequence[str]
) -> Plot:
    data = {"lines": curves.records()}
    return plotted(name, title, words, curves.chart, data, caption, curves.families)


def _lines(rankings: Sequence[Ranking]) -> tuple[Curve, ...]:
    """A line for each set over the targets of one method; none where there is but one sparsity."""

    def order(spot: Spot) -> tuple[float, bool]:
        return spot.x, spot.apart

    spots: dict[str, list[Spot]] = {}
    family: dict[str, str] = {}
    sparsities: set[float] = set()
    for ranking in rankings:
        x = sparsity_of(ranking.target)
        pattern = ":" in ranking.target
        note = visible_name(ranking.target) if pattern else ""
        for entry in (*ranking.entries, *ranking.baselines):
            if x is None or not known(entry.mean):
                continue
            interval = ends(entry.mean, ranking.level)
            spot = Spot(x, entry.mean.value, interval, pattern, note)
            spots.setdefault(entry.name, []).append(spot)
            family[entry.name] = entry.family
            sparsities.add(x)
    if len(sparsities) < 2:
        return ()
    coloured = _best_and_worst(rankings, family)
    family_of_coloured = {name: kind for name, kind in family.items() if name in coloured}
    dashes = _dashes(family_of_coloured)
    pale: list[Curve] = []
    lines: list[Curve] = []
    for name, unordered in spots.items():
        ordered = tuple(sorted(unordered, key=order))
        if name in coloured:
            lines.append(Curve(name, family[name], dashes[name], ordered))
        else:
            bare = tuple(Spot(spot.x, spot.y) for spot in ordered if not spot.apart)
            line = Curve(name, family[name], 0, bare, marked=False, plain=True, label=False)
            pale.append(line)
    # Pale lines come first, so that the others are drawn over them.
    return (*pale, *lines)


def _best_and_worst(rankings: Sequence[Ranking], family: Mapping[str, str]) -> set[str]:
    """The names that have a colour: all if they are few, else the baseline, three at each end at
    the highest sparsity, and what is no set.
    """

    def height(ranking: Ranking) -> tuple[float, bool]:
        return sparsity_of(ranking.target) or 0.0, ":" not in ranking.target

    if len(family) <= MANY:
        return set(family)
    highest = max(rankings, key=height)
    sets = [entry.name for entry in highest.entries if not entry.control]
    aside = {name for name, kind in family.items() if kind in ("control", "none")}
    baselines = {ranking.baseline for ranking in rankings}
    return {*sets[:3], *sets[-3:], *aside, *baselines}


def _dashes(family: Mapping[str, str]) -> dict[str, int]:
    """The dash of each line: the next one for each of a family."""
    counts: Counter[str] = Counter()
    dashes: dict[str, int] = {}
    for name, kind in family.items():
        dashes[name] = counts[kind] % len(DASHES)
        counts[kind] += 1
    return dashes


def _lines_in_words(title: str, unit: str, panels: Iterable[tuple[str, Sequence[Curve]]]) -> str:
    parts = [f"{title}, in {unit}"]
    for name, lines in panels:
        each: list[str] = []
        for line in lines:
            numbers: list[str] = []
            for spot in line.spots:
                where = spot.note or share(spot.x)
                number = f"{signed(spot.y)}{spread(spot.interval)}"
                numbers.append(f"at {where} {number}")
            each.append(f"{line.name} {', '.join(numbers)}")
        parts.append(f"With {name}: {'; '.join(each)}")
    return sentence(parts)


def against_tokens(ranking: Ranking, tokens: Mapping[str, int]) -> Plot | None:
    """Return means against the real tokens of each set, which `tokens` has by name. None where
    they hardly differ, or for fewer than two sets.
    """
    sets: list[tuple[RankingEntry, int]] = []
    for entry in ranking.entries:
        if tokens.get(entry.name, 0) > 0 and math.isfinite(entry.mean.value):
            sets.append((entry, tokens[entry.name]))
    counts = [count for _, count in sets]
    if len(sets) < 2 or max(counts) <= UNLIKE * min(counts):
        return None
    crowded = len(sets) > CROWDED
    marks: list[Curve] = []
    each: list[str] = []
    for entry, count in sets:
        value = entry.mean.value
        interval = ends(entry.mean, ranking.level)
        number = f"{signed(value)}{spread(interval)}"
        each.append(f"{entry.name} {counted(count, 'token')}, {number}")
        if crowded:
            interval = None
        spot = Spot(float(count), value, interval)
        marks.append(Curve(entry.name, entry.family, 0, (spot,)))
    inside = _inside(marks)
    across = axis_of(counts, 560, room=0.06)
    height = 520 if crowded else 300
    up = axis_of(_reached(inside), height)
    mean = _mean_of(ranking)
    caption = [
        f"Each mark: the {mean} of the model that was calibrated on one set, in {ranking.unit}, "
        "by how many real tokens the set has"
    ]
    if not crowded:
        caption.append(f"Upright lines: {percent(ranking.level)} intervals")
    if len(inside) < len(marks):
        caption.append("An arrow at the edge: what lies beyond the axis, with its number")
    axis = f"{mean}, {ranking.unit}"
    panel = ("", tuple(marks))
    curves = CurvePanels((panel,), across, up, "real calibration tokens", axis, around=True)
    where = f"{ranking.model}, {ranking.method} at {describe_target(ranking.target)}"
    title = f"{mean.capitalize()} against calibration tokens: {where}"
    words = sentence([f"{title}, in {ranking.unit}", "; ".join(each)])
    return _drawn(("tokens", ranking.method, ranking.target), title, words, curves, caption)


def _inside(marks: Sequence[Curve]) -> list[Spot]:
    """The spots inside the axis, which spans those of sets with content, and a control that lies
    near them; that of the controls where there is nothing else.
    """
    spots = [mark.spots[0] for mark in marks]
    values = [mark.spots[0].y for mark in marks if mark.family != "control"]
    if not values:
        values = [spot.y for spot in spots]
    highest = max(values)
    most = highest + OUTSIDE * (highest - min(values))
    return [spot for spot in spots if spot.y <= most]


def layer_errors(layers: Layers) -> Plot | None:
    """Return the output error of each block, a line for each set; of more than a few the best and
    the worst, over the range of all.

    None where no error is known, or for a model of one block.
    """
    errors = _known_errors(layers)
    if not errors or len(layers.blocks) < 2:
        return None
    lines = _error_lines(layers, errors)
    band: list[tuple[float, float, float]] = []
    caption = [
        "Each line: how far the outputs of a block's matrices are from the dense model's, "
        "as a share of their size, on the set's own text"
    ]
    if len(errors) > FEW:
        middle: list[Spot] = []
        for block, (low, median, high) in enumerate(layers.error_range.T.tolist()):
            if math.isfinite(median):
                band.append((float(block), low, high))
                middle.append(Spot(float(block), median))
        label = f"median of {len(errors)} sets"
        lines.append(Curve(label, lines[0].family, 0, tuple(middle), marked=False, plain=True))
        caption.append("Grey: from the smallest to the largest of all sets")
    values: list[float] = []
    for row in errors.values():
        values.extend(filter(math.isfinite, row))
    across = Axis(-0.5, len(layers.blocks) - 0.5, 560)
    up = axis_of(values, 280, log=True)
    panel = ("", tuple(lines))
    axis = "relative output error"
    curves = CurvePanels((panel,), across, up, "block", axis, band=tuple(band))
    where = f"{layers.model}, {layers.method} at {describe_target(layers.target)}"
    title = f"Output error by block: {where}"
    words = _errors_in_words(title, layers.blocks, errors)
    return _drawn(("layers", layers.method, layers.target), title, words, curves, caption)


def _known_errors(layers: Layers) -> dict[str, list[float]]:
    """The errors of sets of which any is known, block by block, the smallest mean first."""
    errors: dict[str, list[float]] = {}
    for name, row in zip(layers.sets, layers.error.tolist(), strict=True):
        if any(map(math.isfinite, row)):
            errors[name] = row

    def mean(name: str) -> float:
        return fmean(filter(math.isfinite, errors[name]))

    return {name: errors[name] for name in sorted(errors, key=mean)}


def _error_lines(layers: Layers, errors: Mapping[str, Sequence[float]]) -> list[Curve]:
    """A line for each set; of more than a few the first and the last."""
    names = list(errors)
    if len(names) > FEW:
        names = [names[0], names[-1]]
    family = {name: layers.families.get(name, "own") for name in names}
    dashes = _dashes(family)
    marked = len(layers.blocks) <= 40
    lines: list[Curve] = []
    for name in names:
        spots = [Spot(float(block), value) for block, value in enumerate(errors[name])]
        lines.append(Curve(name, family[name], dashes[name], tuple(spots), marked=marked))
    return lines


def _errors_in_words(
    title: str, blocks: Sequence[str], errors: Mapping[str, Sequence[float]]
) -> str:
    parts = [
        f"{title}, relative output error, the smallest mean first, each set from block to block "
        f"({blocks[0]} to {blocks[-1]})"
    ]
    for name, row in errors.items():
        numbers: list[str] = []
        for value in row:
            number = "unknown"
            if math.isfinite(value):
                number = f"{value:.3g}"
            numbers.append(number)
        parts.append(f"{name}: {', '.join(numbers)}")
    return sentence(parts)


NAMED: Final = 16
"""Runs that all have their names; of more only those on the front."""


@dataclass(frozen=True, eq=False)
class Sized:
    """A method's result at one target with one set, and how many bits a weight takes."""

    ranking: Ranking
    entry: RankingEntry
    bits: float

    @property
    def name(self) -> str:
        """Method, target and set."""
        words = f"{self.ranking.method} {self.ranking.target}"
        # What looks at no data is called like its method.
        if self.entry.name != self.ranking.method:
            words += f" · {self.entry.name}"
        return words

    @property
    def value(self) -> float:
        """The mean."""
        return self.entry.mean.value


def against_size(rankings: Sequence[Ranking]) -> Plot | None:
    """Return means over the bits that a weight takes, of one model: methods, grids and sets, and
    which are on the front.

    On the front is what is better than everything that takes no more bits. None where no two sizes
    are known. In the first ranking's unit.
    """
    if not rankings:
        return None
    first = rankings[0]
    sized = _known_sizes(rankings)
    if len({result.bits for result in sized}) < 2:
        return None
    front = on_the_front(sized)
    few = len(sized) <= NAMED
    lines: list[Curve] = []
    spots: list[Spot] = []
    each: list[str] = []
    for result in sized:
        interval = ends(result.entry.mean, result.ranking.level)
        on_front = result in front
        number = f"{signed(result.value)}{spread(interval)}"
        ending = ", on the front" if on_front else ""
        each.append(f"{result.name} {result.bits:.3g} bits, {number}{ending}")
        if not few:
            interval = None
        spot = Spot(result.bits, result.value, interval, apart=not on_front)
        spots.append(spot)
        label = few or on_front
        lines.append(Curve(result.name, result.entry.family, 0, (spot,), label=label))
    if len(front) > 1:
        lines.append(Curve("", "none", 0, _stairs(front), marked=False, plain=True))
    reach = _reached(spots)
    up = axis_of(reach, 360)
    across = axis_of((spot.x for spot in spots), 700, log=False, room=0.06)
    mean = _mean_of(first)
    axis = f"{mean}, {first.unit}"
    panel = ("", tuple(lines))
    curves = CurvePanels((panel,), across, up, "bits a weight", axis, around=True)
    title = f"{mean.capitalize()} against size: {first.model}"
    lines_or_names = "Names: of the front alone"
    if few:
        lines_or_names = f"Upright lines: {percent(first.level)} intervals"
    caption = [
        f"Each mark: the {mean} with one method, target and calibration set, in {first.unit}, by "
        "the bits that a weight of the compressed matrices takes, scales and zero points counted",
        "Filled, and joined by the dashed line: the front, better than all that takes no more "
        "bits; hollow: off it",
        lines_or_names,
    ]
    words = sentence([f"{title}, in {first.unit}", "; ".join(each)])
    return _drawn(("size",), title, words, curves, caption)


def _known_sizes(rankings: Sequence[Ranking]) -> list[Sized]:
    """The results of known size that can stand on the first ranking's axis."""
    first = rankings[0]
    sized: list[Sized] = []
    for ranking in rankings:
        comparable = _scale(ranking) == _scale(first) and ranking.averaged == first.averaged
        if ranking.bits is None or not comparable:
            continue
        for entry in (*ranking.entries, *ranking.baselines):
            if math.isfinite(entry.mean.value):
                sized.append(Sized(ranking, entry, ranking.bits))
    return sized


def _stairs(front: Sequence[Sized]) -> tuple[Spot, ...]:
    """The line along the front: level until the next result, then down to it."""
    steps: list[Spot] = []
    for result in front:
        if steps:
            steps.append(Spot(result.bits, steps[-1].y))
        steps.append(Spot(result.bits, result.value))
    return tuple(steps)


def on_the_front(sized: Sequence[Sized]) -> list[Sized]:
    """Return what is better than everything that takes no more bits, the smallest first."""

    def order(result: Sized) -> tuple[float, float]:
        return result.bits, result.value

    front: list[Sized] = []
    for result in sorted(sized, key=order):
        if not front or result.value < front[-1].value:
            front.append(result)
    return front
