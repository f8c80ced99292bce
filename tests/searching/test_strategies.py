"""The ways to search, on functions whose best choice is known by trying all; and that a search
goes on where it was.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from calibrant.errors import NumericsError
from calibrant.methods._searching import Choice, Space, Trials, climb, eliminate, evolve
from calibrant.results.outcomes import Journal

UNITS, TAKEN = 8, 3


def rugged(seed: int) -> Callable[[Choice], float]:
    """A loss with a random cost for each unit, and for each pair of units: single costs mislead."""
    chance = Random(seed)
    alone = [chance.random() for _ in range(UNITS)]
    pairs = {pair: chance.uniform(-1, 1) for pair in combinations(range(UNITS), 2)}

    def lost(choice: Choice) -> float:
        taken = [u for u in range(UNITS) if choice[u]]
        return sum(alone[u] for u in taken) + sum(pairs[pair] for pair in combinations(taken, 2))

    return lost


def least(lost: Callable[[Choice], float]) -> Choice:
    return min(
        (
            tuple(int(u in taken) for u in range(UNITS))
            for taken in combinations(range(UNITS), TAKEN)
        ),
        key=lost,
    )


def evolving(trials: Trials, seed: int = 0) -> Choice:
    return evolve(
        trials, (), Random(seed), population=6, children=8, elites=2, generations=12, patience=12
    )


def climbing(trials: Trials, seed: int = 0) -> Choice:
    return climb(
        trials, (), Random(seed), drawn=8, offspring=10, survivors=3, generations=30, patience=10
    )


def measured(
    lost: Callable[[Choice], float], noise: float = 0.0
) -> Callable[[Sequence[Choice], int], list[float]]:
    """On few tokens with an error, the same for the same choice."""
    return lambda choices, tokens: [
        lost(c) + (noise * Random(str(c)).uniform(-1, 1) if tokens < 100 else 0) for c in choices
    ]


@pytest.mark.parametrize("search", [evolving, climbing], ids=["evolve", "climb"])
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(more, marks=pytest.mark.slow) for more in range(2, 6))]
)
def test_the_best_of_all_is_found_and_the_best_so_far_never_gets_worse(
    search: Callable[[Trials], Choice], seed: int
) -> None:
    lost = rugged(seed)
    trials = Trials(Space.of(UNITS, TAKEN), measured(lost, noise=0.1), (10, 100))
    assert search(trials) == least(lost)
    assert trials.course == sorted(trials.course, reverse=True)
    assert trials.course[-1] == pytest.approx(lost(least(lost)))


def test_what_a_search_begins_with_is_never_lost() -> None:
    lost = rugged(0)
    trials = Trials(Space.of(UNITS, TAKEN), measured(lost), (100,))
    assert evolve(
        trials,
        [least(lost)],
        Random(0),
        population=4,
        children=2,
        elites=1,
        generations=3,
        patience=3,
    ) == least(lost)


def test_elimination_takes_the_cheapest_each_time_and_says_what_was_best_after_each_step() -> None:
    """Step by step, by a loop of its own."""
    lost, taken, path = rugged(3), set[int](), list[Choice]()
    for _ in range(TAKEN):
        tried = [
            tuple(int(v in taken | {u}) for v in range(UNITS))
            for u in range(UNITS)
            if u not in taken
        ]
        path.append(min(tried, key=lost))
        taken = {u for u in range(UNITS) if path[-1][u]}
    trials = Trials(Space.of(UNITS, TAKEN), measured(lost), (100,))
    assert eliminate(trials, finalists=3) == path[-1]
    assert (trials.path, trials.course) == (path, [lost(choice) for choice in path])


def test_few_tokens_narrow_and_more_decide() -> None:
    asked: list[tuple[int, int]] = []

    def measure(choices: Sequence[Choice], tokens: int) -> list[float]:
        asked.append((tokens, len(choices)))
        return [float(sum(u * level for u, level in enumerate(choice))) for choice in choices]

    trials = Trials(Space.of(UNITS, 1), measure, (10, 50, 100))
    choices = [tuple(int(u == v) for v in range(UNITS)) for u in range(UNITS)]
    assert trials.ranked(trials.narrowed(choices, 2)) == choices[:2]
    assert asked == [(10, 8), (50, 4), (100, 2)]
    trials.ranked(choices)
    assert asked[3:] == [(100, 6)], "what was measured isn't measured again"
    assert trials.count == 8 + 4 + 2 + 6


def test_what_is_no_number_loses_all() -> None:
    trials = Trials(
        Space.of(2, 1),
        lambda choices, tokens: [float("nan") if choice[0] else 5.0 for choice in choices],
        (10,),
    )
    assert trials.ranked([(1, 0), (0, 1)]) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_search_whose_best_is_not_finite_is_refused(lost: float, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    trials = Trials(
        Space.of(3, 1), lambda choices, _: [lost for _ in choices], (10,), Journal(path)
    )
    with pytest.raises(NumericsError) as caught:
        eliminate(trials, 1)
    assert "3 choices" in caught.value.subject
    assert list(Journal(path).known.values()) == [None, None, None], "JSON has no infinity"


@pytest.mark.parametrize(
    "search",
    [evolving, climbing, lambda trials: eliminate(trials, 2)],
    ids=["evolve", "climb", "eliminate"],
)
def test_killed_after_any_measurement_it_goes_on_to_the_same_end(
    search: Callable[[Trials], Choice], tmp_path: Path
) -> None:
    lost, space = rugged(1), Space.of(UNITS, TAKEN)
    whole = Trials(space, measured(lost, 0.1), (10, 100))
    expected = search(whole)

    def counted(calls: list[int], most: int) -> Callable[[Sequence[Choice], int], list[float]]:
        def measure(choices: Sequence[Choice], tokens: int) -> list[float]:
            calls.append(tokens)
            if len(calls) > most:
                raise KeyboardInterrupt
            return measured(lost, 0.1)(choices, tokens)

        return measure

    all_calls: list[int] = []
    search(Trials(space, counted(all_calls, 1000), (10, 100)))
    assert len(all_calls) > 4
    for at in range(1, len(all_calls), 3):
        path, more = tmp_path / f"{at}.jsonl", list[int]()
        with pytest.raises(KeyboardInterrupt):
            search(Trials(space, counted([], at), (10, 100), Journal(path, "this search")))
        again = Trials(space, counted(more, 1000), (10, 100), Journal(path, "this search"))
        assert (search(again), again.course, again.count) == (expected, whole.course, whole.count)
        assert len(more) == len(all_calls) - at, "what was lacking was measured"
