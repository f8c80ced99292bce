from dataclasses import replace

from calibrant.lab.report.plots import against_size
from calibrant.lab.report.plots.growth import Sized, on_the_front
from calibrant.lab.report.tables.table import heading, unranked
from calibrant.lab.stats import Ranking

from tests.report.made import BEST, MAGNITUDE, SECOND, ranking, renamed
from tests.report.plots.seen import drawn, mapping, number, said, seen, texts


def at(target: str, bits: float | None, *increases: float) -> Ranking:
    """A ranking of two sets at a grid, with these mean increases."""
    entries = [
        replace(e, mean=replace(e.mean, value=v))
        for e, v in zip((BEST, SECOND), increases, strict=True)
    ]
    return replace(ranking(*entries), method="gptq", target=target, bits=bits)


GRIDS = [at("w2g64", 2.25, 1.8, 2.0), at("w3g64", 3.25, 0.3, 0.25), at("w4g64", 4.25, 0.15, 0.4)]


def test_each_run_stands_at_its_bits_and_its_loss():
    plot, svg = drawn(against_size(GRIDS))
    low = max(t.y for t in texts(svg) if number(t.text) is not None)
    slope, start = mapping(
        [(v, t.x) for t in texts(svg) if t.y == low and (v := number(t.text)) is not None]
    )
    up, zero = mapping(
        [
            (v, t.y - 3.5)
            for t in texts(svg)
            if t.look.get("text-anchor") == "end" and (v := number(t.text)) is not None
        ]
    )
    marks = [
        s
        for s in seen(svg)
        if s.tag == "path" and s.d.count("C") == 4 and s.look.get("stroke") == "var(--f-corpus)"
    ]
    places = sorted((round((m.x - start) / slope, 2), round((m.y - zero) / up, 1)) for m in marks)
    assert {x for x, _ in places} <= {2.25, 3.25, 4.25}
    assert (2.25, 1.8) in places or (2.25, 2.0) in places
    assert {"gptq w3g64 · c4", "bits a weight"} <= set(said(svg))
    assert plot.description.count("on the front") == 3
    sized = [Sized(r, e, r.bits or 0.0) for r in GRIDS for e in r.entries]
    assert [one.name for one in on_the_front(sized)] == [
        "gptq w2g64 · python_docs",
        "gptq w3g64 · c4",
        "gptq w4g64 · python_docs",
    ]
    for alone in (GRIDS[:1], [at("0.5", None, 1.0, 2.0), at("0.6", None, 1.0, 2.0)], []):
        assert against_size(alone) is None, "one size or none is no plot"


def test_bits_a_weight_stand_beside_scores():
    assert "4 bits in groups of 64 (w4g64), 4.25 bits a weight" in heading(GRIDS[2])
    without = [replace(r, entries=(), baselines=(renamed(MAGNITUDE, "gptq"),)) for r in GRIDS]
    assert [row.figures[0].value for row in unranked(without, "increase").rows] == [
        "2.250",
        "3.250",
        "4.250",
        "",
    ]
    assert unranked([replace(r, bits=None) for r in without], "increase").columns[0].head == "mean"
