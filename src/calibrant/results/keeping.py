"""What a measurement must be so that a store can keep it: it can be read again, and score and items
don't contradict each other.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from calibrant.results.items import table_of
from calibrant.results.outcomes import Measurement, Outcome, Score, item_name
from calibrant.results.records import ScoreEntry
from calibrant.spec import identity
from calibrant.system.durable import compact_json, from_json


def why_not_kept(evaluator: Mapping[str, Any], measurement: Measurement) -> str:
    """Return why a store can't keep what an evaluator, in its canonical form, has just measured;
    nothing where it can.
    """
    score = measurement.score
    entry = ScoreEntry("", "", evaluator, score, beside=measurement.beside)
    try:
        ScoreEntry.read(from_json(compact_json(entry.plain())))
        _check_table(measurement.outcomes)
        faults = list(contradictions(score, measurement.outcomes))
        names = Counter(item_name(outcome.item) for outcome in measurement.outcomes)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        return f"it can't be written and read again ({error})"
    if math.isnan(score.value):
        return "its score is no number (nan)"
    if faults:
        return faults[0]
    # Comparisons pair the items of two measurements by name.
    for name, count in names.items():
        if count > 1:
            return f"{count} items have the name {name!r}"
    return ""


def _check_table(items: Sequence[Outcome]) -> None:
    """Raise what `table_of` raises for items that make no table. Where pyarrow isn't installed,
    there is no store that could keep them, and nothing is looked at.
    """
    with suppress(ModuleNotFoundError):
        table_of(items)


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
