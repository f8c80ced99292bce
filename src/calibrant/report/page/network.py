"""The section that shows calibration sets as a network: what is alike stands together, and what helps on what is drawn between them.

Vega lays it out and draws it in the reader's browser; here stand its specification, its data, and a table for who has no use for a picture.
Nothing is computed: similarity, results and verdicts come from `compare`. No torch here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from calibrant.compare import MEASURES, Similarity
from calibrant.report.page.bundle import embedded
from calibrant.report.page.network_spec import network_spec
from calibrant.report.page.tags import name, text
from calibrant.report.plots.theme import FAMILIES
from calibrant.report.plots.words import cut

MOST_EDGES: Final = 3000
"""How many edges a measure has in the page at most, the strongest first."""

PER_NODE: Final = 1.5
"""About how many edges a node has when the page opens."""

SMALLEST, LARGEST, EMPTY = 90, 620, 70
"""Sizes of a node in square pixels: of the worst set, of the best, and of one without a result."""

LISTED: Final = 12
"""How many of the most alike pairs the table has for each measure."""

MISSING: Final = (
    "This store holds nothing about how alike its calibration sets are. Asking the study again with the present version, in a new folder, keeps it."
)
MEANT: Final = {
    "words": "cosine of the TF-IDF weights of the words in their windows",
    "statistics": "e to the minus standard deviation, over sampled input features of the matrices, of the difference of log activation sizes",
    "masks": "share of the sampled weights (256 a matrix) about whose keeping the two masks agree",
}
"""What each measure of similarity is, exactly."""

_SQUARE: Final = "M-.9,-.9H.9V.9H-.9Z"


@dataclass(frozen=True)
class Node:
    """A calibration set: the HTML id of its page, its name, its family, the mean that ranks it (the smaller, the better), its result in words."""

    id: str
    name: str
    family: str
    value: float | None
    told: str


@dataclass(frozen=True)
class Measured:
    """Something that was measured."""

    name: str


@dataclass(frozen=True)
class Effect:
    """What calibrating on `set` does for `measured` (places): how much worse than the baseline set it is, and whether that is beyond noise."""

    set: int
    measured: int
    difference: float
    verdict: Literal["better", "worse", "not significant"]
    told: str


@dataclass(frozen=True)
class Network:
    """All that the section shows: the sets, how alike they are, what they do to what was measured."""

    nodes: Sequence[Node]
    similarity: Similarity
    measured: Sequence[Measured]
    effects: Sequence[Effect]
    baseline: str


def network(data: Network) -> Iterator[str]:
    """The section, as HTML. With fewer than two sets, or where nothing is known of their similarity, it is a sentence."""
    yield '<section id="network" class="interactive" aria-labelledby="network-title"><h2 id="network-title" tabindex="-1">Network of the sets</h2>'
    edges = {measure: _edges(data, measure) for measure in MEASURES}
    if len(data.nodes) < 2:
        yield "<p>A network needs two calibration sets at least.</p></section>"
        return
    if not any(edges.values()) and not _certain(data):
        yield f"<p>{MISSING}</p></section>"
        return
    known = any(edges.values())
    joined = " Lines join sets that are alike." if known else ""
    yield f'<p class="lead">Each node is a calibration set; the larger, the better its result.{joined}</p>'
    if not known:
        yield f'<p class="note">{MISSING}</p>'
    yield from _controls(data, edges)
    yield from _graph(data)
    yield from _legend(data)
    yield from _table(data, edges)
    yield embedded("network-data", _embedded(data, edges))
    yield "</section>"


def _edges(data: Network, measure: str) -> list[tuple[int, int, float]]:
    """Pairs of nodes with their similarity, the most alike first."""
    places = {one: place for place, one in enumerate(data.similarity.sets)}
    known = data.similarity.by.get(measure)
    rows = [places.get(node.name) for node in data.nodes]
    if known is None:
        return []
    found: list[tuple[int, int, float]] = []
    for i, a in enumerate(rows):
        for j, b in enumerate(rows[:i]):
            if a is not None and b is not None and not math.isnan(value := float(known[a, b])):
                found.append((j, i, round(value, 4)))
    return sorted(found, key=lambda edge: (-edge[2], edge[0], edge[1]))[:MOST_EDGES]


def _certain(data: Network) -> list[Effect]:
    return [e for e in data.effects if e.verdict != "not significant"]


def _controls(data: Network, edges: dict[str, list[tuple[int, int, float]]]) -> Iterator[str]:
    yield '<form class="controls needs-script" autocomplete="off"><fieldset><legend>Alike by</legend>'
    first = next((m for m in MEASURES if edges[m]), "")
    for measure, words in MEASURES.items():
        state = " checked" if measure == first else "" if edges[measure] else " disabled"
        reason = "" if edges[measure] else " <em>(not in this store)</em>"
        yield f'<label><input type="radio" name="network-measure" value="{measure}"{state}> <span>{text(words)}{reason}</span></label>'
    yield "</fieldset>"
    shut = "" if first else " disabled"
    yield f'<div class="slide"><label for="network-threshold">Lines from a similarity of</label><input type="range" id="network-threshold"{shut}>'
    yield '<output id="network-shown" for="network-threshold"></output></div>'
    known = bool(_certain(data))
    state = " disabled" if not known else "" if first else " checked"
    why = "no set to compare with" if not data.baseline else "no difference is beyond noise"
    yield f'<label class="tick"><input type="checkbox" id="network-effects"{state}> '
    yield f"<span>calibrated on → measured on{'' if known else f' <em>({why})</em>'}</span></label>"
    yield '<div class="buttons" role="group" aria-label="Zoom">'
    for act, sign, words in (("in", "+", "Zoom in"), ("out", "−", "Zoom out")):
        yield f'<button type="button" data-zoom="{act}" aria-label="{words}" title="{words}">{sign}</button>'
    yield '<button type="button" data-zoom="reset" title="Show everything, and let go of nodes that were moved">reset</button></div></form>'


def _graph(data: Network) -> Iterator[str]:
    yield '<div id="network-graph" class="graph needs-script" tabindex="0" role="application" aria-roledescription="network" '
    yield f'aria-label="{len(data.nodes)} calibration sets" aria-describedby="network-help"><div class="drawing" aria-hidden="true"></div>'
    yield '<div class="tip" hidden><strong></strong><span></span></div></div>'
    yield '<p id="network-said" class="said needs-script" role="status" aria-live="polite"></p>'


def _legend(data: Network) -> Iterator[str]:
    families = dict.fromkeys(node.family for node in data.nodes)
    yield '<ul class="legend needs-script" aria-label="Legend of the network">'
    for family in (f for f in FAMILIES if f in families):
        words, path = FAMILIES[family].words, FAMILIES[family].shape
        yield f'<li><svg viewBox="-1.4 -1.4 2.8 2.8" aria-hidden="true"><path d="{path}" fill="var(--f-{family})"/></svg>{words}</li>'
    if any(map(_unknown, data.nodes)):
        hollow = f'<path class="hollow" d="{FAMILIES["corpus"].shape}"/>'
        yield f'<li><svg viewBox="-1.4 -1.4 2.8 2.8" aria-hidden="true">{hollow}</svg>small and hollow: no result</li>'
    yield "</ul>"
    yield from _key(data)
    yield '<p id="network-help" class="note needs-script">Arrow keys go from set to set in the order of the ranking, Enter opens one, + and − zoom, '
    yield "0 resets, Escape leaves. With a pointer: hover for the result, click to open, drag a node to move it, drag the ground to pan.</p>"


def _key(data: Network) -> Iterator[str]:
    if _certain(data):
        yield '<ul class="legend effects" id="network-key" hidden aria-label="Legend of calibrated on, measured on">'
        yield f'<li><svg viewBox="-1.4 -1.4 2.8 2.8" aria-hidden="true"><path d="{_SQUARE}" fill="var(--soft)"/></svg>measured on</li>'
        line = '<svg class="wide" viewBox="0 0 40 12" aria-hidden="true"><path class="{0}" d="M1 6H30"/><path class="{0} end" d="{1}"/></svg>'
        yield f"<li>{line.format('better', 'M28 1L39 6L28 11Z')}green, solid, arrow: calibrating on the set helps there, "
        yield f"beyond noise, against {name(data.baseline)}</li>"
        yield f"<li>{line.format('worse', 'M31 0H34V12H31Z')}red, dashed, bar: it hurts, beyond noise</li><li>no line: cannot be told</li></ul>"


def _table(data: Network, edges: dict[str, list[tuple[int, int, float]]]) -> Iterator[str]:
    """The most alike pairs by each measure, side by side: open without JavaScript, and folded with it."""
    known = [measure for measure in MEASURES if edges[measure]]
    yield "<details open data-folds><summary>The same as tables</summary>"
    yield f"<dl>{''.join(f'<dt>{text(MEASURES[m])}</dt><dd>{MEANT[m]}</dd>' for m in MEASURES)}</dl>"
    if known:
        yield '<div class="card"><div class="scroll" role="region" tabindex="0" aria-label="The most alike pairs"><table>'
        yield "<caption>The most alike pairs of calibration sets by each measure; 1 is the same</caption>"
        heads = "".join(f'<th scope="col" class="text">by {text(MEASURES[m])}</th><th scope="col">similarity</th>' for m in known)
        yield f'<thead><tr><th scope="col">place</th>{heads}</tr></thead><tbody>'
        for place in range(min(LISTED, max(len(edges[m]) for m in known))):
            cells = "".join(_pair(data, edges[m][place : place + 1]) for m in known)
            yield f'<tr><th scope="row">{place + 1}</th>{cells}</tr>'
        yield "</tbody></table></div></div>"
    if _certain(data):
        yield from _effects(data)
    yield "</details>"


def _effects(data: Network) -> Iterator[str]:
    yield '<div class="card"><div class="scroll" role="region" tabindex="0" aria-label="What helps, and what hurts">'
    told = "what helps on what was measured, and what hurts; negative: better"
    yield f"<table><caption>Beyond noise, against {name(data.baseline)}: {told}</caption>"
    yield '<thead><tr><th scope="col">calibrated on</th><th scope="col" class="text">measured on</th><th scope="col" class="text">does it help?</th>'
    yield '<th scope="col">difference</th></tr></thead><tbody>'
    for effect in _certain(data):
        verdict = "helps" if effect.verdict == "better" else "hurts"
        cells = f'<td class="text">{name(data.measured[effect.measured].name)}</td><td class="text">{verdict}</td><td>{effect.difference:+.3f}</td>'
        yield f'<tr><th scope="row">{name(data.nodes[effect.set].name)}</th>{cells}</tr>'
    yield "</tbody></table></div></div>"


def _pair(data: Network, edge: Sequence[tuple[int, int, float]]) -> str:
    if not edge:
        return "<td></td><td></td>"
    ((a, b, value),) = edge
    return f'<td class="text">{name(data.nodes[a].name)} and {name(data.nodes[b].name)}</td><td>{value:.3f}</td>'


def _embedded(data: Network, edges: dict[str, list[tuple[int, int, float]]]) -> dict[str, Any]:
    return {
        "spec": network_spec(),
        "nodes": [*_nodes(data), *_squares(data)],
        "measures": {m: {"edges": edges[m], **_slider(edges[m], len(data.nodes))} for m in MEASURES if edges[m]},
        "words": dict(MEASURES),
        "effects": [[e.set, len(data.nodes) + e.measured, e.verdict, e.told] for e in _certain(data)],
    }


def _slider(edges: Sequence[tuple[int, int, float]], nodes: int) -> dict[str, float]:
    """The range of the threshold, its step, and where it stands at first."""
    low, high = edges[-1][2], edges[0][2]
    step = 0.01 if high - low > 0.2 else 0.001
    start = edges[min(len(edges), round(PER_NODE * nodes)) - 1][2]
    down, up = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return {"low": round(down, 4), "high": round(up, 4), "step": step, "start": round(math.floor(start / step + 1e-9) * step, 4)}


def _nodes(data: Network) -> Iterator[dict[str, Any]]:
    """The sets. The ranking winds from the middle outwards, so that every reader's layout starts, and ends, alike."""
    ranked = sorted(range(len(data.nodes)), key=lambda i: (_unknown(data.nodes[i]), data.nodes[i].value or 0.0))
    places = {number: place for place, number in enumerate(ranked)}
    for number, (node, size) in enumerate(zip(data.nodes, _sizes(data.nodes), strict=True)):
        family = node.family if node.family in FAMILIES else "own"
        colour = f"var(--f-{family})"
        shown = {"shape": FAMILIES[family].shape, "stroke": colour, "fill": "var(--card)" if _unknown(node) else colour, "size": size}
        said = {"page": node.id, "name": node.name, "label": cut(node.name), "told": node.told or "no result"}
        yield {"id": number, "place": places[number], **said, **shown, **_start(places[number])}


