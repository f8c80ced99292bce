"""All the plots that a study has material for. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from calibrant.lab.report.plots.forest import evidence, forest, formats
from calibrant.lab.report.plots.growth import against_sparsity, against_tokens, layer_errors
from calibrant.lab.report.plots.heat import kept
from calibrant.lab.report.plots.pareto import pareto
from calibrant.lab.report.plots.picture import Plot
from calibrant.lab.report.plots.routers import routers
from calibrant.lab.report.plots.sensitivity import worth
from calibrant.lab.report.plots.size import against_size
from calibrant.lab.report.plots.words import stem
from calibrant.lab.stats import Comparison, KeptExperts, Layers

WITHOUT_PLOT: Final = frozenset({"baseline"})
"""Questions that get no plot: the forests show their evidence."""


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
    models, ways = list(dict.fromkeys(r.model for r in rankings)), {r.propagate for r in rankings}
    named: list[tuple[Plot | None, tuple[str, ...]]] = []
    for r in rankings:
        parts = (*([r.model] if len(models) > 1 else []), *([r.propagate] if len(ways) > 1 else []))
        named += [
            (plot, parts)
            for plot in (forest(r), kept(r), formats(r), against_tokens(r, tokens), pareto(r))
        ]
    for model in models:
        parts = (model,) if len(models) > 1 else ()
        named.append((against_sparsity([r for r in rankings if r.model == model]), parts))
        named.append(
            (
                against_size([r for r in (*rankings, *comparison.unranked) if r.model == model]),
                parts,
            )
        )
    for model in (measured := list(dict.fromkeys(s.model for s in comparison.sensitivities))):
        named.append(
            (
                worth([s for s in comparison.sensitivities if s.model == model]),
                (model,) if len(measured) > 1 else (),
            )
        )
    for several, drawn in (
        (layers, map(layer_errors, layers)),
        (experts, (routers([of]) for of in experts)),
    ):
        models, ways = {of.model for of in several}, {of.propagate for of in several}
        parts = [
            (*([of.model] if len(models) > 1 else []), *([of.propagate] if len(ways) > 1 else []))
            for of in several
        ]
        named += zip(drawn, parts, strict=True)
    named += [
        (evidence(question), ())
        for question in comparison.questions
        if question.name not in WITHOUT_PLOT
    ]

    names: set[str] = set()
    unique: list[Plot] = []
    for plot, parts in named:
        if plot is None:
            continue
        whole = stem(plot.name, *parts) if parts else plot.name
        name, number = whole, 1
        while name.lower() in names:  # file systems differ about case
            number += 1
            name = f"{whole}-{number}"
        names.add(name.lower())
        unique.append(replace(plot, name=name))
    return unique
