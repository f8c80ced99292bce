"""The section that shows calibration sets as a network: what is alike stands together, and what
helps on what is drawn between them.

Vega lays it out and draws it in the reader's browser; here stand its data, a table for who has no
use for a picture, and at the end its specification. Nothing is computed: similarity, results and
verdicts come from the statistics. No torch here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from typing import Any, Final, Literal

import numpy as np
from markupsafe import Markup

from calibrant.lab.report.page.contents import Contents
from calibrant.lab.report.page.rendering import embedded, render
from calibrant.lab.report.plots.picture import cut
from calibrant.lab.report.plots.theme import FAMILIES
from calibrant.lab.report.sentences import short
from calibrant.lab.stats import MEASURES, Ranking, RankingEntry, Similarity
from calibrant.numerics import decimals, signed

MOST_EDGES: Final = 3000
"""How many edges a measure has in the page at most, the strongest first."""

PER_NODE: Final = 1.5
"""About how many edges a node has when the page opens."""

SMALLEST: Final = 90
LARGEST: Final = 620
EMPTY: Final = 70
"""Sizes of a node in square pixels: of the worst set, of the best, and of one without a result."""

LISTED: Final = 12
"""How many of the most alike pairs the table has for each measure."""

MISSING: Final = (
    "This store holds nothing about how alike its calibration sets are. "
    "The study computed again with the present version, in a new folder, keeps it."
)
MEANINGS: Final = {
    "words": "cosine of the TF-IDF weights of the words in their windows",
    "statistics": "e to the minus standard deviation, over sampled input features of the "
    "matrices, of the difference of log activation sizes",
    "masks": "share of the sampled weights (256 a matrix) about whose keeping the two masks agree",
}
"""What each measure of similarity is, exactly."""

_SQUARE: Final = "M-.9,-.9H.9V.9H-.9Z"


@dataclass(frozen=True)
class Node:
    """A calibration set: the HTML id of its page, its name, its family, the mean that ranks it
    (the smaller, the better), its result in words.
    """

    id: str
    name: str
    family: str
    value: float | None
    result: str


@dataclass(frozen=True)
class Effect:
    """What calibrating on `set` does for `measured` (places): how much worse than the baseline
    set it is, and whether that is significant.
    """

    set: int
    measured: int
    difference: float
    verdict: Literal["better", "worse", "not significant"]
    text: str


@dataclass(frozen=True)
class Network:
    """All that the section shows: the sets, how alike they are, what they do to what was
    measured.
    """

    nodes: Sequence[Node]
    similarity: Similarity
    measured: Sequence[str]
    effects: Sequence[Effect]
    baseline: str


def network_of(contents: Contents) -> Network:
    """Return the network of the first ranking's results; the sets that have none are there
    without.
    """
    rankings = contents.comparison.of_sets
    entries: dict[str, RankingEntry] = {}
    for ranking in rankings[:1]:
        for entry in (*ranking.entries, *ranking.partial):
            entries[entry.name] = entry
    nodes: list[Node] = []
    for summary in contents.summaries:
        value = None
        result = "no result yet"
        entry = entries.get(summary.name)
        if entry is not None and not math.isnan(entry.mean.value):
            value = entry.mean.value
            result = _result(rankings[0], entry)
        page = contents.ids[summary.name]
        nodes.append(Node(page, summary.name, summary.family, value, result))
    if not rankings:
        return Network(nodes, contents.similarity, [], [], "")
    ranking = rankings[0]
    measured = [short(name, ranking.measured) for name in ranking.measured]
    effects = list(_effects(contents, ranking))
    return Network(nodes, contents.similarity, measured, effects, ranking.baseline)


def _result(ranking: Ranking, entry: RankingEntry) -> str:
    """A set's mean and its place."""
    value = signed(entry.mean.value)
    if entry.mean.stderr is not None:
        value += f" ± {decimals(entry.mean.stderr)}"
    low, high = entry.ranks
    place = f"{low}" if low == high else f"{low}–{high}"
    return f"{value} {ranking.unit}, place {place} of {len(ranking.entries)}"


