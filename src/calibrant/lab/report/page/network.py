"""The section that shows calibration sets as a network: what is alike stands together, and what
helps on what is drawn between them.

Vega lays it out and draws it in the reader's browser; here stand its specification, its data, and a
table for who has no use for a picture. Nothing is computed: similarity, results and verdicts come
from `compare`. No torch here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from markupsafe import Markup

from calibrant.lab.report.page.contents import Contents
from calibrant.lab.report.page.network_spec import network_spec
from calibrant.lab.report.page.rendering import embedded, render
from calibrant.lab.report.plots.theme import FAMILIES
from calibrant.lab.report.plots.words import cut
from calibrant.lab.report.sentences import short
from calibrant.lab.stats import MEASURES, Ranking, Similarity

MOST_EDGES: Final = 3000
"""How many edges a measure has in the page at most, the strongest first."""

PER_NODE: Final = 1.5
"""About how many edges a node has when the page opens."""

SMALLEST, LARGEST, EMPTY = 90, 620, 70
"""Sizes of a node in square pixels: of the worst set, of the best, and of one without a result."""

LISTED: Final = 12
"""How many of the most alike pairs the table has for each measure."""

MISSING: Final = "This store holds nothing about how alike its calibration sets are. The study computed again with the present version, in a new folder, keeps it."
MEANINGS: Final = {
    "words": "cosine of the TF-IDF weights of the words in their windows",
    "statistics": "e to the minus standard deviation, over sampled input features of the matrices, of the difference of log activation sizes",
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
    ranking = next(iter(contents.comparison.rankings), None)
    entries = {} if ranking is None else {e.name: e for e in (*ranking.entries, *ranking.partial)}
    nodes: list[Node] = []
    for summary in contents.summaries:
        entry = entries.get(summary.name)
        if ranking is None or entry is None or math.isnan(entry.mean.value):
            nodes.append(
                Node(
                    contents.ids[summary.name], summary.name, summary.family, None, "no result yet"
                )
            )
            continue
        low, high = entry.ranks
        spread = "" if entry.mean.stderr is None else f" ± {entry.mean.stderr:.3f}"
        place = f"place {low}{f'–{high}' if high != low else ''} of {len(ranking.entries)}"
        result = f"{entry.mean.value:+.3f}{spread} {ranking.unit}, {place}"
        nodes.append(
            Node(contents.ids[summary.name], summary.name, summary.family, entry.mean.value, result)
        )
    if ranking is None:
        return Network(nodes, contents.similarity, [], [], "")
    measured = [short(m, ranking.measured) for m in ranking.measured]
    return Network(
        nodes, contents.similarity, measured, list(_effects(contents, ranking)), ranking.baseline
    )


def _effects(contents: Contents, ranking: Ranking) -> Iterator[Effect]:
    """Where calibrating on a set helps or hurts what is measured, compared with the baseline."""
    at = {name: number for number, name in enumerate(contents.ids)}
    for entry in ranking.entries:
        for number, m in enumerate(ranking.measured):
            gap = entry.to_baseline.get(m)
            if gap is None or entry.name not in at:
                continue
            sure = gap.significant(ranking.level, ranking.baseline_comparisons)
            verdict = "not significant" if not sure else "worse" if gap.value > 0 else "better"
            text = f"{entry.name} on {short(m, ranking.measured)}: {gap.value:+.3f} {ranking.units.get(m, ranking.unit)} against {ranking.baseline}"
            yield Effect(at[entry.name], number, gap.value, verdict, text)


def network(data: Network) -> Markup:
    """Return the section. With fewer than two sets, or where nothing is known of their
    similarity, it is a sentence.
    """
    edges = {measure: _edges(data, measure) for measure in MEASURES}
    known = [measure for measure in MEASURES if edges[measure]]
    places = min(LISTED, max((len(edges[m]) for m in known), default=0))
    names = [node.name for node in data.nodes]
    pairs = [
        [
            (names[edge[0]], names[edge[1]], edge[2]) if edge else None
            for edge in ((edges[m] + [None] * LISTED)[place] for m in known)
        ]
        for place in range(places)
    ]
    return render(
        "network",
        data=data,
        edges=edges,
        first=next(iter(known), ""),
        measures_known=known,
        pairs=pairs,
        effects=_significant(data),
        families={node.family for node in data.nodes},
        hollow=any(map(_unknown, data.nodes)),
        meanings=MEANINGS,
        missing=MISSING,
        square=_SQUARE,
        embedded=embedded("network-data", _embedded(data, edges)) if data.nodes else "",
    )


def _edges(data: Network, measure: str) -> list[tuple[int, int, float]]:
    """Pairs of nodes with their similarity, the most alike first."""
    places = {one: place for place, one in enumerate(data.similarity.sets)}
    known = data.similarity.by.get(measure)
    rows = [places.get(node.name) for node in data.nodes]
    if known is None:
        return []
    edges: list[tuple[int, int, float]] = []
    for i, a in enumerate(rows):
        for j, b in enumerate(rows[:i]):
            if a is not None and b is not None and not math.isnan(value := float(known[a, b])):
                edges.append((j, i, round(value, 4)))
    return sorted(edges, key=lambda edge: (-edge[2], edge[0], edge[1]))[:MOST_EDGES]


def _significant(data: Network) -> list[Effect]:
    return [e for e in data.effects if e.verdict != "not significant"]


def _embedded(data: Network, edges: dict[str, list[tuple[int, int, float]]]) -> dict[str, Any]:
    return {
        "spec": network_spec(),
        "nodes": [*_nodes(data), *_squares(data)],
        "measures": {
            m: {"edges": edges[m], **_slider(edges[m], len(data.nodes))}
            for m in MEASURES
            if edges[m]
        },
        "words": dict(MEASURES),
        "effects": [
            [e.set, len(data.nodes) + e.measured, e.verdict, e.text] for e in _significant(data)
        ],
    }


def _slider(edges: Sequence[tuple[int, int, float]], nodes: int) -> dict[str, float]:
    """The range of the threshold, its step, and where it stands at first."""
    low, high = edges[-1][2], edges[0][2]
    step = 0.01 if high - low > 0.2 else 0.001
    start = edges[min(len(edges), round(PER_NODE * nodes)) - 1][2]
    down, up = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return {
        "low": round(down, 4),
        "high": round(up, 4),
        "step": step,
        "start": round(math.floor(start / step + 1e-9) * step, 4),
    }


def _nodes(data: Network) -> Iterator[dict[str, Any]]:
    """The sets. The ranking winds from the middle outwards, so that every reader's layout
    starts, and ends, alike.
    """
    ranked = sorted(
        range(len(data.nodes)), key=lambda i: (_unknown(data.nodes[i]), data.nodes[i].value or 0.0)
    )
    places = {number: place for place, number in enumerate(ranked)}
    for number, (node, size) in enumerate(zip(data.nodes, _sizes(data.nodes), strict=True)):
        family = node.family if node.family in FAMILIES else "own"
        colour = f"var(--f-{family})"
        shown = {
            "shape": FAMILIES[family].shape,
            "stroke": colour,
            "fill": "var(--card)" if _unknown(node) else colour,
            "size": size,
        }
        words = {
            "page": node.id,
            "name": node.name,
            "label": cut(node.name),
            "text": node.result or "no result",
        }
        yield {"id": number, "place": places[number], **words, **shown, **_start(places[number])}


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
    away, turn = 34 * math.sqrt(place + 0.5), place * math.pi * (3 - math.sqrt(5))
    return {"x": round(away * math.cos(turn), 2), "y": round(away * math.sin(turn), 2)}


def _sizes(nodes: Sequence[Node]) -> list[int]:
    """In square pixels. Controls and baselines may be many times worse: they are small, so that
    the eye can distinguish the others.
    """
    known = [n for n in nodes if not _unknown(n)]
    inner = [n for n in known if n.family not in ("control", "none")] or known
    values = [n.value for n in inner if n.value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    sizes: list[int] = []
    for node in nodes:
        if node.value is None or _unknown(node):
            sizes.append(EMPTY)
        else:
            share = (
                float(np.clip((high - node.value) / (high - low), 0, 1))
                if high > low
                else float(node.value <= low)
            )
            sizes.append(round(SMALLEST + (LARGEST - SMALLEST) * share))
    return sizes
