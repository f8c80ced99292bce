"""What plots are made of: a plot as a value, the layers of one, names and numbers as they are
written in it, axes, and labels of which none covers another. No torch here.

The layers are of Altair's lower interface, its typed schema: charts of the upper one copy whatever
they are composed of at every step, which takes ten times as long.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.plots.theme import LETTER, Style, config, styles_of, unchecked
from calibrant.lab.stats import Estimate
from calibrant.spec.foreign import visible_name

if TYPE_CHECKING:
    import altair as alt

ROOM: Final = 26
"""Letters that a name may take beside a plot."""

CROWDED: Final = 24
"""Sets that each have a mark; with more there is no room for their intervals."""

Interval = tuple[float, float] | None


def cut(name: str, room: int = ROOM) -> str:
    """A long name with its middle left out, at most `room` letters (at least 3); wide letters
    count as two.
    """
    clean = visible_name(name)
    room = max(3, room)
    if _width(clean) <= room:
        return clean
    head = clean[:room]
    tail = clean[-room:]
    while _width(head) > room // 2:
        head = head[:-1]
    while _width(tail) > room - room // 2 - 1:
        tail = tail[1:]
    return f"{head}…{tail}"


def folded(text: str, room: int) -> list[str]:
    """A text in lines of about `room` letters, divided behind what divides words; a word that is
    longer has a line of its own.

    >>> folded("commonsense_qa (3-shot)", 14)
    ['commonsense_qa', '(3-shot)']
    """
    lines: list[str] = []
    for word in re.findall(r"[^ _:@]+[ _:@]*", text):
        if lines and len(lines[-1]) + len(word.rstrip()) <= room:
            lines[-1] += word
        else:
            lines.append(word)
    return [line.rstrip() for line in lines] or [text]


def _width(text: str) -> int:
    wide = [letter for letter in text if unicodedata.east_asian_width(letter) in "WF"]
    return len(text) + len(wide)


def signed(value: float, digits: int = 3) -> str:
    """Return a difference for a plot: `+0.412`, `−0.031`, `0.000`; without an end `+∞`.

    Beside `numerics.signed`, since a plot has a true minus and may have little room.
    """
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    text = f"{value:+.{digits}f}" if abs(value) < 1e5 else f"{value:+.2e}"
    if not float(text):
        return text[1:]
    return text.replace("-", "−")


def plainly(value: float, digits: int = 3) -> str:
    """`0.412`, `−0.031`."""
    return signed(value, digits).removeprefix("+")


def spread(interval: Interval, digits: int = 3) -> str:
    """` (0.1 to 0.3)`, empty without an interval."""
    if interval is None:
        return ""
    low, high = interval
    return f" ({plainly(low, digits)} to {plainly(high, digits)})"


def share(value: float) -> str:
    """`93.1 %` with a thin space that doesn't break."""
    if not math.isfinite(value):
        return plainly(value)
    return f"{plainly(100 * value, 1)}\u202f%"


def known(estimate: Estimate | None) -> bool:
    """Return whether there is a number, be it infinite."""
    return estimate is not None and not math.isnan(estimate.value)


def ends(estimate: Estimate, level: float, comparisons: int = 1) -> Interval:
    """Return the interval of an estimate, None where there is none or where it isn't a number."""
    interval = estimate.interval(level, comparisons)
    if interval is None or any(map(math.isnan, interval)):
        return None
    return interval


def stem(*parts: str) -> str:
    """Return a name for a file, of ASCII letters that every system takes:
    `forest-sparsegpt-damp-0.02-2-4`.
    """
    cleaned: list[str] = []
    for part in parts:
        letters = unicodedata.normalize("NFKD", part)
        cleaned.append(re.sub(r"[^A-Za-z0-9._]+", "-", letters).strip("-._"))
    name = re.sub(r"-{2,}", "-", "-".join(cleaned)).strip("-._")
    return name[:80].strip("-._") or "plot"


def sentence(parts: Sequence[str]) -> str:
    """Return parts as sentences, one after the other; a full stop ends one that has no end."""
    sentences: list[str] = []
    for part in parts:
        if part and not part.endswith((".", "!", "?")):
            sentences.append(f"{part}.")
        elif part:
            sentences.append(part)
    return " ".join(sentences)


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
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share

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
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return Axis(0.0, 1.0, pixels)
    low = min(finite)
    high = max(finite)
    if log is None:
        log = low > 0 and high / low > WIDE
    if log and low > 0:
        far = max((high / low) ** room, 1.02)
        return Axis(low / far, high * far, pixels, True)
    more = room * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - more, high + more, pixels)


