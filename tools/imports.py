"""The picture of the rooms of the package, made from what their files import.

`python -m tools.generate` writes it to docs/images/imports.svg, and a test says when it is stale.
Which rooms there are stands in tests/test_floors.py.
"""

from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from tests.test_floors import FLOOR, imports, modules, room, room_of

PICTURE: Final = Path(__file__).parents[1] / "docs/images/imports.svg"
BOX_WIDTH: Final = 148
BOX_HEIGHT: Final = 30
ROW_HEIGHT: Final = 62
CORE_WIDTH: Final = 800
LAB_WIDTH: Final = 330
STYLE: Final = """
.box { fill: #ffffff; stroke: #4c566a; }
.line { fill: none; stroke: #8c96a8; stroke-width: 1.2; }
.half { fill: #f2f4f7; }
text { fill: #1f2430; font: 13px sans-serif; text-anchor: middle; }
.title { font-weight: bold; }
@media (prefers-color-scheme: dark) {
  .box { fill: #262b36; stroke: #aab4c6; }
  .line { stroke: #77829a; }
  .half { fill: #171a21; }
  text { fill: #e6e9ef; }
}
"""

Graph = dict[str, set[str]]
"""The rooms that each room imports."""


def rooms_and_imports() -> Graph:
    """Return every room with the rooms that its files import, anywhere in them."""
    graph: Graph = {name: set() for name in FLOOR}
    for path in modules():
        importer = room(path)
        if importer not in graph:
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "calibrant":
                continue
            imported = room_of(parts[1:])
            if imported in graph and imported != importer:
                graph[importer].add(imported)
    return graph


def reached(start: str, graph: Graph) -> set[str]:
    """Return the rooms that `start` imports, directly or through others."""
    found = set[str]()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph[name])
    return found


def without_shortcuts(graph: Graph) -> Graph:
    """Return the graph without the imports that others imply: those of a room that is also reached
    through another one.
    """
    kept: Graph = {}
    for name, direct in graph.items():
        implied = set[str]()
        for other in direct:
            implied |= reached(other, graph)
        kept[name] = direct - implied
    return kept


def levels(graph: Graph) -> dict[str, int]:
    """Return how high each room stands: one above the highest room that it imports."""
    heights: dict[str, int] = {}
    # FLOOR is in order from the ground up, so what a room imports has its height already.
    for name in FLOOR:
        below = [heights[imported] for imported in graph[name]]
        heights[name] = max(below, default=-1) + 1
    return heights


def positions(graph: Graph) -> dict[str, tuple[float, float]]:
    """Return the middle of each room's box, in pixels: the core on the left, the lab on the
    right, the command line above both.
    """
    heights = levels(graph)
    top = max(heights.values())
    places: dict[str, tuple[float, float]] = {}
    for height in range(top + 1):
        row = [name for name in graph if heights[name] == height]
        core = [name for name in row if not name.startswith("lab.") and name != "cli"]
        lab = [name for name in row if name.startswith("lab.")]
        down = (top - height) * ROW_HEIGHT + BOX_HEIGHT
        for names, left, width in ((core, 0, CORE_WIDTH), (lab, CORE_WIDTH, LAB_WIDTH)):
            names.sort(key=lambda name: _mean_place(graph[name], places))
            for number, name in enumerate(names):
                across = left + width * (number + 0.5) / len(names)
                places[name] = (across, down)
        if "cli" in row:
            places["cli"] = ((CORE_WIDTH + LAB_WIDTH) / 2, down)
    return places


def _mean_place(names: set[str], places: dict[str, tuple[float, float]]) -> float:
    """How far to the right, on average, some rooms stand."""
    if not names:
        return 0.0
    return sum(places[name][0] for name in names) / len(names)


def picture() -> str:
    """Return the picture as SVG. A line leads from a room down to one that it imports."""
    graph = without_shortcuts(rooms_and_imports())
    places = positions(graph)
    width = CORE_WIDTH + LAB_WIDTH
    height = max(down for _, down in places.values()) + BOX_HEIGHT
    lab_bottom = max(down for name, (_, down) in places.items() if name.startswith("lab."))
    top = ROW_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}">',
        f"<style>{STYLE}</style>",
        _half("core", 4, CORE_WIDTH - 8, top, height - top - 4),
        _half("lab", CORE_WIDTH + 4, LAB_WIDTH - 8, top, lab_bottom - top + ROW_HEIGHT),
    ]
    for name in sorted(graph):
        for imported in sorted(graph[name]):
            lines.append(_line(places[name], places[imported]))
    for name in sorted(graph):
        lines += _box(name, places[name])
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _half(title: str, left: float, width: float, top: float, height: float) -> str:
    return (
        f'<rect class="half" x="{left}" y="{top}" width="{width}" height="{height:.0f}"/>'
        f'<text class="title" x="{left + 28}" y="{top + height - 12:.0f}">{title}</text>'
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    top = start[1] + BOX_HEIGHT / 2
    bottom = end[1] - BOX_HEIGHT / 2
    bend = (bottom - top) / 2
    return (
        f'<path class="line" d="M{start[0]:.0f} {top:.0f} C{start[0]:.0f} {top + bend:.0f} '
        f'{end[0]:.0f} {bottom - bend:.0f} {end[0]:.0f} {bottom:.0f}"/>'
    )


def _box(name: str, place: tuple[float, float]) -> list[str]:
    left = place[0] - BOX_WIDTH / 2
    top = place[1] - BOX_HEIGHT / 2
    label = escape(name.removeprefix("lab."))
    return [
        f'<rect class="box" x="{left:.0f}" y="{top:.0f}" width="{BOX_WIDTH}" '
        f'height="{BOX_HEIGHT}" rx="4"/>',
        f'<text x="{place[0]:.0f}" y="{place[1] + 4:.0f}">{label}</text>',
    ]
