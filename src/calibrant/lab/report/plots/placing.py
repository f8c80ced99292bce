"""Where things stand in a plot: axes with a known range, and labels of which none covers
another. Pixels. No torch here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from calibrant.lab.report.plots.theme import LETTER

if TYPE_CHECKING:
    import altair as alt

WIDE: Final = 20.0
"""From how many times the smallest value the largest is shown on a logarithmic axis."""


@dataclass(frozen=True)
class Axis:
    """A range of values over so many pixels."""

    low: float
    high: float
    pixels: int
    log: bool = False

    def at(self, value: float) -> float:
        """Pixels from the low end."""
        if self.log:
            return self.pixels * math.log(value / self.low) / math.log(self.high / self.low)
        return self.pixels * (value - self.low) / (self.high - self.low)

    def back(self, pixels: float) -> float:
        """The value that lies so many pixels from the low end."""
        share = pixels / self.pixels
        return (
            self.low * (self.high / self.low) ** share
            if self.log
            else self.low + (self.high - self.low) * share
        )

    def inside(self, value: float) -> float:
        """The value on the axis that is nearest to `value`."""
        return min(max(value, self.low), self.high)

    def scale(self) -> "alt.Scale":
        """The same for Vega."""
        import altair as alt

        if self.log:
            return alt.Scale(type="log", domain=[self.low, self.high], nice=False)
        return alt.Scale(domain=[self.low, self.high], nice=False, zero=False)


def axis_of(
    values: Iterable[float | int], pixels: int, log: bool | None = None, room: float = 0.05
) -> Axis:
    """An axis that holds all finite values with a little room: logarithmic if they are positive
    and span far, or as `log` asks and they allow.
    """
    finite = [float(v) for v in values if math.isfinite(v)]
    if not finite:
        return Axis(0.0, 1.0, pixels)
    low, high = min(finite), max(finite)
    if low > 0 and (high / low > WIDE if log is None else log):
        far = max((high / low) ** room, 1.02)
        return Axis(low / far, high * far, pixels, True)
    more = room * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - more, high + more, pixels)


def reached(
    values: Iterable[float], intervals: Iterable[tuple[float, float] | None]
) -> list[float]:
    """`values` and the ends of their intervals, those that reach much farther than any value
    drawn in.
    """
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return []
    low, high = min(finite), max(finite)
    more = 0.6 * (high - low) or math.inf
    least = max(low - more, low / 1.6 if low > 0 else -math.inf)
    return finite + [
        min(max(end, least), high + more)
        for interval in intervals
        if interval
        for end in interval
        if math.isfinite(end)
    ]


LINE: Final = 12.0
"""Pixels from one label to the next below it."""


def spaced(targets: Sequence[float], low: float, high: float, gap: float = LINE) -> list[float]:
    """Return places as near to `targets` as may be, at least `gap` apart, between `low` and
    `high` where there is room; in their order.
    """
    if not targets:
        return []
    gap = min(gap, (high - low) / max(1, len(targets) - 1)) if len(targets) > 1 else gap
    order = sorted(range(len(targets)), key=lambda i: targets[i])
    # Clusters of labels that touch share the mean of their targets: each new one joins the last
    # while it would overlap it.
    clusters: list[tuple[float, int]] = []
    for i in order:
        centre, size = targets[i], 1
        while (
            clusters
            and centre - (size - 1) / 2 * gap < clusters[-1][0] + (clusters[-1][1] + 1) / 2 * gap
        ):
            before, many = clusters.pop()
            centre, size = (before * many + centre * size) / (many + size), many + size
            centre = min(max(centre, low + (size - 1) / 2 * gap), high - (size - 1) / 2 * gap)
        clusters.append(
            (min(max(centre, low + (size - 1) / 2 * gap), high - (size - 1) / 2 * gap), size)
        )
    places = [centre + (k - (size - 1) / 2) * gap for centre, size in clusters for k in range(size)]
    spread = [0.0] * len(targets)
    for i, place in zip(order, places, strict=True):
        spread[i] = place
    return spread


@dataclass(frozen=True)
class PlacedLabel:
    """Where a label stands: its left end, or its right end if `right`, and its middle. One that
    is `off` stands away from its point.
    """

    x: float
    y: float
    right: bool = False
    off: bool = False


def around(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    width: float | int,
    height: float | int,
) -> list[PlacedLabel | None]:
    """Return a place for the name of each point, beside it or a few lines above or below; None
    where there is none.
    """
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    labels: list[PlacedLabel | None] = []
    for i, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        long = len(name) * LETTER * 0.95
        for label in _places(x, y):
            box = (
                (label.x - long, label.y - 6, label.x, label.y + 6)
                if label.right
                else (label.x, label.y - 6, label.x + long, label.y + 6)
            )
            inside = (
                box[0] >= 0
                and box[1] >= 0
                and box[3] <= height
                and (label.right or box[2] <= width + 120)
            )
            if inside and not any(_overlap(box, other) for k, other in enumerate(boxes) if k != i):
                boxes.append(box)
                labels.append(label)
                break
        else:
            labels.append(None)
    return labels


def _places(x: float, y: float) -> list[PlacedLabel]:
    near = [PlacedLabel(x + 9, y), PlacedLabel(x - 9, y, True)]
    far = [
        PlacedLabel(x + side * 12, y + sign * k * LINE, side < 0, True)
        for k in range(1, 9)
        for sign in (-1, 1)
        for side in (1, -1)
    ]
    return near + far


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
