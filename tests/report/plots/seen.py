"""What stands in a picture, read from its SVG alone: places add up, looks are inherited."""

import re
from dataclasses import dataclass, field
from xml.etree import ElementTree

from calibrant.lab.report.plots import Plot, inline

LOOKS = ("fill", "stroke", "font-weight", "font-size", "text-anchor", "stroke-dasharray")


@dataclass(frozen=True)
class Seen:
    """Something drawn: its element, its place, its text or path, and how it looks."""

    tag: str
    x: float
    y: float
    text: str = ""
    d: str = ""
    to: tuple[float, float] = (0.0, 0.0)
    look: dict[str, str] = field(default_factory=dict)


def seen(svg: str) -> list[Seen]:
    """All texts and shapes."""
    found: list[Seen] = []
    _walk(ElementTree.fromstring(svg), 0.0, 0.0, {}, found)
    return found


def _walk(
    element: ElementTree.Element, x: float, y: float, look: dict[str, str], found: list[Seen]
) -> None:
    look = {**look, **{k: v for k in LOOKS if (v := element.get(k)) is not None}}
    if moved := re.match(r"translate\((-?[\d.]+),(-?[\d.]+)\)", element.get("transform", "")):
        x, y = x + float(moved[1]), y + float(moved[2])
    tag = element.tag.partition("}")[2]
    if strokes := re.findall(
        r"M(-?[\d.]+),(-?[\d.]+)l(-?[\d.]+),(-?[\d.]+)", element.get("d", "")
    ):  # lines drawn in one go
        found.extend(
            Seen("line", x + a, y + b, to=(c, d), look=look)
            for a, b, c, d in (tuple(map(float, stroke)) for stroke in strokes)
        )
    elif tag in ("text", "path", "line", "rect"):
        to = (float(element.get("x2", 0)), float(element.get("y2", 0)))
        found.append(
            Seen(
                tag,
                x + float(element.get("x", 0)),
                y + float(element.get("y", 0)),
                "".join(element.itertext()),
                element.get("d", ""),
                to,
                look,
            )
        )
    for child in element:
        _walk(child, x, y, look, found)


def texts(svg: str) -> list[Seen]:
    return [s for s in seen(svg) if s.tag == "text"]


def drawn(plot: Plot | None) -> tuple[Plot, str]:
    """A plot that is there, and its SVG as the page has it."""
    assert plot is not None
    return plot, inline(plot, "k")


def said(svg: str) -> list[str]:
    return [t.text for t in texts(svg)]


def bold(svg: str) -> list[str]:
    return [t.text for t in texts(svg) if t.look.get("font-weight") == "bold"]


def number(text: str) -> float | None:
    """`−0.5`, `+1`, `20k`, `50 %` as a number."""
    cleaned = text.replace("−", "-").replace("\u202f%", "").replace("k", "e3")
    return float(cleaned) if re.fullmatch(r"[+-]?\d+(\.\d+)?(e3)?", cleaned) else None


def mapping(ticks: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope and start of the line through ticks (value, pixel) by least squares: all of them
    must lie on it.
    """
    n = len(ticks)
    assert n >= 2
    mean_v, mean_p = sum(v for v, _ in ticks) / n, sum(p for _, p in ticks) / n
    slope = sum((v - mean_v) * (p - mean_p) for v, p in ticks) / sum(
        (v - mean_v) ** 2 for v, _ in ticks
    )
    start = mean_p - slope * mean_v
    assert all(abs(start + slope * v - p) < 0.06 for v, p in ticks)
    return slope, start
