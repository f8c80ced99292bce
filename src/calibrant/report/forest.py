"""A forest plot as inline SVG: one row a thing, a mark at its value, a line over its interval. Only draws; every number comes from `compare`.

Kinds differ in shape as well as in colour, so that nothing hangs on colour alone. Sizes are in the drawing's own units and scale with the page.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

WIDTH: Final = 264
ROW: Final = 38
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 6, 30
HALF: Final = 5.5
"""Half the size of a mark."""

OUTSIDE: Final = 1.75
"""How many times beyond the worst calibration set something may lie and still be inside the axis."""

Kind = Literal["set", "control", "baseline"]
Place = Callable[[float], float]


@dataclass(frozen=True)
class Mark:
    """One row: its name, value and interval (None where there is none). Hollow marks can't be told apart from the reference."""

    name: str
    value: float
    interval: tuple[float, float] | None
    kind: Kind = "set"
    hollow: bool = False

    @property
    def told(self) -> str:
        """The row in words."""
        spread = "" if self.interval is None else f", interval {self.interval[0]:.3f} to {self.interval[1]:.3f}"
        return f"{self.name}: {self.value:+.3f}{spread}{', cannot be told apart from the reference' if self.hollow else ''}"


def forest(marks: Sequence[Mark], title: str, description: str, reference: str, span: tuple[float, float] | None = None, key: str = "forest") -> str:
    """An `<svg>` of `marks` over a common axis with a line at zero, which is called `reference`.

    `span` is the axis' range (`span_of` all panels makes them comparable); what lies beyond it becomes an arrow at its end. `key` must be
    unique in the page: the title's id hangs on it.
    """
    low, high = span or span_of(marks)
    height = TOP + ROW * len(marks) + BOTTOM

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    bottom = TOP + ROW * len(marks)
    return "".join(
        [
            f'<svg class="forest" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{key}-t {key}-d">',
            f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>',
            *(f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{bottom}"/>' for t in ticks(low, high) if t),
            f'<line class="zero" x1="{x(0.0):.1f}" x2="{x(0.0):.1f}" y1="{TOP}" y2="{bottom}"/>',
            *_axis(low, high, x(0.0), x, bottom, reference),
            *(_row(mark, TOP + ROW * i, x) for i, mark in enumerate(marks)),
            "</svg>",
        ]
    )


def _axis(low: float, high: float, zero: float, x: Place, bottom: int, reference: str) -> Iterator[str]:
    step = ticks(low, high)
    digits = max(0, -math.floor(math.log10(step[1] - step[0]) + 1e-9)) if len(step) > 1 else 1
    for tick in step:
        if tick == 0:
            continue
        anchor = "end" if x(tick) > WIDTH - 16 else "middle"
        yield f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 13}" text-anchor="{anchor}">{tick:+.{digits}f}</text>'
    anchor = "start" if zero < 40 else "middle"
    yield f'<text class="tick ref" x="{zero:.1f}" y="{bottom + 13}" text-anchor="{anchor}">0</text>'
    yield f'<text class="tick ref" x="{zero:.1f}" y="{bottom + 26}" text-anchor="{anchor}">{escape(reference)}</text>'


def _row(mark: Mark, top: int, x: Place) -> str:
    line, at, edge = top + 26, x(mark.value), WIDTH - RIGHT
    parts = [f'<g class="row {mark.kind}{" hollow" if mark.hollow else ""}"><title>{escape(mark.told)}</title>']
    parts.append(f'<rect class="hit" x="0" y="{top}" width="{WIDTH}" height="{ROW}"/>')
    parts.append(f'<text class="name" x="{LEFT}" y="{top + 14}">{escape(cut(mark.name))}</text>')
    parts.append(
        f'<text class="value" x="{edge}" y="{top + 14}" text-anchor="end">{f"{mark.value:+.3f}" if mark.value or mark.interval else "0"}</text>'
    )
    if at > edge:
        parts.append(f'<path class="interval" d="M{edge - 26} {line}H{edge}M{edge - 7} {line - 5}l7 5l-7 5"/>')
        return "".join([*parts, "</g>"])
    if mark.interval is not None:
        a, b = (min(x(end), edge) for end in mark.interval)
        parts.append(f'<path class="interval" d="M{a:.1f} {line}H{b:.1f}M{a:.1f} {line - 4}v8M{b:.1f} {line - 4}v8"/>')
    parts.append(_shape(mark.kind, at, line))
    return "".join([*parts, "</g>"])


def _shape(kind: Kind, x: float, y: int) -> str:
    if kind == "set":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y}" r="{HALF}"/>'
    if kind == "control":
        return f'<path class="mark" d="M{x:.1f} {y - HALF - 1.5}l{HALF + 1.5} {HALF + 1.5}l-{HALF + 1.5} {HALF + 1.5}l-{HALF + 1.5} -{HALF + 1.5}z"/>'
    return f'<rect class="mark" x="{x - HALF + 0.5:.1f}" y="{y - HALF + 0.5}" width="{2 * HALF - 1}" height="{2 * HALF - 1}"/>'


def cut(name: str, room: int = 26) -> str:
    """A long name with its middle left out; the row's title and the table have it whole."""
    return name if len(name) <= room else f"{name[: room - 14]}…{name[-13:]}"


def span_of(marks: Sequence[Mark]) -> tuple[float, float]:
    """A range that holds zero and every calibration set with its interval, with a little room.

    Controls and baselines may be many times worse; what is far beyond the sets is left outside, so that the sets can be told apart by eye.
    """
    inner = [m for m in marks if m.kind == "set"] or marks
    reach = max([abs(end) for m in inner for end in _ends(m)], default=1.0)
    shown = [m for m in marks if max(map(abs, _ends(m))) <= OUTSIDE * reach]
    ends = [0.0, *(end for m in shown for end in _ends(m))]
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low) or 1.0
    return low - room, high + room


def _ends(mark: Mark) -> tuple[float, ...]:
    return (mark.value, *(mark.interval or ()))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about so many."""
    rough = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(s * scale for s in (1, 2, 5, 10) if s * scale >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
