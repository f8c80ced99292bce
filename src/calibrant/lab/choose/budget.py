"""What a time buys: costs that are measured, a plan made of them before anything begins, and a
purse that says what is left.

The promise is kept in three steps. Before the work the pieces are timed small (`study.timing`), or
were measured by an earlier call in the same folder, and the largest plan that fits is chosen: fewer
candidates, fewer sets, fewer tokens, and last a single draw. The costs are corrected by what each
step really took. And no round, and no set of a round, is begun that can't end in time, but for the
first sets of the first round, without which there would be no answer.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, final

from calibrant.errors import DataError
from calibrant.system.durable import put, read_json, sealed, short, text_of_json
from calibrant.system.seals import Purpose, tell_made_again

RACED: Final = 5
"""Sets in a race, the baseline among them."""
LEAST: Final = 3
"""Sets of a first round that are measured whatever the time."""
ROUNDS: Final = 5
"""Draws of a set at most."""
MARGIN: Final = 1.15
"""By how much a plan may be wrong, and still end in time."""
TOKENS: Final = 2048
"""Tokens below which a short time doesn't lower the budget of a set."""
COSTS: Final = "costs.json"
PLAN: Final = "plan.json"


@final
class Purse:
    """The time of one call. `now` is a clock in seconds."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self._now, self._began = 60 * minutes, now, now()

    @property
    def spent(self) -> float:
        """Seconds since the call began."""
        return self._now() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left; below zero, the time is up."""
        return self.seconds - self.spent


@final
@dataclass(frozen=True)
class StepCosts:
    """Seconds on this machine, for one question: `opened` to open the model, `walk` and `judge` for
    a token of which statistics are gathered, `search` for a search of mixtures, `compress` for a
    run whose statistics are there, `measure` for all measurements of one run.

    `again` is for a token of a run that sees its inputs itself, as methods do that update
    weights; 0 for those that read what was gathered, which is done once for a set and draw.
    """

    opened: float
    walk: float
    judge: float
    search: float
    compress: float
    measure: float
    again: float = 0.0

    def predicting(self, sources: int, judges: int, tokens: int) -> float:
        """Seconds until all candidates are predicted: a walk for each source, and for each
        judge.
        """
        return tokens * (sources * self.walk + judges * self.judge) + judges * self.search

    def round(self, runs: int, walks: int, parts: int, tokens: int, share: float = 1.0) -> float:
        """Seconds of a round of so many runs, on a `share` of the items.

        The statistics of `walks` sets have to be gathered; where runs see their inputs themselves,
        they walk through `parts` sets in all.
        """
        walking = parts * self.again if self.again else walks * self.walk
        return self.opened + runs * (self.compress + share * self.measure) + tokens * walking

    def scaled(self, predicting: float = 1.0, racing: float = 1.0) -> "StepCosts":
        """Return the costs where the two parts of the work took so many times as long as these
        say.
        """
        gathered = replace(
            self,
            walk=self.walk * predicting,
            judge=self.judge * predicting,
            search=self.search * predicting,
        )
        return replace(
            gathered,
            compress=self.compress * racing,
            measure=self.measure * racing,
            again=self.again * racing,
        )

    def keep(self, folder: Path, question: str) -> None:
        """Write them into the folder for the next call."""
        folder.mkdir(parents=True, exist_ok=True)
        _put(folder / COSTS, {"question": question, **asdict(self)})


def kept(folder: Path, question: str) -> StepCosts | None:
    """Return what an earlier call for the same question measured, if it did."""
    stored: Any = _stored(folder / COSTS, question)
    names = [each.name for each in fields(StepCosts)]
    values: list[Any] = [stored.get(name) for name in names] if stored else [None]
    if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in values):
        return None
    return StepCosts(*map(float, values))


def _put(path: Path, document: dict[str, Any]) -> None:
    put(path, text_of_json(sealed(document, _purpose(path))).encode())


def _purpose(path: Path) -> Purpose:
    return {"kind": "advice", "file": path.name}


def _stored(path: Path, question: str) -> Any:
    """What an earlier call kept of the same question; None for another's, and for what is
    damaged: it is measured again.
    """
    if not path.is_file():
        return None
    try:
        stored: Any = read_json(path, _purpose(path), required=True)
    except DataError:
        tell_made_again("what an earlier call measured", short(path))
        return None
    return stored if isinstance(stored, dict) and stored.get("question") == question else None


