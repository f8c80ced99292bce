"""Heat maps: what each calibration set kept of the dense model's performance on each measured set,
and which experts it keeps. Only draws. No torch here.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.plots.picture import (
    Plot,
    cut,
    folded,
    known,
    layer,
    layered,
    plotted,
    sentence,
    share,
    text,
)
from calibrant.lab.report.plots.theme import LETTER, STEPS
from calibrant.lab.report.sentences import meaning_of_kept, panel_name, setting_words
from calibrant.lab.stats import MEAN, KeptExperts, Ranking, RankingEntry, describe_target
from calibrant.numerics import HOLE

if TYPE_CHECKING:
    import altair as alt

FINEST: Final = 0.01
"""The smallest difference between two colours: less is seldom more than noise."""

CELL: Final = 62
"""Pixels that a column takes at least."""

WIDEST: Final = 96
"""And at most: a word of its head that is longer is cut."""

HEAD: Final = 13
"""Pixels from one line of a head to the next."""

PADDING: Final = 6
"""Pixels that a line of a head leaves free in its column."""


@dataclass(frozen=True)
class _Heat:
    """The sets, the columns, and the numbers at which the colour changes."""

    ranking: Ranking
    entries: tuple[RankingEntry, ...]
    columns: tuple[str, ...]
    thresholds: tuple[float, ...]

    @property
    def height(self) -> int:
        """Of a row, in pixels."""
        return 22 if len(self.entries) <= 20 else 16

    @property
    def heads(self) -> list[str]:
        """Above the columns."""
        return [panel_name(column, self.ranking) for column in self.columns]

    @cached_property
    def cell(self) -> int:
        """Pixels of a column: as many as the longest word of a head needs, so that none stands
        out over its column.
        """
        longest = 0
        for lines in self._folded:
            for line in lines:
                longest = max(longest, len(line))
        needed = int(longest * LETTER) + PADDING
        return min(WIDEST, max(CELL, needed))

    @cached_property
    def _folded(self) -> list[list[str]]:
        """The heads in lines."""
        usual = int((CELL - PADDING) / LETTER)
        most = int((WIDEST - PADDING) / LETTER)
        heads: list[list[str]] = []
        for head in self.heads:
            lines = folded(head, usual)
            heads.append([cut(line, most) for line in lines])
        return heads

    def x(self, column: int) -> float:
        """Where a column stands, in columns: the mean stands a little apart."""
        if column > 0 and self.columns[0] == MEAN:
            return column + 0.2
        return float(column)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each cell, name and head."""
        for place, lines in enumerate(self._folded):
            for above, line in enumerate(reversed(lines)):
                yield {"k": f"head-{above}", "c": self.x(place), "t": line}
        for row, entry in enumerate(self.entries):
            yield {"k": "name", "r": row, "t": cut(entry.name)}
            for place, column in enumerate(self.columns):
                yield from self._cell(row, self.x(place), entry, column)
        yield {"k": "key-title", "t": "per cent of the dense model's performance"}
        for step in range(STEPS):
            words = self.range_of(step)
            yield {"k": "key", "c": step, "v": self.within(step), "s": step, "t": words}

    def _cell(
        self, row: int, x: float, entry: RankingEntry, column: str
    ) -> Iterator[dict[str, Any]]:
        """Yield the ground of a cell and what stands in it."""
        estimate = entry.share_kept.get(column)
        if estimate is None or not known(estimate):
            yield {"k": "hole", "r": row, "c": x, "t": HOLE}
            return
        step = bisect_right(self.thresholds, estimate.value)
        value = estimate.value
        if not math.isfinite(value):
            value = self.within(step)
        kind = "number"
        if column in entry.best_on:
            kind = "best"
        yield {"k": "cell", "r": row, "c": x, "v": value, "s": step}
        yield {"k": kind, "r": row, "c": x, "s": step, "t": _brief(estimate.value)}

    def within(self, step: int) -> float:
        """Return a value that has the colour of a step."""
        first, second = self.thresholds[:2]
        before, last = self.thresholds[-2:]
        # The outermost colours have no end; they are taken to go as far as their neighbours.
        ends = (2 * first - second, *self.thresholds, 2 * last - before)
        return (ends[step] + ends[step + 1]) / 2

    def range_of(self, step: int) -> str:
        """Return from where to where a colour goes, in per cent: `< 20`, `20–25`, `≥ 45`."""
        texts = [f"{100 * end:.6g}".replace("-", "−") for end in self.thresholds]
        if step == 0:
            return f"< {texts[0]}"
        if step == len(texts):
            return f"≥ {texts[-1]}"
        return f"{texts[step - 1]}–{texts[step]}"

    def chart(self) -> "alt.LayerSpec":
        """Return the picture over the records, which are called "cells"."""
        import altair as alt

        last = self.x(len(self.columns) - 1)
        height = self.height * len(self.entries)
        roomy = self.height > 16
        x = alt.X("c:Q", axis=None, scale=_exact(-0.5, last + 0.5))
        y = alt.Y("r:Q", axis=None, scale=_exact(len(self.entries) - 0.5, -0.5))
        grounds = [f"var(--heat-{step})" for step in range(STEPS)]
        inks = [f"var(--heat-ink-{step})" for step in range(STEPS)]
        ground = alt.Scale(type="threshold", domain=list(self.thresholds), range=grounds)
        fill = alt.Fill("v:Q", scale=ground, legend=None)
        by_step = alt.Scale(domain=list(range(STEPS)), range=inks)
        ink = alt.Color("s:O", scale=by_step, legend=None)
        size = {"width": self.cell - 2, "height": self.height - 2}
        small = 11 if roomy else 10
        names = 12 if roomy else 10
        number = {"x": x, "y": y, "text": alt.Text("t:N"), "color": ink}
        key_y = alt.YValue(height + 43)
        key = {"x": x, "y": key_y, "fill": fill}
        layers = [
            layer("cell", "rect", {"x": x, "y": y, "fill": fill}, **size),
            layer("number", "text", number, fontSize=small),
            layer("best", "text", number, fontSize=small, fontWeight="bold"),
            text("hole", x, y, color="var(--soft)", align="center", fontSize=small),
            text("name", alt.XValue(-8), y, align="right", fontSize=names),
        ]
        most_lines = max(map(len, self._folded))
        for above in range(most_lines):
            line_y = alt.YValue(-8 - HEAD * above)
            layers.append(text(f"head-{above}", x, line_y, align="center"))
        layers += [
            text("key-title", alt.XValue(0), alt.YValue(height + 22), color="var(--soft)"),
            layer("key", "rect", key, width=self.cell - 2, height=18),
            layer("key", "text", {**number, "y": key_y}, fontSize=11),
        ]
        kinds = {kind for kind, _ in layers}
        return layered(layers, kinds, self.cell * (last + 1), height, "cells")


