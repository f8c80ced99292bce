"""A report as plain data, for programs: every number with its interval, every sentence. No torch here."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from calibrant.compare import Comparison, Contrasted, Entry, Ranking
from calibrant.report.account import Account
from calibrant.report.conclusions import told, trust
from calibrant.report.findings import caveats, doubts, finding, remarks


def plain(comparison: Comparison, account: Account) -> dict[str, Any]:
    """Everything, as JSON can hold it: what is not a number, or has no end, is null."""
    return _finite(
        {
            "models": account.models,
            "rankings": [_ranking(r) for r in comparison.rankings],
            **({"unranked": [_ranking(r) for r in comparison.unranked]} if comparison.unranked else {}),
            "contrasts": [_contrast(c) for c in comparison.contrasts],
            "agreements": list(comparison.agreements),
            "questions": list(comparison.questions),
            "looks": comparison.looks,
            "missing": comparison.missing,
            "stale": comparison.stale,
            "one_draw": comparison.one_draw,
            "caveats": list(trust(comparison)),
            "failures": account.failures,
            "settings": account.settings,
            "machine": account.machine,
            "seconds": account.seconds,
        }
    )


def _ranking(ranking: Ranking) -> dict[str, Any]:
    return {
        **_fields(ranking),
        "entries": [_entry(ranking, e) for e in ranking.entries],
        "partial": [_entry(ranking, e) for e in ranking.partial],
        "baselines": [_entry(ranking, e) for e in ranking.baselines],
        "dense": _entry(ranking, ranking.dense) if ranking.dense else None,
        "finding": finding(ranking),
        "doubts": doubts(ranking),
        "remarks": remarks(ranking),
        "caveats": caveats(ranking),
    }


def _entry(ranking: Ranking, entry: Entry) -> dict[str, Any]:
    joint = entry.to_best.interval(ranking.level, ranking.looks) if entry.to_best else None
    told = {name: value for name, value in _fields(entry).items() if name != "label"}  # the parts of its name
    return {**told, "mean_interval": entry.mean.interval(ranking.level), "to_best_interval": joint}


def _contrast(contrasted: Contrasted) -> dict[str, Any]:
    interval = contrasted.difference.interval(contrasted.level) if contrasted.difference else None
    return {**_fields(contrasted), "interval": interval, "verdict": contrasted.verdict, "sentence": told(contrasted)}


def _fields(value: Any) -> dict[str, Any]:
    """As `dataclasses.asdict`, but not deep: that would copy everything that is rewritten in the next moment."""
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _finite(value: Any) -> Any:
    if is_dataclass(value):
        return {k: _finite(v) for k, v in _fields(value).items()}
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
