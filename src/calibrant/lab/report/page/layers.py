"""The section that sets two calibration sets side by side, block by block: how their masks and
their activation statistics differ, and their errors.

Vega-Lite draws it in the reader's browser; here stand its specification, its data packed small, and
a table. Nothing is computed: every number comes from `compare`. No torch here.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from calibrant.lab.report.page.rendering import embedded, render
from calibrant.lab.stats import Layers, describe_target, join_names
from calibrant.numerics import HOLE

DIGITS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
STEPS: Final = 4094
"""A number is embedded as two such digits, in so many steps from zero to the largest of its
kind; the one number more is for what isn't known.
"""

TITLES: Final = {
    "masks": (
        "Share of mask bits that differ",
        "of the sampled weights, how many one set keeps and the other doesn't",
    ),
    "statistics": (
        "Distance of the activation statistics",
        "0: the matrices of the block saw the same; each step is a step of log activation size",
    ),
    "error": (
        "Output error of each set",
        "of the block's matrices, relative to their output before compression",
    ),
}
"""What is drawn over the blocks: its title, and what it is."""

SIDES: Final = ("a", "b", "both")
"""Whose a number is: the first set's, the second's, or of the two together."""

NOUNS: Final = {
    "masks": "how their masks differ",
    "statistics": "the activation statistics",
    "error": "the output errors",
}
MISSING: Final = "The study computed again with the present version, in a new folder, keeps them."


def layers(groups: Sequence[Layers], ids: Mapping[str, str]) -> Markup:
    """Return the section, with the first two sets of the first group in its table; `ids` are the
    HTML ids of the sets' pages.

    Where no two sets have layers to set side by side it is a sentence.
    """
    shown: list[Layers] = []
    for group in groups:
        if len(group.sets) > 1 and _any_known(group):
            shown.append(group)
    single = bool(groups) and all(len(group.sets) == 1 for group in groups)
    rows = _table(shown[0]) if shown else ()
    drawn = embedded("layers-data", _embedded(shown, ids))
    return render(
        "layers",
        groups=shown,
        single=single,
        holes=list(_holes(shown)),
        missing=MISSING,
        titles=TITLES,
        group_title=_title,
        rows=rows,
        embedded=drawn,
    )


def _any_known(group: Layers) -> bool:
    """Whether anything is known of a group."""
    return any(not np.isnan(values).all() for values in _facts(group).values())


def _holes(groups: Sequence[Layers]) -> Iterator[str]:
    """Yield what this store lacks, by run group: all of a fact, or some of it."""
    for group in groups:
        nothing: list[str] = []
        some: list[str] = []
        for fact, values in _facts(group).items():
            unknown = np.isnan(values)
            if unknown.all():
                nothing.append(NOUNS[fact])
            elif unknown.any():
                some.append(NOUNS[fact])
        parts: list[str] = []
        if nothing:
            parts.append(f"holds nothing about {join_names(nothing)}")
        if some:
            parts.append(f"lacks {join_names(some)} in some places")
        if parts:
            where = f"Of {_title(group)} this store" if len(groups) > 1 else "This store"
            yield f"{where} {' and '.join(parts)}. {MISSING}"


def _facts(group: Layers) -> dict[str, np.ndarray]:
    """Return every number of a group that is of two sets, or of one for its own."""
    apart = ~np.eye(len(group.sets), dtype=bool)
    return {
        "masks": group.masks[apart],
        "statistics": group.statistics[apart],
        "error": group.error,
    }


def _table(group: Layers) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each block with the figures of the first pair of sets."""

    def figure(value: float, form: str) -> str:
        return HOLE if math.isnan(value) else form.format(value)

    for number, block in enumerate(group.blocks):
        differing = 1 - group.masks[0, 1, number]
        distance = group.statistics[0, 1, number]
        first_error, second_error = group.error[:2, number]
        figures = (
            figure(100 * differing, "{:.1f} %"),
            figure(distance, "{:.3f}"),
            figure(100 * first_error, "{:.2f} %"),
            figure(100 * second_error, "{:.2f} %"),
        )
        yield block, figures


def _title(group: Layers) -> str:
    """Return which runs a group is of: `smollm2, wanda at 60 % sparsity, arrival propagation`."""
    title = f"{group.model}, {group.method} at {describe_target(group.target)}"
    if group.propagate:
        title = f"{title}, {group.propagate} propagation"
    return title


