"""The drawing of the network as Vega reads it: where nodes go, what is drawn there, what the
page's script may change. No data, and no torch here.
"""

from typing import Any, Final

_ARROW: Final = "M-1,-1L1,0L-1,1Z"
_BAR: Final = "M-.3,-1.2H.3V1.2H-.3Z"


def network_spec() -> dict[str, Any]:
    """The drawing as Vega reads it. Nodes are laid out around (0, 0); `frame` says where that is
    on the screen, and how large.
    """
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "autosize": "none",
        "padding": 0,
        "signals": _signals(),
        "data": [
            {"name": "edges", "values": []},
            {
                "name": "arrows",
                "source": "edges",
                "transform": [{"type": "filter", "expr": "datum.kind !== 'alike'"}],
            },
            {"name": "nodes", "values": [], "transform": [_force()]},
            {"name": "reach", "source": "nodes", "transform": [_reach()]},
        ],
        "marks": [_lines(), _symbols(), _ends(), _labels()],
    }


def _signals() -> list[dict[str, Any]]:
    """What the page's script sets, and what follows from it.

    `font` and `em` are the page's, the size as a multiple of 16 pixels. `still` lays out at once,
    without motion. `held` is the frame that the reader chose by zooming, panning or dragging;
    without one everything is shown. `lit` is the node in hand, `near` what it is joined to.
    """
    room = "length(data('reach')) ? data('reach')[0] : {x0: -1, x1: 1, y0: -1, y1: 1}"
    scale = "min(3 * em, (width - 2 * side) / max(reach.x1 - reach.x0, 1), (height - 76 * em) / max(reach.y1 - reach.y0, 1))"
    return [
        {"name": "still", "value": True},
        {"name": "font", "value": "sans-serif"},
        {"name": "em", "value": 1},
        {"name": "restart", "value": False},
        {"name": "heat", "value": 1},
        {"name": "lit", "value": -1},
        {"name": "near", "value": []},
        {"name": "held", "value": None},
        {"name": "side", "update": "width < 500 ? 44 : 84 * em"},
        {"name": "reach", "update": room},
        {"name": "scale", "update": scale},
        {
            "name": "whole",
            "update": "{k: scale, x: width / 2 - scale * (reach.x0 + reach.x1) / 2, y: (height - 14) / 2 - scale * (reach.y0 + reach.y1) / 2}",
        },
        {"name": "frame", "update": "held || whole"},
        {"name": "tall", "update": "height > width"},
    ]


def _force() -> dict[str, Any]:
    """Vega's own force layout. The ground is as wide as the screen: what pulls to the middle
    pulls less along the longer side.
    """
    return {
        "type": "force",
        "iterations": {"signal": "still ? 400 : 60"},
        "velocityDecay": 0.35,
        "static": {"signal": "still"},
        "restart": {"signal": "restart"},
        "alpha": {"signal": "heat"},
        "forces": [
            {
                "force": "link",
                "links": "edges",
                "id": "id",
                "distance": {"expr": "datum.distance"},
                "strength": {"expr": "datum.pull"},
            },
            {"force": "nbody", "strength": -230, "distanceMax": 360},
            {"force": "collide", "radius": {"expr": "20 + sqrt(datum.size) / 2"}, "iterations": 2},
            {"force": "x", "x": 0, "strength": {"signal": "tall ? 0.12 : 0.04"}},
            {"force": "y", "y": 0, "strength": {"signal": "tall ? 0.04 : 0.12"}},
        ],
    }


def _reach() -> dict[str, Any]:
    return {
        "type": "aggregate",
        "ops": ["min", "max", "min", "max"],
        "fields": ["x", "x", "y", "y"],
        "as": ["x0", "x1", "y0", "y1"],
    }


def _placed(axis: str, of: str) -> str:
    """Where on the screen: Vega's links hold numbers until the layout has put nodes in their
    place.
    """
    return f"frame.{axis} + frame.k * ({of}.{axis} || 0)"


