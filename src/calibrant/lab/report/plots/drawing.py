"""Plots drawn: as SVG inside a page, and as files. vl-convert draws, offline. No torch here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any, Final
from xml.etree import ElementTree

from calibrant.errors import OutputError
from calibrant.lab.report.plots.picture import Plot
from calibrant.lab.report.plots.theme import DARK, FONT, LETTER, LIGHT, Style, resolved
from calibrant.system.durable import put, reason, undoing

SCALE: Final = 2
"""Pixels of a PNG for each of the drawing's own units."""

REM: Final = 16
"""The drawing's own units in the page's unit of type, so that a plot grows with the text around
it.
"""

GROWS: Final = 1.2
"""How many times its own size a plot is shown in a page where there is room."""

SHRINKS: Final = 0.85
"""And where there is none; then it scrolls, since nobody can read smaller letters."""

EM: Final = 0.62
"""How wide a letter is in a wide font, of its size."""

INHERITED: Final = (
    "fill",
    "stroke",
    "stroke-width",
    "stroke-dasharray",
    "font-size",
    "font-weight",
    "text-anchor",
    "fill-opacity",
    "stroke-opacity",
)
"""What a group may say for everything in it."""

_SVG: Final = "{http://www.w3.org/2000/svg}"
_NUMBER: Final = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_MOVED: Final = re.compile(r"translate\((-?[\d.]+),")
_COLOURED: Final = ("fill", "stroke")


def inline(plot: Plot, key: str) -> str:
    """The plot as an `<svg>` for the page, its colours still custom properties. `key` must be
    unique in the page: the ids hang on it.
    """
    root = _svg(plot.spec)
    left, width, height = _roomy(root)
    body = "".join(_text(child) for child in root)
    key = escape(key)
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="{_short(left)} 0 {_short(width)} {_short(height)}" '
        f'style="width:{_short(GROWS * width / REM)}rem;min-width:{_short(SHRINKS * width / REM)}rem" font-family="{FONT}" '
        f'role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(plot.title)}</title><desc id="{key}-d">{escape(plot.description)}</desc>'
        f'<g aria-hidden="true">{body}</g></svg>'
    )


def write(plots: Sequence[Plot], folder: Path, dark: bool = False) -> list[Path]:
    """Write NAME.svg, NAME.png and NAME.pdf of each plot, each whole or not at all, and say where
    they are. Raises `OutputError`.

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
                written += [
                    put(folder / f"{plot.name}.{ending}", content)
                    for ending, content in contents.items()
                ]
    except OSError as error:
        raise OutputError(
            f"plots can't be written to {str(folder)!r}: {reason(error)}", subject=str(folder)
        ) from error
    return written


def _file(plot: Plot, palette: Mapping[str, str]) -> str:
    root = _svg(resolved(plot.spec, palette))
    wide, tall = _size(root)
    below = "".join(_below(plot, palette, wide, tall))
    lines = below.count("<text")
    width, height = (
        _short(wide),
        _short(
            tall
            + (
                LINE * len(_rows(plot, wide)) + LINE * (lines - len(plot.legend)) + PAD
                if lines
                else 0
            )
        ),
    )
    ground = f'<rect width="{width}" height="{height}" fill="{palette["card"]}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="{FONT}">'
        f"<title>{escape(plot.title)}</title><desc>{escape(plot.description)}</desc>{ground}{''.join(_text(child) for child in root)}{below}</svg>\n"
    )


LINE: Final = 16.0
PAD: Final = 10.0
"""Units from one line below a file's drawing to the next, and around them."""


def _rows(plot: Plot, wide: float) -> list[list[Style]]:
    """The legend's entries in rows that are no wider than the drawing."""
    rows: list[list[Style]] = []
    taken = 0.0
    for style in plot.legend:
        needed = 34 + LETTER * len(style.words)
        if not rows or taken + needed > wide:
            rows.append([])
            taken = 0.0
        rows[-1].append(style)
        taken += needed
    return rows


def _below(plot: Plot, palette: Mapping[str, str], wide: float, tall: float) -> Iterator[str]:
    """Yield the legend and the caption of a file, line by line below its drawing; a page has
    them as text.
    """
    y = tall + LINE / 2
    for row in _rows(plot, wide):
        x = PAD
        for style in row:
            colour = resolved(style.colour, palette)
            yield f'<path transform="translate({_short(x + 5)},{_short(y)}) scale(4.2)" d="{style.shape}" fill="{colour}"/>'
            yield f'<text x="{_short(x + 14)}" y="{_short(y + 4)}" font-size="11" fill="{palette["ink"]}">{escape(style.words)}</text>'
            x += 34 + LETTER * len(style.words)
        y += LINE
    for line in wrap(plot.caption, max(20, int((wide - 2 * PAD) / (0.92 * LETTER)))):
        yield f'<text x="{_short(PAD)}" y="{_short(y + 4)}" font-size="11" fill="{palette["soft"]}">{escape(line)}</text>'
        y += LINE


def _svg(spec: Mapping[str, Any]) -> ElementTree.Element:
    """What Vega draws of a specification, without what only Vega needs: its roles, empty groups,
    ever the same attributes and many digits.
    """
    import vl_convert

    text = vl_convert.vegalite_to_svg(dict(spec), vl_version=_vega_lite(), allowed_base_urls=[])
    root = ElementTree.fromstring(text)
    _slim(root)
    return root