@final
@dataclass(frozen=True)
class TimePlan:
    """What the time will buy: so many candidates predicted, so many sets measured, `rounds` draws
    of each, with `tokens` each, in `seconds`.

    Of what is measured by, `share` is used; `halves` says whether a held-out sibling is judged by
    too. `another` are the seconds of one draw more. `fits` says whether even this is within the
    time: there is nothing smaller. `done` are draws that an earlier call made.
    """

    sources: int
    arms: int
    rounds: int
    tokens: int
    share: float
    halves: bool
    seconds: float
    another: float
    fits: bool = True
    done: int = 0

    def sentence(self, minutes: float) -> str:
        """Say it, before it begins."""
        each = (
            "one draw only: no interval over draws"
            if self.rounds == 1
            else f"{self.rounds} draws each"
        )
        what = f"{self.sources} candidates predicted, {self.arms} sets measured, {each}, with {self.tokens:,} tokens a set"
        what += f", on {self.share:.0%} of the held-out items" if self.share < 1 else ""
        if not self.fits:
            head = f"{minutes:g} minutes are too few: the least takes about {duration(self.seconds)} ({what})"
        else:
            head = f"{minutes:g} minutes buy: {what} (about {duration(self.seconds)})"
        if self.done:
            head += f"; {self.done} of the draws are there from an earlier call"
        more = {1: "a second draw", 2: "a third draw"}.get(self.rounds, "one more draw")
        needed = math.ceil(10 * MARGIN * (self.seconds + self.another) / 60) / 10
        return head + (
            f"; {more} would take about {duration(self.another)} more (--budget {needed:g})"
            if self.rounds < ROUNDS
            else ""
        )

    def keep(self, folder: Path, question: str, minutes: float, done: int) -> None:
        """Write it into the folder, so that a later call goes on with the same sets, tokens and
        items.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _put(
            folder / PLAN, {"question": question, "minutes": minutes, **asdict(self), "done": done}
        )


def kept_plan(folder: Path, question: str, minutes: float) -> TimePlan | None:
    """Return the plan of an earlier call for the same question, unless there is so much more
    time now that a larger one is worth beginning anew.
    """
    stored: Any = _stored(folder / PLAN, question)
    if not isinstance(stored, dict) or not minutes < 3 * float(stored.get("minutes", 0)):
        return None
    try:
        return TimePlan(**{each.name: stored[each.name] for each in fields(TimePlan)})
    except KeyError:
        return None


def continued(plan: TimePlan, costs: StepCosts, seconds: float, rounds: int) -> TimePlan:
    """Return a kept plan with the draws that `seconds` buy beside those that are there."""
    runs = runs_of(plan.arms, plan.halves)
    another = costs.round(runs, runs, _parts(runs, plan.sources), plan.tokens, plan.share)
    begun = 2 * costs.opened + costs.search * (3 if plan.halves else 1)
    more = max(0, min(rounds - plan.done, int((seconds / MARGIN - begun) / another)))
    return replace(
        plan,
        rounds=max(1, plan.done + more),
        seconds=begun + more * another,
        another=another,
        fits=begun <= seconds,
    )


def planned(
    costs: StepCosts,
    seconds: float,
    sources: int,
    least: int,
    tokens: int,
    halves: bool,
    *,
    fixed: bool = False,
    smaller: bool = True,
    rounds: int = ROUNDS,
) -> TimePlan:
    """Return the largest plan that ends within `seconds`, for `sources` candidates, of which
    `least` must stay; `halves` for a held-out sibling.

    Two draws of fewer sets come before one draw of more, fewer candidates before fewer items (not
    unless `smaller`) and fewer tokens (not where they are `fixed`), and the sibling goes last.
    `rounds` is the most.
    """
    plans = [
        _plan(costs, *shape)
        for shape in _shapes(sources, least, tokens, halves, fixed, smaller, min(2, rounds))
    ]
    chosen = next((plan for plan in plans if plan.seconds * MARGIN <= seconds), plans[-1])
    fits = chosen.seconds * MARGIN <= seconds
    more = (
        int((seconds / MARGIN - chosen.seconds) / max(chosen.another, 1e-9))
        if fits and chosen.rounds > 1
        else 0
    )
    more = min(more, rounds - chosen.rounds)
    return replace(
        chosen,
        rounds=chosen.rounds + more,
        seconds=chosen.seconds + more * chosen.another,
        fits=fits,
    )


def least_with_sibling(costs: StepCosts, sources: int, least: int, tokens: int) -> float:
    """Return the seconds of the smallest plan that has a held-out sibling."""
    *_, smallest = (
        shape for shape in _shapes(sources, least, tokens, True, True, True, 1) if shape[-1]
    )
    return MARGIN * _plan(costs, *smallest).seconds


def runs_of(arms: int, halves: bool) -> int:
    """Return about how many runs a draw of so many sets takes: of those that hold the target's
    file, each half is a run too.
    """
    return arms + (2 * (1 if arms <= LEAST else 2) if halves else 0)


def _parts(runs: int, sources: int) -> int:
    """Return through about how many sets runs walk that see their inputs themselves: one each,
    but for a mixture of all sources.
    """
    return runs + sources - 1


def _shapes(
    sources: int, least: int, tokens: int, halves: bool, fixed: bool, smaller: bool, rounds: int
) -> Iterator[tuple[int, int, int, int, float, bool]]:
    """Sources, sets, rounds, tokens, share of the items, sibling; the most wanted first."""
    budgets = [
        tokens,
        *(each for each in (tokens // 2, tokens // 4) if each >= TOKENS and not fixed),
    ]
    shares = (1.0, 0.5, 0.25) if smaller else (1.0,)
    some = [max(least, min(sources, count)) for count in (sources, (sources + 1) // 2, LEAST)]
    sizes = [(RACED, some[0]), (4, some[0]), (4, some[1]), (LEAST, some[1]), (LEAST, some[2])]
    for sibling in dict.fromkeys((halves, False)):
        for draws in dict.fromkeys((rounds, 1)):
            for budget, share in sorted(
                itertools.product(budgets, shares), key=lambda one: -one[0] / tokens * one[1]
            ):
                yield from (
                    (count, min(arms, count + 2), draws, budget, share, sibling)
                    for arms, count in sizes
                )


def _plan(
    costs: StepCosts, sources: int, arms: int, rounds: int, tokens: int, share: float, halves: bool
) -> TimePlan:
    runs = runs_of(arms, halves)
    predicting = costs.predicting(sources + 2 * halves, 1 + 2 * halves, tokens)
    parts = _parts(runs, sources)
    another = costs.round(runs, runs, parts, tokens, share)
    racing = (
        costs.round(runs + 1, 0, parts, tokens, share) + (rounds - 1) * another
    )  # the dense model is measured in the first
    return TimePlan(sources, arms, rounds, tokens, share, halves, predicting + racing, another)


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(93.0), duration(400.0)
    ('93 s', '6.7 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
