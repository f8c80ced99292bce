"""What a time buys, by costs that are made up and a clock that a test moves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrant import evaluate
from calibrant.errors import DataError, ModelError
from calibrant.lab.choose import racing
from calibrant.lab.choose.budget import (
    COSTS,
    LEAST,
    MARGIN,
    StepCosts,
    TimeBudget,
    TimePlan,
    continued,
    kept_costs,
    kept_plan,
    least_with_sibling,
    planned,
)
from calibrant.lab.choose.goal import parse_goal
from calibrant.lab.choose.racing import MATTERS, Race, Standing
from calibrant.lab.stats import Estimate
from calibrant.lab.study import Study, driver
from calibrant.lab.study.request import StudyResult
from calibrant.system.progress import Progress

from tests.trained import trained_folder

CHEAP = StepCosts(opened=1.0, walk=0.001, judge=0.002, search=5.0, compress=2.0, measure=6.0)


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def slowed(self, work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """The same work, which takes so many seconds."""

        def slow(*given: Any, **named: Any) -> Any:
            self.seconds += seconds
            return work(*given, **named)

        return slow


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("seconds", [60.0, 120.0, 480.0, 3000.0])
def test_a_plan_that_fits_ends_in_time_with_something_to_spare(
    seconds: float, halves: bool
) -> None:
    plan = planned(CHEAP, seconds, sources=9, least=2, tokens=8192, halves=halves)
    assert plan.fits == (plan.seconds * MARGIN <= seconds)
    assert plan.fits or (plan.sets, plan.rounds, plan.halves) == (LEAST, 1, False), (
        "nothing smaller is left"
    )


def test_the_time_that_a_sibling_takes_is_known() -> None:
    enough = least_with_sibling(CHEAP, 9, 2, 8192)
    assert planned(CHEAP, enough, sources=9, least=2, tokens=8192, halves=True, fixed=True).halves
    assert not planned(
        CHEAP, 0.9 * enough, sources=9, least=2, tokens=8192, halves=True, fixed=True
    ).halves


def test_costs_and_plan_are_kept_for_the_same_question_only(tmp_path: Path) -> None:
    CHEAP.keep(tmp_path, "one")
    assert kept_costs(tmp_path, "one") == CHEAP
    assert kept_costs(tmp_path, "two") is None
    (tmp_path / COSTS).write_text('{"question": "one", "opened": -1}')
    assert kept_costs(tmp_path, "one") is None
    plan = TimePlan(3, 3, 1, 2048, 0.5, False, 100.0, 50.0, minutes=4.0)
    plan.keep(tmp_path, "one", done=1)
    earlier = kept_plan(tmp_path, "one", minutes=5.0)
    assert earlier is not None
    assert (earlier.tokens, earlier.share, earlier.done) == (2048, 0.5, 1)
    assert kept_plan(tmp_path, "one", minutes=60.0) is None, (
        "with so much more time a larger plan is worth beginning anew"
    )
    more = continued(earlier, CHEAP, seconds=200.0, rounds=5)
    assert more.rounds > 1
    assert "1 of the draws" in more.sentence(5.0, 0.0)


@pytest.mark.parametrize("seconds", [60.0, 480.0])
def test_the_budget_of_one_more_draw_counts_what_the_call_has_spent_already(seconds: float) -> None:
    spent = 90.0
    plan = planned(CHEAP, seconds, sources=9, least=2, tokens=8192, halves=False, fixed=True)
    sentence = plan.sentence((seconds + spent) / 60, spent)
    enough = 60 * float(sentence.partition("--budget ")[2].rstrip(")"))
    assert enough > seconds + spent
    again = planned(CHEAP, enough - spent, 9, 2, 8192, halves=False, fixed=True)
    assert (again.rounds > plan.rounds, again.fits) == (True, True)


def test_a_race_that_was_killed_in_its_first_draw_has_it_still_before_it() -> None:
    plan = planned(CHEAP, 480.0, sources=9, least=2, tokens=8192, halves=False)
    killed = continued(plan, CHEAP, seconds=20.0, rounds=5)
    assert (killed.rounds, killed.fits) == (1, False)
    assert killed.seconds > killed.another
    later = continued(replace(plan, done=1), CHEAP, seconds=20.0, rounds=5)
    assert (later.rounds, later.fits) == (1, True)


def test_no_draw_is_offered_that_the_data_does_not_hold() -> None:
    plan = planned(CHEAP, 480.0, sources=9, least=2, tokens=8192, halves=False, rounds=1)
    assert "a second draw" in plan.sentence(8.0, 0.0)
    assert "draw would take" not in plan.sentence(8.0, 0.0, most=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock on which every run of a study takes 20 seconds."""
    clock = Clock()
    real = Study.run

    def slow(self: Study, folder: Path, progress: Progress) -> StudyResult:
        finished = real(self, folder, progress)
        clock.seconds += 20 * finished.computed / 2  # a run is a record and a measurement
        return finished

    monkeypatch.setattr(Study, "run", slow)
    monkeypatch.setattr(racing, "MATTERS", -1.0)  # no end but that of time or draws
    return clock