def _lines() -> dict[str, Any]:
    near = "(lit === -1 || datum.source.id === lit || datum.target.id === lit)"
    drawn = {
        "x": {"signal": _placed("x", "datum.source")},
        "y": {"signal": _placed("y", "datum.source")},
        "x2": {"signal": _placed("x", "datum.target")},
        "y2": {"signal": _placed("y", "datum.target")},
        "opacity": {"signal": f"{near} ? datum.opacity : 0.08"},
    }
    fixed = {
        "stroke": {"field": "stroke"},
        "strokeWidth": {"field": "width"},
        "strokeDash": {"field": "dash"},
        "strokeCap": {"value": "round"},
    }
    return {
        "type": "rule",
        "name": "lines",
        "aria": False,
        "from": {"data": "edges"},
        "encode": {"enter": fixed, "update": drawn},
    }


def _ends() -> dict[str, Any]:
    """The head of an arrow, or the bar, where an edge meets the square: outside of the square
    and of its name.
    """
    turn = "atan2((datum.target.y || 0) - (datum.source.y || 0), (datum.target.x || 0) - (datum.source.x || 0))"
    drawn = {
        "x": {"signal": f"{_placed('x', 'datum.target')} - 33 * em * cos({turn})"},
        "y": {"signal": f"{_placed('y', 'datum.target')} - 33 * em * sin({turn})"},
        "angle": {"signal": f"180 / PI * {turn}"},
        "opacity": {
            "signal": "lit === -1 || datum.source.id === lit || datum.target.id === lit ? 1 : 0.08"
        },
    }
    shape = {"signal": f"datum.kind === 'better' ? '{_ARROW}' : '{_BAR}'"}
    fixed = {"fill": {"field": "stroke"}, "size": {"signal": "110 * em * em"}, "shape": shape}
    return {
        "type": "symbol",
        "name": "ends",
        "aria": False,
        "interactive": False,
        "from": {"data": "arrows"},
        "encode": {"enter": fixed, "update": drawn},
    }


def _symbols() -> dict[str, Any]:
    fixed = {
        "shape": {"field": "shape"},
        "size": {"signal": "datum.size * em * em"},
        "cursor": {"signal": "datum.page ? 'pointer' : 'grab'"},
    }
    drawn = {
        "x": {"signal": _placed("x", "datum")},
        "y": {"signal": _placed("y", "datum")},
        "fill": {"field": "fill"},
        "stroke": {"signal": "datum.id === lit ? 'var(--ink)' : datum.stroke"},
        "strokeWidth": {"signal": "datum.id === lit ? 3.5 : 1.75"},
        "opacity": {
            "signal": "lit === -1 || datum.id === lit || indexof(near, datum.id) >= 0 ? 1 : 0.3"
        },
    }
    return {
        "type": "symbol",
        "name": "symbols",
        "aria": False,
        "from": {"data": "nodes"},
        "encode": {"enter": fixed, "update": drawn},
    }


def _labels() -> dict[str, Any]:
    """Names, the best set's first: one that finds no room is left out until the reader zooms in
    or has its node in hand.
    """
    fixed = {
        "text": {"field": "datum.label"},
        "font": {"signal": "font"},
        "fontSize": {"signal": "12 * em"},
        "fill": {"value": "var(--ink)"},
        "cursor": {"value": "pointer"},
    }
    drawn = {
        "fillOpacity": {
            "signal": "lit === -1 || datum.datum.id === lit || indexof(near, datum.datum.id) >= 0 ? 1 : 0.3"
        }
    }
    placing = {
        "type": "label",
        # The size never changes here, but naming what moves has the labels placed again whenever it
        # does.
        "size": {"signal": "[width + 0 * length(data('nodes')) + 0 * frame.k, height]"},
        "anchor": ["bottom", "top", "right", "left"],
        "offset": [3],
        "padding": 0,
        "sort": {"field": "datum.datum.place"},
    }
    return {
        "type": "text",
        "name": "labels",
        "aria": False,
        "from": {"data": "symbols"},
        "encode": {"enter": fixed, "update": drawn},
        "transform": [placing],
    }
