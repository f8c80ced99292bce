"""Two losses against each other: which calibration sets give the one for the other, and which
are simply worse. No torch here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

from calibrant.errors import SpecError
from calibrant.lab.report.plots.picture import (
    CROWDED,
    Axis,
    Interval,
    Layer,
    Plot,
    around,
    axis_of,
    cut,
    ends,
    layer,
    layered,
    plainly,
    plotted,
    reached,
    sentence,
    signed,
    spread,
    styled,
    text,
)
from calibrant.lab.report.plots.theme import FAMILIES, styles_of
from calibrant.lab.report.sentences import setting_words, short
from calibrant.lab.stats import (
    Estimate,
    Ranking,
    RankingEntry,
    join_names,
    significantly_different,
)
from calibrant.numerics import percent

if TYPE_CHECKING:
    import altair as alt

WIDTH: Final = 520
HEIGHT: Final = 380

ABOVE: Final = 9
"""How far above its point a name stands, in pixels."""

Place = Literal["front", "open", "behind"]
"""On the front; off it, but not significantly; and significantly worse on both than some other
set.
"""

WORDS: Final[dict[Place, str]] = {
    "front": "on the front",
    "open": "not significantly behind the front",
    "behind": "significantly worse on both than",
}


@dataclass(frozen=True)
class _PlottedSet:
    """A set: its two numbers, where it stands, and what it is significantly behind."""

    entry: RankingEntry
    x: Estimate
    y: Estimate
    place: Place
    before: str = ""

    @property
    def family(self) -> str:
        return self.entry.family

    @property
    def words(self) -> str:
        """Where it stands, in words."""
        return f"{WORDS[self.place]} {self.before}".strip()


@dataclass(frozen=True)
class _Front:
    """What is drawn of a ranking on two measured sets."""

    ranking: Ranking
    across: str
    up: str
    spots: tuple[_PlottedSet, ...]
    axes: tuple[Axis, Axis]

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each thing that is drawn."""
        x, y = self.axes
        front: list[tuple[float, float]] = []
        for spot in self.spots:
            if spot.place == "front":
                front.append((spot.x.value, spot.y.value))
        shown = [(x.inside(across), y.inside(up)) for across, up in sorted(front)]
        for (left, upper), (right, lower) in pairwise(shown):
            # Level to the next set of the front, then down to it.
            yield {"k": "stair", "x": left, "y": upper, "w": right, "z": upper}
            yield {"k": "stair", "x": right, "y": upper, "w": right, "z": lower}
        for spot in self.spots:
            yield from self._spot(spot)
        yield from self._names()

    def _spot(self, spot: _PlottedSet) -> Iterator[dict[str, Any]]:
        """Yield a set's mark and its intervals."""
        x, y = self.axes
        place = {"x": x.inside(spot.x.value), "y": y.inside(spot.y.value)}
        mark = {**place, "f": FAMILIES[spot.family].words}
        if not self._inside(spot):
            yield {**mark, "k": "beyond"}
            return
        if len(self.spots) <= CROWDED:
            level = self.ranking.level
            interval = ends(spot.x, level)
            if interval is not None:
                low, high = map(x.inside, interval)
                yield {**mark, "k": "reach-x", "x": low, "w": high}
            interval = ends(spot.y, level)
            if interval is not None:
                low, high = map(y.inside, interval)
                yield {**mark, "k": "reach-y", "y": low, "z": high}
        yield {**mark, "k": spot.place}

    def _names(self) -> Iterator[dict[str, Any]]:
        """Yield the names that find a place, with a line to the points they stand away from."""
        x, y = self.axes
        points: list[tuple[float, float]] = []
        names: list[str] = []
        for spot in self.spots:
            across = x.at(x.inside(spot.x.value))
            up = y.at(y.inside(spot.y.value))
            points.append((across, HEIGHT - up))
            name = cut(spot.entry.name)
            if not self._inside(spot):
                name += f" ({signed(spot.x.value)}, {signed(spot.y.value)})"
            names.append(name)
        # Beside its point a name would stand on the point's own lines.
        above = [(across, down - ABOVE) for across, down in points]
        labels = around(above, names, WIDTH, HEIGHT)
        for point, name, label in zip(points, names, labels, strict=True):
            if label is None:
                continue
            kind = "left" if label.right else "right"
            place = {"x": x.back(label.x), "y": y.back(HEIGHT - label.y)}
            yield {"k": kind, **place, "t": name}
            if label.off:
                across, down = point
                yield {"k": "hair", **place, "w": x.back(across), "z": y.back(HEIGHT - down)}

    def _inside(self, spot: _PlottedSet) -> bool:
        x, y = self.axes
        return x.low <= spot.x.value <= x.high and y.low <= spot.y.value <= y.high

    def caption(self) -> Iterator[str]:
        """Yield what is drawn, in which unit, and what the lines are."""
        across, up = self.names
        units = {self._unit(self.across), self._unit(self.up)}
        model = "the model that was calibrated on one set"
        if self.ranking.finished:
            model = "one finished model"
        yield (
            f"Each mark: the {self._noun} on {across} and on {up} of {model}, "
            f"in {join_names(sorted(units))}"
        )
        if len(self.spots) <= CROWDED:
            yield f"Lines: {percent(self.ranking.level)} intervals"
        yield "Dashed: the front, better on one than any set that isn't worse on the other"
        if any(spot.place == "open" for spot in self.spots):
            yield "Hollow: not significantly behind the front"
        if any(spot.place == "behind" for spot in self.spots):
            yield "Small: significantly worse on both than another set"

    def in_words(self, title: str) -> str:
        """Return the plot in words: each set with its two numbers, and where it stands."""
        write = plainly if self.ranking.dense is None else signed
        first, second = self.names
        each: list[str] = []
        for spot in self.spots:
            numbers: list[str] = []
            for estimate, name in ((spot.x, first), (spot.y, second)):
                interval = spread(ends(estimate, self.ranking.level))
                numbers.append(f"{write(estimate.value)}{interval} on {name}")
            each.append(f"{spot.entry.name} {', '.join(numbers)}, {spot.words}")
        nouns = "Losses" if self.ranking.dense is None else "Increases over the dense model"
        intervals = f"{nouns}, with {percent(self.ranking.level)} intervals in brackets"
        return sentence([title, intervals, "; ".join(each)])

    @property
    def names(self) -> tuple[str, str]:
        """What the two measured sets are called."""
        measured = self.ranking.measured
        return short(self.across, measured), short(self.up, measured)

    @property
    def _noun(self) -> str:
        return "loss" if self.ranking.dense is None else "increase of the loss"

    def _unit(self, measured: str) -> str:
        return self.ranking.units.get(measured, self.ranking.unit)

    def chart(self) -> "alt.LayerSpec":
        """Return the picture over the records, which are called "points"."""
        kinds = {record["k"] for record in self.records()}
        layers = [*self._marks(), *self._texts()]
        return layered(layers, kinds, WIDTH, HEIGHT, "points")

    def _encoded(self) -> "tuple[alt.X, alt.Y]":
        import altair as alt

        look = {"tickCount": 6, "format": "~g", "labelFlush": False, "grid": True}
        across, up = self.axes
        x_axis = alt.Axis(title=cut(self._title(self.across), 80), **look)
        y_axis = alt.Axis(title=cut(self._title(self.up), 60), **look)
        return (
            alt.X("x:Q", axis=x_axis, scale=across.scale()),
            alt.Y("y:Q", axis=y_axis, scale=up.scale()),
        )

    def _title(self, measured: str) -> str:
        name = short(measured, self.ranking.measured)
        return f"{self._noun} on {name}, {self._unit(measured)}"

    def _marks(self) -> Iterator[Layer]:
        import altair as alt

        x, y = self._encoded()
        present = {spot.family for spot in self.spots}
        stroke, fill, shape = styled(styles_of(present).values())
        place = {"x": x, "y": y}
        coloured = {**place, "stroke": stroke}
        marked = {**coloured, "shape": shape}
        filled = {**marked, "fill": fill}
        right = alt.X2("w:Q")
        down = alt.Y2("z:Q")
        line = {**place, "x2": right, "y2": down}
        reach = {"strokeWidth": 1.25, "opacity": 0.5}
        yield layer("stair", "rule", line, color="var(--soft)", strokeDash=[4, 3], strokeWidth=1.25)
        yield layer("hair", "rule", line, color="var(--line)", strokeWidth=1)
        yield layer("reach-x", "rule", {**coloured, "x2": right}, **reach)
        yield layer("reach-y", "rule", {**coloured, "y2": down}, **reach)
        yield layer("behind", "point", filled, size=18, opacity=1, strokeWidth=1)
        hollow = {"opacity": 1, "strokeWidth": 1.5, "fill": "var(--card)"}
        yield layer("open", "point", marked, size=60, **hollow)
        yield layer("front", "point", filled, size=60, opacity=1, strokeWidth=1.5)
        arrow = "M-.6,.8L.8,-.6M0,-.6H.8V.2"
        yield layer("beyond", "point", coloured, size=44, opacity=1, shape=arrow, filled=False)

    def _texts(self) -> Iterator[Layer]:
        x, y = self._encoded()
        yield text("right", x, y, dx=1)
        yield text("left", x, y, dx=-1, align="right")


