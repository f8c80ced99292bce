import math
import re
from dataclasses import replace

from calibrant.lab.report.plots import kept
from calibrant.lab.stats import Estimate, RankingEntry

from tests.report.made import BEST, LAST, SECOND, ranking
from tests.report.plots.seen import bold, drawn, number, said, seen, texts


def shares(entry: RankingEntry, docs: float, code: float) -> RankingEntry:
    values = {"docs:text": docs, "code:text": code, "mean": (docs + code) / 2}
    return replace(
        entry, share_kept={m: Estimate(value, None, 0.0, 1) for m, value in values.items()}
    )


MADE = ranking(
    replace(shares(BEST, 0.96, 0.81), best_on=frozenset({"docs:text"})),
    shares(SECOND, 0.90, math.nan),
    shares(LAST, 0.02, 0.40),
)


def test_each_cell_has_its_number_on_the_colour_of_its_step():
    _, svg = drawn(kept(MADE))
    key = [t for t in said(svg) if t[0] in "<≥" or "–" in t]
    limits = [number(k.partition("–")[2] or k[2:]) for k in key[:-1]]
    assert len(key) == 7
    cells = [
        t
        for t in texts(svg)
        if t.look.get("fill", "").startswith("var(--heat-ink") and t.text not in key
    ]
    assert sorted(t.text for t in cells) == sorted(
        ["88.5", "96.0", "81.0", "90.0", "21.0", "2.0", "40.0"]
    )
    grounds: list[tuple[str, float, float, float, float]] = []
    for s in seen(svg):
        corner = re.match(r"M(-?[\d.]+),(-?[\d.]+)h([\d.]+)v([\d.]+)", s.d)
        if corner and re.fullmatch(r"var\(--heat-\d\)", s.look.get("fill", "")):
            left, top, width, height = map(float, corner.groups())
            grounds.append(
                (s.look["fill"], s.x + left, s.x + left + width, s.y + top, s.y + top + height)
            )
    for cell in cells:
        (ground,) = [
            fill
            for fill, left, right, top, bottom in grounds
            if left < cell.x < right and top < cell.y < bottom
        ]
        step = sum(float(cell.text) >= limit for limit in limits if limit is not None)
        assert ground == f"var(--heat-{step})"
        assert cell.look["fill"] == f"var(--heat-ink-{step})"


def test_bold_is_significantly_best_and_a_hole_is_a_dash():
    plot, svg = drawn(kept(MADE))
    assert bold(svg) == ["96.0"]
    assert said(svg).count("—") == 2
    assert "python_docs 96.0\u202f%*" in plot.description
    assert "no number for c4" in plot.description