def _effects(contents: Contents, ranking: Ranking) -> Iterator[Effect]:
    """Where calibrating on a set helps or hurts what is measured, compared with the baseline."""
    places = {name: number for number, name in enumerate(contents.ids)}
    for entry in ranking.entries:
        if entry.name not in places:
            continue
        for number, measured in enumerate(ranking.measured):
            gap = entry.to_baseline.get(measured)
            if gap is None:
                continue
            verdict = "worse" if gap.value > 0 else "better"
            if not gap.significant(ranking.level, ranking.baseline_comparisons):
                verdict = "not significant"
            unit = ranking.units.get(measured, ranking.unit)
            change = f"{signed(gap.value)} {unit} against {ranking.baseline}"
            text = f"{entry.name} on {short(measured, ranking.measured)}: {change}"
            yield Effect(places[entry.name], number, gap.value, verdict, text)


def network(data: Network) -> Markup:
    """Return the section. With fewer than two sets, or where nothing is known of their
    similarity, it is a sentence.
    """
    edges = {measure: _edges(data, measure) for measure in MEASURES}
    known = [measure for measure in MEASURES if edges[measure]]
    first = known[0] if known else ""
    closest = [_closest(data, edges[measure]) for measure in known]
    drawn = ""
    if data.nodes:
        drawn = embedded("network-data", _embedded(data, edges))
    return render(
        "network",
        data=data,
        edges=edges,
        first=first,
        measures_known=known,
        pairs=list(zip_longest(*closest)),
        effects=_significant(data),
        families={node.family for node in data.nodes},
        hollow=any(map(_unknown, data.nodes)),
        meanings=MEANINGS,
        missing=MISSING,
        square=_SQUARE,
        embedded=drawn,
    )


def _edges(data: Network, measure: str) -> list[tuple[int, int, float]]:
    """Pairs of nodes with their similarity, the most alike first."""

    def order(edge: tuple[int, int, float]) -> tuple[float, int, int]:
        return -edge[2], edge[0], edge[1]

    similarity = data.similarity.by.get(measure)
    if similarity is None:
        return []
    places = {name: place for place, name in enumerate(data.similarity.sets)}
    compared: list[tuple[int, int]] = []
    for number, node in enumerate(data.nodes):
        if node.name in places:
            compared.append((number, places[node.name]))
    edges: list[tuple[int, int, float]] = []
    for (first, row), (second, column) in combinations(compared, 2):
        # The lower triangle, as the two may differ in their last digits.
        value = float(similarity[column, row])
        if not math.isnan(value):
            edges.append((first, second, round(value, 4)))
    return sorted(edges, key=order)[:MOST_EDGES]


def _closest(
    data: Network, edges: Sequence[tuple[int, int, float]]
) -> list[tuple[str, str, float]]:
    """The most alike pairs by name."""
    pairs: list[tuple[str, str, float]] = []
    for first, second, value in edges[:LISTED]:
        pairs.append((data.nodes[first].name, data.nodes[second].name, value))
    return pairs


def _significant(data: Network) -> list[Effect]:
    return [effect for effect in data.effects if effect.verdict != "not significant"]


def _embedded(data: Network, edges: dict[str, list[tuple[int, int, float]]]) -> dict[str, Any]:
    measures: dict[str, dict[str, Any]] = {}
    for measure in MEASURES:
        if edges[measure]:
            slider = _slider(edges[measure], len(data.nodes))
            measures[measure] = {"edges": edges[measure], **slider}
    effects: list[tuple[int, int, str, str]] = []
    for effect in _significant(data):
        # The squares are numbered behind the sets.
        square = len(data.nodes) + effect.measured
        effects.append((effect.set, square, effect.verdict, effect.text))
    return {
        "spec": network_spec(),
        "nodes": [*_nodes(data), *_squares(data)],
        "measures": measures,
        "words": dict(MEASURES),
        "effects": effects,
    }