def _squares(data: Network) -> Iterator[dict[str, Any]]:
    shown = {"shape": _SQUARE, "stroke": "var(--soft)", "fill": "var(--soft)", "size": 190}
    for number, measured in enumerate(data.measured, len(data.nodes)):
        said = {"page": "", "name": measured.name, "label": cut(measured.name), "told": "measured on"}
        yield {"id": number, "place": number, **said, **shown, **_start(number)}


def _unknown(node: Node) -> bool:
    return node.value is None or not math.isfinite(node.value)


def _start(place: int) -> dict[str, float]:
    away, turn = 34 * math.sqrt(place + 0.5), place * math.pi * (3 - math.sqrt(5))
    return {"x": round(away * math.cos(turn), 2), "y": round(away * math.sin(turn), 2)}


def _sizes(nodes: Sequence[Node]) -> list[int]:
    """In square pixels. Controls and baselines may be many times worse: they are small, so that the others can be told apart by eye."""
    known = [n for n in nodes if not _unknown(n)]
    inner = [n for n in known if n.family not in ("control", "none")] or known
    values = [n.value for n in inner if n.value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    sizes: list[int] = []
    for node in nodes:
        if node.value is None or _unknown(node):
            sizes.append(EMPTY)
        else:
            share = float(np.clip((high - node.value) / (high - low), 0, 1)) if high > low else float(node.value <= low)
            sizes.append(round(SMALLEST + (LARGEST - SMALLEST) * share))
    return sizes
