"""What a time buys: measured costs, a plan made of them before anything begins, and what is left.

The promise is kept in three steps. First the pieces are timed small (`lab.choose.timing`), or were
by an earlier call in the same folder. Then the largest plan that fits is chosen: fewer candidates,
fewer sets, fewer tokens, and last a single draw. The costs are corrected by what each step really
took. And no round, and no set of a round, is begun that can't end in time. The exception are the
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
class TimeBudget:
    """The time of one call. `now` is a clock in seconds."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 60 * minutes
        self._now = now
        self._began = now()

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
    """What each step takes on this machine, for one question, in seconds.

    `opened` opens the model. `walk` and `judge` gather the statistics of a token of a source and of
    a judge.
    `search` is a search of mixtures, `compress` a run whose statistics are there, and `measure` all
    measurements of one run. `again` is for a token of a run that sees its inputs itself, as methods
    do that update weights. It is 0 for methods that read what was gathered for a set and draw.
    `write` is for a token of a set that the model writes itself, 0 where it writes none.
    """

    opened: float
    walk: float
    judge: float
    search: float
    compress: float
    measure: float
    again: float = 0.0
    write: float = 0.0

    def predicting(self, sources: int, judges: int, tokens: int) -> float:
        """Return the seconds until all candidates are predicted: a walk for each source and
        judge.
        """
        walking = sources * self.walk + judges * self.judge
        return tokens * walking + judges * self.search

    def round(
        self,
        runs: int,
        walks: int,
        parts: int,
        tokens: int,
        share: float = 1.0,
        written: int = 0,
    ) -> float:
        """Return the seconds of a round of so many runs, on a `share` of the items.

        The statistics of `walks` sets have to be gathered. Where runs see their inputs themselves,
        they walk through `parts` sets in all. The model has to write `written` sets first.
        """
        by_token = parts * self.again if self.again else walks * self.walk
        by_token += written * self.write
        return self.opened + runs * (self.compress + share * self.measure) + tokens * by_token

    def scaled(self, predicting: float = 1.0, racing: float = 1.0) -> "StepCosts":
        """Return the costs where the two parts of the work took so many times as long."""
        return StepCosts(
            opened=self.opened,
            walk=self.walk * predicting,
            judge=self.judge * predicting,
            search=self.search * predicting,
            compress=self.compress * racing,
            measure=self.measure * racing,
            again=self.again * racing,
            write=self.write * racing,
        )

    def keep(self, folder: Path, question: str) -> None:
        """Write them into the folder for the next call."""
        _put(folder, COSTS, {"question": question, **asdict(self)})


def kept_costs(folder: Path, question: str) -> StepCosts | None:
    """Return what an earlier call for the same question measured, if it did."""
    stored = _stored(folder / COSTS, question)
    if stored is None:
        return None
    values: dict[str, float] = {}
    for field in fields(StepCosts):
        value = stored.get(field.name)
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            return None
        values[field.name] = float(value)
    return StepCosts(**values)


