import itertools
import re

import altair as alt
import numpy as np
from altair.utils.schemapi import validate_jsonschema

from calibrant.families import FAMILIES as NAMES
from calibrant.report.plots.theme import DARK, FAMILIES, LIGHT, VERDICTS, resolved

from tests.report.plots.test_drawing import hostile

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}


def linear(colour: str) -> np.ndarray:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    c = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    first, second = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b)), reverse=True)
    return (first + 0.05) / (second + 0.05)


def test_kinds_differ_in_shape_or_in_colour_for_every_eye():
    for styles, palette in itertools.product((FAMILIES, VERDICTS), (LIGHT, DARK)):
        for a, b in itertools.combinations(styles.values(), 2):
            colours = [palette[s.colour.removeprefix("var(--").removesuffix(")")] for s in (a, b)]
            for matrix in BLINDNESS.values():
                apart = np.linalg.norm(lab(matrix @ linear(colours[0])) - lab(matrix @ linear(colours[1])))
                assert a.shape != b.shape or apart > 20, (a.words, b.words)


def test_text_and_marks_can_be_read_on_their_ground():
    """WCAG 2.2: 4.5 for text, 3 for marks, in both schemes; and every family and verdict has a style whose colour is there."""
    assert {*NAMES, "none"} == FAMILIES.keys()
    assert LIGHT.keys() == DARK.keys()
    for palette in (LIGHT, DARK):
        for ground in ("paper", "card", "best"):
            assert contrast(palette["ink"], palette[ground]) >= 7
            assert contrast(palette["soft"], palette[ground]) >= 4.5
        for ground in ("paper", "card"):
            assert all(contrast(palette[text], palette[ground]) >= 4.5 for text in ("better", "worse", "untold"))
        assert all(contrast(palette[text], palette["card"]) >= 4.5 for text in ("accent", "f-reading"))
        for style in (*FAMILIES.values(), *VERDICTS.values()):
            assert contrast(palette[style.colour.removeprefix("var(--").removesuffix(")")], palette["card"]) >= 3, style.words
        # The page's own white on step 5 of the light palette falls short, at 3.5.
        assert all(contrast(palette[f"heat-{i}"], palette[f"heat-ink-{i}"]) >= 4.5 for i in range(7))


def test_specifications_are_valid_vega_lite_without_colours_of_their_own():
    schema = alt.load_schema()
    kinds = {plot.name.partition("-")[0]: plot for plot in hostile()}
    assert len(kinds) >= 6
    for plot in kinds.values():
        validate_jsonschema(dict(plot.spec), schema)
        bare = {k: v for k, v in plot.spec.items() if k != "datasets"}
        assert not re.search(r"#[0-9a-f]{3,8}\b", str(bare))


def test_colours_are_resolved_but_never_in_texts_or_data():
    spec = {"color": "var(--ink)", "range": ["var(--f-code)"], "title": "var(--ink)", "datasets": {"a": [{"t": "var(--ink)"}]}, "x": "var(--unknown)"}
    found = resolved(spec, {"ink": "#111", "f-code": "#222"})
    assert found == {**spec, "color": "#111", "range": ["#222"]}
