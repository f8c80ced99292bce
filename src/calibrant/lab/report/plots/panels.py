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
    styled,
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

NICE: Final = ((2, math.sqrt(2)), (5, math.sqrt(10)), (10, math.sqrt(50)))
"""By what Vega multiplies a power of ten to get the step of its ticks, and from how many times the
power on it does so.
"""

_SIGNED: Final = "datum.value > 0 ? '+' + datum.label : datum.label"


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
        lines = math.ceil(count / most)
        columns = math.ceil(count / lines)
        widest = 560 if count == 1 else 300
        width = min(widest, max(LEAST, space / columns - GAP))
        rows = len(self.rows)
        if rows <= 16:
            row_height = 22
        elif rows <= 36:
            row_height = 17
        else:
            row_height = 14
        return _PanelSize(int(width), row_height * rows, columns, rows)

    @property
    def _longest(self) -> int:
        """Letters of the longest name."""
        names = [cut(row.name, self.room) for row in self.rows]
        return max(map(len, names), default=0)

    @cached_property
    def data(self) -> dict[str, list[dict[str, Any]]]:
        """Records: what kind of mark (`k`), in which panel (`p`) and row (`r`), and what it
        shows.
        """
        records: list[dict[str, Any]] = []
        for number, panel in enumerate(self.panels):
            for record in self._records(number, panel):
                records.append({"p": number, **record})
        return {self.key: records}

    def _records(self, number: int, panel: Panel) -> Iterator[dict[str, Any]]:
        """Yield what is drawn of one panel, the rows' names only where it begins a line."""
        size = self.size
        low, high = panel.span
        for end in panel.span:
            yield {"k": "span", "v": end}
        for place, end in panel.shaded.items():
            yield {"k": "shade", "r": place, "v": max(0.0, low), "w": min(end, high)}
        for above, line in enumerate(reversed(self._titles[number])):
            yield {"k": f"title-{above}", "t": line}
        begins_line = number % size.columns == 0
        for place, row in enumerate(self.rows):
            if not row.head:
                yield {"k": "row", "r": place}
            if begins_line:
                kind = "head" if row.head else "name"
                yield {"k": kind, "r": place, "t": cut(row.name, self.room)}
            mark = panel.points.get(place)
            if mark is not None:
                words = self.styles[mark.kind].words
                for record in _drawn(mark, low, high, size.width):
                    yield {"r": place, "f": words, **record}
            elif not row.head:
                yield {"k": "hole", "r": place, "t": HOLE}
        # So many letters of the texts below have room under a panel.
        room = int(size.width / 6)
        if self.reference:
            yield {"k": "zero"}
            reference = cut(self.reference, max(3, min(26, room)))
            middle = _inside(reference, low, high, size.width)
            yield {"k": "reference", "v": middle, "t": reference}
        if panel.unit:
            yield {"k": "unit", "t": cut(panel.unit, room)}
        last_line = (len(self.panels) - 1) // size.columns
        if begins_line and number // size.columns == last_line:
            yield {"k": "about", "t": visible_name(self.about)}

    @cached_property
    def _titles(self) -> list[list[str]]:
        """The titles, each in two lines at most; letters of a bold title are wide."""
        room = max(6, int(self.size.width / (1.25 * LETTER)))
        titles: list[list[str]] = []
        for panel in self.panels:
            lines = folded(visible_name(panel.title), room)
            if len(lines) > 2:
                lines = [lines[0], "".join(lines[1:])]
            titles.append([cut(line, room) for line in lines])
        return titles

    def chart(self) -> "alt.FacetSpec":
        """The picture over `data`."""
        kinds = {record["k"] for record in self.data[self.key]}
        layers = [*self._marks(), *self._words()]
        panel = layered(layers, kinds, self.size.width, self.size.height)
        # Below a line of panels stand its ticks, above the next its titles.
        title_lines = max(map(len, self._titles), default=1)
        between = 74 + TITLE * (title_lines - 1)
        return faceted(panel, self.key, self.size.columns, between, GAP, own_scales=True)

    def _marks(self) -> Iterator[Layer]:
        import altair as alt

        x, y = self._axes()
        stroke, fill, shape = styled(self.styles.values())
        across = {"x": alt.XValue(0), "x2": alt.X2Value(self.size.width), "y": y}
        line = {"x": x, "x2": alt.X2("w:Q"), "y": y}
        row_height = self.size.height / self.size.rows
        # Nobody sees these points: they make an axis as long as its panel's range.
        yield layer("span", "point", {"x": x}, stroke="transparent", fill="transparent")
        yield layer("shade", "rule", line, color="var(--line)", strokeWidth=row_height - 2)
        yield layer("row", "rule", across, color="var(--grid)")
        yield layer("zero", "rule", {"x": alt.XDatum(0)}, color="var(--ink)", strokeWidth=1)
        yield layer("interval", "rule", {**line, "stroke": stroke}, strokeWidth=1.75)
        turned = {"x": x, "y": y, "stroke": stroke, "angle": alt.Angle("a:Q", scale=None)}
        arrow = {"shape": "M-.8,-1L.6,0L-.8,1", "size": 44, "filled": False}
        yield layer("beyond", "point", turned, **arrow, strokeWidth=1.75, opacity=1)
        hollow = {"x": x, "y": y, "stroke": stroke, "shape": shape}
        filled = {**hollow, "fill": fill}
        look = {"size": 64, "opacity": 1, "strokeWidth": 1.5}
        yield layer("hollow", "point", hollow, **look, fill="var(--card)")
        yield layer("mark", "point", filled, **look)

    def _axes(self) -> "tuple[alt.X, alt.Y]":
        import altair as alt

        usual = max(2, self.size.width // 46)
        count = 2
        for panel in self.panels:
            low, high = panel.span
            count = max(count, ticks(low, high, usual))
        label = _SIGNED if self.reference else alt.Undefined
        axis = alt.Axis(
            tickCount=count, grid=True, labelFlush=True, labelOverlap="parity", labelExpr=label
        )
        across = alt.Scale(nice=False, zero=False)
        down = alt.Scale(domain=[self.size.rows - 0.5, -0.5], nice=False, zero=False)
        x = alt.X("v:Q", title=None, axis=axis, scale=across)
        y = alt.Y("r:Q", axis=None, scale=down)
        return x, y

    def _words(self) -> Iterator[Layer]:
        import altair as alt

        x, y = self._axes()
        size = self.size
        left = alt.XValue(0)
        soft = "var(--soft)"
        yield text("far-right", alt.XValue(size.width - 9), y, align="right", color=soft)
        yield text("far-left", alt.XValue(9), y, color=soft)
        yield text("hole", alt.XValue(4), y, color=soft)
        yield text("word", alt.XValue(size.width + 8), y)
        yield text("name", alt.XValue(-10), y, align="right", fontSize=size.font)
        yield text("head", alt.XValue(-10), y, align="right", fontSize=size.font, fontWeight="bold")
        for above in (0, 1):
            height = alt.YValue(-11 - TITLE * above)
            yield text(f"title-{above}", left, height, fontSize=12, fontWeight="bold")
        yield text("reference", x, alt.YValue(size.height + 26), align="center")
        yield text("unit", left, alt.YValue(size.height + 40), color=soft)
        begin = 0
        if self.width <= NARROW:
            # A narrow panel alone is shorter than the text, which begins where the names do.
            begin = -LETTER * self._longest
        below = 44
        if any(panel.unit for panel in self.panels):
            below = 56
        yield text("about", alt.XValue(begin), alt.YValue(size.height + below), fontSize=12)


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
        rough = (high - low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        factor = 1
        for nice, least in NICE:
            if rough / power >= least:
                factor = nice
        step = factor * power
        first = math.ceil(low / step)
        last = math.floor(high / step)
        if last > first:
            return count
    return usual


def _drawn(mark: Mark, low: float, high: float, width: int) -> Iterator[dict[str, Any]]:
    """Yield what is drawn of a mark on an axis from `low` to `high`."""
    left = {"k": "beyond", "v": low, "a": 180}
    right = {"k": "beyond", "v": high, "a": 0}
    if low <= mark.value <= high:
        if mark.interval is not None:
            begin, end = mark.interval
            shown_begin = min(max(begin, low), high)
            shown_end = min(max(end, low), high)
            yield {"k": "interval", "v": shown_begin, "w": shown_end}
            if begin < low:
                yield left
            if end > high:
                yield right
        kind = "hollow" if mark.hollow else "mark"
        yield {"k": kind, "v": mark.value}
    else:
        digits = 1 if width < 120 else 3
        number = signed(mark.value, digits)
        if mark.value > high:
            yield right
            yield {"k": "far-right", "t": number}
        else:
            yield left
            yield {"k": "far-left", "t": number}
    if mark.word:
        yield {"k": "word", "t": visible_name(mark.word)}


def _inside(words: str, low: float, high: float, width: int) -> float:
    """Where words are centred so that they stay within the panel, as near to zero as may be."""
    unit = (high - low) / width
    half = len(words) * 3.1 * unit
    if 2 * half < high - low:
        return min(max(0.0, low + half), high - half)
    return (low + high) / 2


def span_of(points: Sequence[Mark], zero: bool = True) -> tuple[float, float]:
    """A range that holds every value that isn't aside, with its interval and with zero, and a
    little room.

    Left outside is what lies aside and far beyond the others, what is infinite, and the ends of
    intervals that reach several times as far as usual.
    """
    finite = [mark for mark in points if math.isfinite(mark.value)]
    if not finite:
        return (-1.0, 1.0)
    inner = [mark for mark in finite if not mark.aside]
    if not inner:
        inner = finite
    middle = 0.0 if zero else median_high([mark.value for mark in inner])
    farthest = max(abs(mark.value - middle) for mark in inner)
    reaches = [_reach(mark, middle) for mark in inner if mark.interval is not None]
    usual = median_high(reaches or [farthest])
    most = max(2 * farthest, LONG * usual)
    limits: list[float] = []
    for mark in inner:
        for end in _ends(mark):
            limits.append(min(max(end, middle - most), middle + most))
    shown_reaches = [min(_reach(mark, middle), most) for mark in inner]
    within = OUTSIDE * max(shown_reaches)
    for mark in finite:
        if mark.aside and _reach(mark, middle) <= within:
            limits.extend(_ends(mark))
    if zero:
        limits.append(0.0)
    low = min(limits)
    high = max(limits)
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _reach(mark: Mark, middle: float) -> float:
    """How far a mark or its interval reaches from the middle."""
    return max(abs(end - middle) for end in _ends(mark))


def _ends(mark: Mark) -> list[float]:
    """A mark's value and the finite ends of its interval."""
    ends = [mark.value]
    if mark.interval is not None:
        ends.extend(filter(math.isfinite, mark.interval))
    return ends
