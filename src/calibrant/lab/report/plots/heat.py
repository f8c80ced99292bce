"""A heat map of what each calibration set kept of the dense model's performance on each measured
set. Only draws. No torch here.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.plots.picture import Plot, layer, layered, plotted, text
from calibrant.lab.report.plots.theme import LETTER, STEPS
from calibrant.lab.report.plots.words import cut, folded, known, sentence, share
from calibrant.lab.report.sentences import meaning_of_kept, short
from calibrant.lab.stats import MEAN, Ranking, RankingEntry, describe_target

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

HOLE: Final = "—"


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
        return ["mean" if m == MEAN else short(m, self.ranking.measured) for m in self.columns]

    @cached_property
    def cell(self) -> int:
        """Pixels of a column: as many as the longest word of a head needs, so that none stands
        out over its column.
        """
        return min(
            WIDEST,
            max(CELL, *(int(len(line) * LETTER) + 6 for lines in self._folded for line in lines)),
        )

    @cached_property
    def _folded(self) -> list[list[str]]:
        """The heads in lines."""
        return [
            [
                cut(line, int((WIDEST - 6) / LETTER))
                for line in folded(head, int((CELL - 6) / LETTER))
            ]
            for head in self.heads
        ]

    def x(self, column: int) -> float:
        """Where a column stands, in columns: the mean stands a little apart."""
        return column + (0.2 if self.columns[0] == MEAN and column else 0.0)

    def records(self) -> Iterator[dict[str, Any]]:
        """A record a cell, a name and a head."""
        for c, lines in enumerate(self._folded):
            yield from (
                {"k": f"head-{up}", "c": self.x(c), "t": line}
                for up, line in enumerate(reversed(lines))
            )
        for r, entry in enumerate(self.entries):
            yield {"k": "name", "r": r, "t": cut(entry.name)}
            for c, m in enumerate(self.columns):
                estimate = entry.share_kept.get(m)
                if estimate is None or not known(estimate):
                    yield {"k": "hole", "r": r, "c": self.x(c), "t": HOLE}
                    continue
                step = bisect_right(self.thresholds, estimate.value)
                yield {
                    "k": "cell",
                    "r": r,
                    "c": self.x(c),
                    "v": estimate.value if math.isfinite(estimate.value) else self.within(step),
                    "s": step,
                }
                yield {
                    "k": "best" if m in entry.best_on else "number",
                    "r": r,
                    "c": self.x(c),
                    "s": step,
                    "t": _brief(estimate.value),
                }
        yield {"k": "key-title", "t": "per cent of the dense model's performance"}
        for step in range(STEPS):
            yield {
                "k": "key",
                "c": step,
                "v": self.within(step),
                "s": step,
                "t": self.range_of(step),
            }

    def within(self, step: int) -> float:
        """A value that has the colour of a step."""
        ends = (
            2 * self.thresholds[0] - self.thresholds[1],
            *self.thresholds,
            2 * self.thresholds[-1] - self.thresholds[-2],
        )
        return (ends[step] + ends[step + 1]) / 2

    def range_of(self, step: int) -> str:
        """`< 20`, `20–25`, `≥ 45`: from where to where a colour goes, in per cent."""
        texts = [f"{100 * t:.6g}".replace("-", "−") for t in self.thresholds]
        return (
            f"< {texts[0]}"
            if step == 0
            else f"≥ {texts[-1]}"
            if step == len(texts)
            else f"{texts[step - 1]}–{texts[step]}"
        )

    def chart(self) -> "alt.LayerSpec":
        """The picture over the records, which are called "cells"."""
        import altair as alt

        last = self.x(len(self.columns) - 1)
        height = self.height * len(self.entries)
        x = alt.X(
            "c:Q", axis=None, scale=alt.Scale(domain=[-0.5, last + 0.5], nice=False, zero=False)
        )
        y = alt.Y(
            "r:Q",
            axis=None,
            scale=alt.Scale(domain=[len(self.entries) - 0.5, -0.5], nice=False, zero=False),
        )
        steps = range(STEPS)
        colours = alt.Scale(
            type="threshold",
            domain=list(self.thresholds),
            range=[f"var(--heat-{i})" for i in steps],
        )
        fill = alt.Fill("v:Q", scale=colours, legend=None)
        ink = alt.Color(
            "s:O",
            scale=alt.Scale(domain=list(steps), range=[f"var(--heat-ink-{i})" for i in steps]),
            legend=None,
        )
        small = 11 if self.height > 16 else 10
        number = {"x": x, "y": y, "text": alt.Text("t:N"), "color": ink}
        key_y = alt.YValue(height + 43)
        layers = [
            layer(
                "cell",
                "rect",
                {"x": x, "y": y, "fill": fill},
                width=self.cell - 2,
                height=self.height - 2,
            ),
            layer("number", "text", number, fontSize=small),
            layer("best", "text", number, fontSize=small, fontWeight="bold"),
            text("hole", x, y, color="var(--soft)", align="center", fontSize=small),
            text("name", alt.XValue(-8), y, align="right", fontSize=12 if self.height > 16 else 10),
            *(
                text(f"head-{up}", x, alt.YValue(-8 - HEAD * up), align="center")
                for up in range(max(map(len, self._folded)))
            ),
            text("key-title", alt.XValue(0), alt.YValue(height + 22), color="var(--soft)"),
            layer(
                "key", "rect", {"x": x, "y": key_y, "fill": fill}, width=self.cell - 2, height=18
            ),
            layer("key", "text", {**number, "y": key_y}, fontSize=11),
        ]
        cells = layered(layers, {kind for kind, _ in layers}, self.cell * (last + 1), height)
        cells.data = alt.NamedData(name="cells")
        return cells


def kept(ranking: Ranking) -> Plot | None:
    """Sets by measured sets, the share of the dense model's performance kept in each cell. None
    where no share is known.
    """
    entries = (*ranking.entries, *ranking.baselines, *ranking.partial)
    columns = (
        *(
            [MEAN]
            if len(ranking.measured) > 1 and any(MEAN in e.share_kept for e in entries)
            else []
        ),
        *ranking.measured,
    )
    values = [
        e.share_kept[m].value
        for e in entries
        for m in columns
        if m in e.share_kept and math.isfinite(e.share_kept[m].value)
    ]
    ordinary = [
        e.share_kept[m].value
        for e in ranking.entries
        for m in columns
        if not e.control and m in e.share_kept and math.isfinite(e.share_kept[m].value)
    ]
    if not values:
        return None
    heat = _Heat(
        ranking, entries, columns, _thresholds(min(ordinary or values), max(ordinary or values))
    )
    where = f"{ranking.model}, {ranking.method} at {describe_target(ranking.target)}"
    title = f"Kept of the dense model's performance: {where}"
    caption = [
        f"Each cell: what share of the dense model's performance is kept, in per cent; {meaning_of_kept(ranking)}",
        _BOLD,
    ]
    caption = caption if any(e.best_on for e in entries) else caption[:1]
    return plotted(
        ("kept", ranking.method, ranking.target),
        title,
        _description(heat, title),
        heat.chart,
        {"cells": heat.records()},
        caption,
    )


_BOLD: Final = "Bold: significantly better than every other set of its column"


def _thresholds(low: float, high: float) -> tuple[float, ...]:
    """Six round numbers between which the colours change, around `low` to `high`."""
    rough = max(FINEST, (high - low) / (STEPS - 1))
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(s * scale for s in (1, 2, 5, 10) if s * scale >= rough * 0.999)
    middle = round((low + high) / 2 / step - (STEPS - 2) / 2)
    return tuple(round((middle + i) * step, 12) for i in range(STEPS - 1))


def _brief(value: float) -> str:
    """What stands in a cell: per cent without the sign."""
    return (
        share(value).removesuffix("\u202f%")
        if abs(value) < 10
        else share(round(value, 0)).removesuffix(".0\u202f%")
    )


def _description(heat: _Heat, title: str) -> str:
    parts = [
        f"{title}. An asterisk marks a set that is significantly better than every other there"
    ]
    for m, head in zip(heat.columns, heat.heads, strict=True):
        each = [
            f"{e.name} {share(e.share_kept[m].value)}{'*' if m in e.best_on else ''}"
            for e in heat.entries
            if m in e.share_kept and known(e.share_kept[m])
        ]
        lacking = [e.name for e in heat.entries if not known(e.share_kept.get(m))]
        holes = f"; no number for {', '.join(lacking)}" if lacking else ""
        parts.append(
            f"{'Mean' if m == MEAN else f'On {head}'}: {', '.join(each) or 'nothing'}{holes}"
        )
    return sentence(parts)
