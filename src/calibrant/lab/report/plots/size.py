"""Loss against size: what each method, grid and calibration set makes of the bits that a weight
takes. No torch here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from calibrant.lab.report.plots.curves import Curve, CurvePanels, Spot
from calibrant.lab.report.plots.picture import Plot, plotted
from calibrant.lab.report.plots.placing import axis_of, reached
from calibrant.lab.report.plots.words import ends, sentence, signed, spread
from calibrant.lab.stats import Ranking, RankingEntry
from calibrant.numerics import percent

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
