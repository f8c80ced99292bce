"""Everything that can be compared in a store, at once. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrant.compare.agreement import Agreement
from calibrant.compare.primary import Contrasted
from calibrant.compare.ranking import Ranking, rankings
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


def compare(store: Store, measures: Sequence[str] = ()) -> Comparison:
    """Compare everything that `store` holds; `measures` (measured sets or evaluators, by the beginning of their name) narrows what it is compared on.

    Raises `DataError` for results that can't be compared with one another.
    """
    ranked = tuple(rankings(store))
    return Comparison(
        ranked,
        looks=sum(r.looks for r in ranked),
        missing=tuple(dict.fromkeys(hole for r in ranked for hole in r.missing)),
        one_draw=any(r.one_draw for r in ranked),
    )
