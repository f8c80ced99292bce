"""A report as data for programs: everything as JSON, its scores as comma-separated values (RFC
4180). No torch here.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.facts import StudyFacts
from calibrant.lab.report.sentences import caveats, finding, remarks
from calibrant.lab.report.summary import doubts
from calibrant.lab.report.tables.sections import contrast_sentence, trust_sentences
from calibrant.lab.stats import Comparison, Contrast, Ranking, RankingEntry, Sensitivity
from calibrant.spec.foreign import visible

if TYPE_CHECKING:
    import polars as pl

FORMULA: Final = r"^[=+\-@\t\r]"
"""How a cell begins that a spreadsheet would run."""


def csv(scores: "pl.DataFrame") -> str:
    """Return `scores` under heads. A text that a spreadsheet would take for a formula gets an
    apostrophe before it; numbers stay numbers.
    """
    import polars as pl

    text = pl.col(pl.String)
    safe = pl.when(text.str.contains(FORMULA)).then(pl.lit("'") + text).otherwise(text).name.keep()
    return (
        scores.with_columns(safe)
        .with_columns(text.map_elements(visible, return_dtype=pl.String))
        .write_csv(line_terminator="\r\n")
    )


def report_data(comparison: Comparison, facts: StudyFacts) -> dict[str, Any]:
    """Return everything, as JSON can hold it: what is not a number, or has no end, is null."""
    return _finite(
        {
            "models": facts.models,
            "rankings": [_ranking(r) for r in comparison.rankings],
            **(
                {"unranked": [_ranking(r) for r in comparison.unranked]}
                if comparison.unranked
                else {}
            ),
            "contrasts": [_contrast(c) for c in comparison.contrasts],
            "agreements": list(comparison.agreements),
            "sensitivities": [_sensitivity(s) for s in comparison.sensitivities],
            "questions": list(comparison.questions),
            "comparisons": comparison.comparisons,
            "missing": comparison.missing,
            "stale": comparison.stale,
            "one_draw": comparison.one_draw,
            "caveats": list(trust_sentences(comparison)),
            "failures": facts.failures,
            "settings": facts.settings,
            "machine": facts.machine,
            "seconds": facts.seconds,
        }
    )


def _ranking(ranking: Ranking) -> dict[str, Any]:
    return {
        **{
            name: value
            for name, value in _fields(ranking).items()
            if name not in ("bits", "floors") or value not in (None, {})
        },
        "entries": [_entry(ranking, e) for e in ranking.entries],
        "partial": [_entry(ranking, e) for e in ranking.partial],
        "baselines": [_entry(ranking, e) for e in ranking.baselines],
        "dense": _entry(ranking, ranking.dense) if ranking.dense else None,
        "finding": finding(ranking),
        "doubts": [doubt.sentence for doubt in doubts([ranking]).every],
        "remarks": remarks(ranking),
        "caveats": caveats(ranking),
    }


def _entry(ranking: Ranking, entry: RankingEntry) -> dict[str, Any]:
    joint = entry.to_best.interval(ranking.level, ranking.comparisons) if entry.to_best else None
    known = {
        name: value for name, value in _fields(entry).items() if name != "label"
    }  # the parts of its name
    return {**known, "mean_interval": entry.mean.interval(ranking.level), "to_best_interval": joint}


def _sensitivity(sensitivity: Sensitivity) -> dict[str, Any]:
    summary = {
        name: getattr(sensitivity, name) for name in ("worth", "worth_interval", "floor", "share")
    }
    return {**_fields(sensitivity), **summary}


def _contrast(contrast: Contrast) -> dict[str, Any]:
    interval = contrast.difference.interval(contrast.level) if contrast.difference else None
    return {
        **_fields(contrast),
        "interval": interval,
        "verdict": contrast.verdict,
        "sentence": contrast_sentence(contrast),
    }


def _fields(value: Any) -> dict[str, Any]:
    """As `dataclasses.asdict`, but not deep: that would copy everything that is rewritten in the
    next moment.
    """
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
