"""Rows of marks on common axes: one panel beside the other, a mark at each value, a line over
its interval. Only draws. No torch here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median_high
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.plots.picture import (
    Interval,
    Layer,
    cut,
    faceted,
    folded,
    layer,
    layered,
    signed,
    text,
)
from calibrant.lab.report.plots.theme import LETTER, Style
from calibrant.numerics import HOLE
from calibrant.spec.foreign import visible_name

if TYPE_CHECKING:
    import altair as alt

OUTSIDE: Final = 1.75
"""How many times beyond the farthest set a control may lie and still be inside the axis."""

LONG: Final = 3.0
"""How many times as far as is usual an interval may reach before its end leaves the axis."""

WIDTH: Final = 1000
"""Pixels across: a page's column."""

NARROW: Final = 330
"""Pixels across a telephone's screen."""

LEAST: Final = 104
"""Pixels that a panel takes at least."""

GAP: Final = 16

TITLE: Final = 14
"""Pixels from one line of a title to the next."""


@dataclass(frozen=True)
class PanelRow:
    """A line of the plot: its name, and whether it is the head of those below it."""

    name: str
    head: bool = False


@dataclass(frozen=True)
class Mark:
    """A value with its interval (None where there is none), of one of the styles' kinds. Hollow is
    not significantly different from the reference.

    What is `aside` doesn't stretch the axis: it becomes an arrow at its end.
    """

    value: float
    interval: Interval
    kind: str
    hollow: bool = False
    aside: bool = False
    word: str = ""


@dataclass(frozen=True)
class Panel:
    """Points by the number of their row, and the range of the axis, which panels side by side may
    share. `unit` stands below it, if it has one.

    From zero to what `shaded` says of a row its ground is darker.
    """

    title: str
    points: Mapping[int, Mark]
    span: tuple[float, float]
    unit: str = ""
    shaded: Mapping[int, float] = field(default_factory=dict[int, float])


@dataclass(frozen=True)
class _PanelSize:
    """Pixels: of a panel, of a row, and how many panels there are in a row."""

    width: int
    height: int
    columns: int
    rows: int

    @property
    def font(self) -> int:
        """The names' size."""
        return 12 if self.height / self.rows >= 16 else 10