def reached(values: Iterable[float], intervals: Iterable[Interval]) -> list[float]:
    """`values` and the ends of their intervals, those that reach much farther than any value
    drawn in.
    """
    reach = [value for value in values if math.isfinite(value)]
    if not reach:
        return []
    low = min(reach)
    high = max(reach)
    more = 0.6 * (high - low) or math.inf
    least = low - more
    if low > 0:
        least = max(least, low / 1.6)
    for interval in intervals:
        for end in interval or ():
            if math.isfinite(end):
                reach.append(min(max(end, least), high + more))
    return reach


LINE: Final = 12.0
"""Pixels from one label to the next below it."""


def spaced(targets: Sequence[float], low: float, high: float, gap: float = LINE) -> list[float]:
    """Return places as near to `targets` as may be, at least `gap` apart, between `low` and
    `high` where there is room; in their order.
    """
    count = len(targets)
    if count > 1:
        gap = min(gap, (high - low) / (count - 1))

    def inside(centre: float, size: int) -> float:
        half = (size - 1) / 2 * gap
        return min(max(centre, low + half), high - half)

    # Clusters of labels that touch share the mean of their targets: each new one joins the last
    # while it would overlap it.
    order = sorted(range(count), key=targets.__getitem__)
    clusters: list[tuple[float, int]] = []
    for number in order:
        centre = targets[number]
        size = 1
        while clusters:
            last_centre, last_size = clusters[-1]
            begin = centre - (size - 1) / 2 * gap
            free = last_centre + (last_size + 1) / 2 * gap
            if begin >= free:
                break
            clusters.pop()
            mean = (last_centre * last_size + centre * size) / (last_size + size)
            size += last_size
            centre = inside(mean, size)
        clusters.append((inside(centre, size), size))
    ordered: list[float] = []
    for centre, size in clusters:
        for label in range(size):
            ordered.append(centre + (label - (size - 1) / 2) * gap)
    places = [0.0] * count
    for number, place in zip(order, ordered, strict=True):
        places[number] = place
    return places


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
    taken: list[_Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    labels: list[PlacedLabel | None] = []
    for number, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        name_width = len(name) * LETTER * 0.95
        # A name may touch its own point.
        others = taken[:number] + taken[number + 1 :]
        placed: PlacedLabel | None = None
        for label in _places(x, y):
            box = _box(label, name_width)
            left, top, right, bottom = box
            inside = left >= 0 and top >= 0 and bottom <= height
            if not label.right:
                inside = inside and right <= width + 120
            if inside and not any(_overlap(box, other) for other in others):
                taken.append(box)
                placed = label
                break
        labels.append(placed)
    return labels


_Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _box(label: PlacedLabel, width: float) -> _Box:
    if label.right:
        left, right = label.x - width, label.x
    else:
        left, right = label.x, label.x + width
    return left, label.y - 6, right, label.y + 6


def _places(x: float, y: float) -> Iterator[PlacedLabel]:
    """Yield where the name of a point may stand, the best places first."""
    yield PlacedLabel(x + 9, y)
    yield PlacedLabel(x - 9, y, right=True)
    for lines in range(1, 9):
        for middle in (y - lines * LINE, y + lines * LINE):
            yield PlacedLabel(x + 12, middle, off=True)
            yield PlacedLabel(x - 12, middle, right=True, off=True)


def _overlap(box: _Box, other: _Box) -> bool:
    left, top, right, bottom = box
    other_left, other_top, other_right, other_bottom = other
    overlap_across = left < other_right and other_left < right
    overlap_down = top < other_bottom and other_top < bottom
    return overlap_across and overlap_down


SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v6.json"
"""What the specification is written in; a name, nothing is fetched."""

Records = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Plot:
    """A plot: its file's stem, a title, all that it says in words and numbers, and its Vega-Lite,
    whose colours are CSS custom properties.

    `caption` says what is drawn, in which unit and what its lines are; `legend` are the families
    whose marks are in it. Both stand below the drawing, as text that folds, and not in it: how wide
    a text is depends on fonts that only who shows it has.
    """

    name: str
    title: str
    description: str
    spec: Mapping[str, Any]
    caption: str = ""
    legend: tuple[Style, ...] = ()


def plotted(
    name: tuple[str, ...],
    title: str,
    description: str,
    chart: "Callable[[], alt.VegaLiteSchema]",
    data: Mapping[str, Records],
    caption: Sequence[str] = (),
    families: Collection[str] = (),
) -> Plot:
    """Return the plot that `chart` makes, whose named data are `data`: names and numbers only, so
    that no colour is ever a name.

    `caption` are sentences without their full stops, `families` those that have marks in it; one
    alone needs no legend.
    """
    with unchecked():
        drawing = chart().to_dict(validate=False)
    datasets: dict[str, list[dict[str, Any]]] = {}
    for key, records in data.items():
        datasets[key] = [dict(record) for record in records]
    spec = {"$schema": SCHEMA, **drawing, "config": config(), "datasets": datasets}
    legend: list[Style] = []
    if len(set(families)) > 1:
        legend = list(styles_of(families).values())
    return Plot(
        stem(*name),
        visible_name(title),
        visible_name(description),
        spec,
        visible_name(sentence(caption)),
        tuple(legend),
    )


Layer = tuple[str, "alt.UnitSpec"]


def layer(kind: str, mark: Any, encoding: dict[str, Any], **look: Any) -> Layer:
    """Return marks for the records whose `k` is `kind`, which all look so."""
    import altair as alt

    of_kind = alt.FilterTransform(filter=f"datum.k == '{kind}'")
    drawn = alt.MarkDef(type=mark, **look)
    encoded = alt.Encoding(**encoding)
    return kind, alt.UnitSpec(mark=drawn, encoding=encoded, transform=[of_kind])


def styled(styles: Collection[Style]) -> "tuple[alt.Stroke, alt.Fill, alt.Shape]":
    """Return the stroke, fill and shape of marks, by the style that their records name in `f`."""
    import altair as alt

    words = [style.words for style in styles]
    colours = alt.Scale(domain=words, range=[style.colour for style in styles])
    shapes = alt.Scale(domain=words, range=[style.shape for style in styles])
    stroke = alt.Stroke("f:N", scale=colours, legend=None)
    fill = alt.Fill("f:N", scale=colours, legend=None)
    shape = alt.Shape("f:N", scale=shapes, legend=None)
    return stroke, fill, shape


def text(kind: str, x: Any, y: Any, **look: Any) -> Layer:
    """Words: the records' `t`."""
    import altair as alt

    encoding = {"x": x, "y": y, "text": alt.Text("t:N")}
    look = {"color": "var(--ink)", "align": "left", "fontSize": 11, **look}
    return layer(kind, "text", encoding, **look)


def layered(
    layers: Iterable[Layer],
    kinds: Collection[str],
    width: float | int,
    height: float | int,
    data: str = "",
) -> "alt.LayerSpec":
    """Return the layers that have something to draw, over one another. `data` names their records;
    a panel of several gets its records from outside.
    """
    import altair as alt

    shown = [spec for kind, spec in layers if kind in kinds]
    named = alt.NamedData(name=data) if data else alt.Undefined
    return alt.LayerSpec(layer=shown, width=width, height=height, data=named)


def faceted(
    panel: "alt.LayerSpec",
    data: str,
    columns: int,
    row: int,
    column: float | int,
    own_scales: bool = False,
) -> "alt.FacetSpec":
    """Return one panel for each value of `p` in the named data, so many in a row, so many pixels
    apart. With `own_scales` each has a scale of its own across.
    """
    import altair as alt

    # An empty label, since without any Vega-Lite leaves no room between the rows of panels.
    header = alt.Header(
        title=None, labelExpr="''", labelColor="var(--ink)", labelFontSize=1, labelPadding=0
    )
    facet = alt.FacetFieldDef(field="p", type="ordinal", title=None, header=header)
    gaps = alt.RowColnumber(row=row, column=column)
    scale = alt.ScaleResolveMap(x="independent") if own_scales else alt.Undefined
    # An axis below every panel, also where nothing stands below it.
    resolved = alt.Resolve(axis=alt.AxisResolveMap(x="independent"), scale=scale)
    return alt.FacetSpec(
        facet=facet,
        spec=panel,
        columns=columns,
        spacing=gaps,
        bounds="flush",
        resolve=resolved,
        data=alt.NamedData(name=data),
    )
