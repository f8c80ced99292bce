import re
from dataclasses import replace

import numpy as np

from calibrant.lab.report.plots import routers
from calibrant.lab.stats import KeptExperts

from tests.report.plots.seen import drawn, said, seen, texts

KEPT = np.array([[[1, 1 / 3, 0, 1], [0, 1, 1, 0]], [[0, 0, 1, 1], [1, 1, 0, 0]]])
MADE = KeptExperts(
    "mixture",
    "mc_suite",
    "experts 0.5",
    "dense",
    ("c4", "gsm8k:cot"),
    (3, 3),
    (0, 2),
    KEPT,
    np.full((2, 2), 0.4),
    0.3,
)


def squares(svg: str, fill: str) -> list[str]:
    """The squares of a colour, as they are drawn: their paths say where they stand."""
    return sorted({s.d for s in seen(svg) if s.tag == "path" and s.look.get("fill") == fill})


def test_each_expert_of_each_set_has_a_square_as_dark_as_its_share():
    plot, svg = drawn(routers([MADE]))
    cells = [record for record in plot.spec["datasets"]["cells"] if record["k"] == "cell"]
    assert [record["v"] for record in cells] == [
        round(float(v), 3) for block in (0, 1) for line in (0, 1) for v in KEPT[line, block]
    ]
    assert len({(record["x"], record["y"]) for record in cells}) == 16
    assert squares(svg, "var(--accent)") == squares(svg, "var(--grid)")
    assert len(squares(svg, "var(--accent)")) == 16
    opacities = re.findall(r'fill-opacity="([\d.]+)"', svg)
    assert [round(float(v), 2) for v in opacities] == [round(record["v"], 2) for record in cells]
    assert sorted(said(svg)) == ["block 0", "block 2", "c4", "c4", "gsm8k:cot", "gsm8k:cot"]
    assert "c4: every draw keeps, by block, 0: 0, 3; 2: 1, 2" in plot.description
    assert "gsm8k:cot: every draw keeps, by block, 0: 2, 3; 2: 0, 1" in plot.description
    many, _ = drawn(routers([replace(MADE, kept=np.zeros((2, 2, 128)))]))
    assert "0: none" in many.description


def test_several_criteria_stand_side_by_side_and_others_are_left_out():
    other = replace(MADE, method="mc_suite(criterion=euf)")
    _, svg = drawn(routers([MADE, other, replace(MADE, blocks=(0, 1))], ["ean", "euf", "odd"]))
    heads = [t for t in texts(svg) if t.text in ("ean", "euf", "odd")]
    assert [t.text for t in sorted(heads, key=lambda t: t.x)] == ["ean", "euf"]
    assert routers([]) is None
