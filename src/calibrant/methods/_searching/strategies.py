"""The ways to search: a population that evolves, one choice that is improved step by step, and
elimination. No torch here.

Each asks `trials` for what choices lose, draws with the generator it is given, and so does the same
again when it is asked again.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from calibrant.methods._searching.space import Choice, Space
from calibrant.methods._searching.trials import Trials

TRIES: Final = 50
"""How often a new choice is looked for, for each that is wanted, before a space counts as used
up.
"""


def evolve(
    trials: Trials,
    start: Sequence[Choice],
    chance: Random,
    *,
    population: int,
    children: int,
    elites: int,
    generations: int,
    patience: int,
) -> Choice:
    """Return the best choice that a population comes to.

    It begins with `start` and the best of twice as many random choices as it has room for. Each
    generation has `children` of two parents each, of which the better of two random ones is taken;
    they are crossed and one pair of levels is exchanged. The best children, as many as replace all
    but the `elites` best parents, are measured on the tokens that decide. It ends after
    `generations`, after `patience` of them without a gain, or when there is nothing new to try. The
    best never gets worse.
    """
    seen = set(start)
    room = max(population - len(seen), 1)
    drawn = _new(lambda: trials.space.drawn(chance), 2 * population, seen)
    people = trials.ranked([*start, *trials.narrowed(drawn, room)])[:population]
    trials.settle(people[0], 0, generations)
    for generation in range(generations):
        born = _new(lambda parents=people: _child(trials.space, parents, chance), children, seen)
        if not born or _stuck(trials.course, patience):
            trials.finish(generations)
            break
        grown = trials.ranked(trials.narrowed(born, population - elites))
        people = trials.ranked(
            [*people[:elites], *[*grown, *people[elites:]][: population - elites]]
        )
        trials.settle(people[0], generation + 1, generations)
    return people[0]


def climb(
    trials: Trials,
    start: Sequence[Choice],
    chance: Random,
    *,
    drawn: int,
    offspring: int,
    survivors: int,
    generations: int,
    patience: int,
) -> Choice:
    """Return what one choice becomes by steps: (1+λ).

    It is the best of `start` and of so many random choices as `drawn` says, judged on the fewest
    tokens. Each generation tries `offspring` of it, in which one to three pairs of levels are
    exchanged, fewer more often; `survivors` of them are measured on the tokens that decide, and the
    best takes the parent's place if it is better. The end is that of `evolve`.
    """
    random = _new(lambda: trials.space.drawn(chance), drawn, set(start))
    parent = trials.ranked([*start, *trials.narrowed(random, 1)])[0]
    trials.settle(parent, 0, generations)
    for generation in range(generations):
        born = _new(lambda one=parent: _moved(trials.space, one, chance), offspring, {parent})
        if not born or _stuck(trials.course, patience):
            trials.finish(generations)
            break
        parent = trials.ranked([parent, *trials.narrowed(born, survivors)])[0]
        trials.settle(parent, generation + 1, generations)
    return parent


def eliminate(trials: Trials, finalists: int) -> Choice:
    """Return the choice that raising one level at a time comes to, each time the one by which least
    is lost; of a space with one group.

    Of all that can be raised, `finalists` are measured on the tokens that decide.
    """
    space, choice = trials.space, (0,) * len(trials.space.groups)
    for step in range(sum(space.sums)):
        raised = [
            tuple(level + (u == unit) for u, level in enumerate(choice))
            for unit in range(len(choice))
            if choice[unit] < space.most
        ]
        choice = trials.ranked(trials.narrowed(raised, finalists))[0]
        trials.settle(choice, step + 1, sum(space.sums))
    return choice


def _new(make: Callable[[], Choice], count: int, seen: set[Choice]) -> list[Choice]:
    """Up to `count` choices that weren't there before, and now are."""
    found: list[Choice] = []
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        choice = make()
        if choice not in seen:
            seen.add(choice)
            found.append(choice)
    return found


def _child(space: Space, people: Sequence[Choice], chance: Random) -> Choice:
    """Of ranked people: the lower of two random places is the better parent."""
    one, other = (
        people[min(chance.randrange(len(people)), chance.randrange(len(people)))] for _ in range(2)
    )
    child = space.crossed(one, other, chance)
    return (
        space.exchanged(child, chance) if child in (one, other) or chance.random() < 0.5 else child
    )


def _moved(space: Space, choice: Choice, chance: Random) -> Choice:
    for _ in range(min(chance.randint(1, 3), chance.randint(1, 3))):
        choice = space.exchanged(choice, chance)
    return choice


def _stuck(course: Sequence[float], patience: int) -> bool:
    """Whether so many generations have brought nothing better."""
    return len(course) > patience and course[-1] >= course[-1 - patience]
