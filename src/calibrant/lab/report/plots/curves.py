"""Lines and points over a number: how much worse sets get with sparsity, with fewer tokens, from
block to block. Only draws. No torch here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
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
    text,
)
from calibrant.lab.report.plots.theme import DASHES, FAMILIES, LETTER
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
        return max(1, int(1000 / (self.across.pixels + self._beside)))

    @property
    def families(self) -> frozenset[str]:
        """The families of the lines that have a colour."""
        return frozenset(
            line.family for _, lines in self.panels for line in lines if not line.plain
        )

    @property
    def _beside(self) -> float:
        return 20 + LETTER * max(
            (min(ROOM, len(line.name)) for _, lines in self.panels for line in lines), default=0
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """A record for each thing that is drawn."""
        for p, (title, lines) in enumerate(self.panels):
            yield {"p": p, "k": "title", "t": cut(title, int(self.across.pixels / 6.4))}
            if p % self.columns == 0:
                yield {"p": p, "k": "up", "t": visible_name(self.y)}
            yield from (
                {"p": p, "k": "band", "x": x, "y": low, "z": high} for x, low, high in self.band
            )
            for number, line in enumerate(lines):
                style = {
                    "p": p,
                    "s": number,
                    "f": FAMILIES[line.family].words,
                    "d": line.dash % len(DASHES),
                }
                yield from ({**style, **record} for record in self._records_of(line))
            yield from (
                {"p": p, **record}
                for record in (self._beside_points(lines) if self.around else self._ends(lines))
            )
            notes = {spot.note: spot.x for line in lines for spot in line.spots if spot.note}
            yield from ({"p": p, "k": "pattern", "x": x, "t": note} for note, x in _unlike(notes))

    def _records_of(self, line: Curve) -> Iterator[dict[str, Any]]:
        piece = 0
        joined = [spot for spot in line.spots if not spot.apart]
        for i, spot in enumerate(joined):
            if not math.isfinite(spot.y) or (self.up.log and spot.y <= 0):
                piece += 1
                if spot.y == math.inf:
                    yield {"k": "beyond", "x": spot.x, "y": self.up.high}
                continue
            if spot.y > self.up.high:
                yield {"k": "beyond", "x": spot.x, "y": self.up.high}
                continue
            if len(joined) > 1:
                yield {
                    "k": "line" if not line.plain else "context" if line.label else "other",
                    "x": spot.x,
                    "y": spot.y,
                    "g": piece,
                }
            alone = not any(
                0 <= j < len(joined) and math.isfinite(joined[j].y) for j in (i - 1, i + 1)
            )
            if line.marked or alone:
                yield {"k": "mark", "x": spot.x, "y": spot.y}
        for spot in line.spots:
            if spot.interval is not None and self._on(spot):
                a, b = (self.up.inside(end) for end in spot.interval)
                yield {"k": "interval", "x": spot.x, "y": a, "z": b}
            if spot.apart and self._on(spot):
                yield {"k": "apart", "x": spot.x, "y": spot.y}

    def _ends(self, lines: Sequence[Curve]) -> Iterator[dict[str, Any]]:
        """Names beside the lines' ends, spread so that none covers another, each with a hair
        from its line.
        """
        last = [
            max((s for s in line.spots if self._on(s)), key=lambda s: s.x, default=None)
            for line in lines
        ]
        named = [
            (line, spot)
            for line, spot in zip(lines, last, strict=True)
            if spot is not None and line.label
        ]
        tall = self.up.pixels
        places = spaced([tall - self.up.at(spot.y) for _, spot in named], 4.0, tall - 4.0)
        for (line, spot), place in zip(named, places, strict=True):
            value = self.up.back(tall - place)
            yield {"k": "hair", "x": spot.x, "y": spot.y, "w": self.across.high, "z": value}
            yield {"k": "name", "y": value, "t": cut(line.name, ROOM)}

    def _beside_points(self, lines: Sequence[Curve]) -> Iterator[dict[str, Any]]:
        """Names beside single points, wherever there is room; a name that stands off has a hair
        to its point.
        """
        lines = [line for line in lines if line.label and line.name]
        spots = [line.spots[0] for line in lines]
        points = [
            (self.across.at(s.x), self.up.pixels - self.up.at(self.up.inside(s.y))) for s in spots
        ]
        names = [
            cut(line.name, AROUND) + (f" {signed(s.y)}" if s.y > self.up.high else "")
            for line, s in zip(lines, spots, strict=True)
        ]
        for spot, name, label in zip(
            spots, names, around(points, names, self.across.pixels, self.up.pixels), strict=True
        ):
            if label is None:
                continue
            x, y = self.across.back(label.x), self.up.back(self.up.pixels - label.y)
            yield {"k": "left" if label.right else "right", "x": x, "y": y, "t": name}
            if label.off:
                yield {"k": "hair", "x": spot.x, "y": self.up.inside(spot.y), "w": x, "z": y}

    def _on(self, spot: Spot) -> bool:
        return (
            math.isfinite(spot.y) and spot.y <= self.up.high and not (self.up.log and spot.y <= 0)
        )

    def chart(self) -> "alt.FacetSpec":
        """The picture over the records, which are called "lines"."""
        kinds = {record["k"] for record in self.records()}
        panel = layered([*self._lines(), *self._words()], kinds, self.across.pixels, self.up.pixels)
        return faceted(panel, "lines", self.columns, 112, self._beside + 24)

    def _lines(self) -> Iterator[Layer]:
        import altair as alt

        styles = [style for family, style in FAMILIES.items() if family in self.families]
        words = [s.words for s in styles]
        colours = alt.Scale(domain=words, range=[s.colour for s in styles])
        stroke, fill = (
            alt.Stroke("f:N", scale=colours, legend=None),
            alt.Fill("f:N", scale=colours, legend=None),
        )
        shape = alt.Shape(
            "f:N", scale=alt.Scale(domain=words, range=[s.shape for s in styles]), legend=None
        )
        dash = alt.StrokeDash(
            "d:O", scale=alt.Scale(domain=list(range(len(DASHES))), range=list(DASHES)), legend=None
        )
        x, y = self._axes()
        up = {"x": x, "y": y, "y2": alt.Y2("z:Q")}
        along = {"x": x, "y": y, "detail": [alt.Detail("s:N"), alt.Detail("g:N")]}
        point = {"x": x, "y": y, "stroke": stroke}
        shaped = {**point, "shape": shape}
        yield layer("band", "area", up, color="var(--grid)", opacity=1)
        yield layer("other", "line", along, color="var(--line)", strokeWidth=1)
        yield layer(
            "context", "line", along, color="var(--soft)", strokeDash=[3, 2], strokeWidth=1.25
        )
        yield layer("hair", "rule", {**up, "x2": alt.X2("w:Q")}, color="var(--line)", strokeWidth=1)
        yield layer("interval", "rule", {**up, "stroke": stroke}, strokeWidth=1.25, opacity=0.5)
        yield layer(
            "line", "line", {**along, "stroke": stroke, "strokeDash": dash}, strokeWidth=1.75
        )
        yield layer("mark", "point", {**shaped, "fill": fill}, size=44, opacity=1, strokeWidth=1)
        yield layer(
            "apart", "point", shaped, size=64, opacity=1, strokeWidth=1.75, fill="var(--card)"
        )
        yield layer(
            "beyond",
            "point",
            point,
            size=44,
            opacity=1,
            shape="M-1,.8L0,-.6L1,.8",
            filled=False,
            strokeWidth=1.75,
        )

    def _words(self) -> Iterator[Layer]:
        import altair as alt

        x, y = self._axes()
        left, soft = alt.XValue(0), "var(--soft)"
        yield text("name", alt.XValue(self.across.pixels + 5), y)
        yield text("right", x, y, dx=1)
        yield text("left", x, y, dx=-1, align="right")
        yield text("pattern", x, alt.YValue(-1), align="center", baseline="bottom", color=soft)
        yield text("title", left, alt.YValue(-24), fontSize=11.5, fontWeight="bold")
        yield text(
            "up",
            alt.XValue(-34),
            alt.YValue(-41 if any(title for title, _ in self.panels) else -18),
            fontSize=11.5,
        )

    def _axes(self) -> "tuple[alt.X, alt.Y]":
        import altair as alt

        ticks: dict[str, Any] = (
            {"values": list(self.ticks)}
            if self.ticks
            else {"tickCount": max(2, self.across.pixels // 60), "format": "~s"}
        )
        if self.shares:
            ticks["labelExpr"] = SHARE
        across = alt.Axis(
            grid=False, title=self.x, labelOverlap="parity", labelFlush=False, **ticks
        )
        up = alt.Axis(
            grid=True,
            domain=False,
            ticks=False,
            tickCount=max(3, min(8, self.up.pixels // 45)),
            title=None,
            format="~g",
        )
        return alt.X("x:Q", axis=across, scale=self.across.scale()), alt.Y(
            "y:Q", axis=up, scale=self.up.scale()
        )


def _unlike(notes: Mapping[str, float]) -> list[tuple[str, float]]:
    """Notes with their x; those at one place in one text."""
    by_place: dict[float, list[str]] = {}
    for note, x in notes.items():
        by_place.setdefault(x, []).append(note)
    return [(", ".join(texts), x) for x, texts in sorted(by_place.items())]