def _embedded(groups: Sequence[Layers], ids: Mapping[str, str]) -> dict[str, Any]:
    # The place of each set's name, in the order in which they first come.
    places: dict[str, int] = {}
    for group in groups:
        for name in group.sets:
            places.setdefault(name, len(places))
    runs: list[dict[str, Any]] = []
    for group in groups:
        own_places = [places[name] for name in group.sets]
        runs.append(_run(group, own_places))
    names = list(places)
    return {
        "spec": _spec(),
        "digits": DIGITS,
        "steps": STEPS,
        "names": names,
        "pages": [ids.get(name, "") for name in names],
        "runs": runs,
    }


def _run(group: Layers, places: Sequence[int]) -> dict[str, Any]:
    """A group: of pairs the upper triangle, row after row, of errors a row a set; empty where
    nothing is known at all.
    """
    upper = np.triu_indices(len(group.sets), 1)
    rows = {
        "masks": 1 - group.masks[upper],
        "statistics": group.statistics[upper],
        "error": group.error,
    }
    most = dict.fromkeys(rows, 0.0)
    digits: dict[str, list[str]] = {fact: [] for fact in rows}
    for fact, values in rows.items():
        if np.isfinite(values).any():
            most[fact] = float(np.nanmax(values))
            digits[fact] = packed(values, most[fact])
    return {
        "text": _title(group),
        "sets": places,
        "blocks": group.blocks,
        "numbers": [_number(block, place) for place, block in enumerate(group.blocks)],
        "most": most,
        **digits,
    }


def _number(block: str, place: int) -> int:
    """7 of `model.layers.7`; of a block without a number, its place."""
    found = re.search(r"(\d+)$", block)
    return int(found[1]) if found else place


def packed(rows: np.ndarray, most: float) -> list[str]:
    """Return each row as text, two of `DIGITS` a number, in steps of `most` / `STEPS`."""
    steps_of_one = STEPS / most if most else 0.0
    scaled = np.rint(np.nan_to_num(rows) * steps_of_one)
    # One more than the largest number is what isn't known.
    whole = np.where(np.isfinite(rows), scaled, STEPS + 1).astype(int)
    texts: list[str] = []
    for numbers in whole.tolist():
        text = ""
        for number in numbers:
            # Twelve bits a number: the upper six are the first digit, the lower six the second.
            upper, lower = divmod(number, 64)
            text += DIGITS[upper] + DIGITS[lower]
        texts.append(text)
    return texts


def _by_side(*looks: str | list[int]) -> dict[str, Any]:
    """What gives each side a look of its own."""
    scale = {"domain": SIDES, "range": list(looks)}
    return {"field": "side", "type": "nominal", "scale": scale, "legend": None}


def _spec() -> dict[str, Any]:
    """One drawing as Vega-Lite reads it; the script puts in what is drawn. The rules, thick and
    invisible, are there to be hovered.
    """
    axis = {
        "grid": True,
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelColor": "var(--soft)",
    }
    x = {
        "field": "number",
        "type": "quantitative",
        "axis": {"title": "block", "tickMinStep": 1, "format": "d", "grid": False},
        "scale": {"nice": False, "padding": 8},
    }
    y = {
        "field": "value",
        "type": "quantitative",
        "axis": {"title": None, "tickCount": 5, "format": ".1%"},
        "scale": {"zero": True},
    }
    colour = _by_side("var(--f-corpus)", "var(--f-arithmetic)", "var(--ink)")
    shape = _by_side("circle", "diamond", "circle")
    dash = _by_side([1, 0], [5, 3], [1, 0])
    wide = "width / max(1, domain('x')[1] - domain('x')[0])"
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"name": "rows", "values": []},
        "width": "container",
        "height": 190,
        "background": None,
        "encoding": {"x": x},
        "layer": [
            {
                "mark": {"type": "line", "aria": False, "strokeWidth": 2},
                "encoding": {"y": y, "color": colour, "strokeDash": dash},
            },
            {
                "mark": {"type": "point", "aria": False, "filled": True, "size": 42, "opacity": 1},
                "encoding": {"y": y, "color": colour, "shape": shape},
            },
            {
                "mark": {
                    "type": "rule",
                    "aria": False,
                    "strokeWidth": {"expr": wide},
                    "opacity": 0,
                },
                "encoding": {"tooltip": {"field": "text"}},
            },
        ],
        "config": {
            "font": "inherit",
            "view": {"stroke": None},
            "axis": {
                **axis,
                "titleColor": "var(--soft)",
                "titleFontWeight": "normal",
                "labelFontSize": 12,
                "titleFontSize": 12,
                "aria": False,
            },
        },
    }
