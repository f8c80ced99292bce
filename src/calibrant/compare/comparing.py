"""Everything that can be compared in a store, at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrant.compare.agreement import RankAgreement, agreements
from calibrant.compare.answers import grouped, unranked
from calibrant.compare.estimate import LEVEL
from calibrant.compare.field import Field
from calibrant.compare.primary import Contrast, contrasts
from calibrant.compare.questions import PaperQuestion, questions
from calibrant.compare.ranking import Ranking
from calibrant.compare.results import Results, narrowed, read
from calibrant.errors import SpecError
from calibrant.store import Store


@dataclass(frozen=True)
class Comparison:
    """What a store's numbers say.

    `rankings` are descriptive and `comparisons` counts the comparisons that they show; `contrasts` are those that the study named before it ran;
    `questions` are those of the study that this project is named after, answered for this one. `unranked` are methods that look at no data, asked
    for what no set was asked for: rankings without sets, which have one baseline each. `missing` names every hole with its reason,
    `stale` counts runs of an older revision, `one_draw` says that some set was drawn only once.
    """

    rankings: tuple[Ranking, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    agreements: tuple[RankAgreement, ...] = ()
    comparisons: int = 0
    missing: tuple[str, ...] = ()
    stale: int = 0
    one_draw: bool = False
    questions: tuple[PaperQuestion, ...] = ()
    unranked: tuple[Ranking, ...] = ()


def compare(store: Store | Results, measures: Sequence[str] = (), level: float = LEVEL, baseline: str = "") -> Comparison:
    """Compare everything that a store holds.

    `measures` narrows what the rankings show: what begins with one of them, an evaluator or a measured set. Primary contrasts stay as the study
    named them. `baseline` is the set that others are compared with: unless it is given the study's own, else c4, else the first set that was asked
    for. Raises `DataError` for results that can't be compared with one another, `SpecError` where nothing measured begins as asked, and for a
    baseline that isn't there.
    """
    reading = store if isinstance(store, Results) else read(store)
    chosen = narrowed(reading, measures)
    fields = fields_of(chosen, level, baseline)
    ranked = tuple(field.ranking() for field in fields)
    alone = tuple(field.ranking() for g, cells in unranked(chosen.cells).items() if not (field := Field(g, cells, chosen, level)).empty)
    return Comparison(
        ranked,
        tuple(contrasts(reading, level)),
        tuple(agreements(fields)),
        comparisons=sum(r.comparisons * (len(r.measured) + (len(r.averaged) > 1)) for r in ranked if len(r.entries) + len(r.baselines) > 1),
        missing=tuple(dict.fromkeys(hole for r in (*ranked, *alone) for hole in r.missing)),
        stale=len(reading.stale & reading.records.keys()),
        one_draw=any(r.one_draw for r in ranked),
        questions=tuple(questions(fields)),
        unranked=alone,
    )


def rankings(store: Store | Results, level: float = LEVEL) -> list[Ranking]:
    """A ranking for each model, method, target and propagation of the grid that the store answers. A set that lacks a measure is named in it."""
    reading = store if isinstance(store, Results) else read(store)
    return [field.ranking() for field in fields_of(reading, level)]


def fields_of(reading: Results, level: float = LEVEL, baseline: str = "") -> list[Field]:
    """What each ranking is made from. A group of which nothing at all was measured has none."""
    chosen = _baseline(reading, baseline)
    found = [Field(group, cells, reading, level, chosen) for group, cells in grouped(reading.cells).items()]
    return [field for field in found if not field.empty]


def _baseline(reading: Results, asked: str) -> str:
    """The set that others are compared with: as asked, as the study names it, c4, or the first there is."""
    sets = list(dict.fromkeys(cell.data for cell in reading.cells if cell.data))
    if asked and asked not in sets:
        raise SpecError(f"no calibration set here is called {asked!r} (there are: {', '.join(sets) or 'none'}); name one of these", subject=asked)
    usual = next((label for label in sets if reading.label(label).source == "c4"), sets[0] if sets else "")
    return asked or str(reading.study.get("baseline") or usual)