@dataclass(frozen=True)
class Panels:
    """Panels over the same rows, in their order. `data` are their records by name, `chart` draws
    them.

    `about` says what the axes are about, `reference` what zero means (empty: there is no such
    line), `width` how many pixels there are across.
    """

    rows: tuple[PanelRow, ...]
    panels: tuple[Panel, ...]
    styles: Mapping[str, Style]
    about: str
    reference: str = ""
    room: int = 26
    key: str = "rows"
    width: int = WIDTH

    @cached_property
    def size(self) -> _PanelSize:
        """How large each panel is: as many in a row as there is room for, the rows equally full."""
        count = len(self.panels)
        space = self.width - self._longest * LETTER - 10
        most = max(1, int(space / (LEAST + GAP)))
        across = math.ceil(count / math.ceil(count / most))
        step = 22 if len(self.rows) <= 16 else 17 if len(self.rows) <= 36 else 14
        wide = min(560 if count == 1 else 300, max(LEAST, space / across - GAP))
        return _PanelSize(int(wide), step * len(self.rows), across, len(self.rows))

    @property
    def _longest(self) -> int:
        """Letters of the longest name."""
        return max((len(cut(r.name, self.room)) for r in self.rows), default=0)

    @cached_property
    def data(self) -> dict[str, list[dict[str, Any]]]:
        """Records: what kind of mark (`k`), in which panel (`p`) and row (`r`), and what it
        shows.
        """
        return {
            self.key: [
                record for p, panel in enumerate(self.panels) for record in self._records(p, panel)
            ]
        }

    def _records(self, p: int, panel: Panel) -> Iterator[dict[str, Any]]:
        size, (low, high) = self.size, panel.span
        yield from ({"p": p, "k": "span", "v": end} for end in panel.span)
        yield from (
            {"p": p, "k": "shade", "r": r, "v": max(0.0, low), "w": min(end, high)}
            for r, end in panel.shaded.items()
        )
        lines = self._titles[p]
        yield from (
            {"p": p, "k": f"title-{up}", "t": line} for up, line in enumerate(reversed(lines))
        )
        for r, row in enumerate(self.rows):
            if not row.head:
                yield {"p": p, "k": "row", "r": r}
            if p % size.columns == 0:
                yield {
                    "p": p,
                    "k": "head" if row.head else "name",
                    "r": r,
                    "t": cut(row.name, self.room),
                }
            if (point := panel.points.get(r)) is not None:
                yield from (
                    {"p": p, "r": r, "f": self.styles[point.kind].words, **record}
                    for record in _point(point, low, high, size.width)
                )
            elif not row.head:
                yield {"p": p, "k": "hole", "r": r, "t": HOLE}
        if self.reference:
            yield {"p": p, "k": "zero"}
            text = cut(self.reference, max(3, min(26, int(size.width / 6))))
            yield {"p": p, "k": "reference", "v": _inside(text, low, high, size.width), "t": text}
        if panel.unit:
            yield {"p": p, "k": "unit", "t": cut(panel.unit, int(size.width / 6))}
        if p == (len(self.panels) - 1) // size.columns * size.columns:
            yield {"p": p, "k": "about", "t": visible_name(self.about)}

    @cached_property
    def _titles(self) -> list[list[str]]:
        """The titles, each in two lines at most; letters of a bold title are wide."""
        room = max(6, int(self.size.width / (1.25 * LETTER)))
        lines = [folded(visible_name(panel.title), room) for panel in self.panels]
        return [
            [
                cut(line, room)
                for line in (several if len(several) < 3 else [several[0], "".join(several[1:])])
            ]
            for several in lines
        ]

    def chart(self) -> "alt.FacetSpec":
        """The picture over `data`."""
        kinds = {record["k"] for record in self.data[self.key]}
        marks = layered([*self._marks(), *self._words()], kinds, self.size.width, self.size.height)
        # Below a row of panels stand its ticks, above the next its titles.
        return faceted(
            marks,
            self.key,
            self.size.columns,
            74 + TITLE * (max(map(len, self._titles), default=1) - 1),
            GAP,
            own_scales=True,
        )

    def _marks(self) -> Iterator[Layer]:
        import altair as alt

        x, y = self._axes()
        words = [s.words for s in self.styles.values()]
        colours = alt.Scale(domain=words, range=[s.colour for s in self.styles.values()])
        stroke, fill = (
            alt.Stroke("f:N", scale=colours, legend=None),
            alt.Fill("f:N", scale=colours, legend=None),
        )
        shape = alt.Shape(
            "f:N",
            scale=alt.Scale(domain=words, range=[s.shape for s in self.styles.values()]),
            legend=None,
        )
        across = {"x": alt.XValue(0), "x2": alt.X2Value(self.size.width), "y": y}
        shaped = {"x": x, "y": y, "stroke": stroke, "shape": shape}
        arrow = {"x": x, "y": y, "stroke": stroke, "angle": alt.Angle("a:Q", scale=None)}
        yield layer(
            "span", "point", {"x": x}, stroke="transparent", fill="transparent"
        )  # the ends of the axis, which so are those of its panel
        yield layer(
            "shade",
            "rule",
            {"x": x, "x2": alt.X2("w:Q"), "y": y},
            color="var(--line)",
            strokeWidth=self.size.height / self.size.rows - 2,
        )
        yield layer("row", "rule", across, color="var(--grid)")
        yield layer("zero", "rule", {"x": alt.XDatum(0)}, color="var(--ink)", strokeWidth=1)
        yield layer(
            "interval",
            "rule",
            {"x": x, "x2": alt.X2("w:Q"), "y": y, "stroke": stroke},
            strokeWidth=1.75,
        )
        yield layer(
            "beyond",
            "point",
            arrow,
            shape="M-.8,-1L.6,0L-.8,1",
            size=44,
            filled=False,
            strokeWidth=1.75,
            opacity=1,
        )
        yield layer(
            "hollow", "point", shaped, size=64, opacity=1, strokeWidth=1.5, fill="var(--card)"
        )
        yield layer("mark", "point", {**shaped, "fill": fill}, size=64, opacity=1, strokeWidth=1.5)

    def _axes(self) -> "tuple[alt.X, alt.Y]":
        import altair as alt

        count = max(
            (ticks(*panel.span, max(2, self.size.width // 46)) for panel in self.panels), default=2
        )
        label = _SIGNED if self.reference else alt.Undefined
        axis = alt.Axis(
            tickCount=count, grid=True, labelFlush=True, labelOverlap="parity", labelExpr=label
        )
        x = alt.X("v:Q", title=None, axis=axis, scale=alt.Scale(nice=False, zero=False))
        return x, alt.Y(
            "r:Q",
            axis=None,
            scale=alt.Scale(domain=[self.size.rows - 0.5, -0.5], nice=False, zero=False),
        )

    def _words(self) -> Iterator[Layer]:
        import altair as alt

        (x, y), size = self._axes(), self.size
        left, soft = alt.XValue(0), "var(--soft)"
        yield text("far-right", alt.XValue(size.width - 9), y, align="right", color=soft)
        yield text("far-left", alt.XValue(9), y, color=soft)
        yield text("hole", alt.XValue(4), y, color=soft)
        yield text("word", alt.XValue(size.width + 8), y)
        yield text("name", alt.XValue(-10), y, align="right", fontSize=size.font)
        yield text("head", alt.XValue(-10), y, align="right", fontSize=size.font, fontWeight="bold")
        yield from (
            text(f"title-{up}", left, alt.YValue(-11 - TITLE * up), fontSize=12, fontWeight="bold")
            for up in (0, 1)
        )
        yield text("reference", x, alt.YValue(size.height + 26), align="center")
        yield text("unit", left, alt.YValue(size.height + 40), color=soft)
        beside = alt.XValue(
            0 if self.width > NARROW else -LETTER * self._longest
        )  # a narrow panel alone is shorter than the text
        yield text(
            "about",
            beside,
            alt.YValue(size.height + (56 if any(panel.unit for panel in self.panels) else 44)),
            fontSize=12,
        )


def stacked(blocks: "Sequence[Panels]") -> "alt.FacetSpec | alt.ConcatSpecGenericSpec":
    """Several pictures with rows of their own, one below the other."""
    import altair as alt

    if len(blocks) == 1:
        return blocks[0].chart()
    shared = alt.Resolve(scale=alt.ScaleResolveMap(stroke="shared", fill="shared", shape="shared"))
    return alt.ConcatSpecGenericSpec(
        concat=[block.chart() for block in blocks],
        columns=1,
        spacing=30,
        bounds="full",
        resolve=shared,
    )


def ticks(low: float, high: float, usual: int) -> int:
    """Return how many ticks to request from Vega: `usual`, or as many more as it takes to get
    two, since of one nobody can read a scale.
    """
    # Vega takes the step of the form 1, 2 or 5 times a power of ten that is nearest to (high - low)
    # / count on a logarithmic scale.
    for count in range(usual, usual + 9):
        step = (high - low) / count
        power = 10.0 ** math.floor(math.log10(step))
        step = (
            next(
                (
                    nice
                    for nice, least in ((10, math.sqrt(50)), (5, math.sqrt(10)), (2, math.sqrt(2)))
                    if step / power >= least
                ),
                1,
            )
            * power
        )
        if math.floor(high / step) - math.ceil(low / step) >= 1:
            return count
    return usual


_SIGNED: Final = "datum.value > 0 ? '+' + datum.label : datum.label"


def _point(point: Mark, low: float, high: float, width: int) -> Iterator[dict[str, Any]]:
    """Yield the marks of a point on an axis from `low` to `high`."""
    if not low <= point.value <= high:
        over = point.value > high
        yield {"k": "beyond", "v": high if over else low, "a": 0 if over else 180}
        yield {
            "k": "far-right" if over else "far-left",
            "t": signed(point.value, 1 if width < 120 else 3),
        }
    else:
        if point.interval is not None:
            a, b = (min(max(end, low), high) for end in point.interval)
            yield {"k": "interval", "v": a, "w": b}
            if point.interval[0] < low:
                yield {"k": "beyond", "v": low, "a": 180}
            if point.interval[1] > high:
                yield {"k": "beyond", "v": high, "a": 0}
        yield {"k": "hollow" if point.hollow else "mark", "v": point.value}
    if point.word:
        yield {"k": "word", "t": visible_name(point.word)}


def _inside(text: str, low: float, high: float, width: int) -> float:
    """Where a text of that many letters is centred so that it stays within the panel, as near to
    zero as may be.
    """
    unit = (high - low) / width
    half = len(text) * 3.1 * unit
    return min(max(0.0, low + half), high - half) if 2 * half < high - low else (low + high) / 2


def span_of(points: Sequence[Mark], zero: bool = True) -> tuple[float, float]:
    """A range that holds every value that isn't aside, with its interval and with zero, and a
    little room.

    Left outside is what lies aside and far beyond the others, what is infinite, and the ends of
    intervals that reach several times as far as usual.
    """
    finite = [p for p in points if math.isfinite(p.value)]
    inner = [p for p in finite if not p.aside] or finite
    if not inner:
        return (-1.0, 1.0)
    middle = 0.0 if zero else median_high([p.value for p in inner])
    reach = max(abs(p.value - middle) for p in inner)
    usual = median_high([_reach(p, middle) for p in inner if p.interval is not None] or [reach])
    most = max(2 * reach, LONG * usual)
    within = OUTSIDE * max(min(_reach(p, middle), most) for p in inner)
    limits = [min(max(end, middle - most), middle + most) for p in inner for end in _ends(p)]
    limits += [end for p in finite if p.aside and _reach(p, middle) <= within for end in _ends(p)]
    low, high = min([*limits, *[0.0] * zero]), max([*limits, *[0.0] * zero])
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _reach(point: Mark, middle: float) -> float:
    return max(abs(end - middle) for end in _ends(point))


def _ends(point: Mark) -> tuple[float, ...]:
    return (point.value, *(end for end in point.interval or () if math.isfinite(end)))
