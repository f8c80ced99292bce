"""How plots look: the palettes, the shapes of the families, and Vega-Lite's configuration without
its own colours. No torch here.

A picture names its colours as the page's CSS custom properties, so that one drawing is right in
light and in dark; a file has no style sheet and gets them `resolved`.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from calibrant.spec.families import WORDS

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
        "warn": "#fff3dc",
        "warn-line": "#b87a00",
        "f-corpus": "#0072b2",
        "f-code": "#56618f",
        "f-arithmetic": "#b24a00",
        "f-inference": "#00795a",
        "f-commonsense": "#a3478a",
        "f-reading": "#8a6a00",
        "f-instructions": "#2b7f93",
        "f-languages": "#7a4b2a",
        "f-selected": "#8c2f39",
        "f-mixed": "#5f5f5f",
        "f-own": "#1c1b1a",
        "f-control": "#8c8781",
        "f-none": "#918b83",
        "heat-0": "#7a2e00",
        "heat-1": "#b8572a",
        "heat-2": "#e0a57f",
        "heat-3": "#f3ead9",
        "heat-4": "#9cc3dc",
        "heat-5": "#33739f",
        "heat-6": "#0a4f86",
        "heat-ink-0": "#ffffff",
        "heat-ink-1": "#ffffff",
        "heat-ink-2": "#1c1b1a",
        "heat-ink-3": "#1c1b1a",
        "heat-ink-4": "#1c1b1a",
        "heat-ink-5": "#ffffff",
        "heat-ink-6": "#ffffff",
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
        "warn": "#33290f",
        "warn-line": "#d9a441",
        "f-corpus": "#5ab4ec",
        "f-code": "#9aa6e0",
        "f-arithmetic": "#f0a03c",
        "f-inference": "#3ecf9f",
        "f-commonsense": "#e08fc8",
        "f-reading": "#e6c34a",
        "f-instructions": "#6fc7d9",
        "f-languages": "#d09a70",
        "f-selected": "#f28b94",
        "f-mixed": "#bdbdbd",
        "f-own": "#ecebe8",
        "f-control": "#8f8b85",
        "f-none": "#77726c",
        "heat-0": "#ffb48a",
        "heat-1": "#c9713f",
        "heat-2": "#7a4a2e",
        "heat-3": "#3a3833",
        "heat-4": "#2f5570",
        "heat-5": "#4a93c4",
        "heat-6": "#a5d8ff",
        "heat-ink-0": "#16171a",
        "heat-ink-1": "#16171a",
        "heat-ink-2": "#ecebe8",
        "heat-ink-3": "#ecebe8",
        "heat-ink-4": "#ecebe8",
        "heat-ink-5": "#16171a",
        "heat-ink-6": "#16171a",
    }
)

STEPS: Final = 7
"""Colours of a heat map, the worst first."""

FONT: Final = "Liberation Sans, Arial, Helvetica, sans-serif"
"""The first is in vl-convert itself, so that text is measured alike everywhere; the others,
which browsers have, are as wide.
"""

LETTER: Final = 6.3
"""How wide a letter of a name is on average, in pixels, with some room for other fonts."""


@dataclass(frozen=True)
class Style:
    """How one kind of thing is marked: in words, by a colour and by a shape of Vega's, or a path
    in a square from -1 to 1.
    """

    words: str
    colour: str
    shape: str


OUTLINES: Final = {
    "corpus": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "code": "M0,-1.15L1.15,0L0,1.15L-1.15,0Z",
    "arithmetic": "M-.35,-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "inference": "M0,-1.05L1.1,.85H-1.1Z",
    "commonsense": "M0,1.05L1.1,-.85H-1.1Z",
    "reading": "M-.5,-.87H.5L1,0L.5,.87H-.5L-1,0Z",
    "instructions": "M0,-1.15L.29,-.36L1.09,-.36L.45,.14L.68,.93"
    "L0,.45L-.68,.93L-.45,.14L-1.09,-.36L-.29,-.36Z",
    "languages": "M0,-1.05L1,-.32L.62,.85H-.62L-1,-.32Z",
    "selected": "M-1,-1L1,1V-1L-1,1Z",
    "mixed": "M-1,-1H1L-1,1H1Z",
    "own": "M0,-1.1L1,-.15V1H-1V-.15Z",
    "control": "M-1,-.55L-.55,-1L0,-.45L.55,-1L1,-.55L.45,0"
    "L1,.55L.55,1L0,.45L-.55,1L-1,.55L-.45,0Z",
    "none": "M-.4,-1H.4V1H-.4Z",
}
"""The mark of each family in a box from -1 to 1, and of what looks at no data. Squares are left
for what was measured.
"""

_FAMILY_WORDS: Final = {**WORDS, "none": "looks at no data"}

FAMILIES: Final[Mapping[str, Style]] = MappingProxyType(
    {
        family: Style(words, f"var(--f-{family})", OUTLINES[family])
        for family, words in _FAMILY_WORDS.items()
    }
)
"""The families of calibration sets."""


def styles_of(families: Collection[str]) -> dict[str, Style]:
    """Return the styles of these families, in the order in which a legend has them."""
    return {family: style for family, style in FAMILIES.items() if family in families}


VERDICTS: Final[Mapping[str, Style]] = MappingProxyType(
    {
        "better": Style("better", "var(--better)", "circle"),
        "worse": Style("worse", "var(--worse)", "square"),
        "not significant": Style("not significant", "var(--untold)", "diamond"),
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
            # A browser's font may be wider than the one that a picture is laid out with.
            "labelSeparation": 8,
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
    """`spec` with each colour `var(--x)` replaced by that of `palette`. Texts and data stay as
    they are: a name may look like a colour.
    """
    if isinstance(spec, Mapping):
        parts: dict[Any, Any] = {}
        for key, part in spec.items():
            as_it_is = key in _DATA or (key in _TEXTS and isinstance(part, str))
            parts[key] = part if as_it_is else resolved(part, palette)
        return parts
    if isinstance(spec, list | tuple):
        return [resolved(part, palette) for part in spec]
    if isinstance(spec, str) and spec.startswith("var(--") and spec.endswith(")"):
        return palette.get(spec[6:-1], spec)
    return spec


@contextmanager
def unchecked() -> Iterator[None]:
    """Altair without a look at its schema at every step, which takes longer than the drawing;
    the tests look.
    """
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        yield
