"""What a page is made of, and what its parts are called in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from calibrant.lab.report.facts import StudyFacts
from calibrant.lab.report.plots import Plot, against_size, against_sparsity, routers
from calibrant.lab.report.summary import Doubts, Matrix, doubts_of, matrices, overall
from calibrant.lab.report.tables.table import heading
from calibrant.lab.stats import (
    Comparison,
    KeptExperts,
    KeptWords,
    Layers,
    Ranking,
    RankingEntry,
    Results,
    SetSummary,
    Similarity,
    kept_experts,
    kept_languages_in,
    kept_words_in,
    medians,
)


@dataclass(frozen=True)
class Contents:
    """Everything that a page shows. Nothing is read or computed after this."""

    comparison: Comparison
    facts: StudyFacts
    reading: Results
    summaries: Sequence[SetSummary] = ()
    layers: Sequence[Layers] = ()
    similarity: Similarity = field(default_factory=lambda: Similarity((), {}))

    @cached_property
    def ids(self) -> Mapping[str, str]:
        """The id of each calibration set's own page, by its name."""
        return {summary.name: f"set-{number}" for number, summary in enumerate(self.summaries)}

    @cached_property
    def titles(self) -> Mapping[str, str]:
        """What each ranking is about, by its key."""
        titles: dict[str, str] = {}
        for number, ranking in enumerate(self.comparison.rankings):
            note = self.facts.models.get(ranking.model, "")
            titles[f"r{number}"] = heading(ranking, note)
        return titles

    @cached_property
    def doubts(self) -> Doubts:
        """What ought to make a reader doubt any of the rankings."""
        return doubts_of(self.comparison)

    @property
    def only_finished(self) -> bool:
        """Whether what is compared are finished models, and no calibration sets."""
        return bool(self.comparison.finished) and not self.comparison.of_sets

    @cached_property
    def matrices(self) -> Sequence[Matrix]:
        """What each set costs with each method, where there are several rankings."""
        if len(self.comparison.of_sets) < 2:
            return []
        return matrices(self.comparison, self.reading.study)

    @property
    def overall(self) -> str:
        """Which sets came first over all combinations of model, method and target."""
        return overall(self.comparison)

    @cached_property
    def tokens(self) -> Mapping[str, int]:
        """Real tokens of a draw of each calibration set, where they are known."""
        tokens: dict[str, int] = {}
        for summary in self.summaries:
            if summary.tokens is not None:
                tokens[summary.name] = summary.tokens
        return tokens

    @cached_property
    def places(self) -> Mapping[str, Sequence[tuple[Ranking, RankingEntry]]]:
        """The rankings that a calibration set has a place in, with its row, by its name."""
        found: dict[str, list[tuple[Ranking, RankingEntry]]] = {name: [] for name in self.ids}
        for ranking in self.comparison.rankings:
            for entry in (*ranking.entries, *ranking.partial):
                found.setdefault(entry.name, []).append((ranking, entry))
        return found

    @cached_property
    def over_models(self) -> Sequence[Plot]:
        """How the results of each model change with sparsity and with size, where there are
        several.
        """
        every = (*self.comparison.of_sets, *self.comparison.unranked)
        drawn: list[Plot | None] = []
        for model in dict.fromkeys(ranking.model for ranking in every):
            ranked = [ranking for ranking in self.comparison.of_sets if ranking.model == model]
            sized = [ranking for ranking in every if ranking.model == model]
            drawn.append(against_sparsity(ranked))
            drawn.append(against_size(sized))
        return [plot for plot in drawn if plot is not None]

    @cached_property
    def experts(self) -> Mapping[tuple[str, str, str, str], KeptExperts]:
        """Which experts each set keeps, by model, method, target and propagation, where experts
        were dropped.
        """
        return {_way(kept): kept for kept in kept_experts(self.reading)}

    def routers_of(self, ranking: Ranking) -> Plot | None:
        """The experts that each set of a ranking keeps, drawn; None where none were dropped."""
        found = self.experts.get(_way(ranking))
        return routers([found]) if found else None

    @cached_property
    def medians(self) -> Mapping[str, float]:
        """What the text of these sets is usually like: the median of each fact of their
        profiles.
        """
        return medians(self.summaries)

    @cached_property
    def ordered_layers(self) -> Sequence[Layers]:
        """The layers of each group, its sets in the order of its ranking."""
        orders: dict[tuple[str, str, str, str], list[str]] = {}
        for ranking in self.comparison.rankings:
            orders[_way(ranking)] = [entry.name for entry in ranking.entries]
        found: list[Layers] = []
        for layers in self.layers:
            ranked = [name for name in orders.get(_way(layers), ()) if name in layers.sets]
            others = [name for name in layers.sets if name not in ranked]
            found.append(layers.among([*ranked, *others]))
        return found

    @cached_property
    def kept_words(self) -> Sequence[KeptWords]:
        """What each set kept of which words, where the study measured words."""
        return kept_words_in(self.reading)

    @cached_property
    def kept_languages(self) -> Sequence[KeptWords]:
        """What each set kept of the neurons of each language, where the study measured that."""
        return kept_languages_in(self.reading)

    def measured_on(self, name: str) -> Sequence[str]:
        """On what a calibration set was measured, over all its rankings."""
        measured: list[str] = []
        for ranking, _ in self.places.get(name, ()):
            measured.extend(ranking.measured)
        return list(dict.fromkeys(measured))

    def targets_of(self, name: str) -> Sequence[str]:
        """The targets of the rankings that a calibration set has a place in."""
        return [ranking.target for ranking, _ in self.places.get(name, ())]

    def nearest(self, name: str, measure: str, most: int = 5) -> Sequence[tuple[str, float]]:
        """The sets most like a calibration set by one measure of similarity, with their
        similarity; none where no two sets were compared by it.
        """
        table = self.similarity.by.get(measure)
        if table is None:
            return []
        of_two = ~np.eye(len(table), dtype=bool)
        if not np.isfinite(table[of_two]).any():
            return []
        return self.similarity.nearest(name, measure, most)


def _way(group: KeptExperts | Ranking | Layers) -> tuple[str, str, str, str]:
    """What the sets of a group were compared under."""
    return group.model, group.method, group.target, group.propagate
