"""What the network of the sets is drawn from: their results, their similarity, and what helped or hurt what."""

import math
from collections.abc import Iterator

from calibrant.compare import Ranking, RankingEntry
from calibrant.report.page.contents import Contents
from calibrant.report.page.network import Effect, Measured, Network, Node
from calibrant.report.sentences import short


def network_of(contents: Contents) -> Network:
    """The network of the first ranking's results; the sets that have none are there without."""
    ranking = next(iter(contents.comparison.rankings), None)
    entries = {} if ranking is None else {e.name: e for e in (*ranking.entries, *ranking.partial)}
    nodes = [
        Node(contents.ids[p.name], p.name, p.family, _value(entries.get(p.name)), _told(entries.get(p.name), ranking)) for p in contents.summaries
    ]
    measured = [] if ranking is None else [Measured(short(m, ranking.measured)) for m in ranking.measured]
    effects = [] if ranking is None else list(_effects(contents, ranking))
    return Network(nodes, contents.similarity, measured, effects, "" if ranking is None else ranking.baseline)


def _value(entry: RankingEntry | None) -> float | None:
    return None if entry is None or math.isnan(entry.mean.value) else entry.mean.value


def _told(entry: RankingEntry | None, ranking: Ranking | None) -> str:
    if entry is None or ranking is None or _value(entry) is None:
        return "no result yet"
    low, high = entry.ranks
    spread = "" if entry.mean.stderr is None else f" ± {entry.mean.stderr:.3f}"
    return f"{entry.mean.value:+.3f}{spread} {ranking.unit}, place {low}{f'–{high}' if high != low else ''} of {len(ranking.entries)}"


def _effects(contents: Contents, ranking: Ranking) -> Iterator[Effect]:
    """Where calibrating on a set helps or hurts what is measured, compared with the baseline, beyond noise."""
    at = {name: number for number, name in enumerate(contents.ids)}
    for entry in ranking.entries:
        for number, m in enumerate(ranking.measured):
            gap = entry.to_baseline.get(m)
            if gap is None or entry.name not in at:
                continue
            sure = gap.significant(ranking.level, ranking.baseline_comparisons)
            verdict = "not significant" if not sure else "worse" if gap.value > 0 else "better"
            told = f"{entry.name} on {short(m, ranking.measured)}: {gap.value:+.3f} {ranking.units.get(m, ranking.unit)} against {ranking.baseline}"
            yield Effect(at[entry.name], number, gap.value, verdict, told)