def _slider(edges: Sequence[tuple[int, int, float]], nodes: int) -> dict[str, float]:
    """The range of the threshold, its step, and where it stands at first."""
    values = [value for _, _, value in edges]
    low = values[-1]
    high = values[0]
    step = 0.01 if high - low > 0.2 else 0.001
    shown = min(len(edges), round(PER_NODE * nodes))
    start = values[shown - 1]
    # What is a whole number of steps stays so, however its quotient is rounded.
    steps_down = math.floor(low / step + 1e-9)
    steps_up = math.ceil(high / step - 1e-9)
    steps_at_first = math.floor(start / step + 1e-9)
    return {
        "low": round(steps_down * step, 4),
        "high": round(steps_up * step, 4),
        "step": step,
        "start": round(steps_at_first * step, 4),
    }


def _nodes(data: Network) -> Iterator[dict[str, Any]]:
    """The sets. The ranking winds from the middle outwards, so that every reader's layout
    starts, and ends, alike.
    """

    def order(number: int) -> tuple[bool, float]:
        node = data.nodes[number]
        return _unknown(node), node.value or 0.0

    ranked = sorted(range(len(data.nodes)), key=order)
    places = {number: place for place, number in enumerate(ranked)}
    sizes = _sizes(data.nodes)
    for number, node in enumerate(data.nodes):
        place = places[number]
        family = node.family if node.family in FAMILIES else "own"
        colour = f"var(--f-{family})"
        fill = "var(--card)" if _unknown(node) else colour
        shape = FAMILIES[family].shape
        shown = {"shape": shape, "stroke": colour, "fill": fill, "size": sizes[number]}
        words = {
            "page": node.id,
            "name": node.name,
            "label": cut(node.name),
            "text": node.result or "no result",
        }
        yield {"id": number, "place": place, **words, **shown, **_start(place)}


def _squares(data: Network) -> Iterator[dict[str, Any]]:
    shown = {"shape": _SQUARE, "stroke": "var(--soft)", "fill": "var(--soft)", "size": 190}
    for number, measured in enumerate(data.measured, len(data.nodes)):
        words = {"page": "", "name": measured, "label": cut(measured), "text": "measured on"}
        yield {"id": number, "place": number, **words, **shown, **_start(number)}


def _unknown(node: Node) -> bool:
    return node.value is None or not math.isfinite(node.value)


def _start(place: int) -> dict[str, float]:
    """Where a node stands before the layout: a sunflower's spiral, each place a golden angle
    further, so that no two stand on one another.
    """
    away = 34 * math.sqrt(place + 0.5)
    turn = place * math.pi * (3 - math.sqrt(5))
    return {"x": round(away * math.cos(turn), 2), "y": round(away * math.sin(turn), 2)}


def _sizes(nodes: Sequence[Node]) -> list[int]:
    """In square pixels. Controls and baselines may be many times worse: they are small, so that
    the eye can distinguish the others.
    """
    known = [node for node in nodes if not _unknown(node)]
    compared = [node for node in known if node.family not in ("control", "none")]
    if not compared:
        compared = known
    values = [node.value for node in compared if node.value is not None]
    low = min(values, default=0.0)
    high = max(values, default=0.0)
    sizes: list[int] = []
    for node in nodes:
        if node.value is None or _unknown(node):
            sizes.append(EMPTY)
            continue
        if high > low:
            share = float(np.clip((high - node.value) / (high - low), 0, 1))
        else:
            share = float(node.value <= low)
        sizes.append(round(SMALLEST + (LARGEST - SMALLEST) * share))
    return sizes


_ARROW: Final = "M-1,-1L1,0L-1,1Z"
_BAR: Final = "M-.3,-1.2H.3V1.2H-.3Z"


