import math
import re
from dataclasses import replace

import pytest

from calibrant.compare import Estimate
from calibrant.report.plots import inline, kept

from tests.report.made import BEST, LAST, SECOND, lettered, ranking
from tests.report.plots.seen import number, seen, texts


def shares(entry, docs: float, code: float):
    return replace(
        entry,
        share_kept={
            "docs:text": Estimate(docs, None, 0.0, 1),
            "code:text": Estimate(code, None, 0.0, 1),
            "mean": Estimate((docs + code) / 2, None, 0.0, 1),
        },
    )


MADE = ranking(replace(shares(BEST, 0.96, 0.81), best_on=frozenset({"docs:text"})), shares(SECOND, 0.90, math.nan), shares(LAST, 0.02, 0.40))


def test_each_cell_has_its_number_on_the_colour_of_its_step():
    plot = kept(MADE)
    assert plot is not None
    svg = inline(plot, "k")
    things = seen(svg)
    key = [t.text for t in texts(svg) if t.text[0] in "<≥" or "–" in t.text]
    limits = [number(k.partition("–")[2] or k[2:]) for k in key[:-1]]
    assert len(key) == 7
    assert key[0].startswith("< ")
    assert key[-1].startswith("≥ ")
    cells = [t for t in texts(svg) if t.look.get("fill", "").startswith("var(--heat-ink") and t.text not in key]
    assert sorted(t.text for t in cells) == sorted(["88.5", "96.0", "81.0", "90.0", "21.0", "2.0", "40.0"])
    grounds = {s.look["fill"]: [] for s in things if re.fullmatch(r"var\(--heat-\d\)", s.look.get("fill", ""))}
    for s in things:
        if s.look.get("fill") in grounds and (corner := re.match(r"M(-?[\d.]+),(-?[\d.]+)h([\d.]+)v([\d.]+)", s.d)):
            left, top, width, height = map(float, corner.groups())
            grounds[s.look["fill"]].append((s.x + left, s.x + left + width, s.y + top, s.y + top + height))
    for cell in cells:
        (ground,) = [fill for fill, places in grounds.items() for a, b, c, d in places if a < cell.x < b and c < cell.y < d]
        step = sum(float(cell.text) >= limit for limit in limits if limit is not None)
        assert ground == f"var(--heat-{step})"
        assert cell.look["fill"] == f"var(--heat-ink-{step})"


def test_bold_is_significantly_best_and_a_hole_is_a_dash():
    plot = kept(MADE)
    assert plot is not None
    svg = inline(plot, "k")
    assert [t.text for t in texts(svg) if t.look.get("font-weight") == "bold"] == ["96.0"]
    assert [t.text for t in texts(svg)].count("—") == 2
    assert "python_docs 96.0\u202f%*" in plot.description
    assert "no number for c4" in plot.description


def test_colours_do_not_magnify_what_is_hardly_different():
    plot = kept(ranking(shares(BEST, 0.951, 0.952), shares(SECOND, 0.953, 0.95)))
    assert plot is not None
    key = [t.text for t in texts(inline(plot, "k")) if "–" in t.text]
    assert all(float(k.partition("–")[2]) - float(k.partition("–")[0]) == pytest.approx(1) for k in key)


def test_without_shares_there_is_nothing_to_draw():
    assert kept(ranking(BEST, SECOND)) is None
    assert kept(ranking()) is None
    assert kept(ranking(lettered(BEST, "a", (1, 1)))) is not None


@pytest.mark.parametrize("measured", [("docs", "code"), ("commonsense_qa (3-shot)", "winogrande (3-shot)"), ("x" * 40, "y" * 40)])
def test_heads_stand_upright_within_their_columns(measured: tuple[str, ...]):
    rows = replace(BEST, share_kept={m: Estimate(0.5, None, 0.0, 1) for m in (*measured, "mean")})
    plot = kept(ranking(rows, measured=measured, averaged=measured))
    assert plot is not None
    svg = inline(plot, "k")
    assert "rotate" not in svg
    grounds = [(s.x, s.d) for s in seen(svg) if re.fullmatch(r"var\(--heat-\d\)", s.look.get("fill", ""))]
    starts = [x + float(corner[1]) for x, d in grounds if (corner := re.match(r"M(-?[\d.]+),", d))]
    widths = [float(size[1]) for _, d in grounds if (size := re.search(r"h([\d.]+)v", d))]
    heads = [t for t in texts(svg) if t.look.get("text-anchor") == "middle" and t.y < min(s.y for s in seen(svg) if s.tag == "path") and t.text]
    for head in heads:
        half = 11 * 0.57 * len(head.text) / 2
        assert any(start - 4 <= head.x - half and head.x + half <= start + width + 4 for start, width in zip(starts, widths, strict=True)), head.text
    assert heads
