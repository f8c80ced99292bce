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
    Axis,
    Layer,
    Plot,
    around,
    axis_of,
    cut,
    ends,
    known,
    layer,
    layered,
    plainly,
    plotted,
    reached,
    sentence,
    signed,
    spread,
    text,
)
from calibrant.lab.report.plots.theme import FAMILIES
from calibrant.lab.report.sentences import short
from calibrant.lab.stats import (
    Estimate,
    Ranking,
    RankingEntry,
    describe_target,
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

CROWDED: Final = 24
"""Sets; with more there is no room for their intervals."""

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
        """A record for each thing that is drawn."""
        x, y = self.axes
        stairs = sorted((s.x.value, s.y.value) for s in self.spots if s.place == "front")
        for (a, b), (c, d) in pairwise(stairs):
            yield {
                "k": "stair",
                "x": x.inside(a),
                "y": y.inside(b),
                "w": x.inside(c),
                "z": y.inside(b),
            }
            yield {
                "k": "stair",
                "x": x.inside(c),
                "y": y.inside(b),
                "w": x.inside(c),
                "z": y.inside(d),
            }
        for spot in self.spots:
            at = {
                "x": x.inside(spot.x.value),
                "y": y.inside(spot.y.value),
                "f": FAMILIES[spot.family].words,
            }
            for key, to, axis, estimate in (("x", "w", x, spot.x), ("y", "z", y, spot.y)):
                if (
                    len(self.spots) <= CROWDED
                    and self._inside(spot)
                    and (reach := ends(estimate, self.ranking.level)) is not None
                ):
                    yield {
                        **at,
                        "k": f"reach-{key}",
                        key: axis.inside(reach[0]),
                        to: axis.inside(reach[1]),
                    }
            yield {**at, "k": spot.place if self._inside(spot) else "beyond"}
        yield from self._names()

    def _names(self) -> Iterator[dict[str, Any]]:
        x, y = self.axes
        points = [
            (x.at(x.inside(s.x.value)), HEIGHT - y.at(y.inside(s.y.value))) for s in self.spots
        ]
        above = [
            (a, b - ABOVE) for a, b in points
        ]  # beside its point a name would stand on the point's own lines
        names = [
            cut(s.entry.name)
            + ("" if self._inside(s) else f" ({signed(s.x.value)}, {signed(s.y.value)})")
            for s in self.spots
        ]
        for (a, b), name, label in zip(
            points, names, around(above, names, WIDTH, HEIGHT), strict=True
        ):
            if label is None:
                continue
            at = {"x": x.back(label.x), "y": y.back(HEIGHT - label.y)}
            yield {"k": "left" if label.right else "right", **at, "t": name}
            if label.off:
                yield {"k": "hair", **at, "w": x.back(a), "z": y.back(HEIGHT - b)}

    def _inside(self, spot: _PlottedSet) -> bool:
        return all(
            axis.low <= value <= axis.high
            for axis, value in zip(self.axes, (spot.x.value, spot.y.value), strict=True)
        )

    def caption(self) -> Iterator[str]:
        """Yield what is drawn, in which unit, and what the lines are."""
        names = [short(m, self.ranking.measured) for m in (self.across, self.up)]
        units = {self.ranking.units.get(m, self.ranking.unit) for m in (self.across, self.up)}
        change = "increase of the loss" if self.ranking.dense is not None else "loss"
        yield f"Each mark: the {change} on {names[0]} and on {names[1]} of the model that was calibrated on one set, in {join_names(sorted(units))}"
        if len(self.spots) <= CROWDED:
            yield f"Lines: {percent(self.ranking.level)} intervals"
        yield "Dashed: the front, better on one than any set that isn't worse on the other"
        if any(spot.place == "open" for spot in self.spots):
            yield "Hollow: not significantly behind the front"
        if any(spot.place == "behind" for spot in self.spots):
            yield "Small: significantly worse on both than another set"

    def chart(self) -> "alt.LayerSpec":
        """The picture over the records, which are called "points"."""
        import altair as alt

        chart_spec = layered(
            [*self._marks(), *self._texts()],
            {record["k"] for record in self.records()},
            WIDTH,
            HEIGHT,
        )
        chart_spec.data = alt.NamedData(name="points")
        return chart_spec

    def _encoded(self) -> "tuple[alt.X, alt.Y]":
        import altair as alt

        what = "increase of the loss" if self.ranking.dense is not None else "loss"
        x, y = (
            f"{what} on {short(m, self.ranking.measured)}, {self.ranking.units.get(m, self.ranking.unit)}"
            for m in (self.across, self.up)
        )
        look = {"tickCount": 6, "format": "~g", "labelFlush": False}
        return (
            alt.X(
                "x:Q",
                axis=alt.Axis(title=cut(x, 80), grid=True, **look),
                scale=self.axes[0].scale(),
            ),
            alt.Y(
                "y:Q",
                axis=alt.Axis(title=cut(y, 60), grid=True, **look),
                scale=self.axes[1].scale(),
            ),
        )

    def _marks(self) -> Iterator[Layer]:
        import altair as alt

        x, y = self._encoded()
        present = {spot.family for spot in self.spots}
        styles = [style for family, style in FAMILIES.items() if family in present]
        words = [s.words for s in styles]
        colours = alt.Scale(domain=words, range=[s.colour for s in styles])
        stroke, fill = (
            alt.Stroke("f:N", scale=colours, legend=None),
            alt.Fill("f:N", scale=colours, legend=None),
        )
        shape = alt.Shape(
            "f:N", scale=alt.Scale(domain=words, range=[s.shape for s in styles]), legend=None
        )
        to, at = (
            {"x": x, "y": y, "x2": alt.X2("w:Q"), "y2": alt.Y2("z:Q")},
            {"x": x, "y": y, "stroke": stroke, "shape": shape},
        )
        yield layer("stair", "rule", to, color="var(--soft)", strokeDash=[4, 3], strokeWidth=1.25)
        yield layer("hair", "rule", to, color="var(--line)", strokeWidth=1)
        yield layer(
            "reach-x",
            "rule",
            {"x": x, "y": y, "x2": to["x2"], "stroke": stroke},
            strokeWidth=1.25,
            opacity=0.5,
        )
        yield layer(
            "reach-y",
            "rule",
            {"x": x, "y": y, "y2": to["y2"], "stroke": stroke},
            strokeWidth=1.25,
            opacity=0.5,
        )
        yield layer("behind", "point", {**at, "fill": fill}, size=18, opacity=1, strokeWidth=1)
        yield layer("open", "point", at, size=60, opacity=1, strokeWidth=1.5, fill="var(--card)")
        yield layer("front", "point", {**at, "fill": fill}, size=60, opacity=1, strokeWidth=1.5)
        yield layer(
            "beyond",
            "point",
            {"x": x, "y": y, "stroke": stroke},
            size=44,
            opacity=1,
            shape="M-.6,.8L.8,-.6M0,-.6H.8V.2",
            filled=False,
        )

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
    `SpecError` for what isn't measured.
    """
    for name in (across, up):
        if name and name not in ranking.measured:
            raise SpecError(
                f"nothing is measured on {name!r}; name two of {', '.join(ranking.measured)}",
                subject=name,
            )
    pair = (across, up) if across and up else _opposed(ranking)
    sets = (
        []
        if pair is None
        else [
            (e, x, y)
            for e in ranking.entries
            if (x := _loss(ranking, e, pair[0])) and (y := _loss(ranking, e, pair[1]))
        ]
    )
    if pair is None or len(sets) < 2:
        return None
    spots: list[_PlottedSet] = []
    for entry, x, y in sets:
        better = [
            e
            for e, a, b in sets
            if a.value <= x.value
            and b.value <= y.value
            and (a.value, b.value) != (x.value, y.value)
        ]
        sure = [e for e in better if all(significantly_different(e, entry, m) for m in pair)]
        place: Place = "front" if not better else "behind" if sure else "open"
        spots.append(_PlottedSet(entry, x, y, place, sure[0].name if sure else ""))
    axes = (
        _axis(ranking, [(s, s.x) for s in spots], WIDTH),
        _axis(ranking, [(s, s.y) for s in spots], HEIGHT),
    )
    front = _Front(ranking, *pair, tuple(spots), axes)
    names = [short(m, ranking.measured) for m in pair]
    title = f"Loss on {names[0]} against loss on {names[1]}: {ranking.model}, {ranking.method} at {describe_target(ranking.target)}"
    what = "Increases over the dense model" if ranking.dense is not None else "Losses"
    write = signed if ranking.dense is not None else plainly
    numbers = {
        s.entry.name: [f"{write(e.value)}{spread(ends(e, ranking.level))}" for e in (s.x, s.y)]
        for s in spots
    }
    each = [
        f"{s.entry.name} {numbers[s.entry.name][0]} on {names[0]}, {numbers[s.entry.name][1]} on {names[1]}, {s.words}"
        for s in spots
    ]
    description = sentence(
        [title, f"{what}, with {percent(ranking.level)} intervals in brackets", "; ".join(each)]
    )
    name, families = ("pareto", ranking.method, ranking.target), {spot.family for spot in spots}
    return plotted(
        name,
        title,
        description,
        front.chart,
        {"points": front.records()},
        tuple(front.caption()),
        families,
    )


def _opposed(ranking: Ranking) -> tuple[str, str] | None:
    """Return the two losses that put most pairs of sets into opposite orders; the first two
    where none do.
    """
    losses = [m for m in ranking.measured if ranking.units.get(m, ranking.unit).startswith("nats")]

    def against(a: str, b: str) -> int:
        rows = [
            (x.value, y.value)
            for e in ranking.entries
            if not e.control and (x := _loss(ranking, e, a)) and (y := _loss(ranking, e, b))
        ]
        return sum((p[0] - q[0]) * (p[1] - q[1]) < 0 for p, q in combinations(rows, 2))

    return max(combinations(losses, 2), key=lambda pair: against(*pair), default=None)


def _loss(ranking: Ranking, entry: RankingEntry, measured: str) -> Estimate | None:
    """Return how much worse than the dense model the set is; its own loss where there is none.
    None without a number, or one that isn't finite.
    """
    loss = (entry.increases if ranking.dense is not None else entry.losses).get(measured)
    upward = ranking.dense is None and ranking.better.get(measured, "lower") == "higher"
    return (
        None if loss is None or upward or not known(loss) or not math.isfinite(loss.value) else loss
    )


def _axis(ranking: Ranking, sets: Sequence[tuple[_PlottedSet, Estimate]], pixels: int) -> Axis:
    """Return the axis that the sets with content span; a control outside it stands at the edge."""
    inner = [estimate for spot, estimate in sets if not spot.entry.control] or [
        estimate for _, estimate in sets
    ]
    intervals = [] if len(sets) > CROWDED else [ends(estimate, ranking.level) for estimate in inner]
    return axis_of(reached((e.value for e in inner), intervals), pixels, log=False, room=0.06)
