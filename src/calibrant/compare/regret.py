"""What it costs to have chosen one calibration set, measured set by measured set: how far it is behind the best one there. No torch here.

A ranking tells sets apart by their mean. Where sets are languages or domains, what counts is the row: a set that is never best but never far
behind is the one to take when it isn't known what the model will be asked.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from calibrant.compare.ranking import Ranking, RankingEntry


@dataclass(frozen=True)
class Regret:
    """Calibration sets by measured sets, those with the smallest worst regret first.

    `by` is how much worse a set is than the best one of its column, in that column's unit; NaN where it has no number. `significant` says where the
    two differ significantly, jointly over all pairs of the column: elsewhere the regret may be chance. `best` names each column's best.
    """

    sets: tuple[str, ...]
    measured: tuple[str, ...]
    by: Float[np.ndarray, "set measured"]
    significant: Bool[np.ndarray, "set measured"]
    best: tuple[str, ...]

    @property
    def worst(self) -> Float[np.ndarray, " set"]:
        """Each set's largest regret; NaN for a set with a hole."""
        return self.by.max(1)

    def to_json(self) -> dict[str, Any]:
        """Plain data: by set and measured set the regret and whether it is told apart; None for a hole."""
        rows: dict[str, Any] = {}
        for i, name in enumerate(self.sets):
            known = [(m, float(self.by[i, at]), bool(self.significant[i, at])) for at, m in enumerate(self.measured) if np.isfinite(self.by[i, at])]
            rows[name] = {m: {"regret": value, "significant": sure} for m, value, sure in known}
        return {"best": dict(zip(self.measured, self.best, strict=True)), "sets": rows}


def regret(ranking: Ranking) -> Regret:
    """The table of a ranking's calibration sets, those with holes too. Columns that were measured on different scales aren't comparable."""
    entries = (*ranking.entries, *ranking.partial)
    names, own = ranking.measured, np.full((len(entries), len(ranking.measured)), np.nan)
    for at, entry in enumerate(entries):
        own[at] = [_worse(ranking, m) * entry.losses[m].value if m in entry.losses else np.nan for m in names]
    at_best = [int(np.nanargmin(column)) if np.isfinite(column).any() else -1 for column in own.T]
    by = own - np.array([own[i, m] if i >= 0 else np.nan for m, i in enumerate(at_best)]) if entries else own
    apart = np.array(
        [[i >= 0 and significantly_different(e, entries[i], m) for m, i in zip(names, at_best, strict=True)] for e in entries], dtype=bool
    )
    order = sorted(range(len(entries)), key=lambda i: (not np.isfinite(by[i]).all(), float(np.max(by[i], initial=0.0)), i))
    best = tuple(entries[i].name if i >= 0 else "" for i in at_best)
    return Regret(tuple(entries[i].name for i in order), names, by[order], apart.reshape(own.shape)[order], best)


def significantly_different(a: RankingEntry, b: RankingEntry, measured: str) -> bool:
    """Whether two sets can be told apart on `measured`: both have letters there and share none."""
    ours, theirs = (set(re.findall(r"\[\d+\]|[a-zA-Z]", entry.letters.get(measured, ""))) for entry in (a, b))
    return bool(ours and theirs and not ours & theirs)


def _worse(ranking: Ranking, measured: str) -> float:
    return -1.0 if ranking.better.get(measured, "lower") == "higher" else 1.0
