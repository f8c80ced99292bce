from dataclasses import replace

import pytest

from calibrant.errors import SpecError
from calibrant.lab.report.plots import pareto
from calibrant.lab.report.plots.pareto import WIDTH
from calibrant.lab.stats import Estimate, Ranking, RankingEntry

from tests.report.made import DENSE, entry, ranking
from tests.report.plots.seen import Seen, drawn, mapping, number, said, seen, texts

UNITS = dict.fromkeys(DENSE, "nats/token")


def placed(
    name: str, x: float, y: float, letters: tuple[str, str], control: bool = False
) -> RankingEntry:
    return replace(
        entry(name, (x, y), None), control=control, letters=dict(zip(DENSE, letters, strict=True))
    )


SETS = (
    placed("c4", 1.0, 2.0, ("a", "d")),
    placed("0.5*c4 + 0.5*gsm8k:cot", 1.2, 1.5, ("b", "b")),
    placed("pile", 1.25, 1.55, ("bc", "bc")),
    placed("gsm8k:cot", 1.9, 1.45, ("d", "a")),
    placed("esnli", 2.0, 2.1, ("e", "e")),
    placed("random_tokens", 6.0, 7.0, ("f", "f"), control=True),
)
DRAWN = ranking(*SETS, units=UNITS)


def svg_of(of: Ranking) -> str:
    return drawn(pareto(of))[1]


def scales(svg: str) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Slope and start of both axes, and where the one across lies."""
    ticks = [t for t in texts(svg) if number(t.text) is not None]
    low = max(t.y for t in ticks)
    across = mapping([(v, t.x) for t in ticks if t.y == low and (v := number(t.text)) is not None])
    up = mapping([(v, t.y - 3.5) for t in ticks if t.y < low and (v := number(t.text)) is not None])
    return across, up, low


def marks(svg: str, fill: str) -> list[tuple[float, float, Seen]]:
    across, up, low = scales(svg)
    shapes = [
        s
        for s in seen(svg)
        if s.tag == "path" and s.look.get("fill") == fill and s.d.endswith("Z") and s.y < low
    ]
    return sorted(
        (round((s.x - across[1]) / across[0], 2), round((s.y - up[1]) / up[0], 2), s)
        for s in shapes
    )


def test_points_stand_where_their_losses_are_and_look_as_sure_as_they_are():
    svg = svg_of(DRAWN)
    assert [m[:2] for m in marks(svg, "var(--f-corpus)")] == [(1.0, 2.0)]
    assert [m[:2] for m in marks(svg, "var(--f-mixed)")] == [(1.2, 1.5)]
    assert [m[:2] for m in marks(svg, "var(--card)")] == [(1.25, 1.55)], (
        "pile is worse on both than the mixture, but not significantly"
    )
    assert [m[:2] for m in marks(svg, "var(--f-inference)")] == [(2.0, 2.1)]
    assert {"c4", "pile", "gsm8k:cot", "esnli"} <= set(said(svg))
    assert all(t.x < 2 * WIDTH for t in texts(svg))


def test_the_front_goes_from_set_to_set_in_stairs():
    svg = svg_of(DRAWN)
    across, up, _ = scales(svg)
    dashed = [s for s in seen(svg) if s.tag == "line" and s.look.get("stroke-dasharray") == "4,3"]
    corners = {
        (round((s.x - across[1]) / across[0], 2), round((s.y - up[1]) / up[0], 2)) for s in dashed
    }
    assert corners <= {(1.0, 2.0), (1.2, 2.0), (1.2, 1.5), (1.9, 1.5), (1.9, 1.45)}
    assert len(dashed) == 4


def test_of_many_losses_the_two_that_disagree_most_or_that_are_asked_for():
    def three(name: str, *values: float) -> RankingEntry:
        each = {
            m: Estimate(v, 0.02, 20.0, 21) for m, v in zip(("a", "b", "c"), values, strict=True)
        }
        return replace(entry(name, (0.0, 0.0), None), losses=each, increases=each)

    of = ranking(
        three("x", 1.0, 1.0, 3.0),
        three("y", 2.0, 2.5, 2.0),
        three("z", 3.0, 2.0, 1.0),
        measured=("a", "b", "c"),
    )
    assert "on a against loss on c" in drawn(pareto(of))[0].title
    assert "on b against loss on c" in drawn(pareto(of, across="b", up="c"))[0].title
    for unknown in ({"across": "d"}, {"across": "a", "up": "d"}):
        with pytest.raises(SpecError) as raised:
            pareto(of, **unknown)
        assert raised.value.subject == "d"
    with pytest.raises(SpecError, match="name both, or neither"):
        pareto(of, across="a")


def test_without_a_dense_model_losses_are_drawn_and_what_is_better_when_higher_is_not():
    alone = replace(DRAWN, dense=None)
    svg = svg_of(alone)
    assert [m[:2] for m in marks(svg, "var(--card)")] == [(3.85, 3.85)]
    assert "loss on docs, nats/token" in said(svg)
    assert pareto(replace(alone, better=dict.fromkeys(DENSE, "higher"))) is None