@cache
def _vega_lite() -> str:
    """The newest Vega-Lite 6 that is there."""
    import vl_convert

    return next(
        version
        for version in reversed(vl_convert.get_vegalite_versions())
        if version.startswith("6.")
    )


def _size(root: ElementTree.Element) -> tuple[float, float]:
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    return width, height


def _roomy(root: ElementTree.Element) -> tuple[float, float, float]:
    """Where the picture begins, how wide and how high it is, with room for a wider font than it
    was measured in: which one a page has isn't known.
    """
    width, height = _size(root)
    reach = list(_reaches(root, 0.0, "start", 12.0))
    left, right = min([0.0, *(a for a, _ in reach)]), max([width, *(b for _, b in reach)])
    return left, right - left, height


def _reaches(
    element: ElementTree.Element, x: float, anchor: str, size: float
) -> Iterator[tuple[float, float]]:
    """From where to where each text may go."""
    # Vega moves groups and texts by translate() alone, so places along x add up; a text that stands
    # upright reaches no farther than its size.
    anchor, size = element.get("text-anchor", anchor), float(element.get("font-size", size))
    moved = _MOVED.match(element.get("transform", ""))
    x += float(moved[1]) if moved else 0.0
    if element.text and "rotate" in element.get("transform", ""):
        yield x - size, x + size
    elif element.text:
        long = len(element.text) * size * EM
        start = x - {"end": long, "middle": long / 2}.get(anchor, 0.0)
        yield start - 2, start + long + 2
    for child in element:
        yield from _reaches(child, x, anchor, size)


def _slim(element: ElementTree.Element) -> None:
    for child in list(element):
        _slim(child)
        if _is_empty(child):
            element.remove(child)
    for name in list(element.attrib):
        if (
            name.startswith("aria")
            or name in ("role", "pointer-events", "font-family", "stroke-miterlimit", "class")
            or element.get(name) in _DEFAULT.get(name, ())
        ):
            del element.attrib[name]
        else:
            element.set(
                name, _NUMBER.sub(lambda found: _short(float(found[0])), element.attrib[name])
            )
    if (size := element.get("font-size")) is not None:
        element.set("font-size", size.removesuffix("px"))
    if element.tag == f"{_SVG}g":
        _hoist(element)
        _merge(element)
        _unwrap(element)


_DEFAULT: Final[Mapping[str, tuple[str, ...]]] = {
    "opacity": ("1",),
    "transform": ("translate(0,0)",),
    "font-weight": ("normal",),
    "x2": ("0",),
    "y2": ("0",),
    "text-anchor": ("start",),
}


def _is_empty(element: ElementTree.Element) -> bool:
    if element.tag == f"{_SVG}path":
        return not element.get("d") or element.get("display") == "none" or _is_unseen(element)
    if element.tag == f"{_SVG}rect":
        return _is_unseen(element)
    return (
        element.tag in (f"{_SVG}g", f"{_SVG}defs", f"{_SVG}text")
        and not len(element)
        and not element.text
    )


def _is_unseen(element: ElementTree.Element) -> bool:
    return {element.get(colour, "none") for colour in _COLOURED} <= {"none", "transparent"}


def _hoist(group: ElementTree.Element) -> None:
    """Say once in the group what everything in it says."""
    for name in INHERITED:
        values = {child.get(name) for child in group}
        if len(group) > 1 and len(values) == 1 and (value := values.pop()) is not None:
            group.set(name, value)
            for child in group:
                del child.attrib[name]


def _merge(group: ElementTree.Element) -> None:
    """Draw lines that differ in nothing but their place in one go."""
    # Vega writes each grid line as a <line> moved to its start, of which x2 and y2 are the end: as
    # one path that is "M start l end" for each.
    if len(group) < 2 or any(
        child.tag != f"{_SVG}line" or child.attrib.keys() - {"transform", "x2", "y2"}
        for child in group
    ):
        return
    strokes = []
    for line in group:
        start = line.get("transform", "translate(0,0)").removeprefix("translate(").removesuffix(")")
        strokes.append(f"M{start}l{line.get('x2', '0')},{line.get('y2', '0')}")
    for line in list(group):
        group.remove(line)
    group.append(ElementTree.Element(f"{_SVG}path", {"d": "".join(strokes)}))


def _unwrap(group: ElementTree.Element) -> None:
    """Take the place of an only child that says nothing of its own, or for which there is
    nothing to say.
    """
    # Attributes of a group hold for all inside it, so two groups of which neither overrides the
    # other are one.
    while (
        len(group) == 1
        and group[0].tag == group.tag
        and not (group.attrib.keys() & group[0].attrib.keys())
    ):
        only = group[0]
        group.remove(only)
        group.attrib.update(only.attrib)
        group.extend(only)


def _short(number: float) -> str:
    """At most two digits behind the point."""
    return (
        f"{number:.2f}".rstrip("0").rstrip(".").replace("-0", "0", 1)
        if abs(number) < 0.005
        else f"{number:.2f}".rstrip("0").rstrip(".")
    )


def _text(element: ElementTree.Element) -> str:
    return "".join(_pieces(element))


def _pieces(element: ElementTree.Element) -> Iterator[str]:
    tag = element.tag.removeprefix(_SVG)
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in element.attrib.items())
    yield f"<{tag}{attributes}"
    if element.text or len(element):
        yield f">{escape(element.text or '')}"
        for child in element:
            yield from _pieces(child)
        yield f"</{tag}>"
    else:
        yield "/>"
