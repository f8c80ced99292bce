import math
from dataclasses import replace

import numpy as np
import pytest

from calibrant.lab.report.plots import against_sparsity, against_tokens, layer_errors
from calibrant.lab.stats import Estimate, Layers, Ranking

from tests.report.made import BEST, LAST, SECOND, ranking
from tests.report.plots.seen import drawn, mapping, number, said, seen, texts


def at(target: str, *means: float, method: str = "wanda") -> Ranking:
    entries = [
        replace(e, mean=Estimate(v, 0.01, 20.0, 40))
        for e, v in zip((BEST, SECOND, LAST), means, strict=False)
    ]
    return ranking(*entries, target=target, method=method)


def test_means_stand_over_their_sparsity():
    _, svg = drawn(
        against_sparsity([at("0.5", 1.0, 1.2), at("0.7", 2.0, 2.6), at("2:4", 1.4, 1.5)])
    )
    ticks = [t for t in texts(svg) if number(t.text) is not None]
    across = mapping(
        [(v / 100, t.x) for t in ticks if "%" in t.text and (v := number(t.text)) is not None]
    )
    up = mapping(
        [(v, t.y - 3.5) for t in ticks if "%" not in t.text and (v := number(t.text)) is not None]
    )
    axis = max(t.y for t in ticks)
    marks = [
        s
        for s in seen(svg)
        if s.tag == "path"
        and s.look.get("stroke") == "var(--f-corpus)"
        and s.d.count("C") == 4
        and s.y < axis
    ]
    places = [
        (m.look["fill"], round((m.x - across[1]) / across[0], 2), round((m.y - up[1]) / up[0], 1))
        for m in marks
    ]
    assert sorted(p[1:] for p in places if p[0] == "var(--f-corpus)") == [
        (0.5, 1.0),
        (0.5, 1.2),
        (0.7, 2.0),
        (0.7, 2.6),
    ]
    assert sorted(p[1:] for p in places if p[0] == "var(--card)") == [(0.5, 1.4), (0.5, 1.5)]
    assert {"2:4", "python_docs", "c4", "wanda"} <= set(said(svg))
    _, wide = drawn(against_sparsity([at("0.5", 0.1), at("0.9", 9.0)]))
    mapping(
        [
            (math.log(v), t.y)
            for t in texts(wide)
            if (v := number(t.text)) is not None and "%" not in t.text
        ]
    )  # a wide range is logarithmic


def test_many_sets_are_pale_but_for_a_few():
    def crowd(target: str, factor: float) -> Ranking:
        return ranking(
            *(
                replace(BEST, name=f"s{i}", mean=Estimate(factor * (1 + i / 30), 0.01, 9.0, 9))
                for i in range(30)
            ),
            target=target,
        )

    plot, svg = drawn(against_sparsity([crowd("0.5", 1.0), crowd("0.7", 2.0)]))
    assert set(said(svg)) & {f"s{i}" for i in range(30)} == {"s0", "s1", "s2", "s27", "s28", "s29"}
    assert all(f"s{i} at" in plot.description for i in range(30))


def test_points_stand_over_their_tokens_where_these_differ():
    counts = {"python_docs": 10_000, "c4": 16_000, "full_stops": 12_000}
    plot, svg = drawn(against_tokens(at("0.6", 1.0, 1.5, 9.0), counts))
    ticks = [t for t in texts(svg) if number(t.text) is not None]
    axis = max(t.y for t in ticks)
    slope, start = mapping(
        [(v, t.x) for t in ticks if t.y == axis and (v := number(t.text)) is not None]
    )
    marks = [
        s
        for s in seen(svg)
        if s.look.get("stroke") == "var(--f-corpus)" and s.d.count("C") == 4 and s.y < axis
    ]
    assert sorted((m.x - start) / slope for m in marks) == pytest.approx(
        [10_000, 16_000], rel=0.003
    )
    assert "full_stops +9.000" in said(svg)
    assert "c4 16,000 tokens, +1.500" in plot.description
    for alike in ({"python_docs": 10_000, "c4": 10_400}, {"python_docs": 10_000}, {}):
        assert against_tokens(at("0.6", 1.0, 1.5), alike) is None


def layers_of(error: np.ndarray) -> Layers:
    n, blocks = error.shape
    nothing = np.full((n, n, blocks), np.nan)
    return Layers(
        "m",
        "wanda",
        "0.6",
        "dense",
        tuple(f"set{i}" for i in range(n)),
        tuple(f"h.{b}" for b in range(blocks)),
        nothing,
        nothing,
        error,
    )


def test_errors_over_blocks():
    plot, svg = drawn(layer_errors(layers_of(np.array([[0.01, 0.1, 1.0], [0.02, np.nan, 0.5]]))))
    up = mapping(
        [
            (math.log(v), t.y - 3.5)
            for t in texts(svg)
            if (v := number(t.text)) and t.look.get("text-anchor") == "end"
        ]
    )
    marks = [
        s
        for s in seen(svg)
        if s.look.get("fill") == "var(--f-own)" and s.tag == "path" and s.d.endswith("Z")
    ]
    assert sorted(math.exp((m.y - up[1]) / up[0]) for m in marks) == pytest.approx(
        [0.01, 0.02, 0.1, 0.5, 1.0], rel=0.03
    )
    assert "set1: 0.02, unknown, 0.5" in plot.description
    many = layers_of(np.exp(np.linspace(0, 1, 12)[:, None] + np.linspace(-2, 0, 6)[None, :]))
    words = said(drawn(layer_errors(many))[1])
    assert {"set0", "set11", "median of 12 sets"} <= set(words)
    assert "set5" not in words, "of many sets the best and the worst before the range of all"
    assert (
        layer_errors(layers_of(np.full((2, 3), np.nan)))
        is layer_errors(layers_of(np.ones((2, 1))))
        is None
    )
    assert layer_errors(layers_of(np.zeros((2, 3)))) is not None
