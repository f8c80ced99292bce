"""All the plots that a study gives material for. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from calibrant.compare import Comparison, Layers, Ranking
from calibrant.report.plots.forest import evidence, forest, formats
from calibrant.report.plots.growth import against_sparsity, against_tokens, layer_errors
from calibrant.report.plots.heat import kept
from calibrant.report.plots.pareto import pareto
from calibrant.report.plots.picture import Plot
from calibrant.report.plots.words import stem

APART: Final = frozenset({"baseline"})
"""Questions without a plot of their own: the forests show their evidence."""


def plots(comparison: Comparison, layers: Sequence[Layers], tokens: Mapping[str, int]) -> list[Plot]:
    """Every plot: those of each ranking, over sparsity, of each model's blocks, of the questions. `tokens` are the real ones of each set by name.

    Their names differ, upper and lower case being one; where rankings differ in the model or in how the walk propagates, names say which.
    """
    found = [*_rankings(comparison.rankings, tokens), *_over_sparsity(comparison.rankings)]
    several = _several([(layer.model, layer.propagate) for layer in layers])
    found += [_told_apart(plot, several, layer.model, layer.propagate) for layer in layers if (plot := layer_errors(layer)) is not None]
    found += [plot for question in comparison.questions if question.name not in APART and (plot := evidence(question)) is not None]
    return list(_unique(found))


def _rankings(rankings: Sequence[Ranking], tokens: Mapping[str, int]) -> Iterator[Plot]:
    several = _several([(r.model, r.propagate) for r in rankings])
    for ranking in rankings:
        for plot in (forest(ranking), kept(ranking), formats(ranking), against_tokens(ranking, tokens), pareto(ranking)):
            if plot is not None:
                yield _told_apart(plot, several, ranking.model, ranking.propagate)


def _over_sparsity(rankings: Sequence[Ranking]) -> Iterator[Plot]:
    models = list(dict.fromkeys(r.model for r in rankings))
    for model in models:
        if (plot := against_sparsity([r for r in rankings if r.model == model])) is not None:
            yield _told_apart(plot, (len(models) > 1, False), model, "")


def _several(pairs: Sequence[tuple[str, str]]) -> tuple[bool, bool]:
    """Whether there are several models, and several ways to propagate."""
    return len({model for model, _ in pairs}) > 1, len({way for _, way in pairs}) > 1


def _told_apart(plot: Plot, several: tuple[bool, bool], model: str, propagate: str) -> Plot:
    parts = [part for part, needed in ((model, several[0]), (propagate, several[1])) if needed]
    return replace(plot, name=stem(plot.name, *parts)) if parts else plot


def _unique(found: Sequence[Plot]) -> Iterator[Plot]:
    taken: set[str] = set()
    for plot in found:
        name, number = plot.name, 1
        while name.lower() in taken:
            number += 1
            name = f"{plot.name}-{number}"
        taken.add(name.lower())
        yield replace(plot, name=name)
