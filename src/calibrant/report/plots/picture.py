"""A plot as a value: what it is called, what it says in words, and its Vega-Lite. No torch here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from calibrant.foreign import visible_name
from calibrant.report.plots.theme import config, unchecked
from calibrant.report.plots.words import stem

if TYPE_CHECKING:
    import altair as alt

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v6.json"
"""What the specification is written in; a name, nothing is fetched."""

Records = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Plot:
    """A plot: its file's stem, a title, all that it says in words and numbers, and its Vega-Lite, whose colours are CSS custom properties."""

    name: str
    title: str
    description: str
    spec: Mapping[str, Any]


def plotted(name: tuple[str, ...], title: str, description: str, drawn: "Callable[[], alt.VegaLiteSchema]", data: Mapping[str, Records]) -> Plot:
    """The plot that `drawn` makes, whose named data are `data`: names and numbers only, so that no colour is ever a name."""
    with unchecked():
        spec: dict[str, Any] = {"$schema": SCHEMA, **drawn().to_dict(validate=False)}
    spec["config"] = config()
    spec["datasets"] = {name: [dict(record) for record in records] for name, records in data.items()}
    return Plot(stem(*name), visible_name(title), visible_name(description), spec)
