"""How results change with the number of tokens, with sparsity, with the bits that a weight takes, and
from block to block. Only draws. No torch here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Final

from calibrant.lab.report.plots.curves import Curve, CurvePanels, Spot
from calibrant.lab.report.plots.picture import (
    LINE,
    Axis,
    Plot,
    axis_of,
    counted,
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
from calibrant.numerics import percent
from calibrant.spec.foreign import visible_name

CROWDED: Final = 24
"""Points over tokens; with more there is no room for their intervals."""

OUTSIDE: Final = 0.75
"""By how much of the sets' range a control may lie above them and still be inside the axis."""

UNLIKE: Final = 1.05
"""By how much the most tokens must exceed the fewest for a plot against tokens."""

MANY: Final = 14
"""Sets in a plot over sparsity; of more only some have a colour, before pale lines of the
others.
"""

FEW: Final = 8
"""Lines that the eye can distinguish; of more only the best and the worst are drawn, before the
range of all.
"""


def against_sparsity(rankings: Sequence[Ranking]) -> Plot | None:
    """Means over sparsity, a panel for each method and a line for each set; N:M patterns stand at 1
    − N/M. Of one model, in the first one's unit.

    None where no method was asked for two different sparsities.
    """
    mine = [
        r
        for r in rankings
        if (r.model, r.unit, r.dense is None)
        == (rankings[0].model, rankings[0].unit, rankings[0].dense is None)
    ]
    several = Counter(method for method, _ in {(r.method, r.propagate) for r in mine})
    by_method: dict[str, list[Ranking]] = {}
    for ranking in mine:
        if sparsity_of(ranking.target) is not None:
            title = (
                f"{ranking.method}, {ranking.propagate}"
                if several[ranking.method] > 1
                else ranking.method
            )
            by_method.setdefault(title, []).append(ranking)
    panels = tuple(
        (title, lines) for title, of_method in by_method.items() if (lines := _lines(of_method))
    )
    spots = [spot for _, lines in panels for line in lines for spot in line.spots]
    if not any(math.isfinite(spot.y) for spot in spots):
        return None
    most = max(sum(not line.plain for line in lines) for _, lines in panels)
    up = axis_of(
        reached((s.y for s in spots), (s.interval for s in spots)), max(240, round(LINE * most))
    )
    across = axis_of((spot.x for spot in spots), {1: 640, 2: 320}.get(len(panels), 210))
    what = "increase over the dense model" if rankings[0].dense is not None else "mean"
    patterns = any(spot.apart for spot in spots)
    pale = any(line.plain for _, lines in panels for line in lines)
    caption = [
        f"Each line: the mean {what} of the models that were calibrated on one set, in {rankings[0].unit}, by the share of the weights that went",
        f"Upright lines: {percent(rankings[0].level)} intervals",
        "Hollow: N:M patterns" if patterns else "",
        "Pale: the other sets" if pale else "",
    ]
    ticks = tuple(sorted({spot.x for spot in spots}))
    curves = CurvePanels(
        panels, across, up, "sparsity", f"mean {what}, {rankings[0].unit}", ticks, shares=True
    )
    methods = list(by_method) if len(by_method) == 1 else []
    title = f"Mean {what} over sparsity: {rankings[0].model}"
    words = _lines_in_words(title, rankings[0].unit, panels)
    return plotted(
        ("sparsity", *methods),
        title,
        words,
        curves.chart,
        {"lines": curves.records()},
        caption,
        curves.families,
    )


def _lines(rankings: Sequence[Ranking]) -> tuple[Curve, ...]:
    """A line for each set over the targets of one method; none where there is but one sparsity."""
    spots: dict[str, list[Spot]] = {}
    family: dict[str, str] = {}
    for ranking in rankings:
        x = sparsity_of(ranking.target)
        for entry in (*ranking.entries, *ranking.baselines):
            if x is None or not known(entry.mean):
                continue
            pattern = ":" in ranking.target
            spot = Spot(
                x,
                entry.mean.value,
                ends(entry.mean, ranking.level),
                pattern,
                visible_name(ranking.target) if pattern else "",
            )
            spots.setdefault(entry.name, []).append(spot)
            family[entry.name] = entry.family
    if len({spot.x for own in spots.values() for spot in own}) < 2:
        return ()
    coloured = _best_and_worst(rankings, family)
    dashes = _dashes({name: kind for name, kind in family.items() if name in coloured})
    ordered = {
        name: tuple(sorted(own, key=lambda s: (s.x, s.apart))) for name, own in spots.items()
    }
    others = [
        Curve(name, family[name], 0, _bare(ordered[name]), marked=False, plain=True, label=False)
        for name in ordered
        if name not in coloured
    ]
    return (
        *others,
        *(
            Curve(name, family[name], dashes[name], ordered[name])
            for name in ordered
            if name in coloured
        ),
    )