def pareto(ranking: Ranking, across: str = "", up: str = "") -> Plot | None:
    """Return sets by how much worse they are on `across` and on `up`, two of the measured sets, and
    the front that none of them is behind.

    By default they are the two losses about which the sets disagree most; None where there are
    fewer than two losses, or two sets with both. A set off the front is only then called behind
    when some set is better on both and their letters say so, jointly over all pairs of a column.
    `SpecError` for what isn't measured, and where only one of the two is named.
    """
    _check_named(ranking, across, up)
    pair = (across, up) if across else _opposed(ranking)
    if pair is None:
        return None
    sets = _with_both(ranking, *pair)
    if len(sets) < 2:
        return None
    spots = [_placed(found, sets, pair) for found in sets]
    across_axis = _axis(ranking, [(spot, spot.x) for spot in spots], WIDTH)
    up_axis = _axis(ranking, [(spot, spot.y) for spot in spots], HEIGHT)
    front = _Front(ranking, *pair, tuple(spots), (across_axis, up_axis))
    first, second = front.names
    title = f"Loss on {first} against loss on {second}: {setting_words(ranking)}"
    name = ("pareto", ranking.method, ranking.target)
    words = front.in_words(title)
    data = {"points": front.records()}
    families = {spot.family for spot in spots}
    return plotted(name, title, words, front.chart, data, tuple(front.caption()), families)


