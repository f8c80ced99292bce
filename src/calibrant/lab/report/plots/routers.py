"""Layer by expert: which experts of a mixture each calibration set keeps. Only draws. No torch
here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.plots.picture import Plot, layer, layered, plotted, text
from calibrant.lab.report.plots.words import cut, sentence
from calibrant.lab.stats import KeptExperts, describe_target

if TYPE_CHECKING:
    import altair as alt

WIDTH: Final = 880
"""Pixels that all panels together take at most, without the names at their left."""
CELLS: Final = (2.0, 12.0)
"""Pixels of an expert, at least and at most."""
ROW, BREAK, GAP = 13, 11, 26
"""Pixels of a set's row, between blocks and between panels."""
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
        return max(least, min(most, (WIDTH / len(self.groups) - GAP) / self.experts))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        sets, blocks = len(self.first.sets), len(self.first.blocks)
        return len(self.groups) * (self.experts * self.cell + GAP) - GAP, float(
            blocks * (sets * ROW + BREAK) - BREAK
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """A record a square, and the names beside them."""
        sets = self.first.sets
        for row, block in enumerate(self.first.blocks):
            top = row * (len(sets) * ROW + BREAK)
            yield {"k": "block", "y": top + ROW / 2, "t": f"block {block}"}
            yield from (
                {"k": "set", "y": top + (line + 0.5) * ROW, "t": cut(name)}
                for line, name in enumerate(sets)
            )
            for at, group in enumerate(self.groups):
                left = at * (self.experts * self.cell + GAP)
                for line, name in enumerate(sets):
                    shares = group.kept[group.sets.index(name), row]
                    place = {"k": "cell", "y": top + (line + 0.5) * ROW}
                    yield from (
                        {
                            **place,
                            "x": round(left + (e + 0.5) * self.cell, 3),
                            "v": round(float(v), 3),
                        }
                        for e, v in enumerate(shares)
                    )
        yield from (
            {"k": "head", "x": at * (self.experts * self.cell + GAP), "t": head}
            for at, head in enumerate(self.heads)
            if head
        )

    def chart(self) -> "alt.LayerSpec":
        """The picture over the records, which are called "cells"."""
        import altair as alt

        width, height = self.size
        x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, width], nice=False, zero=False))
        y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[height, 0], nice=False, zero=False))
        shade = alt.FillOpacity("v:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None)
        square = {"width": self.cell - (1 if self.cell > 4 else 0), "height": ROW - 2}
        layers = [
            layer("cell", "rect", {"x": x, "y": y}, fill="var(--grid)", **square),
            layer(
                "cell",
                "rect",
                {"x": x, "y": y, "fillOpacity": shade},
                fill="var(--accent)",
                **square,
            ),
            text("head", x, alt.YValue(-14), fontSize=12, fontWeight="bold"),
            text("set", alt.XValue(-8), y, align="right", fontSize=10, color="var(--soft)"),
            text("block", alt.XValue(-NAME), y, align="right", fontSize=11),
        ]
        cells = layered(layers, {kind for kind, _ in layers}, width, height)
        cells.data = alt.NamedData(name="cells")
        return cells


def routers(groups: Sequence[KeptExperts], heads: Sequence[str] = ()) -> Plot | None:
    """Blocks by experts, of each block a row for each calibration set: how many of its draws keep
    an expert. A panel for each group.

    `heads` are what panels are called. Groups with other blocks, experts or sets than the first are
    left out; None where there is none.
    """
    alike = [
        i
        for i, group in enumerate(groups)
        if group.blocks == groups[0].blocks and set(group.sets) == set(groups[0].sets)
    ]
    alike = [i for i in alike if groups[i].kept.shape == groups[0].kept.shape]
    if not alike:
        return None
    drawn = _Routers(
        [groups[i] for i in alike], [heads[i] if i < len(heads) else "" for i in alike]
    )
    first = drawn.first
    method = first.method if len(alike) == 1 else "several criteria"
    title = f"Experts that stay: {first.model}, {method} at {describe_target(first.target)}"
    caption = (
        f"Each square: an expert of a block, from 0 at the left to {drawn.experts - 1}; the stronger its colour, the more of a set's draws keep it",
        "Rows of a block: calibration sets",
    )
    name = ("experts", first.method, first.target) if len(alike) == 1 else ("experts", first.target)
    return plotted(
        name, title, _description(drawn, title), drawn.chart, {"cells": drawn.records()}, caption
    )


def _description(drawn: _Routers, title: str) -> str:
    parts = [title]
    for group, head in zip(drawn.groups, drawn.heads, strict=True):
        for place, name in enumerate(group.sets):
            kept = (
                f"{b}: {', '.join(str(e) for e, v in enumerate(group.kept[place, row]) if v == 1) or 'none'}"
                for row, b in enumerate(group.blocks)
            )
            parts.append(
                f"{f'{head}, ' if head else ''}{name}: every draw keeps, by block, {'; '.join(kept)}"
            )
    return sentence(parts)
