"""A plot as a value (its name, what it says in words, its Vega-Lite), and the layers that one is
made of. No torch here.

The layers are of Altair's lower interface, its typed schema: charts of the upper one copy whatever
they are composed of at every step, which takes ten times as long.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.plots.theme import FAMILIES, Style, config, unchecked
from calibrant.lab.report.plots.words import sentence, stem
from calibrant.spec.foreign import visible_name

if TYPE_CHECKING:
    import altair as alt

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v6.json"
"""What the specification is written in; a name, nothing is fetched."""

Records = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Plot:
    """A plot: its file's stem, a title, all that it says in words and numbers, and its Vega-Lite,
    whose colours are CSS custom properties.

    `caption` says what is drawn, in which unit and what its lines are; `legend` are the families
    whose marks are in it. Both stand below the drawing, as text that folds, and not in it: how wide
    a text is depends on fonts that only who shows it has.
    """

    name: str
    title: str
    description: str
    spec: Mapping[str, Any]
    caption: str = ""
    legend: tuple[Style, ...] = ()


def plotted(
    name: tuple[str, ...],
    title: str,
    description: str,
    chart: "Callable[[], alt.VegaLiteSchema]",
    data: Mapping[str, Records],
    caption: Sequence[str] = (),
    families: Collection[str] = (),
) -> Plot:
    """Return the plot that `chart` makes, whose named data are `data`: names and numbers only, so
    that no colour is ever a name.

    `caption` are sentences without their full stops, `families` those that have marks in it; one
    alone needs no legend.
    """
    with unchecked():
        spec: dict[str, Any] = {"$schema": SCHEMA, **chart().to_dict(validate=False)}
    spec["config"] = config()
    spec["datasets"] = {
        name: [dict(record) for record in records] for name, records in data.items()
    }
    legend = (
        tuple(style for family, style in FAMILIES.items() if family in families)
        if len(set(families)) > 1
        else ()
    )
    return Plot(
        stem(*name),
        visible_name(title),
        visible_name(description),
        spec,
        visible_name(sentence(caption)),
        legend,
    )


Layer = tuple[str, "alt.UnitSpec"]


def layer(kind: str, mark: Any, encoding: dict[str, Any], **look: Any) -> Layer:
    """Return marks for the records whose `k` is `kind`, which all look so."""
    import altair as alt

    of_kind = alt.FilterTransform(filter=f"datum.k == '{kind}'")
    return kind, alt.UnitSpec(
        mark=alt.MarkDef(type=mark, **look), encoding=alt.Encoding(**encoding), transform=[of_kind]
    )


def text(kind: str, x: Any, y: Any, **look: Any) -> Layer:
    """Words: the records' `t`."""
    import altair as alt

    return layer(
        kind,
        "text",
        {"x": x, "y": y, "text": alt.Text("t:N")},
        **{"color": "var(--ink)", "align": "left", "fontSize": 11, **look},
    )


def layered(
    layers: Iterable[Layer], kinds: Collection[str], width: float | int, height: float | int
) -> "alt.LayerSpec":
    """Return the layers that have something to draw, over one another."""
    import altair as alt

    return alt.LayerSpec(
        layer=[spec for kind, spec in layers if kind in kinds], width=width, height=height
    )


def faceted(
    panel: "alt.LayerSpec",
    data: str,
    columns: int,
    row: int,
    column: float | int,
    own: bool = False,
) -> "alt.FacetSpec":
    """Return one panel for each value of `p` in the named data, so many in a row, so many pixels
    apart; each with its `own` scale across, if so.
    """
    import altair as alt

    # An empty label, since without any Vega-Lite leaves no room between the rows of panels.
    header = alt.Header(
        title=None, labelExpr="''", labelColor="var(--ink)", labelFontSize=1, labelPadding=0
    )
    facet = alt.FacetFieldDef(field="p", type="ordinal", title=None, header=header)
    gaps = alt.RowColnumber(row=row, column=column)
    scale = alt.ScaleResolveMap(x="independent") if own else alt.Undefined
    each = alt.Resolve(
        axis=alt.AxisResolveMap(x="independent"), scale=scale
    )  # an axis below every panel, also where nothing stands below it
    return alt.FacetSpec(
        facet=facet,
        spec=panel,
        columns=columns,
        spacing=gaps,
        bounds="flush",
        resolve=each,
        data=alt.NamedData(name=data),
    )
