"""A report as data for programs: everything as JSON, its scores as comma-separated values (RFC
4180). No torch here.
"""

import math
from collections.abc import Mapping, Sequence
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
    data: dict[str, Any] = {
        "models": facts.models,
        "rankings": list(map(_ranking, comparison.rankings)),
    }
    if comparison.unranked:
        data["unranked"] = list(map(_ranking, comparison.unranked))
    data |= {
        "contrasts": list(map(_contrast, comparison.contrasts)),
        "agreements": list(comparison.agreements),
        "sensitivities": list(map(_sensitivity, comparison.sensitivities)),
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
    if comparison.uncounted:
        data["uncounted"] = comparison.uncounted
    if comparison.dtypes:
        data["dtypes"] = comparison.dtypes
    return _finite(data)


def _ranking(ranking: Ranking) -> dict[str, Any]:
    data = _fields(ranking)
    for name in ("bits", "floors"):
        if not data[name]:
            del data[name]
    dense = None if ranking.dense is None else _entry(ranking, ranking.dense)
    sentences = [doubt.sentence for doubt in doubts([ranking]).every]
    return data | {
        "entries": _entries(ranking, ranking.entries),
        "partial": _entries(ranking, ranking.partial),
        "baselines": _entries(ranking, ranking.baselines),
        "dense": dense,
        "finding": finding(ranking),
        "doubts": sentences,
        "remarks": remarks(ranking),
        "caveats": caveats(ranking),
    }


def _entries(ranking: Ranking, entries: Sequence[RankingEntry]) -> list[dict[str, Any]]:
    return [_entry(ranking, entry) for entry in entries]


def _entry(ranking: Ranking, entry: RankingEntry) -> dict[str, Any]:
    joint = None
    if entry.to_best is not None:
        joint = entry.to_best.interval(ranking.level, ranking.comparisons)
    data = _fields(entry)
    # The parts of its name: they are in the name.
    del data["label"]
    return data | {"mean_interval": entry.mean.interval(ranking.level), "to_best_interval": joint}


def _sensitivity(sensitivity: Sensitivity) -> dict[str, Any]:
    fields = _fields(sensitivity)
    # The JSON has keys that stay the same; `floor` is the stricter bound, jointly over what was
    # measured.
    for name in ("by_chance", "cross_fitted"):
        del fields[name]
    return fields | {
        "worth": sensitivity.worth,
        "worth_interval": sensitivity.worth_interval,
        "floor": sensitivity.floor,
        "share": sensitivity.share,
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    interval = None
    if contrast.difference is not None:
        interval = contrast.difference.interval(contrast.level)
    return _fields(contrast) | {
        "interval": interval,
        "verdict": contrast.verdict,
        "sentence": contrast_sentence(contrast),
    }


def _fields(value: Any) -> dict[str, Any]:
    """As `dataclasses.asdict`, but not deep: that would copy everything that is rewritten in the
    next moment.
    """
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _finite(value: Any) -> Any:
    if is_dataclass(value):
        return _finite(_fields(value))
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
