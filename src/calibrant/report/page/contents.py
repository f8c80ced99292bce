"""What a page is made of, and what its parts are called in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from calibrant.compare import Comparison, Layers, Ranking, RankingEntry, Results, SetSummary, Similarity
from calibrant.report.facts import StudyFacts
from calibrant.report.tables.table import heading


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
        return {f"r{number}": heading(r, self.facts.models.get(r.model, "")) for number, r in enumerate(self.comparison.rankings)}

    @cached_property
    def tokens(self) -> Mapping[str, int]:
        """Real tokens of a draw of each calibration set, where they are known."""
        return {summary.name: summary.tokens for summary in self.summaries if summary.tokens is not None}

    @cached_property
    def places(self) -> Mapping[str, Sequence[tuple[Ranking, RankingEntry]]]:
        """The rankings that a calibration set has a place in, with its row, by its name."""
        found: dict[str, list[tuple[Ranking, RankingEntry]]] = {name: [] for name in self.ids}
        for ranking in self.comparison.rankings:
            for entry in (*ranking.entries, *ranking.partial):
                found.setdefault(entry.name, []).append((ranking, entry))
        return found

    @cached_property
    def ordered_layers(self) -> Sequence[Layers]:
        """The layers of each group, its sets in the order of its ranking."""
        orders = {(r.model, r.method, r.target, r.propagate): [e.name for e in r.entries] for r in self.comparison.rankings}
        found: list[Layers] = []
        for of in self.layers:
            ranked = [name for name in orders.get((of.model, of.method, of.target, of.propagate), ()) if name in of.sets]
            found.append(of.among([*ranked, *(name for name in of.sets if name not in ranked)]))
        return found

    def knows(self, measure: str) -> bool:
        """Whether any two sets were compared by one measure of similarity."""
        table = self.similarity.by.get(measure)
        return table is not None and bool(np.isfinite(table[~np.eye(len(table), dtype=bool)]).any())
