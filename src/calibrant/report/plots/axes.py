"""Axes with a known range, so that labels can be placed where nothing else is. No torch here."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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
        return self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share

    def inside(self, value: float) -> float:
        """The value on the axis that is nearest to `value`."""
        return min(max(value, self.low), self.high)

    def scale(self) -> "alt.Scale":
        """The same for Vega."""
        import altair as alt

        if self.log:
            return alt.Scale(type="log", domain=[self.low, self.high], nice=False)
        return alt.Scale(domain=[self.low, self.high], nice=False, zero=False)


def axis_of(values: Iterable[float | int], pixels: int, log: bool | None = None, room: float = 0.05) -> Axis:
    """An axis that holds all finite values with a little room: logarithmic if they are positive and span far, or as `log` asks and they allow."""
    finite = [float(v) for v in values if math.isfinite(v)]
    if not finite:
        return Axis(0.0, 1.0, pixels)
    low, high = min(finite), max(finite)
    if low > 0 and (high / low > WIDE if log is None else log):
        far = max((high / low) ** room, 1.02)
        return Axis(low / far, high * far, pixels, True)
    more = room * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - more, high + more, pixels)


def reached(values: Iterable[float], intervals: Iterable[tuple[float, float] | None]) -> list[float]:
    """`values` and the ends of their intervals, those that reach much farther than any value drawn in."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return []
    low, high = min(finite), max(finite)
    more = 0.6 * (high - low) or math.inf
    least = max(low - more, low / 1.6 if low > 0 else -math.inf)
    return finite + [min(max(end, least), high + more) for interval in intervals if interval for end in interval if math.isfinite(end)]