def _exact(low: int | float, high: int | float) -> "alt.Scale":
    """A scale from exactly `low` to `high`."""
    import altair as alt

    return alt.Scale(domain=[low, high], nice=False, zero=False)


def kept(ranking: Ranking) -> Plot | None:
    """Return sets by measured sets, the share of the dense model's performance kept in each cell.
    None where no share is known.
    """
    entries = (*ranking.entries, *ranking.baselines, *ranking.partial)
    columns = list(ranking.measured)
    mean_known = any(MEAN in entry.share_kept for entry in entries)
    if len(columns) > 1 and mean_known:
        columns.insert(0, MEAN)
    every = _shares(entries, columns)
    if not every:
        return None
    # The colours are for sets with content: a control may be far below them.
    with_content = [entry for entry in ranking.entries if not entry.control]
    values = _shares(with_content, columns) or every
    thresholds = _thresholds(min(values), max(values))
    heat = _Heat(ranking, entries, tuple(columns), thresholds)
    where = setting_words(ranking)
    title = f"Kept of the dense model's performance: {where}"
    caption = [
        "Each cell: what share of the dense model's performance is kept, in per cent; "
        + meaning_of_kept(ranking)
    ]
    if any(entry.best_on for entry in entries):
        caption.append("Bold: significantly better than every other set of its column")
    name = ("kept", ranking.method, ranking.target)
    words = _kept_in_words(heat, title)
    return plotted(name, title, words, heat.chart, {"cells": heat.records()}, caption)