def network_spec() -> dict[str, Any]:
    """The drawing as Vega reads it. Nodes are laid out around (0, 0); `frame` says where that is
    on the screen, and how large.
    """
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "autosize": "none",
        "padding": 0,
        "signals": _signals(),
        "data": [
            {"name": "edges", "values": []},
            {
                "name": "arrows",
                "source": "edges",
                "transform": [{"type": "filter", "expr": "datum.kind !== 'alike'"}],
            },
            {"name": "nodes", "values": [], "transform": [_force()]},
            {"name": "reach", "source": "nodes", "transform": [_reach()]},
        ],
        "marks": [_lines(), _symbols(), _ends(), _labels()],
    }


def _signals() -> list[dict[str, Any]]:
    """What the page's script sets, and what follows from it.

    `font` and `em` are the page's, the size as a multiple of 16 pixels. `still` lays out at once,
    without motion. `held` is the frame that the reader chose by zooming, panning or dragging;
    without one everything is shown. `lit` is the node in hand, `near` what it is joined to.
    """
    room = "length(data('reach')) ? data('reach')[0] : {x0: -1, x1: 1, y0: -1, y1: 1}"
    scale = (
        "min(3 * em, (width - 2 * side) / max(reach.x1 - reach.x0, 1), "
        "(height - 76 * em) / max(reach.y1 - reach.y0, 1))"
    )
    across = "width / 2 - scale * (reach.x0 + reach.x1) / 2"
    down = "(height - 14) / 2 - scale * (reach.y0 + reach.y1) / 2"
    return [
        {"name": "still", "value": True},
        {"name": "font", "value": "sans-serif"},
        {"name": "em", "value": 1},
        {"name": "restart", "value": False},
        {"name": "heat", "value": 1},
        {"name": "lit", "value": -1},
        {"name": "near", "value": []},
        {"name": "held", "value": None},
        {"name": "side", "update": "width < 500 ? 44 : 84 * em"},
        {"name": "reach", "update": room},
        {"name": "scale", "update": scale},
        {"name": "whole", "update": f"{{k: scale, x: {across}, y: {down}}}"},
        {"name": "frame", "update": "held || whole"},
        {"name": "tall", "update": "height > width"},
    ]


def _force() -> dict[str, Any]:
    """Vega's own force layout. The ground is as wide as the screen: what pulls to the middle
    pulls less along the longer side.
    """
    return {
        "type": "force",
        "iterations": {"signal": "still ? 400 : 60"},
        "velocityDecay": 0.35,
        "static": {"signal": "still"},
        "restart": {"signal": "restart"},
        "alpha": {"signal": "heat"},
        "forces": [
            {
                "force": "link",
                "links": "edges",
                "id": "id",
                "distance": {"expr": "datum.distance"},
                "strength": {"expr": "datum.pull"},
            },
            {"force": "nbody", "strength": -230, "distanceMax": 360},
            {"force": "collide", "radius": {"expr": "20 + sqrt(datum.size) / 2"}, "iterations": 2},
            {"force": "x", "x": 0, "strength": {"signal": "tall ? 0.12 : 0.04"}},
            {"force": "y", "y": 0, "strength": {"signal": "tall ? 0.04 : 0.12"}},
        ],
    }


def _reach() -> dict[str, Any]:
    return {
        "type": "aggregate",
        "ops": ["min", "max", "min", "max"],
        "fields": ["x", "x", "y", "y"],
        "as": ["x0", "x1", "y0", "y1"],
    }


_LINE_IN_HAND: Final = "lit === -1 || datum.source.id === lit || datum.target.id === lit"
"""Whether a line is shown fully: one of the node in hand, or any where none is."""


def _node_in_hand(node: str) -> str:
    """The same of a node: that in hand, or one that it is joined to."""
    return f"lit === -1 || {node}.id === lit || indexof(near, {node}.id) >= 0"


def _placed(axis: str, node: str) -> str:
    """Where on the screen: Vega's links hold numbers until the layout has put nodes in their
    place.
    """
    return f"frame.{axis} + frame.k * ({node}.{axis} || 0)"


