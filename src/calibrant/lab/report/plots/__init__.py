"""Plots of a comparison, each from its own Vega-Lite: inside the page, and as files for a paper.
No torch here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from calibrant.lab.report.plots.drawing import inline, write
from calibrant.lab.report.plots.forest import evidence, forest, formats
from calibrant.lab.report.plots.growth import (
    against_size,
    against_sparsity,
    against_tokens,
    layer_errors,
)
from calibrant.lab.report.plots.heat import kept, routers
from calibrant.lab.report.plots.pareto import pareto
from calibrant.lab.report.plots.picture import Plot, stem
from calibrant.lab.report.plots.sensitivity import worth
from calibrant.lab.stats import Comparison, KeptExperts, Layers, Ranking, Sensitivity

__all__ = [
    "Plot",
    "against_size",
    "against_sparsity",
    "against_tokens",
    "evidence",
    "forest",
    "formats",
    "inline",
    "kept",
    "layer_errors",
    "pareto",
    "plots",
    "routers",
    "worth",
    "write",
]

WITHOUT_PLOT: Final = frozenset({"baseline"})
"""Questions that get no plot: the forests show their evidence."""

Group = TypeVar("Group", Ranking, Layers, KeptExperts)


def plots(
    comparison: Comparison,
    layers: Sequence[Layers],
    tokens: Mapping[str, int],
    experts: Sequence[KeptExperts] = (),
) -> list[Plot]:
    """Return every plot: those of each ranking, over sparsity and size, of each model's blocks and
    experts, of the questions.

    `tokens` are each set's real ones. Names of plots differ, upper and lower case being one; where
    rankings differ in the model or in how the walk propagates, names say which.
    """
    rankings = comparison.rankings
    drawn: list[Plot | None] = []
    for ranking, parts in _with_distinguishing_labels(rankings):
        drawn.append(_called(forest(ranking), parts))
        drawn.append(_called(kept(ranking), parts))
        drawn.append(_called(formats(ranking), parts))
        drawn.append(_called(against_tokens(ranking, tokens), parts))
        drawn.append(_called(pareto(ranking), parts))
    models = {ranking.model for ranking in rankings}
    every = (*comparison.of_sets, *comparison.unranked)
    for model in dict.fromkeys(ranking.model for ranking in comparison.of_sets):
        parts = _telling((model, models))
        ranked = [ranking for ranking in comparison.of_sets if ranking.model == model]
        sized = [ranking for ranking in every if ranking.model == model]
        drawn.append(_called(against_sparsity(ranked), parts))
        drawn.append(_called(against_size(sized), parts))
    sensitivities: dict[str, list[Sensitivity]] = {}
    for sensitivity in comparison.sensitivities:
        sensitivities.setdefault(sensitivity.model, []).append(sensitivity)
    for model, of_model in sensitivities.items():
        parts = _telling((model, sensitivities))
        drawn.append(_called(worth(of_model), parts))
    for group, parts in _with_distinguishing_labels(layers):
        drawn.append(_called(layer_errors(group), parts))
    for group, parts in _with_distinguishing_labels(experts):
        drawn.append(_called(routers([group]), parts))
    for question in comparison.questions:
        if question.name not in WITHOUT_PLOT:
            drawn.append(evidence(question))
    return _distinct([plot for plot in drawn if plot is not None])


def _with_distinguishing_labels(groups: Sequence[Group]) -> Iterator[tuple[Group, list[str]]]:
    """Yield each group of runs with the labels that tell its plots from those of the others."""
    models = {group.model for group in groups}
    ways = {group.propagate for group in groups}
    for group in groups:
        yield group, _telling((group.model, models), (group.propagate, ways))


def _telling(*parts: tuple[str, Collection[str]]) -> list[str]:
    """The parts that tell plots apart: those that aren't the only one of their kind."""
    return [part for part, every in parts if len(every) > 1]


def _called(plot: Plot | None, parts: Sequence[str]) -> Plot | None:
    """The plot with these parts in its name."""
    if plot is None or not parts:
        return plot
    return replace(plot, name=stem(plot.name, *parts))


def _distinct(plots: Sequence[Plot]) -> list[Plot]:
    """The plots, a number behind each name that came before; file systems differ about case."""
    names: set[str] = set()
    distinct: list[Plot] = []
    for plot in plots:
        name = plot.name
        number = 1
        while name.lower() in names:
            number += 1
            name = f"{plot.name}-{number}"
        names.add(name.lower())
        distinct.append(replace(plot, name=name))
    return distinct
