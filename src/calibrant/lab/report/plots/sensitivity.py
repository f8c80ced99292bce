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
    alike = [s for s in sensitivities if s.unit == sensitivities[0].unit]
    if not alike:
        return None
    ordered = sorted(alike, key=lambda s: (-(s.share or 0.0), -s.worth))
    several = len({(s.method, s.target) for s in ordered}) < len(
        ordered
    )  # the same method in several propagations
    names = tuple(
        PanelRow(f"{s.method} {s.target}{f', {s.propagate}' if several else ''}") for s in ordered
    )
    panels = [_panel("worst less best set", ordered, alike[0].unit)]
    if all(s.increase and s.share for s in ordered) and not narrow:
        panels.append(_panel("as a share of the increase", ordered))
    unit, level = alike[0].unit, percent(alike[0].level)
    title = f"What the choice of calibration set is worth: {alike[0].model}"
    caption = [
        f"Each mark: how much worse the worst calibration set is than the best one, in {unit}, on average over what was measured; controls left out",
        f"Lines: {level} intervals, jointly over all pairs of sets and all that was measured",
        f"Shaded: how far sets may lie apart by chance that are alike, at most ({level}, jointly). Hollow: no two sets differ significantly",
        *(
            [
                "At the right the same as a share of how much worse than the dense model the models are"
            ]
            if len(panels) > 1
            else []
        ),
    ]
    drawing = Panels(
        names,
        tuple(panels),
        LOOK,
        "← the text doesn't matter · it matters →",
        width=NARROW if narrow else WIDTH,
        room=40,
    )
    return plotted(
        ("sensitivity",),
        title,
        _description(title, unit, ordered),
        drawing.chart,
        drawing.data,
        caption,
    )


def _panel(title: str, ordered: Sequence[Sensitivity], unit: str = "") -> Panel:
    """Return a panel in the unit itself, or, without one, in per cent of each one's increase
    over the dense model.
    """
    marks: dict[int, Mark] = {}
    shaded: dict[int, float] = {}
    for row, s in enumerate(ordered):
        by = 1.0 if unit else 100 / (s.increase or 1.0)
        low, high = s.worth_interval
        marks[row] = Mark(by * s.worth, (by * low, by * high), "worth", hollow=low <= 0)
        shaded[row] = by * s.floor
    low, high = span_of(list(marks.values()))
    return Panel(title, marks, (min(0.0, low), high), unit or "%", shaded)


def _description(title: str, unit: str, ordered: Sequence[Sensitivity]) -> str:
    each = [
        f"{s.method} {s.target} {plainly(s.worth)}{spread(s.worth_interval)}, chance {plainly(s.floor)}"
        f"{'' if s.share is None else f', {share(s.share)} of the increase'}"
        for s in ordered
    ]
    return sentence(
        [
            f"{title}, in {unit}, with joint intervals and what chance may give at most",
            "; ".join(each),
        ]
    )