def race_of(candidates: list[str], folder: Path, rounds: int) -> Race:
    """A race against `python_docs`, in which a run is foreseen at 20 seconds."""
    goal = parse_goal(["loss(source=python_docs, tokens=128, length=64)"], 200, 20, 64)
    base_study = Study(
        models=(str(trained_folder()),),
        data=("python_docs",),
        methods=("wanda",),
        targets=(0.5,),
        evaluate=tuple(str(measure) for _, measure in goal.measures),
        tokens=256,
        length=64,
        dtype="float32",
        device="cpu",
    )
    costs = StepCosts(0.0, 0.0, 0.0, 0.0, 10.0, 10.0)
    return Race(base_study, goal, candidates, "python_docs", folder, costs, rounds=rounds)


@pytest.mark.parametrize(
    ("minutes", "rounds"),
    [
        (3.2, 2),
        pytest.param(2.0, 1, marks=pytest.mark.slow),
        pytest.param(60.0, 3, marks=pytest.mark.slow),
    ],
)
def test_no_round_begins_that_cannot_end_in_time(
    tmp_path: Path, clock: Clock, minutes: float, rounds: int
) -> None:
    """Three sets, and in the first round the dense model too."""
    race = race_of(["python_code", "arithmetic:cot"], tmp_path, rounds=3)
    budget = TimeBudget(minutes, clock)
    result = race.run(budget)
    assert result.rounds == rounds
    assert budget.spent <= budget.seconds
    assert race.costs.compress + race.costs.measure == pytest.approx(20)


def test_a_round_that_was_cut_short_is_none_and_what_was_found_says_nothing_of_costs(
    tmp_path: Path, clock: Clock
) -> None:
    candidates = ["python_code", "arithmetic:cot", "random_tokens"]
    first = race_of(candidates, tmp_path, rounds=1)
    # The dense model and three sets take 80 seconds, the fourth would take it to 100.
    cut = first.run(TimeBudget(1.5, clock))
    assert (len(cut.standings), cut.rounds, cut.why) == (3, 0, "time")
    assert first.costs.compress + first.costs.measure == pytest.approx(20)
    again = race_of(candidates, tmp_path, rounds=1)
    whole = again.run(TimeBudget(60.0, clock))
    assert (len(whole.standings), whole.rounds, whole.why) == (4, 1, "draws")
    assert again.costs == first.costs


def test_what_failed_in_an_earlier_call_is_tried_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(driver, "compress", too_little_memory)
        with pytest.raises(DataError, match="nothing could be measured"):
            race_of(["python_code"], tmp_path, rounds=1).run(TimeBudget(60.0, clock))
    result = race_of(["python_code"], tmp_path, rounds=1).run(TimeBudget(60.0, clock))
    assert (len(result.standings), result.failures) == (2, ())


def too_little_memory(*_given: Any, **_named: Any) -> None:
    raise ModelError("the device has too little memory", subject="tiny")


def test_models_that_somebody_measured_into_the_folder_are_no_part_of_a_race(
    tmp_path: Path, clock: Clock
) -> None:
    first = race_of(["python_code"], tmp_path, rounds=1).run(TimeBudget(60.0, clock))
    task = "loss(source=python_docs, tokens=128, length=64)"
    folder = str(trained_folder())
    evaluate(folder, tasks=[task], store=tmp_path, label="somebody's", dtype="float32")
    again = race_of(["python_code"], tmp_path, rounds=1).run(TimeBudget(60.0, clock))
    assert again.standings == first.standings


@pytest.mark.parametrize(
    ("left", "why", "unmeasured"),
    [
        # Both others fell behind.
        ({"python_docs": 2, "arithmetic:cot": 2}, "clear", ()),
        # One fell behind and one failed.
        ({"python_docs": 2}, "alone", ("arithmetic:cot",)),
        # Both failed.
        ({}, "alone", ("python_docs", "arithmetic:cot")),
    ],
)
def test_sets_that_failed_are_not_behind(
    tmp_path: Path, left: dict[str, int], why: str, unmeasured: tuple[str, ...]
) -> None:
    race = race_of(["python_code", "arithmetic:cot"], tmp_path, rounds=5)
    names = ["python_code", "python_docs", "arithmetic:cot"]
    race._rounds = [names, names]
    estimate = Estimate(0.1, 0.001, 20.0, 50, True)
    standings = [Standing("python_code", estimate, None, None, 2)]
    for name, dropped in left.items():
        standings.append(Standing(name, estimate, None, estimate, 2, dropped))
    assert race._why_over(standings, whole_rounds=2, is_late=False) == why
    assert race._unmeasured(standings) == unmeasured


@pytest.mark.parametrize(("value", "alike"), [(0.003, True), (3 * MATTERS, False)])
def test_sets_are_alike_where_no_difference_that_may_be_true_matters(
    value: float, alike: bool
) -> None:
    leader = Standing("c4", Estimate(0.1, 0.001, 20.0, 50, True), None, None, 3)
    behind = Estimate(value, 0.0025, 20.0, 50, over_draws=True)
    assert racing._are_alike([leader, Standing("pile", behind, None, behind, 3)]) == alike