def _shares(entries: Iterable[RankingEntry], columns: Sequence[str]) -> list[float]:
    """The finite shares of these entries."""
    shares: list[float] = []
    for entry in entries:
        for column in columns:
            estimate = entry.share_kept.get(column)
            if estimate is not None and math.isfinite(estimate.value):
                shares.append(estimate.value)
    return shares


def _thresholds(low: float, high: float) -> tuple[float, ...]:
    """Six round numbers between which the colours change, around `low` to `high`."""
    rough = max(FINEST, (high - low) / (STEPS - 1))
    scale = 10.0 ** math.floor(math.log10(rough))
    # A little less than one: 0.02 divided by 0.01 needn't be quite 2.
    least = rough * 0.999
    step = scale
    for factor in (2, 5, 10):
        if step < least:
            step = factor * scale
    # As many are below the middle as above it.
    middle = (low + high) / 2
    first = round(middle / step - (STEPS - 2) / 2)
    return tuple(round((first + number) * step, 12) for number in range(STEPS - 1))


def _brief(value: float) -> str:
    """What stands in a cell: per cent without the sign."""
    if abs(value) < 10:
        return share(value).removesuffix("\u202f%")
    return share(round(value, 0)).removesuffix(".0\u202f%")


def _kept_in_words(heat: _Heat, title: str) -> str:
    marks = "An asterisk marks a set that is significantly better than every other there"
    parts = [f"{title}. {marks}"]
    for column, head in zip(heat.columns, heat.heads, strict=True):
        each: list[str] = []
        lacking: list[str] = []
        for entry in heat.entries:
            estimate = entry.share_kept.get(column)
            if estimate is None or not known(estimate):
                lacking.append(entry.name)
                continue
            mark = "*" if column in entry.best_on else ""
            each.append(f"{entry.name} {share(estimate.value)}{mark}")
        where = "Mean" if column == MEAN else f"On {head}"
        shares = ", ".join(each) or "nothing"
        holes = f"; no number for {', '.join(lacking)}" if lacking else ""
        parts.append(f"{where}: {shares}{holes}")
    return sentence(parts)


WIDTH: Final = 880
"""Pixels that all panels together take at most, without the names at their left."""

CELLS: Final = (2.0, 12.0)
"""Pixels of an expert, at least and at most."""

ROW: Final = 13
"""Pixels of a set's row."""

BREAK: Final = 11
"""Pixels between blocks."""

GAP: Final = 26
"""Pixels between panels."""

NAME: Final = 110
"""Pixels from the squares to the names of blocks: sets stand between."""


