"""Everything that can be compared in a store, at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrant.compare.agreement import Agreement, agreements
from calibrant.compare.answers import grouped
from calibrant.compare.estimate import LEVEL
from calibrant.compare.field import Field
from calibrant.compare.primary import Contrasted, contrasts
from calibrant.compare.ranking import Ranking
from calibrant.compare.reading import Reading, narrowed, read
from calibrant.store import Store


@dataclass(frozen=True)
class Comparison:
    """What a store's numbers say.

    `rankings` are descriptive and `looks` counts the comparisons that they show; `contrasts` are those that the study named before it ran.
    `missing` names every hole with its reason, `stale` counts runs of an older revision, `one_draw` says that some set was drawn only once.
    """

    rankings: tuple[Ranking, ...] = ()
    contrasts: tuple[Contrasted, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    looks: int = 0
    missing: tuple[str, ...] = ()
    stale: int = 0
    one_draw: bool = False


def compare(store: Store | Reading, measures: Sequence[str] = (), level: float = LEVEL) -> Comparison:
    """Compare everything that a store holds.

    `measures` narrows what the rankings show: what begins with one of them, an evaluator or a measured set. Primary contrasts stay as the study
    named them. Raises `DataError` for results that can't be compared with one another, `SpecError` where nothing measured begins as asked.
    """
    reading = store if isinstance(store, Reading) else read(store)
    fields = fields_of(narrowed(reading, measures), level)
    ranked = tuple(field.ranking() for field in fields)
    return Comparison(
        ranked,
        tuple(contrasts(reading, level)),
        tuple(agreements(fields)),
        looks=sum(r.looks * (len(r.measured) + (len(r.averaged) > 1)) for r in ranked if len(r.entries) + len(r.baselines) > 1),
        missing=tuple(dict.fromkeys(hole for r in ranked for hole in r.missing)),
        stale=len(reading.stale & reading.records.keys()),
        one_draw=any(r.one_draw for r in ranked),
    )


def rankings(store: Store | Reading, level: float = LEVEL) -> list[Ranking]:
    """A ranking for each model, method, target and propagation of the grid that the store answers. A set that lacks a measure is named in it."""
    reading = store if isinstance(store, Reading) else read(store)
    return [field.ranking() for field in fields_of(reading, level)]


def fields_of(reading: Reading, level: float = LEVEL) -> list[Field]:
    """What each ranking is made from. A group of which nothing at all was measured has none."""
    found = [Field(group, cells, reading, level) for group, cells in grouped(reading.cells).items()]
    return [field for field in found if not field.empty]
