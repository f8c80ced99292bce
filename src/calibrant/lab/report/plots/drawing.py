"""Plots drawn by vl-convert, offline: as SVG inside a page, and as files. No torch here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

from calibrant.errors import OutputError
from calibrant.lab.report.plots.picture import Plot
from calibrant.lab.report.plots.theme import DARK, FONT, LETTER, LIGHT, Style, resolved
from calibrant.system.durable import put, reason, undoing

SCALE: Final = 2
"""Pixels of a PNG for each of the drawing's units."""

REM: Final = 16
"""The drawing's units in the page's unit of type, so that a plot grows with the text around it."""

GROWS: Final = 1.2
"""How many times its size a plot is shown in a page where there is room."""

SHRINKS: Final = 0.85
"""And where there is none; then it scrolls, since nobody can read smaller letters."""

MARGIN: Final = 24
"""Units at both sides of a plot in a page, whose font may be wider than the one that texts were
measured in.
"""

LINE: Final = 16
PAD: Final = 10
"""Units from one line below a file's drawing to the next, and around them."""

SMALL: Final = 0.92
"""How wide a letter of a caption is, of one of a name."""

MARK: Final = 34
"""Units that an entry of a legend takes beside its words."""


def inline(plot: Plot, key: str) -> str:
    """Return the plot as an `<svg>` for the page, its colours still custom properties. `key` must
    be unique in the page: the ids hang on it.
    """
    drawing = _drawn(plot.spec)
    width = drawing.width + 2 * MARGIN
    key = escape(key)
    size = f"width:{GROWS * width / REM:g}rem;min-width:{SHRINKS * width / REM:g}rem"
    return (
        '<svg class="plot" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="-{MARGIN} 0 {width:g} {drawing.height:g}" '
        f'style="{size}" font-family="{FONT}" '
        f'role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(plot.title)}</title>'
        f'<desc id="{key}-d">{escape(plot.description)}</desc>'
        f'<g aria-hidden="true">{drawing.body}</g></svg>'
    )


def write(plots: Sequence[Plot], folder: Path, dark: bool = False) -> list[Path]:
    """Write NAME.svg, NAME.png and NAME.pdf of each plot, each whole or not at all, and return
    where they are. Raises `OutputError`.

    What is asked again is the same to the last bit, but for a PDF, in which vl-convert lists the
    fonts in any order.
    """
    import vl_convert

    palette = DARK if dark else LIGHT
    written: list[Path] = []
    try:
        with undoing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for plot in plots:
                svg = _file(plot, palette)
                contents = {
                    "svg": svg.encode(),
                    "png": vl_convert.svg_to_png(svg, scale=SCALE),
                    "pdf": vl_convert.svg_to_pdf(svg),
                }
                for ending, content in contents.items():
                    written.append(put(folder / f"{plot.name}.{ending}", content))
    except OSError as error:
        message = f"plots can't be written to {str(folder)!r}: {reason(error)}"
        raise OutputError(message, subject=str(folder)) from error
    return written


@dataclass(frozen=True)
class _Drawing:
    """What Vega draws, without the element around it, and its size."""

    body: str
    width: float
    height: float


def _drawn(spec: Mapping[str, Any]) -> _Drawing:
    import vl_convert

    svg = vl_convert.vegalite_to_svg(dict(spec), vl_version=_vega_lite(), allowed_base_urls=[])
    begin = svg.index(">") + 1
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg[:begin])
    assert size is not None, "every drawing of Vega's says how large it is"
    body = svg[begin : svg.rindex("</svg>")]
    return _Drawing(body, float(size[1]), float(size[2]))


@cache
def _vega_lite() -> str:
    """The newest Vega-Lite 6 that is there."""
    import vl_convert

    versions = vl_convert.get_vegalite_versions()
    sixth = [version for version in versions if version.startswith("6.")]
    return sixth[-1]


def _file(plot: Plot, palette: Mapping[str, str]) -> str:
    """A plot as a file: with a ground of its own, and below it what a page has as text."""
    drawing = _drawn(resolved(plot.spec, palette))
    width = drawing.width
    height = drawing.height
    rows = _legend_rows(plot, width)
    letters = int((width - 2 * PAD) / (SMALL * LETTER))
    captions = wrap(plot.caption, max(20, letters))
    below = "".join(_below(rows, captions, palette, height))
    if below:
        height += LINE * (len(rows) + len(captions)) + PAD
    ground = f'<rect width="{width:g}" height="{height:g}" fill="{palette["card"]}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="{FONT}">'
        f"<title>{escape(plot.title)}</title><desc>{escape(plot.description)}</desc>"
        f"{ground}{drawing.body}{below}</svg>\n"
    )


def _legend_rows(plot: Plot, width: float) -> list[list[Style]]:
    """The legend's entries in rows that are no wider than the drawing."""
    rows: list[list[Style]] = []
    taken = 0.0
    for style in plot.legend:
        needed = MARK + LETTER * len(style.words)
        if not rows or taken + needed > width:
            rows.append([])
            taken = 0.0
        rows[-1].append(style)
        taken += needed
    return rows


def _below(
    rows: Sequence[Sequence[Style]],
    captions: Sequence[str],
    palette: Mapping[str, str],
    height: float,
) -> Iterator[str]:
    """Yield the legend and the caption, line by line below the drawing."""
    y = height + LINE / 2
    for row in rows:
        x: float = PAD
        for style in row:
            colour = resolved(style.colour, palette)
            place = f"translate({x + 5:g},{y:g}) scale(4.2)"
            yield f'<path transform="{place}" d="{style.shape}" fill="{colour}"/>'
            yield _text(style.words, x + 14, y, palette["ink"])
            x += MARK + LETTER * len(style.words)
        y += LINE
    for caption in captions:
        yield _text(caption, PAD, y, palette["soft"])
        y += LINE


def _text(words: str, x: int | float, y: int | float, colour: str) -> str:
    place = f'x="{x:g}" y="{y + 4:g}"'
    return f'<text {place} font-size="11" fill="{colour}">{escape(words)}</text>'