def _lines() -> dict[str, Any]:
    drawn = {
        "x": {"signal": _placed("x", "datum.source")},
        "y": {"signal": _placed("y", "datum.source")},
        "x2": {"signal": _placed("x", "datum.target")},
        "y2": {"signal": _placed("y", "datum.target")},
        "opacity": {"signal": f"({_LINE_IN_HAND}) ? datum.opacity : 0.08"},
    }
    fixed = {
        "stroke": {"field": "stroke"},
        "strokeWidth": {"field": "width"},
        "strokeDash": {"field": "dash"},
        "strokeCap": {"value": "round"},
    }
    return {
        "type": "rule",
        "name": "lines",
        "aria": False,
        "from": {"data": "edges"},
        "encode": {"enter": fixed, "update": drawn},
    }


def _ends() -> dict[str, Any]:
    """The head of an arrow, or the bar, where an edge meets the square: outside of the square
    and of its name.
    """
    down = "(datum.target.y || 0) - (datum.source.y || 0)"
    across = "(datum.target.x || 0) - (datum.source.x || 0)"
    turn = f"atan2({down}, {across})"
    drawn = {
        "x": {"signal": f"{_placed('x', 'datum.target')} - 33 * em * cos({turn})"},
        "y": {"signal": f"{_placed('y', 'datum.target')} - 33 * em * sin({turn})"},
        "angle": {"signal": f"180 / PI * {turn}"},
        "opacity": {"signal": f"{_LINE_IN_HAND} ? 1 : 0.08"},
    }
    shape = {"signal": f"datum.kind === 'better' ? '{_ARROW}' : '{_BAR}'"}
    fixed = {"fill": {"field": "stroke"}, "size": {"signal": "110 * em * em"}, "shape": shape}
    return {
        "type": "symbol",
        "name": "ends",
        "aria": False,
        "interactive": False,
        "from": {"data": "arrows"},
        "encode": {"enter": fixed, "update": drawn},
    }


def _symbols() -> dict[str, Any]:
    fixed = {
        "shape": {"field": "shape"},
        "size": {"signal": "datum.size * em * em"},
        "cursor": {"signal": "datum.page ? 'pointer' : 'grab'"},
    }
    drawn = {
        "x": {"signal": _placed("x", "datum")},
        "y": {"signal": _placed("y", "datum")},
        "fill": {"field": "fill"},
        "stroke": {"signal": "datum.id === lit ? 'var(--ink)' : datum.stroke"},
        "strokeWidth": {"signal": "datum.id === lit ? 3.5 : 1.75"},
        "opacity": {"signal": f"{_node_in_hand('datum')} ? 1 : 0.3"},
    }
    return {
        "type": "symbol",
        "name": "symbols",
        "aria": False,
        "from": {"data": "nodes"},
        "encode": {"enter": fixed, "update": drawn},
    }


def _labels() -> dict[str, Any]:
    """Names, the best set's first: one that finds no room is left out until the reader zooms in
    or has its node in hand.
    """
    fixed = {
        "text": {"field": "datum.label"},
        "font": {"signal": "font"},
        "fontSize": {"signal": "12 * em"},
        "fill": {"value": "var(--ink)"},
        "cursor": {"value": "pointer"},
    }
    drawn = {"fillOpacity": {"signal": f"{_node_in_hand('datum.datum')} ? 1 : 0.3"}}
    placing = {
        "type": "label",
        # The size never changes here, but naming what moves has the labels placed again whenever it
        # does.
        "size": {"signal": "[width + 0 * length(data('nodes')) + 0 * frame.k, height]"},
        "anchor": ["bottom", "top", "right", "left"],
        "offset": [3],
        "padding": 0,
        "sort": {"field": "datum.datum.place"},
    }
    return {
        "type": "text",
        "name": "labels",
        "aria": False,
        "from": {"data": "symbols"},
        "encode": {"enter": fixed, "update": drawn},
        "transform": [placing],
    }
