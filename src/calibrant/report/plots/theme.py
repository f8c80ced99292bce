"""How plots look: the palettes, the shapes of the families, and Vega-Lite's configuration without its own colours. No torch here.

A picture names its colours as the page's CSS custom properties, so that one drawing is right in light and in dark; a file has no style sheet
and gets them `resolved`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

LIGHT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "paper": "#fbfaf8",
        "card": "#ffffff",
        "ink": "#1c1b1a",
        "soft": "#5d5a55",
        "line": "#e2ded7",
        "grid": "#ebe7e0",
        "accent": "#0062a3",
        "best": "#e7f1f8",
        "better": "#00795a",
        "worse": "#b23a00",
        "untold": "#6c6862",
        "f-corpus": "#0072b2",
        "f-code": "#56618f",
        "f-arithmetic": "#b24a00",
        "f-inference": "#00795a",
        "f-commonsense": "#a3478a",
        "f-reading": "#8a6a00",
        "f-instructions": "#2b7f93",
        "f-languages": "#7a4b2a",
        "f-mixed": "#5f5f5f",
        "f-own": "#1c1b1a",
        "f-control": "#8c8781",
        "f-none": "#a8a29a",
        **{f"heat-{i}": c for i, c in enumerate(("#7a2e00", "#b8572a", "#e0a57f", "#f3ead9", "#9cc3dc", "#4a8fbf", "#0a4f86"))},
        **{f"heat-ink-{i}": c for i, c in enumerate(("#ffffff", "#ffffff", "#1c1b1a", "#1c1b1a", "#1c1b1a", "#ffffff", "#ffffff"))},
    }
)

DARK: Final[Mapping[str, str]] = MappingProxyType(
    {
        "paper": "#16171a",
        "card": "#1e2024",
        "ink": "#ecebe8",
        "soft": "#a9a7a1",
        "line": "#34363c",
        "grid": "#2a2c31",
        "accent": "#5ab4ec",
        "best": "#1b2f3d",
        "better": "#3ecf9f",
        "worse": "#ff8a5c",
        "untold": "#a5a29c",
        "f-corpus": "#5ab4ec",
        "f-code": "#9aa6e0",
        "f-arithmetic": "#f0a03c",
        "f-inference": "#3ecf9f",
        "f-commonsense": "#e08fc8",
        "f-reading": "#e6c34a",
        "f-instructions": "#6fc7d9",
        "f-languages": "#d09a70",
        "f-mixed": "#bdbdbd",
        "f-own": "#ecebe8",
        "f-control": "#8f8b85",
        "f-none": "#77726c",
        **{f"heat-{i}": c for i, c in enumerate(("#ffb48a", "#c9713f", "#7a4a2e", "#3a3833", "#2f5570", "#4a93c4", "#a5d8ff"))},
        **{f"heat-ink-{i}": c for i, c in enumerate(("#16171a", "#16171a", "#ecebe8", "#ecebe8", "#ecebe8", "#16171a", "#16171a"))},
    }
)

STEPS: Final = 7
"""Colours of a heat map, the worst first."""

FONT: Final = "Liberation Sans, Arial, Helvetica, sans-serif"
"""The first is in vl-convert itself, so that text is measured alike everywhere."""

PAGE_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

LETTER: Final = 6.3
"""How wide a letter of a name is on average, in pixels, with some room for other fonts."""


@dataclass(frozen=True)
class Style:
    """How one kind of thing is marked: in words, by a colour and by a shape of Vega's, or a path in a square from -1 to 1."""

    words: str
    colour: str
    shape: str


_HOURGLASS, _BOW = "M-.9,-.9H.9L-.9,.9H.9Z", "M-.9,-.9L.9,.9V-.9L-.9,.9Z"
_STAR = "M0,-1L.25,-.34L.95,-.31L.4,.13L.59,.81L0,.42L-.59,.81L-.4,.13L-.95,-.31L-.25,-.34Z"
_SALTIRE = "M-.9,-.5L-.5,-.9L0,-.4L.5,-.9L.9,-.5L.4,0L.9,.5L.5,.9L0,.4L-.5,.9L-.9,.5L-.4,0Z"
_BAR = "M-.4,-1H.4V1H-.4Z"

FAMILIES: Final[Mapping[str, Style]] = MappingProxyType(
    {
        "corpus": Style("text corpus", "var(--f-corpus)", "circle"),
        "code": Style("code", "var(--f-code)", "square"),
        "arithmetic": Style("arithmetic", "var(--f-arithmetic)", "triangle-up"),
        "inference": Style("inference", "var(--f-inference)", "diamond"),
        "commonsense": Style("commonsense", "var(--f-commonsense)", "cross"),
        "reading": Style("reading", "var(--f-reading)", "triangle-down"),
        "instructions": Style("instructions", "var(--f-instructions)", "triangle-right"),
        "languages": Style("languages", "var(--f-languages)", _HOURGLASS),
        "mixed": Style("mixed", "var(--f-mixed)", _BOW),
        "own": Style("own data", "var(--f-own)", _STAR),
        "control": Style("control without content", "var(--f-control)", _SALTIRE),
        "none": Style("looks at no data", "var(--f-none)", _BAR),
    }
)

VERDICTS: Final[Mapping[str, Style]] = MappingProxyType(
    {
        "better": Style("better", "var(--better)", "circle"),
        "worse": Style("worse", "var(--worse)", "square"),
        "cannot tell": Style("cannot tell", "var(--untold)", "diamond"),
    }
)

DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2, 1, 2, 1, 2], [12, 4])
"""Lines of one family, which share a colour, in turn."""

_TEXTS: Final = frozenset({"title", "text", "description", "name"})
_DATA: Final = frozenset({"data", "datasets"})


def config() -> dict[str, Any]:
    """Vega-Lite's configuration: quiet axes, no frame, and no colour that isn't the page's."""
    return {
        "aria": False,
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None, "fill": None},
        "axis": {
            "domain": True,
            "domainColor": "var(--soft)",
            "gridColor": "var(--grid)",
            "gridWidth": 1,
            "labelColor": "var(--soft)",
            "labelFontSize": 11,
            "labelPadding": 4,
            "tickColor": "var(--soft)",
            "tickSize": 4,
            "titleColor": "var(--ink)",
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
            "titlePadding": 8,
        },
        "legend": {
            "labelColor": "var(--ink)",
            "labelFontSize": 11,
            "labelLimit": 220,
            "titleColor": "var(--soft)",
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "symbolSize": 64,
            "symbolStrokeWidth": 1.5,
            "rowPadding": 3,
            "columnPadding": 16,
        },
        "text": {"color": "var(--ink)", "fontSize": 12, "baseline": "middle"},
        "rule": {"color": "var(--grid)"},
        "line": {"strokeWidth": 1.75},
    }


def resolved(spec: Any, palette: Mapping[str, str]) -> Any:
    """`spec` with each colour `var(--x)` replaced by that of `palette`. Texts and data stay as they are: a name may look like a colour."""
    if isinstance(spec, Mapping):
        return {k: v if k in _DATA or (k in _TEXTS and isinstance(v, str)) else resolved(v, palette) for k, v in spec.items()}
    if isinstance(spec, list | tuple):
        return [resolved(part, palette) for part in spec]
    if isinstance(spec, str) and spec.startswith("var(--") and spec.endswith(")"):
        return palette.get(spec[6:-1], spec)
    return spec


@contextmanager
def unchecked() -> Iterator[None]:
    """Altair without a look at its schema at every step, which takes longer than the drawing; the tests look."""
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        yield
