"""The section that sets two calibration sets side by side, block by block: where their masks part, what the model felt, what it cost.

Vega-Lite draws it in the reader's browser; here stand its specification, its data packed small, and a table. Nothing is computed: every number comes
from `compare`. No torch here.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from calibrant.compare import Layers, describe_target, join_names
from calibrant.report.page.bundle import embedded
from calibrant.report.page.tags import name, text
from calibrant.report.tables.table import HOLE

DIGITS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
STEPS: Final = 4094
"""A number is embedded as two such digits, in so many steps from zero to the largest of its kind; the one number more is for what isn't known."""

FACTS: Final = {
    "masks": ("Share of mask bits that part", "of the sampled weights, how many one set keeps and the other doesn't"),
    "statistics": ("Distance of what the model felt", "0: the matrices of the block saw the same; each step is a step of log activation size"),
    "error": ("Output error of each", "of the block's matrices, relative to their output before pruning"),
}
"""What is drawn over the blocks: its title, and what it is."""

SIDES: Final = ("a", "b", "both")
"""Whose a number is: the first set's, the second's, or of the two together."""

NOUNS: Final = {"masks": "how their masks part", "statistics": "what the model felt", "error": "the output errors"}
MISSING: Final = "Asking the study again with the present version, in a new folder, keeps them."


def layers(found: Sequence[Layers], ids: Mapping[str, str]) -> Iterator[str]:
    """The section, as HTML, with the first two sets of the first of `found` in its table; `ids` are the HTML ids of the sets' pages.

    Where no two sets have layers to set side by side it is a sentence.
    """
    yield '<section id="layers" class="interactive" aria-labelledby="layers-title"><h2 id="layers-title" tabindex="-1">Layer by layer</h2>'
    shown = [one for one in found if len(one.sets) > 1 and any(not np.isnan(values).all() for values in _facts(one).values())]
    if not shown:
        single = found and all(len(one.sets) == 1 for one in found)
        told = (
            "Of one calibration set alone there is nothing to set side by side." if single else f"This store holds no facts about layers. {MISSING}"
        )
        yield f"<p>{told}</p></section>"
        return
    yield '<p class="lead">Two calibration sets, block by block: where they remove other weights, how differently the model felt, what each cost.</p>'
    yield from (f'<p class="note">{text(said)}</p>' for said in _missing(shown))
    yield '<p class="note without-script">Choosing other sets, and the drawings, need JavaScript; the table holds the first two sets.</p>'
    yield from _controls(shown)
    yield '<p id="layers-said" class="said needs-script" role="status" aria-live="polite"></p><div class="strips needs-script">'
    for fact, (title, meaning) in FACTS.items():
        yield f'<figure><figcaption>{title}<small>{meaning}</small></figcaption><div class="strip" data-fact="{fact}" role="img" '
        yield f'aria-label="{title}, by block; the table below has the numbers"></div>'
        yield '<p class="note" hidden>Not kept by this store.</p></figure>'
    yield '</div><ul class="legend needs-script" id="layers-key" aria-label="Legend">'
    for side, path in (("a", "M0 6H40"), ("b", "M0 6H40")):
        yield f'<li><svg class="wide" viewBox="0 0 40 12" aria-hidden="true"><path class="{side}" d="{path}"/></svg><bdi></bdi></li>'
    yield "</ul>"
    yield from _table(shown[0])
    yield embedded("layers-data", _embedded(shown, ids))
    yield "</section>"


def _missing(found: Sequence[Layers]) -> Iterator[str]:
    """What this store doesn't hold, by run group: all of it, or for some sets."""
    for one in found:
        known = _facts(one)
        gone = [NOUNS[fact] for fact, values in known.items() if np.isnan(values).all()]
        some = [NOUNS[fact] for fact, values in known.items() if np.isnan(values).any() and not np.isnan(values).all()]
        where = f"Of {_told(one)} this store" if len(found) > 1 else "This store"
        parts = ([f"holds nothing about {join_names(gone)}"] if gone else []) + ([f"lacks {join_names(some)} in some places"] if some else [])
        if parts:
            yield f"{where} {' and '.join(parts)}. {MISSING}"


def _facts(one: Layers) -> dict[str, np.ndarray]:
    """Every number of a group that is of two sets, or of one for its own."""
    apart = ~np.eye(len(one.sets), dtype=bool)
    return {"masks": one.masks[apart], "statistics": one.statistics[apart], "error": one.error}


def _controls(found: Sequence[Layers]) -> Iterator[str]:
    yield '<form class="controls needs-script" autocomplete="off">'
    hidden = " hidden" if len(found) == 1 else ""
    options = "".join(f'<option value="{i}">{text(_told(one))}</option>' for i, one in enumerate(found))
    yield f'<label class="pick"{hidden}><span>Runs</span> <select id="layers-run">{options}</select></label>'
    for side, chosen in (("a", 0), ("b", 1)):
        options = "".join(
            f'<option value="{i}"{" selected" if i == chosen else ""}>{text(called)}</option>' for i, called in enumerate(found[0].sets)
        )
        yield f'<span class="side"><label class="pick"><span>Set {side.upper()}</span> <select id="layers-{side}">{options}</select></label> '
        yield f'<a id="layers-{side}-page" hidden>open {side.upper()}</a></span>'
    yield "</form>"