def _check_named(ranking: Ranking, across: str, up: str) -> None:
    """Raise `SpecError` for what isn't measured, and where only one of the two is named."""
    for name in (across, up):
        if name and name not in ranking.measured:
            known = ", ".join(ranking.measured)
            message = f"nothing is measured on {name!r}; name two of {known}"
            raise SpecError(message, subject=name)
    if bool(across) != bool(up):
        named = across or up
        message = f"only {named!r} is named of the two measured sets; name both, or neither"
        raise SpecError(message, subject=named)


_Losses = tuple[RankingEntry, Estimate, Estimate]


def _with_both(ranking: Ranking, across: str, up: str) -> list[_Losses]:
    """The sets that have both losses."""
    sets: list[_Losses] = []
    for entry in ranking.entries:
        x = _loss(ranking, entry, across)
        y = _loss(ranking, entry, up)
        if x is not None and y is not None:
            sets.append((entry, x, y))
    return sets


def _placed(found: _Losses, sets: Sequence[_Losses], pair: tuple[str, str]) -> _PlottedSet:
    """Where a set stands: what is better on both, and whether that is significant on both."""
    entry, x, y = found
    better: list[RankingEntry] = []
    for other, a, b in sets:
        equal = (a.value, b.value) == (x.value, y.value)
        if a.value <= x.value and b.value <= y.value and not equal:
            better.append(other)
    if not better:
        return _PlottedSet(entry, x, y, "front")
    for other in better:
        if all(significantly_different(other, entry, measured) for measured in pair):
            return _PlottedSet(entry, x, y, "behind", other.name)
    return _PlottedSet(entry, x, y, "open")


def _opposed(ranking: Ranking) -> tuple[str, str] | None:
    """Return the two losses that put most pairs of sets into opposite orders; the first two
    where none do.
    """

    def opposite(losses: tuple[str, str]) -> int:
        """How many pairs of sets these two losses put into opposite orders."""
        values: list[tuple[float, float]] = []
        for entry, x, y in _with_both(ranking, *losses):
            if not entry.control:
                values.append((x.value, y.value))
        count = 0
        for (first_x, first_y), (second_x, second_y) in combinations(values, 2):
            if (first_x - second_x) * (first_y - second_y) < 0:
                count += 1
        return count

    losses: list[str] = []
    for measured in ranking.measured:
        unit = ranking.units.get(measured, ranking.unit)
        if unit.startswith("nats"):
            losses.append(measured)
    return max(combinations(losses, 2), key=opposite, default=None)


def _loss(ranking: Ranking, entry: RankingEntry, measured: str) -> Estimate | None:
    """Return how much worse than the dense model the set is; its own loss where there is none.
    None without a number, or one that isn't finite.
    """
    if ranking.dense is not None:
        loss = entry.increases.get(measured)
    elif ranking.better.get(measured) == "higher":
        return None
    else:
        loss = entry.losses.get(measured)
    if loss is None or not math.isfinite(loss.value):
        return None
    return loss


def _axis(ranking: Ranking, sets: Sequence[tuple[_PlottedSet, Estimate]], pixels: int) -> Axis:
    """Return the axis that the sets with content span; a control outside it stands at the edge."""
    estimates = [estimate for spot, estimate in sets if not spot.entry.control]
    if not estimates:
        estimates = [estimate for _, estimate in sets]
    intervals: list[Interval] = []
    if len(sets) <= CROWDED:
        intervals = [ends(estimate, ranking.level) for estimate in estimates]
    values = [estimate.value for estimate in estimates]
    return axis_of(reached(values, intervals), pixels, log=False, room=0.06)