@dataclass(frozen=True)
class _Routers:
    """The groups, one panel each, with the same blocks and sets; and what panels are called."""

    groups: Sequence[KeptExperts]
    heads: Sequence[str]

    @property
    def first(self) -> KeptExperts:
        return self.groups[0]

    @property
    def experts(self) -> int:
        return self.first.kept.shape[2]

    @property
    def cell(self) -> float:
        """Pixels of an expert."""
        least, most = CELLS
        panel = WIDTH / len(self.groups) - GAP
        return max(least, min(most, panel / self.experts))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        width = self._left(len(self.groups)) - GAP
        height = self._top(len(self.first.blocks)) - BREAK
        return width, float(height)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each square, and the names beside them."""
        sets = self.first.sets
        for row, block in enumerate(self.first.blocks):
            top = self._top(row)
            yield {"k": "block", "y": top + ROW / 2, "t": f"block {block}"}
            middles = [top + (line + 0.5) * ROW for line in range(len(sets))]
            for name, middle in zip(sets, middles, strict=True):
                yield {"k": "set", "y": middle, "t": cut(name)}
            for panel, group in enumerate(self.groups):
                left = self._left(panel)
                for name, middle in zip(sets, middles, strict=True):
                    shares = group.kept[group.sets.index(name), row]
                    for expert, value in enumerate(shares):
                        across = round(left + (expert + 0.5) * self.cell, 3)
                        yield {"k": "cell", "y": middle, "x": across, "v": round(float(value), 3)}
        for panel, head in enumerate(self.heads):
            if head:
                yield {"k": "head", "x": self._left(panel), "t": head}

    def _left(self, panel: int) -> float:
        """Where a panel begins, in pixels."""
        return panel * (self.experts * self.cell + GAP)

    def _top(self, row: int) -> int:
        """Where the sets of a block begin, in pixels."""
        return row * (len(self.first.sets) * ROW + BREAK)

    def chart(self) -> "alt.LayerSpec":
        """The picture over the records, which are called "cells"."""
        import altair as alt

        width, height = self.size
        x = alt.X("x:Q", axis=None, scale=_exact(0, width))
        y = alt.Y("y:Q", axis=None, scale=_exact(height, 0))
        as_it_is = alt.Scale(domain=[0, 1], range=[0, 1])
        shade = alt.FillOpacity("v:Q", scale=as_it_is, legend=None)
        place = {"x": x, "y": y}
        shaded = {**place, "fillOpacity": shade}
        # Between squares that are large enough is a gap.
        gap = 1 if self.cell > 4 else 0
        square = {"width": self.cell - gap, "height": ROW - 2}
        layers = [
            layer("cell", "rect", place, fill="var(--grid)", **square),
            layer("cell", "rect", shaded, fill="var(--accent)", **square),
            text("head", x, alt.YValue(-14), fontSize=12, fontWeight="bold"),
            text("set", alt.XValue(-8), y, align="right", fontSize=10, color="var(--soft)"),
            text("block", alt.XValue(-NAME), y, align="right", fontSize=11),
        ]
        kinds = {kind for kind, _ in layers}
        return layered(layers, kinds, width, height, "cells")


def routers(groups: Sequence[KeptExperts], heads: Sequence[str] = ()) -> Plot | None:
    """Return blocks by experts, of each block a row for each calibration set: how many of its
    draws keep an expert. A panel for each group.

    `heads` are what panels are called. Groups with other blocks, experts or sets than the first are
    left out; None where there is none.
    """
    alike: list[KeptExperts] = []
    titles: list[str] = []
    for place, group in enumerate(groups):
        if _is_alike(group, groups[0]):
            alike.append(group)
            title = ""
            if place < len(heads):
                title = heads[place]
            titles.append(title)
    if not alike:
        return None
    drawn = _Routers(alike, titles)
    first = drawn.first
    name = ("experts", first.target)
    method = "several criteria"
    if len(alike) == 1:
        name = ("experts", first.method, first.target)
        method = first.method
    title = f"Experts that stay: {first.model}, {method} at {describe_target(first.target)}"
    caption = (
        f"Each square: an expert of a block, from 0 at the left to {drawn.experts - 1}; "
        "the stronger its colour, the more of a set's draws keep it",
        "Rows of a block: calibration sets",
    )
    words = _routers_in_words(drawn, title)
    return plotted(name, title, words, drawn.chart, {"cells": drawn.records()}, caption)


def _is_alike(group: KeptExperts, first: KeptExperts) -> bool:
    """Whether two groups have the same blocks, sets and numbers of experts."""
    same_rows = group.blocks == first.blocks and set(group.sets) == set(first.sets)
    return same_rows and group.kept.shape == first.kept.shape


def _routers_in_words(drawn: _Routers, title: str) -> str:
    parts = [title]
    for group, head in zip(drawn.groups, drawn.heads, strict=True):
        lead = f"{head}, " if head else ""
        for place, name in enumerate(group.sets):
            blocks: list[str] = []
            for row, block in enumerate(group.blocks):
                shares = group.kept[place, row]
                whole = [str(expert) for expert, value in enumerate(shares) if value == 1]
                experts = ", ".join(whole) or "none"
                blocks.append(f"{block}: {experts}")
            parts.append(f"{lead}{name}: every draw keeps, by block, {'; '.join(blocks)}")
    return sentence(parts)
