"""Lines and points over a number: how much worse sets get with sparsity, with fewer tokens, from
block to block. Only draws. No torch here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.plots.picture import (
    Axis,
    Interval,
    Layer,
    around,
    cut,
    faceted,
    layer,
    layered,
    signed,
    spaced,
    styled,
    text,
)
from calibrant.lab.report.plots.theme import DASHES, FAMILIES, LETTER, styles_of
from calibrant.spec.foreign import visible_name

if TYPE_CHECKING:
    import altair as alt

ROOM: Final = 22
"""Letters of a name at the end of its line."""

AROUND: Final = 34
"""Letters of a name beside a single point."""

SHARE: Final = "format(datum.value * 100, '.3~r') + '\u202f%'"


@dataclass(frozen=True)
class Spot:
    """A point of a line. `apart` is not of the line: it stands alone, hollow, and `note` says
    what it is.
    """

    x: float
    y: float
    interval: Interval = None
    apart: bool = False
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """A named line through its points, in the colour and shape of a family. Lines of one family
    differ in `dash`.

    `plain` ones are context, dashed and grey; those without a `label` beside them are thin and
    pale.
    """

    name: str
    family: str
    dash: int
    spots: tuple[Spot, ...]
    marked: bool = True
    plain: bool = False
    label: bool = True


@dataclass(frozen=True)
class CurvePanels:
    """Panels of lines that share their axes; each line's name stands at its right end, or `around`
    its point. Across are about 1,000 pixels.

    `ticks` are the places of the ticks across, shares in per cent if so; `band` is a grey range
    behind the lines: x, from, to.
    """

    panels: tuple[tuple[str, tuple[Curve, ...]], ...]
    across: Axis
    up: Axis
    x: str
    y: str
    ticks: tuple[float, ...] = ()
    shares: bool = False
    band: tuple[tuple[float, float, float], ...] = ()
    around: bool = False

    @property
    def columns(self) -> int:
        """Panels in a row."""
        return max(1, int(1000 / (self.across.pixels + self._names_width)))

    @property
    def families(self) -> frozenset[str]:
        """The families of the lines that have a colour."""
        families: set[str] = set()
        for _, lines in self.panels:
            families.update(line.family for line in lines if not line.plain)
        return frozenset(families)

    @property
    def _names_width(self) -> float:
        """Pixels that the names at the right of a panel take."""
        longest = 0
        for _, lines in self.panels:
            for line in lines:
                longest = max(longest, min(ROOM, len(line.name)))
        return 20 + LETTER * longest

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each thing that is drawn."""
        for number, (title, lines) in enumerate(self.panels):
            begins_row = number % self.columns == 0
            for record in self._records_of_panel(title, lines, begins_row):
                yield {"p": number, **record}

    def _records_of_panel(
        self, title: str, lines: Sequence[Curve], begins_row: bool
    ) -> Iterator[dict[str, Any]]:
        yield {"k": "title", "t": cut(title, int(self.across.pixels / 6.4))}
        if begins_row:
            yield {"k": "up", "t": visible_name(self.y)}
        for x, low, high in self.band:
            yield {"k": "band", "x": x, "y": low, "z": high}
        for number, line in enumerate(lines):
            words = FAMILIES[line.family].words
            style = {"s": number, "f": words, "d": line.dash % len(DASHES)}
            for record in self._records_of_line(line):
                yield {**style, **record}
        yield from self._names_at_points(lines) if self.around else self._names_at_ends(lines)
        for x, note in _notes(lines):
            yield {"k": "pattern", "x": x, "t": note}

    def _records_of_line(self, line: Curve) -> Iterator[dict[str, Any]]:
        if not line.plain:
            kind = "line"
        elif line.label:
            kind = "context"
        else:
            kind = "other"
        joined = [spot for spot in line.spots if not spot.apart]
        # A line is broken where the axis has no place for a value.
        piece = 0
        for place, spot in enumerate(joined):
            if not self._has_place(spot):
                piece += 1
            if spot.y > self.up.high:
                yield {"k": "beyond", "x": spot.x, "y": self.up.high}
            if not self._is_on(spot):
                continue
            if len(joined) > 1:
                yield {"k": kind, "x": spot.x, "y": spot.y, "g": piece}
            neighbours = joined[max(0, place - 1) : place] + joined[place + 1 : place + 2]
            alone = not any(math.isfinite(neighbour.y) for neighbour in neighbours)
            if line.marked or alone:
                yield {"k": "mark", "x": spot.x, "y": spot.y}
        for spot in line.spots:
            if not self._is_on(spot):
                continue
            if spot.interval is not None:
                low, high = map(self.up.inside, spot.interval)
                yield {"k": "interval", "x": spot.x, "y": low, "z": high}
            if spot.apart:
                yield {"k": "apart", "x": spot.x, "y": spot.y}

    def _names_at_ends(self, lines: Sequence[Curve]) -> Iterator[dict[str, Any]]:
        """Yield names beside the lines' ends, spread so that none covers another, each with a
        hair from its line.
        """

        def across(spot: Spot) -> float:
            return spot.x

        ends: list[tuple[str, Spot]] = []
        for line in lines:
            spots = [spot for spot in line.spots if self._is_on(spot)]
            if spots and line.label:
                ends.append((line.name, max(spots, key=across)))
        tall = self.up.pixels
        targets = [tall - self.up.at(spot.y) for _, spot in ends]
        places = spaced(targets, 4.0, tall - 4.0)
        for (name, spot), place in zip(ends, places, strict=True):
            value = self.up.back(tall - place)
            yield {"k": "hair", "x": spot.x, "y": spot.y, "w": self.across.high, "z": value}
            yield {"k": "name", "y": value, "t": cut(name, ROOM)}

    def _names_at_points(self, lines: Sequence[Curve]) -> Iterator[dict[str, Any]]:
        """Yield names beside single points, wherever there is room; a name that stands off has a
        hair to its point.
        """
        spots: list[Spot] = []
        points: list[tuple[float, float]] = []
        names: list[str] = []
        for line in lines:
            if not line.label or not line.name:
                continue
            spot = line.spots[0]
            up = self.up.at(self.up.inside(spot.y))
            name = cut(line.name, AROUND)
            if spot.y > self.up.high:
                name += f" {signed(spot.y)}"
            spots.append(spot)
            points.append((self.across.at(spot.x), self.up.pixels - up))
            names.append(name)
        labels = around(points, names, self.across.pixels, self.up.pixels)
        for spot, name, label in zip(spots, names, labels, strict=True):
            if label is None:
                continue
            x = self.across.back(label.x)
            y = self.up.back(self.up.pixels - label.y)
            kind = "left" if label.right else "right"
            yield {"k": kind, "x": x, "y": y, "t": name}
            if label.off:
                yield {"k": "hair", "x": spot.x, "y": self.up.inside(spot.y), "w": x, "z": y}

    def _has_place(self, spot: Spot) -> bool:
        """Whether a value is one that the axis could hold if it were long enough."""
        return math.isfinite(spot.y) and not (self.up.log and spot.y <= 0)

    def _is_on(self, spot: Spot) -> bool:
        return self._has_place(spot) and spot.y <= self.up.high

    def chart(self) -> "alt.FacetSpec":
        """Return the picture over the records, which are called "lines"."""
        kinds = {record["k"] for record in self.records()}
        layers = [*self._lines(), *self._words()]
        panel = layered(layers, kinds, self.across.pixels, self.up.pixels)
        return faceted(panel, "lines", self.columns, 112, self._names_width + 24)

    def _lines(self) -> Iterator[Layer]:
        import altair as alt

        stroke, fill, shape = styled(styles_of(self.families).values())
        dashes = alt.Scale(domain=list(range(len(DASHES))), range=list(DASHES))
        dash = alt.StrokeDash("d:O", scale=dashes, legend=None)
        x, y = self._axes()
        point = {"x": x, "y": y, "stroke": stroke}
        shaped = {**point, "shape": shape}
        filled = {**shaped, "fill": fill}
        along = {"x": x, "y": y, "detail": [alt.Detail("s:N"), alt.Detail("g:N")]}
        dashed = {**along, "stroke": stroke, "strokeDash": dash}
        up = {"x": x, "y": y, "y2": alt.Y2("z:Q")}
        hair = {**up, "x2": alt.X2("w:Q")}
        interval = {**up, "stroke": stroke}
        grey = {"color": "var(--soft)", "strokeDash": [3, 2], "strokeWidth": 1.25}
        yield layer("band", "area", up, color="var(--grid)", opacity=1)
        yield layer("other", "line", along, color="var(--line)", strokeWidth=1)
        yield layer("context", "line", along, **grey)
        yield layer("hair", "rule", hair, color="var(--line)", strokeWidth=1)
        yield layer("interval", "rule", interval, strokeWidth=1.25, opacity=0.5)
        yield layer("line", "line", dashed, strokeWidth=1.75)
        yield layer("mark", "point", filled, size=44, opacity=1, strokeWidth=1)
        hollow = {"size": 64, "opacity": 1, "strokeWidth": 1.75, "fill": "var(--card)"}
        yield layer("apart", "point", shaped, **hollow)
        arrow = {"size": 44, "opacity": 1, "shape": "M-1,.8L0,-.6L1,.8", "filled": False}
        yield layer("beyond", "point", point, **arrow, strokeWidth=1.75)

    def _words(self) -> Iterator[Layer]:
        import altair as alt

        x, y = self._axes()
        left = alt.XValue(0)
        soft = "var(--soft)"
        yield text("name", alt.XValue(self.across.pixels + 5), y)
        yield text("right", x, y, dx=1)
        yield text("left", x, y, dx=-1, align="right")
        yield text("pattern", x, alt.YValue(-1), align="center", baseline="bottom", color=soft)
        yield text("title", left, alt.YValue(-24), fontSize=11.5, fontWeight="bold")
        titled = any(title for title, _ in self.panels)
        above = 41 if titled else 18
        yield text("up", alt.XValue(-34), alt.YValue(-above), fontSize=11.5)

    def _axes(self) -> "tuple[alt.X, alt.Y]":
        import altair as alt

        ticks: dict[str, Any] = {}
        if self.ticks:
            ticks["values"] = list(self.ticks)
        else:
            ticks["tickCount"] = max(2, self.across.pixels // 60)
            ticks["format"] = "~s"
        if self.shares:
            ticks["labelExpr"] = SHARE
        across = alt.Axis(
            grid=False, title=self.x, labelOverlap="parity", labelFlush=False, **ticks
        )
        count = max(3, min(8, self.up.pixels // 45))
        up = alt.Axis(
            grid=True, domain=False, ticks=False, tickCount=count, title=None, format="~g"
        )
        x = alt.X("x:Q", axis=across, scale=self.across.scale())
        y = alt.Y("y:Q", axis=up, scale=self.up.scale())
        return x, y


def _notes(lines: Sequence[Curve]) -> Iterator[tuple[float, str]]:
    """Yield where there are notes, from the left, and those of one place in one text."""
    by_place: dict[float, list[str]] = {}
    for line in lines:
        for spot in line.spots:
            if not spot.note:
                continue
            notes = by_place.setdefault(spot.x, [])
            if spot.note not in notes:
                notes.append(spot.note)
    for x, notes in sorted(by_place.items()):
        yield x, ", ".join(notes)
