"""Where labels stand so that none covers another. Pixels, y downwards. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from calibrant.report.plots.theme import LETTER

LINE: Final = 12.0
"""Pixels from one label to the next below it."""


def spaced(wanted: Sequence[float], low: float, high: float, gap: float = LINE) -> list[float]:
    """Places as near to `wanted` as may be, at least `gap` apart, between `low` and `high` where there is room; in the order of `wanted`."""
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1)) if len(wanted) > 1 else gap
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Clusters of labels that touch share the mean of what they want: each new one joins the last while it would overlap it.
    clusters: list[tuple[float, int]] = []
    for i in order:
        centre, size = wanted[i], 1
        while clusters and centre - (size - 1) / 2 * gap < clusters[-1][0] + (clusters[-1][1] + 1) / 2 * gap:
            before, many = clusters.pop()
            centre, size = (before * many + centre * size) / (many + size), many + size
            centre = min(max(centre, low + (size - 1) / 2 * gap), high - (size - 1) / 2 * gap)
        clusters.append((min(max(centre, low + (size - 1) / 2 * gap), high - (size - 1) / 2 * gap), size))
    places = [centre + (k - (size - 1) / 2) * gap for centre, size in clusters for k in range(size)]
    found = [0.0] * len(wanted)
    for i, place in zip(order, places, strict=True):
        found[i] = place
    return found


@dataclass(frozen=True)
class Label:
    """Where a label stands: its left end, or its right end if `right`, and its middle. One that is `off` stands away from its point."""

    x: float
    y: float
    right: bool = False
    off: bool = False


def around(points: Sequence[tuple[float, float]], names: Sequence[str], width: float | int, height: float | int) -> list[Label | None]:
    """A place for the name of each point, beside it or a few lines above or below; None where there is none."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    found: list[Label | None] = []
    for i, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        long = len(name) * LETTER * 0.95
        for label in _places(x, y):
            box = (label.x - long, label.y - 6, label.x, label.y + 6) if label.right else (label.x, label.y - 6, label.x + long, label.y + 6)
            inside = box[0] >= 0 and box[1] >= 0 and box[3] <= height and (label.right or box[2] <= width + 120)
            if inside and not any(_overlap(box, other) for k, other in enumerate(taken) if k != i):
                taken.append(box)
                found.append(label)
                break
        else:
            found.append(None)
    return found


def _places(x: float, y: float) -> list[Label]:
    near = [Label(x + 9, y), Label(x - 9, y, True)]
    far = [Label(x + side * 12, y + sign * k * LINE, side < 0, True) for k in range(1, 9) for sign in (-1, 1) for side in (1, -1)]
    return near + far


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
