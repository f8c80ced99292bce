"""What the choice of calibration set is worth to each method: in the unit that was measured, and
as a share of the increase. No torch here.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from calibrant.lab.report.plots.panels import NARROW, WIDTH, Mark, Panel, PanelRow, Panels, span_of
from calibrant.lab.report.plots.picture import Plot, plainly, plotted, sentence, share, spread
from calibrant.lab.report.plots.theme import Style
from calibrant.lab.stats import Sensitivity
from calibrant.numerics import percent

LOOK: Final[Mapping[str, Style]] = {
    "worth": Style("worst less best set", "var(--accent)", "circle")
}


def worth(sensitivities: Sequence[Sensitivity], narrow: bool = False) -> Plot | None:
    """Return how much worse the worst set is than the best one, by method, what chance gives
    shaded; None where nothing was drawn more than once.

    A `narrow` one, for a telephone, has the first panel alone. What isn't measured in the first
    one's unit is left out.
    """
    if not sensitivities:
        return None
    first = sensitivities[0]
    alike = [found for found in sensitivities if found.unit == first.unit]
    ordered = sorted(alike, key=_order)
    ways = {(found.method, found.target) for found in ordered}
    rows: list[PanelRow] = []
    for found in ordered:
        name = f"{found.method} {found.target}"
        # The same method may be there in several propagations.
        if len(ways) < len(ordered):
            name += f", {found.propagate}"
        rows.append(PanelRow(name))
    panels = [_panel("worst less best set", ordered, first.unit)]
    shares_known = all(found.increase and found.share for found in ordered)
    if shares_known and not narrow:
        panels.append(_panel("as a share of the increase", ordered))
    level = percent(first.level)
    title = f"What the choice of calibration set is worth: {first.model}"
    caption = [
        "Each mark: how much worse the worst calibration set is than the best one, in "
        f"{first.unit}, on average over what was measured; controls left out",
        f"Lines: {level} intervals, jointly over all pairs of sets and all that was measured",
        f"Shaded: what chance makes of sets that are alike, at most ({level}). "
        "Hollow: no more than that",
    ]
    if len(panels) > 1:
        caption.append(
            "At the right the same as a share of how much worse than the dense model the models are"
        )
    about = "← the text doesn't matter · it matters →"
    width = WIDTH
    if narrow:
        width = NARROW
    drawing = Panels(tuple(rows), tuple(panels), LOOK, about, width=width, room=40)
    words = _in_words(title, first.unit, ordered)
    return plotted(("sensitivity",), title, words, drawing.chart, drawing.data, caption)


def _order(found: Sensitivity) -> tuple[float, float]:
    """The largest share first."""
    return -(found.share or 0.0), -found.worth


def _panel(title: str, ordered: Sequence[Sensitivity], unit: str = "") -> Panel:
    """Return a panel in the unit itself, or, without one, in per cent of each one's increase
    over the dense model.
    """
    marks: dict[int, Mark] = {}
    shaded: dict[int, float] = {}
    for row, found in enumerate(ordered):
        factor = 1.0
        if not unit:
            factor = 100 / (found.increase or 1.0)
        low, high = found.worth_interval
        interval = (factor * low, factor * high)
        marks[row] = Mark(factor * found.worth, interval, "worth", hollow=not found.beyond_chance)
        shaded[row] = factor * found.by_chance
    low, high = span_of(list(marks.values()))
    return Panel(title, marks, (min(0.0, low), high), unit or "%", shaded)


def _in_words(title: str, unit: str, ordered: Sequence[Sensitivity]) -> str:
    each: list[str] = []
    for found in ordered:
        number = f"{plainly(found.worth)}{spread(found.worth_interval)}"
        chance = plainly(found.by_chance)
        words = f"{found.method} {found.target} {number}, chance {chance}"
        if found.share is not None:
            words += f", {share(found.share)} of the increase"
        each.append(words)
    lead = f"{title}, in {unit}, with joint intervals and what chance may give at most"
    return sentence([lead, "; ".join(each)])