def _put(folder: Path, name: str, document: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    text = text_of_json(sealed(document, _purpose(path)))
    put(path, text.encode())


def _purpose(path: Path) -> Purpose:
    return {"kind": "advice", "file": path.name}


def _stored(path: Path, question: str) -> dict[str, Any] | None:
    """What an earlier call kept for the same question.

    None where it was another question, or the file is damaged; then it is measured again.
    """
    if not path.is_file():
        return None
    try:
        stored: Any = read_json(path, _purpose(path), required=True)
    except DataError:
        tell_made_again("what an earlier call measured", short(path))
        return None
    if isinstance(stored, dict) and stored.get("question") == question:
        return stored
    return None


@final
@dataclass(frozen=True)
class TimePlan:
    """What the time will buy.

    So many `sources` are predicted as candidates, and so many `sets` are measured, in `rounds`
    draws of `tokens` each. That takes `seconds`, and one draw more takes `another`. Of what is
    measured by, `share` is used. `halves` says whether a held-out sibling is judged by too. `fits`
    says whether even this is within the time: there is nothing smaller. `done` are draws that an
    earlier call made. `written` of the sources are the model's own answers. `minutes` is the
    largest `--budget` of the calls so far.
    """

    sources: int
    sets: int
    rounds: int
    tokens: int
    share: float
    halves: bool
    seconds: float
    another: float
    fits: bool = True
    done: int = 0
    written: int = 0
    minutes: float = 0.0

    def sentence(self, minutes: float, spent: float, most: int = ROUNDS) -> str:
        """Say it, before it begins. `spent` are the seconds that the call took so far, and `most`
        is how many draws the data holds.
        """
        draws = f"{self.rounds} draws each"
        if self.rounds == 1:
            draws = "one draw only: no interval over draws"
        candidates = f"{self.sources} candidates predicted"
        if self.written:
            candidates += ", the model's own answers among them"
        work = f"{candidates}, {self.sets} sets measured, {draws}"
        work += f", with {self.tokens:,} tokens a set"
        if self.share < 1:
            work += f", on {self.share:.0%} of the held-out items"
        takes = f"about {to_a_tenth(self.seconds)}"
        if self.fits:
            text = f"{minutes:g} minutes buy: {work} ({takes})"
        else:
            text = f"{minutes:g} minutes are too few: the least takes {takes} ({work})"
        if self.done:
            text += f"; {self.done} of the draws are there from an earlier call"
        if self.rounds >= most:
            return text
        another_draw = {1: "a second draw", 2: "a third draw"}.get(self.rounds, "one more draw")
        # In minutes, rounded up to a tenth. The time includes what came before the plan.
        enough_seconds = spent + MARGIN * (self.seconds + self.another)
        enough_minutes = math.ceil(10 * enough_seconds / 60) / 10
        takes = f"about {to_a_tenth(self.another)} more"
        return f"{text}; {another_draw} would take {takes} (--budget {enough_minutes:g})"

    def keep(self, folder: Path, question: str, done: int) -> None:
        """Write it into the folder, so that a later call goes on with the same sets, tokens and
        items.
        """
        _put(folder, PLAN, {"question": question, **asdict(self), "done": done})

    def includes_what_lacked(self, earlier: "TimePlan") -> bool:
        """Return whether this plan has a sibling, or answers of the model, that an earlier one left
        out.
        """
        if self.halves and not earlier.halves:
            return True
        return self.written > earlier.written


def kept_plan(folder: Path, question: str, minutes: float) -> TimePlan | None:
    """Return the plan of an earlier call for the same question.

    None too where there is so much more time now that a larger plan is worth beginning anew.
    """
    stored = _stored(folder / PLAN, question)
    if stored is None or not minutes < 3 * float(stored.get("minutes", 0)):
        return None
    # What a plan of an earlier release doesn't say is as it is by default.
    known: dict[str, Any] = {}
    for field in fields(TimePlan):
        if field.name in stored:
            known[field.name] = stored[field.name]
    try:
        return TimePlan(**known)
    except TypeError:
        return None


def continued(plan: TimePlan, costs: StepCosts, seconds: float, rounds: int) -> TimePlan:
    """Return a kept plan with the draws that `seconds` buy beside those that are there."""
    another = _another_draw(costs, plan)
    searches = 3 if plan.halves else 1
    starting = 2 * costs.opened + costs.search * searches
    # Every second is planned as if it took `MARGIN` times as long.
    affordable = int((seconds / MARGIN - starting) / another)
    extra_draws = max(0, min(rounds - plan.done, affordable))
    # A race that was killed in its first draw has it still before it.
    draws = max(1, plan.done + extra_draws)
    needed = starting + (draws - plan.done) * another
    return replace(plan, rounds=draws, seconds=needed, another=another, fits=needed <= seconds)


def planned(
    costs: StepCosts,
    seconds: float,
    sources: int,
    least: int,
    tokens: int,
    halves: bool,
    *,
    fixed: bool = False,
    rounds: int = ROUNDS,
    written: int = 0,
    spare: bool = False,
) -> TimePlan:
    """Return the largest plan that ends within `seconds`.

    It is for `sources` candidates, of which `least` must stay; `halves` asks for a held-out
    sibling. Two draws of fewer sets come before one draw of more, and fewer candidates before fewer
    items and fewer tokens, which stay where they are `fixed`. The sibling goes last. `rounds` is
    the most. The model writes `written` of the candidates itself; where they are `spare`, they go
    before others do.
    """
    chosen: TimePlan | None = None
    fits = False
    # The most wanted shapes come first; the last one is taken even where it doesn't fit.
    draws = min(2, rounds)
    for shape in _shapes(sources, least, tokens, halves, fixed, draws, written, spare):
        chosen = _plan(costs, shape)
        fits = chosen.seconds * MARGIN <= seconds
        if fits:
            break
    assert chosen is not None, "there is always a smallest plan"
    extra_draws = 0
    if fits and chosen.rounds > 1:
        extra_draws = int((seconds / MARGIN - chosen.seconds) / max(chosen.another, 1e-9))
        extra_draws = min(extra_draws, rounds - chosen.rounds)
    return replace(
        chosen,
        rounds=chosen.rounds + extra_draws,
        seconds=chosen.seconds + extra_draws * chosen.another,
        fits=fits,
    )


def least_with_sibling(
    costs: StepCosts, sources: int, least: int, tokens: int, written: int = 0
) -> float:
    """Return the seconds of the smallest plan that has a held-out sibling; the model writes
    `written` of its sources.
    """
    shapes = _shapes(sources, least, tokens, halves=True, fixed=True, rounds=1, written=written)
    with_sibling = [shape for shape in shapes if shape.halves]
    return MARGIN * _plan(costs, with_sibling[-1]).seconds


def runs_of(sets: int, halves: bool) -> int:
    """Return about how many runs a draw of so many sets takes.

    Of those that hold the goal's file, each half is a run too.
    """
    if not halves:
        return sets
    # As many sets that hold the file as are raced: the file, and one more where there is room.
    holding = 1 if sets <= LEAST else 2
    return sets + 2 * holding


def _parts(runs: int, sources: int) -> int:
    """About how many sets are walked through by runs that see their inputs themselves.

    That is one a run, and all sources for the run of their mixture.
    """
    return runs + sources - 1


@dataclass(frozen=True)
class _Shape:
    """How large a plan is, in the words of `TimePlan`."""

    sources: int
    sets: int
    rounds: int
    tokens: int
    share: float
    halves: bool
    written: int


def _shapes(
    sources: int,
    least: int,
    tokens: int,
    halves: bool,
    fixed: bool,
    rounds: int,
    written: int = 0,
    spare: bool = False,
) -> Iterator[_Shape]:
    """The sizes that a plan may have, the most wanted first."""
    budgets = [tokens]
    for smaller in (tokens // 2, tokens // 4):
        if smaller >= TOKENS and not fixed:
            budgets.append(smaller)
    budget_shares = list(itertools.product(budgets, (1.0, 0.5, 0.25)))

    def order(pair: tuple[int, float]) -> float:
        budget, share = pair
        # Fewer items and fewer tokens shrink the work alike, so what is left of both decides.
        return -budget / tokens * share

    budget_shares.sort(key=order)
    # Each size with the sets that the model writes; where they are spare, then without them.
    needed = least
    if spare:
        needed += written
    sizes: list[tuple[int, int, int]] = []
    without_written = _sizes(sources - written, least)
    for size, unwritten_size in zip(_sizes(sources, needed), without_written, strict=True):
        sizes.append((*size, written))
        if spare:
            sizes.append((*unwritten_size, 0))
    for sibling in dict.fromkeys((halves, False)):
        for draws in dict.fromkeys((rounds, 1)):
            for budget, share in budget_shares:
                for sets, count, answers in sizes:
                    raced = min(sets, count + 2)
                    yield _Shape(count, raced, draws, budget, share, sibling, answers)


def _sizes(sources: int, least: int) -> list[tuple[int, int]]:
    """Sets that are measured and candidates that are predicted, the most wanted first."""
    all_sources = max(least, sources)
    half_sources = max(least, min(sources, (sources + 1) // 2))
    few_sources = max(least, min(sources, LEAST))
    return [
        (RACED, all_sources),
        (4, all_sources),
        (4, half_sources),
        (LEAST, half_sources),
        (LEAST, few_sources),
    ]


def _plan(costs: StepCosts, shape: _Shape) -> TimePlan:
    runs = runs_of(shape.sets, shape.halves)
    parts = _parts(runs, shape.sources)
    # With a sibling, the halves are two sources more and two judges more.
    sibling_walks = 2 if shape.halves else 0
    predicting = costs.predicting(shape.sources + sibling_walks, 1 + sibling_walks, shape.tokens)
    writing = shape.tokens * costs.write * _written_sets(shape)
    another = _another_draw(costs, shape)
    # The first round finds the statistics of the prediction, and measures the dense model too.
    first_round = costs.round(runs + 1, 0, parts, shape.tokens, shape.share)
    racing = first_round + (shape.rounds - 1) * another
    return TimePlan(**asdict(shape), seconds=predicting + writing + racing, another=another)


def _another_draw(costs: StepCosts, size: "_Shape | TimePlan") -> float:
    """The seconds of one draw more, in which the model writes other answers."""
    runs = runs_of(size.sets, size.halves)
    parts = _parts(runs, size.sources)
    written = _written_sets(size)
    return costs.round(runs, runs, parts, size.tokens, size.share, written)


def _written_sets(size: "_Shape | TimePlan") -> int:
    """How many sets the model writes for a draw: with a sibling, those of both halves too."""
    return 3 * size.written if size.halves else size.written


def to_a_tenth(seconds: float) -> str:
    """Return a time in minutes to a tenth, as `--budget` has it; below two minutes in seconds.

    >>> to_a_tenth(93.0), to_a_tenth(400.0)
    ('93 s', '6.7 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min"
