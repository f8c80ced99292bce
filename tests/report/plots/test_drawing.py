import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from calibrant.errors import OutputError
from calibrant.lab.report.plots import Plot, forest, inline, plots, write
from calibrant.lab.report.plots.theme import DARK, LIGHT
from calibrant.lab.stats import Comparison, Estimate, Layers, PaperQuestion

from tests.report.made import ASKED, BEST, FULL, MAGNITUDE, SECOND, lettered, ranking
from tests.report.plots.seen import texts

HOSTILE = (
    "<script>alert(1)</script>",
    "</desc></svg><img src=x onerror=alert(1)>",
    "=cmd()",
    "a\0b\ud800",
    "\u202egnp",
    "var(--ink)",
    "'\"&",
    "x" * 300,
    "datum.k == 'row'",
)
HEX = re.compile(r"#[0-9a-fA-F]{3,8}\b")


def hostile() -> list[Plot]:
    entries = [
        replace(
            lettered(BEST, "a", (1, 1)),
            name=name,
            mean=Estimate(1.0 + i, 0.1, 9.0, 9),
            to_baseline={"mean": Estimate(0.1 * i, 0.1, 9.0, 9)},
        )
        for i, name in enumerate(HOSTILE)
    ]
    made = ranking(
        *entries,
        baselines=(MAGNITUDE,),
        model=HOSTILE[1],
        method=HOSTILE[0],
        baseline=HOSTILE[1],
        measured=tuple(BEST.losses),
    )
    nothing = np.full((9, 9, 3), np.nan)
    layers = Layers(
        HOSTILE[1],
        HOSTILE[0],
        "0.6",
        "",
        HOSTILE,
        ("a", "b", "c"),
        nothing,
        nothing,
        np.arange(1.0, 28.0).reshape(9, 3),
    )
    evidence = tuple(
        replace(e, label=HOSTILE[1], where=HOSTILE[0], on=h)
        for e, h in zip(ASKED.evidence, HOSTILE[3:6], strict=True)
    )
    asked = (PaperQuestion(HOSTILE[0], HOSTILE[1], "yes", HOSTILE[3], evidence),)
    return plots(
        Comparison((made, replace(made, target="0.7")), questions=asked),
        [layers],
        {name: 1000 * (i + 1) for i, name in enumerate(HOSTILE)},
    )


@pytest.fixture(scope="module")
def made() -> list[Plot]:
    return hostile()


@pytest.fixture(scope="module")
def drawn(made: list[Plot]) -> list[str]:
    """Each plot as the page has it, drawn once for all tests."""
    return [inline(plot, f"p{i}") for i, plot in enumerate(made)]


def test_hostile_names_are_text(made: list[Plot], drawn: list[str]):
    assert hostile() == made, "the same again"
    assert len({plot.name.lower() for plot in made}) == len(made) == 11
    ids = re.findall(r'\sid="([^"]*)"', "".join(drawn))
    assert len(ids) == len(set(ids)) == 2 * len(made)
    for plot, svg in zip(made, drawn, strict=True):
        elements = list(ElementTree.fromstring(svg).iter())
        assert {e.tag.partition("}")[2] for e in elements} <= {
            "svg",
            "title",
            "desc",
            "g",
            "path",
            "line",
            "rect",
            "text",
        }
        assert not any(text in svg for text in ("<script", "<img", "\0", "\u202e"))
        assert not re.search(r"\son\w+=\"|href|url\(", svg.replace("onerror=alert", ""))
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", plot.name)
        svg.encode()
        for colour in (e.get(name, "none") for e in elements for name in ("fill", "stroke")):
            assert colour in ("none", "transparent") or re.fullmatch(r"var\(--[\w-]+\)", colour), (
                "none but the page's colours"
            )


@pytest.mark.parametrize("dark", [False, True])
def test_files_have_the_colours_of_their_palette_their_legend_and_caption(
    dark: bool, tmp_path: Path
):
    plot = forest(ranking(replace(BEST, name="var(--ink)"), SECOND))
    assert plot is not None
    written = write([plot], tmp_path / "new" / "folder", dark)
    assert [p.name for p in written] == [
        "forest-wanda-0.6.svg",
        "forest-wanda-0.6.png",
        "forest-wanda-0.6.pdf",
    ]
    svg, png, pdf = (p.read_bytes() for p in written)
    palette, other = (DARK, LIGHT) if dark else (LIGHT, DARK)
    used = set(HEX.findall(svg.decode()))
    assert palette["f-corpus"] in used
    assert used <= set(palette.values())
    assert other["f-corpus"] not in used
    assert b'="var(' not in svg
    shown = [t.text for t in texts(svg.decode())]
    assert {"var(--ink)", *(style.words for style in plot.legend)} <= set(shown), (
        "a name that looks like a colour stays a name"
    )
    assert plot.caption.split()[-1] in shown[-1]
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert pdf.startswith(b"%PDF-")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(
        p.name for p in written
    )
    width = float(ElementTree.fromstring(svg).attrib["width"])
    assert int.from_bytes(png[16:20]) == pytest.approx(2 * width, abs=2), (
        "a PNG has two pixels a unit"
    )


def test_a_folder_that_cannot_be_written_is_named_and_nothing_left_half_done(tmp_path: Path):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "forest-wanda-0.6.png").mkdir()
    plot = forest(FULL)
    assert plot is not None
    for folder in (tmp_path / "taken" / "in", tmp_path / "taken", tmp_path):
        with pytest.raises(OutputError) as raised:
            write([plot], folder)
        assert raised.value.subject == str(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "forest-wanda-0.6.png",
        "forest-wanda-0.6.svg",
        "taken",
    ]


@pytest.mark.parametrize(
    ("value", "stderr"),
    [
        (math.nan, None),
        (math.inf, 0.0),
        (0.0, math.inf),
        (1e300, 1.0),
        *(
            pytest.param(*odd, marks=pytest.mark.slow)
            for odd in ((-math.inf, 1.0), (1e300, math.nan), (-1e-300, 0.0))
        ),
    ],
)
def test_no_number_breaks_a_plot(value: float, stderr: float | None):
    odd = dict.fromkeys(("mean", *BEST.losses), Estimate(value, stderr, 5.0, 5))
    entry = replace(BEST, name="odd", mean=odd["mean"], to_baseline=odd, share_kept=odd)
    made = ranking(entry, replace(entry, name="base", to_baseline={}), SECOND, baseline="base")
    found = plots(
        Comparison((made, replace(made, target="0.9"))), [], {"odd": 10, "base": 20, "c4": 30}
    )
    assert found
    for plot in found:
        ElementTree.fromstring(inline(plot, "k"))