def _table(one: Layers) -> Iterator[str]:
    """The numbers of the first pair, which the page's script replaces: open without JavaScript, and folded with it."""
    a, b = map(name, one.sets[:2])
    yield '<details open data-folds><summary>The numbers, as a table</summary><div class="card"><div class="scroll" role="region" tabindex="0" '
    yield f'aria-label="The numbers by block"><table id="layers-table"><caption>{a} and {b}, {text(_told(one))}</caption>'
    yield '<thead><tr><th scope="col">block</th><th scope="col">mask bits that part</th><th scope="col">distance felt</th>'
    yield f'<th scope="col">output error, {a}</th><th scope="col">output error, {b}</th></tr></thead><tbody>'
    for i, block in enumerate(one.blocks):
        figures = (_share(1 - one.masks[0, 1, i], 1), _plain(one.statistics[0, 1, i]), _share(one.error[0, i], 2), _share(one.error[1, i], 2))
        yield f'<tr><th scope="row">{text(block)}</th>{"".join(f"<td>{figure}</td>" for figure in figures)}</tr>'
    yield "</tbody></table></div></div></details>"


def _share(value: float, digits: int) -> str:
    return HOLE if math.isnan(value) else f"{100 * value:.{digits}f} %"


def _plain(value: float) -> str:
    return HOLE if math.isnan(value) else f"{value:.3f}"


def _told(one: Layers) -> str:
    """Which runs: `smollm2, wanda at 60 % sparsity, arrival propagation`."""
    way = f", {one.propagate} propagation" if one.propagate else ""
    return f"{one.model}, {one.method} at {describe_target(one.target)}{way}"


def _embedded(found: Sequence[Layers], ids: Mapping[str, str]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for one in found for name in one.sets))
    places = {name: place for place, name in enumerate(names)}
    return {
        "spec": _spec(),
        "digits": DIGITS,
        "steps": STEPS,
        "names": names,
        "pages": [ids.get(name, "") for name in names],
        "runs": [_run(one, [places[name] for name in one.sets]) for one in found],
    }


def _run(one: Layers, places: Sequence[int]) -> dict[str, Any]:
    """A group: of pairs the upper triangle, row after row, of errors a row a set; empty where nothing is known at all."""
    upper = np.triu_indices(len(one.sets), 1)
    rows = {"masks": 1 - one.masks[upper], "statistics": one.statistics[upper], "error": one.error}
    most = {fact: float(np.nanmax(values)) if np.isfinite(values).any() else 0.0 for fact, values in rows.items()}
    return {
        "told": _told(one),
        "sets": places,
        "blocks": one.blocks,
        "numbers": [_number(block, place) for place, block in enumerate(one.blocks)],
        "most": most,
        **{fact: packed(values, most[fact]) if np.isfinite(values).any() else [] for fact, values in rows.items()},
    }


def _number(block: str, place: int) -> int:
    """7 of `model.layers.7`; of a block without a number, its place."""
    found = re.search(r"(\d+)$", block)
    return int(found[1]) if found else place


def packed(rows: np.ndarray, most: float) -> list[str]:
    """Each row as text, two of `DIGITS` a number, in steps of `most` / `STEPS`."""
    scaled = np.where(np.isfinite(rows), np.rint(np.nan_to_num(rows) * (STEPS / most if most else 0.0)), STEPS + 1).astype(int)
    return ["".join(DIGITS[n >> 6] + DIGITS[n & 63] for n in row) for row in scaled.tolist()]


def _spec() -> dict[str, Any]:
    """One drawing as Vega-Lite reads it; the script puts in what is drawn. The rules, thick and invisible, are there to be hovered."""
    axis = {"grid": True, "gridColor": "var(--grid)", "domainColor": "var(--line)", "tickColor": "var(--line)", "labelColor": "var(--soft)"}
    x = {
        "field": "number",
        "type": "quantitative",
        "axis": {"title": "block", "tickMinStep": 1, "format": "d", "grid": False},
        "scale": {"nice": False, "padding": 8},
    }
    y = {"field": "value", "type": "quantitative", "axis": {"title": None, "tickCount": 5, "format": ".1%"}, "scale": {"zero": True}}
    colour = {
        "field": "side",
        "type": "nominal",
        "scale": {"domain": SIDES, "range": ["var(--f-corpus)", "var(--f-arithmetic)", "var(--ink)"]},
        "legend": None,
    }
    shape = {"field": "side", "type": "nominal", "scale": {"domain": SIDES, "range": ["circle", "diamond", "circle"]}, "legend": None}
    dash = {"field": "side", "type": "nominal", "scale": {"domain": SIDES, "range": [[1, 0], [5, 3], [1, 0]]}, "legend": None}
    wide = "width / max(1, domain('x')[1] - domain('x')[0])"
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"name": "rows", "values": []},
        "width": "container",
        "height": 190,
        "background": None,
        "encoding": {"x": x},
        "layer": [
            {"mark": {"type": "line", "aria": False, "strokeWidth": 2}, "encoding": {"y": y, "color": colour, "strokeDash": dash}},
            {
                "mark": {"type": "point", "aria": False, "filled": True, "size": 42, "opacity": 1},
                "encoding": {"y": y, "color": colour, "shape": shape},
            },
            {"mark": {"type": "rule", "aria": False, "strokeWidth": {"expr": wide}, "opacity": 0}, "encoding": {"tooltip": {"field": "told"}}},
        ],
        "config": {
            "font": "inherit",
            "view": {"stroke": None},
            "axis": {**axis, "titleColor": "var(--soft)", "titleFontWeight": "normal", "labelFontSize": 12, "titleFontSize": 12, "aria": False},
        },
    }