def _best_and_worst(rankings: Sequence[Ranking], family: Mapping[str, str]) -> set[str]:
    """Return the names that have a colour: all if they are few, else the baseline, three at each
    end at the highest sparsity, and what is no set.
    """
    if len(family) <= MANY:
        return set(family)
    highest = max(rankings, key=lambda r: (sparsity_of(r.target) or 0.0, ":" not in r.target))
    sets = [e.name for e in highest.entries if not e.control]
    aside = {name for name, kind in family.items() if kind in ("control", "none")}
    return {*sets[:3], *sets[-3:], *aside, *(r.baseline for r in rankings)}


def _bare(spots: Sequence[Spot]) -> tuple[Spot, ...]:
    return tuple(Spot(s.x, s.y) for s in spots if not s.apart)


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
        each = [
            f"{line.name} {', '.join(f'at {s.note or share(s.x)} {signed(s.y)}{spread(s.interval)}' for s in line.spots)}"
            for line in lines
        ]
        parts.append(f"With {name}: {'; '.join(each)}")
    return sentence(parts)


def against_tokens(ranking: Ranking, tokens: Mapping[str, int]) -> Plot | None:
    """Means against the real tokens of each set, which `tokens` has by name. None where they
    hardly differ, or for fewer than two sets.
    """
    sets = [
        (e, tokens[e.name])
        for e in ranking.entries
        if tokens.get(e.name, 0) > 0 and math.isfinite(e.mean.value)
    ]
    counts = [count for _, count in sets]
    if len(sets) < 2 or max(counts) <= UNLIKE * min(counts):
        return None
    crowded = len(sets) > CROWDED
    lines = tuple(
        Curve(
            e.name,
            e.family,
            0,
            (Spot(float(count), e.mean.value, None if crowded else ends(e.mean, ranking.level)),),
        )
        for e, count in sets
    )
    inner = [line.spots[0] for line in lines if line.family != "control"] or [
        line.spots[0] for line in lines
    ]
    most = max(s.y for s in inner) + OUTSIDE * (max(s.y for s in inner) - min(s.y for s in inner))
    within = [line.spots[0] for line in lines if line.spots[0].y <= most]
    tall = reached((s.y for s in within), (s.interval for s in within))
    across, up = axis_of(counts, 560, room=0.06), axis_of(tall, 520 if crowded else 300)
    what = "mean increase over the dense model" if ranking.dense is not None else "mean"
    caption = [
        f"Each mark: the {what} of the model that was calibrated on one set, in {ranking.unit}, by how many real tokens the set has",
        "" if crowded else f"Upright lines: {percent(ranking.level)} intervals",
        "An arrow at the edge: what lies beyond the axis, with its number"
        if len(within) < len(lines)
        else "",
    ]
    curves = CurvePanels(
        (("", lines),),
        across,
        up,
        "real calibration tokens",
        f"{what}, {ranking.unit}",
        around=True,
    )
    title = f"{what.capitalize()} against calibration tokens: {ranking.model}, {ranking.method} at {describe_target(ranking.target)}"
    each = [
        f"{e.name} {counted(count, 'token')}, {signed(e.mean.value)}{spread(ends(e.mean, ranking.level))}"
        for e, count in sets
    ]
    description = sentence([f"{title}, in {ranking.unit}", "; ".join(each)])
    name = ("tokens", ranking.method, ranking.target)
    return plotted(
        name,
        title,
        description,
        curves.chart,
        {"lines": curves.records()},
        caption,
        curves.families,
    )


def layer_errors(layers: Layers) -> Plot | None:
    """The output error of each block, a line for each set; of more than a few the best and the
    worst, over the range of all.

    None where no error is known, or for a model of one block.
    """
    errors = {
        name: [float(v) for v in row]
        for name, row in zip(layers.sets, layers.error, strict=True)
        if any(math.isfinite(v) for v in row)
    }
    if not errors or len(layers.blocks) < 2:
        return None
    values = [v for row in errors.values() for v in row if math.isfinite(v)]
    across, up = Axis(-0.5, len(layers.blocks) - 0.5, 560), axis_of(values, 280, log=True)
    order = sorted(errors, key=lambda name: fmean(v for v in errors[name] if math.isfinite(v)))
    names = order if len(order) <= FEW else [order[0], order[-1]]
    dashes = _dashes({name: layers.families.get(name, "own") for name in names})
    lines = [
        Curve(
            name,
            layers.families.get(name, "own"),
            dashes[name],
            _along(errors[name]),
            marked=len(layers.blocks) <= 40,
        )
        for name in names
    ]
    band: tuple[tuple[float, float, float], ...] = ()
    if len(order) > FEW:
        usual = [
            (float(b), *map(float, column))
            for b, column in enumerate(layers.error_range.T)
            if math.isfinite(column[1])
        ]
        band = tuple((b, low, high) for b, low, _, high in usual)
        middle = tuple(Spot(b, value) for b, _, value, _ in usual)
        lines.append(
            Curve(
                f"median of {len(order)} sets",
                layers.families.get(order[0], "own"),
                0,
                middle,
                marked=False,
                plain=True,
            )
        )
    caption = [
        "Each line: how far the outputs of a block's matrices are from the dense model's, as a share of their size, on the set's own text",
        "Grey: from the smallest to the largest of all sets" if band else "",
    ]
    curves = CurvePanels(
        (("", tuple(lines)),), across, up, "block", "relative output error", band=band
    )
    title = f"Output error by block: {layers.model}, {layers.method} at {describe_target(layers.target)}"
    description = _errors_in_words(title, layers.blocks, {name: errors[name] for name in order})
    name = ("layers", layers.method, layers.target)
    return plotted(
        name,
        title,
        description,
        curves.chart,
        {"lines": curves.records()},
        caption,
        curves.families,
    )


