"""Layers of a picture in Altair's typed schema: each draws the records of one kind. No torch here.

Charts of Altair's upper interface copy whatever they are composed of at every step, which takes ten times as long; these are its lower one.
"""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt


Layer = tuple[str, "alt.UnitSpec"]


def layer(kind: str, mark: Any, encoding: dict[str, Any], **look: Any) -> Layer:
    """Marks for the records whose `k` is `kind`, which all look so."""
    import altair as alt

    chosen = alt.FilterTransform(filter=f"datum.k == '{kind}'")
    return kind, alt.UnitSpec(mark=alt.MarkDef(type=mark, **look), encoding=alt.Encoding(**encoding), transform=[chosen])


def text(kind: str, x: Any, y: Any, **look: Any) -> Layer:
    """Words: the records' `t`."""
    import altair as alt

    return layer(kind, "text", {"x": x, "y": y, "text": alt.Text("t:N")}, **{"color": "var(--ink)", "align": "left", "fontSize": 11, **look})


def layered(layers: Iterable[Layer], kinds: Collection[str], width: float | int, height: float | int) -> "alt.LayerSpec":
    """The layers that have something to draw, over one another."""
    import altair as alt

    return alt.LayerSpec(layer=[made for kind, made in layers if kind in kinds], width=width, height=height)


def faceted(made: "alt.LayerSpec", data: str, columns: int, row: int, column: float | int) -> "alt.FacetSpec":
    """One panel for each value of `p` in the named data, so many in a row, so many pixels apart."""
    import altair as alt

    header = alt.Header(title=None, labelExpr="''", labelFontSize=1, labelPadding=0)
    facet = alt.FacetFieldDef(field="p", type="ordinal", title=None, header=header)
    gaps = alt.RowColnumber(row=row, column=column)
    each = alt.Resolve(axis=alt.AxisResolveMap(x="independent"))  # an axis below every panel, also where nothing stands below it
    return alt.FacetSpec(facet=facet, spec=made, columns=columns, spacing=gaps, bounds="flush", resolve=each, data=alt.NamedData(name=data))
