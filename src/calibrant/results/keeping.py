"""What a measurement must be so that a store can keep it: it can be read again, and score and items
don't contradict each other.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from calibrant.results.items import outcomes_of, table_of
from calibrant.results.outcomes import Measurement, Outcome, Score, item_name
from calibrant.results.records import ScoreEntry
from calibrant.spec import identity
from calibrant.system.durable import compact_json, from_json


def as_kept(evaluator: Mapping[str, Any], measurement: Measurement) -> Measurement:
    """Return what an evaluator, in its canonical form, has just measured as a store gives it back:
    its numbers are Python's own, where an evaluator may have given numpy's.

    Raises `ValueError` with the reason where a store can't keep it.
    """
    score = measurement.score
    entry = ScoreEntry("", "", evaluator, score, beside=measurement.beside)
    try:
        read = ScoreEntry.read(from_json(compact_json(entry.plain())))
        outcomes = _read_again(measurement.outcomes)
        faults = list(contradictions(score, measurement.outcomes))
        names = Counter(item_name(outcome.item) for outcome in measurement.outcomes)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"it can't be written and read again ({error})") from error
    if math.isnan(score.value):
        raise ValueError("its score is no number (nan)")
    if faults:
        raise ValueError(faults[0])
    # Comparisons pair the items of two measurements by name.
    for name, count in names.items():
        if count > 1:
            raise ValueError(f"{count} items have the name {name!r}")
    return replace(measurement, score=read.score, beside=read.beside, outcomes=outcomes)


def _read_again(items: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The items as a table of them gives them back. Raises what `table_of` raises for items that
    make no table. Where pyarrow isn't installed, there is no store that could keep them, and they
    stay as they are.
    """
    try:
        return outcomes_of(table_of(items))
    except ModuleNotFoundError:
        return tuple(items)


def contradictions(score: Score, items: Sequence[Outcome]) -> Iterator[str]:
    """Yield where a score and its items contradict each other; a measurement may come without
    items.
    """
    if not items:
        return
    if score.n != len(items):
        yield f"has {len(items)} items, and the score is over {score.n}"
    total = math.fsum(item.weight for item in items)
    value = math.nan
    if total:
        value = math.fsum(item.value for item in items) / total
    # What wrote the score may have added in another order; and NaN isn't equal to itself.
    near = math.isclose(value, score.value, rel_tol=1e-6, abs_tol=1e-9)
    if not near and not (math.isnan(value) and math.isnan(score.value)):
        yield f"its items give {value!r}, and the score is {score.value!r}"
    digest = score.facts.get("items")
    # Older scores have a digest of the items' names alone.
    with_weights = identity([[item.item, item.weight] for item in items])
    names_alone = identity([item.item for item in items])
    if digest is not None and digest not in (with_weights, names_alone):
        yield f"holds other items than the score is over: {digest}"