def _along(row: Sequence[float]) -> tuple[Spot, ...]:
    return tuple(Spot(float(b), value) for b, value in enumerate(row))


def _errors_in_words(
    title: str, blocks: Sequence[str], errors: Mapping[str, Sequence[float]]
) -> str:
    parts = [
        f"{title}, relative output error, the smallest mean first, each set from block to block ({blocks[0]} to {blocks[-1]})"
    ]
    for name, row in errors.items():
        parts.append(
            f"{name}: {', '.join(f'{v:.3g}' if math.isfinite(v) else 'unknown' for v in row)}"
        )
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
        data = "" if self.entry.name == self.ranking.method else f" · {self.entry.name}"
        return f"{self.ranking.method} {self.ranking.target}{data}"


def against_size(rankings: Sequence[Ranking]) -> Plot | None:
    """Return means over the bits that a weight takes, of one model: methods, grids and sets, and
    which are on the front.

    On the front is what is better than everything that takes no more bits. None where no two sizes
    are known. In the first ranking's unit.
    """
    sized = [
        Sized(r, entry, r.bits)
        for r in rankings
        if r.bits is not None
        and (r.unit, r.averaged, r.dense is None)
        == (rankings[0].unit, rankings[0].averaged, rankings[0].dense is None)
        for entry in (*r.entries, *r.baselines)
        if math.isfinite(entry.mean.value)
    ]
    if len({one.bits for one in sized}) < 2:
        return None
    first, front = rankings[0], on_the_front(sized)
    spots = {
        one: Spot(
            one.bits,
            one.entry.mean.value,
            ends(one.entry.mean, one.ranking.level) if len(sized) <= NAMED else None,
            one not in front,
        )
        for one in sized
    }
    named = [one for one in sized if one in front or len(sized) <= NAMED]
    lines = [
        Curve(one.name, one.entry.family, 0, (spots[one],), label=one in named) for one in sized
    ]
    corners = [(one.bits, before.entry.mean.value) for before, one in pairwise(front)]
    steps = sorted(
        [*corners, *((one.bits, one.entry.mean.value) for one in front)],
        key=lambda step: (step[0], -step[1]),
    )
    stairs = Curve("", "none", 0, tuple(Spot(x, y) for x, y in steps), marked=False, plain=True)
    what = "mean increase over the dense model" if first.dense is not None else "mean"
    up = axis_of(reached((s.y for s in spots.values()), (s.interval for s in spots.values())), 360)
    across = axis_of((one.bits for one in sized), 700, log=False, room=0.06)
    curves = CurvePanels(
        (("", (*lines, *([stairs] if len(front) > 1 else []))),),
        across,
        up,
        "bits a weight",
        f"{what}, {first.unit}",
        around=True,
    )
    title = f"{what.capitalize()} against size: {first.model}"
    caption = [
        f"Each mark: the {what} with one method, target and calibration set, in {first.unit}, by the bits that a weight of the compressed matrices "
        "takes, scales and zero points counted",
        "Filled, and joined by the dashed line: the front, better than all that takes no more bits; hollow: off it",
        f"Upright lines: {percent(first.level)} intervals"
        if len(sized) <= NAMED
        else "Names: of the front alone",
    ]
    each = [
        f"{one.name} {one.bits:.3g} bits, {signed(one.entry.mean.value)}{spread(ends(one.entry.mean, one.ranking.level))}"
        f"{', on the front' if one in front else ''}"
        for one in sized
    ]
    description = sentence([f"{title}, in {first.unit}", "; ".join(each)])
    return plotted(
        ("size",),
        title,
        description,
        curves.chart,
        {"lines": curves.records()},
        caption,
        curves.families,
    )


def on_the_front(sized: Sequence[Sized]) -> list[Sized]:
    """Return what is better than everything that takes no more bits, the smallest first."""
    front: list[Sized] = []
    for one in sorted(sized, key=lambda one: (one.bits, one.entry.mean.value)):
        if not front or one.entry.mean.value < front[-1].entry.mean.value:
            front.append(one)
    return front
