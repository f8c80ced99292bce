"""Searching for the best of many choices that all cost the same.

A choice is a level for each of several units, and the sum of the levels is fixed. To drop k of n
blocks is to give each the level 0 or 1, so that the sum is k. To prune blocks by different shares
is to give each a place in a list of evenly spaced shares; the sum is that of the share that was
asked for.

`Space` says what may be chosen, and `Trials` keeps what was tried and how it did. There are three
ways to search: a population that evolves, one choice that climbs step by step, and elimination. All
chance is drawn from the generator that a search is given, so it does the same when it is run again.
No torch here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, final

from calibrant.errors import SpecError
from calibrant.numerics import finite_number
from calibrant.results.outcomes import Journal

Choice = tuple[int, ...]

TRIES: Final = 50
"""Draws for each new choice that is wanted, before a space counts as used up."""


@final
@dataclass(frozen=True)
class Space:
    """Every way to give each unit a level from 0 to `most`, such that the levels of each group of
    units add up to the group's sum.

    `groups` has the group of each unit, and `sums` what each group's levels add up to. Units
    exchange levels within their group alone. So, if those of a group are equally large, all choices
    remove equally much. `SpecError` for a sum that a group can't have.

    >>> space = Space(groups=(0, 0, 0, 0), sums=(2,))
    >>> space.fits((1, 0, 0, 1)), space.fits((1, 1, 0, 1))
    (True, False)
    """

    groups: tuple[int, ...]
    sums: tuple[int, ...]
    most: int = 1

    def __post_init__(self) -> None:
        for group, wanted in enumerate(self.sums):
            units = self.groups.count(group)
            highest = self.most * units
            if not 0 <= wanted <= highest:
                problem = f"levels of {units} units can't add up to {wanted}"
                raise SpecError(f"{problem}; {highest} is the most", subject=str(wanted))

    @classmethod
    def of(cls, units: int, total: int) -> "Space":
        """Return the space of the ways to take `total` of so many units.

        >>> Space.of(4, 2)
        Space(groups=(0, 0, 0, 0), sums=(2,), most=1)
        """
        return cls((0,) * units, (total,))

    def fits(self, choice: Choice) -> bool:
        """Return whether a choice is one of this space: its levels are allowed, and each group
        has its sum.
        """
        if len(choice) != len(self.groups):
            return False
        if any(level < 0 or level > self.most for level in choice):
            return False
        return all(self._surplus(choice, group) == 0 for group in range(len(self.sums)))

    def drawn(self, chance: Random) -> Choice:
        """Draw a choice: random levels, then repaired."""
        return self.repaired([chance.randint(0, self.most) for _ in self.groups], chance)

    def repaired(self, levels: Sequence[int], chance: Random) -> Choice:
        """Return `levels` changed one by one, each time a random one of those that can be, until
        each group has its sum.
        """
        repaired = list(levels)
        for group in range(len(self.sums)):
            surplus = self._surplus(repaired, group)
            step = -1 if surplus > 0 else 1
            for _ in range(abs(surplus)):
                unit = chance.choice(self._movable(repaired, group, step))
                repaired[unit] += step
        return tuple(repaired)

    def exchanged(self, choice: Choice, chance: Random) -> Choice:
        """Return `choice` with one unit a level higher and another of its group a level lower;
        the choice itself where nothing can be exchanged.
        """
        pairs: list[tuple[int, int]] = []
        for group in range(len(self.sums)):
            falling = self._movable(choice, group, -1)
            rising = self._movable(choice, group, 1)
            for up in rising:
                pairs += [(up, down) for down in falling if down != up]
        if not pairs:
            return choice
        up, down = chance.choice(pairs)
        levels = list(choice)
        levels[up] += 1
        levels[down] -= 1
        return tuple(levels)

    def crossed(self, mother: Choice, father: Choice, chance: Random) -> Choice:
        """Return a child of two choices: each unit gets the level of one of them at random, and
        then the sums are repaired.
        """
        levels = [chance.choice(pair) for pair in zip(mother, father, strict=True)]
        return self.repaired(levels, chance)

    def _surplus(self, levels: Sequence[int], group: int) -> int:
        """Return by how much the levels of a group exceed its sum."""
        total = 0
        for level, its_group in zip(levels, self.groups, strict=True):
            if its_group == group:
                total += level
        return total - self.sums[group]

    def _movable(self, levels: Sequence[int], group: int, step: int) -> list[int]:
        """Return the units of a group whose level can change by `step`, 1 or -1."""
        movable: list[int] = []
        for unit, level in enumerate(levels):
            if self.groups[unit] == group and 0 <= level + step <= self.most:
                movable.append(unit)
        return movable


Measure = Callable[[Sequence[Choice], int], Sequence[float]]
"""Called with choices and a number of tokens; gives what each choice loses on them, in the order of
the choices.
"""


@final
class Trials:
    """The choices of `space` that were measured, each once on each number of tokens: the less one
    loses, the better.

    `stages` are growing numbers of tokens: on those of the last one a choice is decided, on those
    before it many choices are narrowed down to a few. All that is measured goes into `journal`, and
    what is there isn't measured again. All else in a search follows from its seed, so one that was
    killed takes the same way to where it was, without measuring anything. `tell` is called with the
    best loss so far, and how much of the search is done, of how much. Searches that share a journal
    have a `name` each.

    >>> def measure(choices, tokens):
    ...     return [3.0 * choice[0] + 2.0 * choice[1] + choice[2] for choice in choices]
    >>> trials = Trials(Space.of(3, 1), measure, stages=(10, 100))
    >>> trials.ranked([(1, 0, 0), (0, 0, 1), (0, 1, 0)])
    [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    """

    def __init__(
        self,
        space: Space,
        measure: Measure,
        stages: Sequence[int],
        journal: Journal | None = None,
        tell: Callable[[float, int, int], None] | None = None,
        name: str = "",
    ) -> None:
        self.space = space
        self.stages = tuple(stages)
        self._measure = measure
        self._tell = tell
        self._name = name
        self._journal = Journal() if journal is None else journal
        self._asked = set[str]()
        self.course: list[float] = []
        """What the best choice lost at the end of each generation."""
        self.path: list[Choice] = []
        """The best choice at the end of each generation."""

    @property
    def count(self) -> int:
        """How many measurements were made, each of one choice on one number of tokens; those of
        before an interruption too.
        """
        return len(self._asked)

    def aside(self, stages: Sequence[int]) -> "Trials":
        """Return trials of the same choices on these numbers of tokens, for a search within the
        search: with a course of its own, which `tell` doesn't hear of.
        """
        other = Trials(self.space, self._measure, stages, self._journal, name=self._name)
        other._asked = self._asked
        return other

    def losses(self, choices: Sequence[Choice], stage: int = -1) -> list[float]:
        """Return what each choice loses on the tokens of a stage, of the last one if none is said.

        What isn't finite counts as infinite.
        """
        tokens = self.stages[stage]
        names: dict[Choice, str] = {}
        for choice in choices:
            levels = " ".join(map(str, choice))
            names[choice] = f"{self._name}{tokens} {levels}"
        # Counted whether they are measured now or were before an interruption.
        self._asked.update(names.values())
        unmeasured = [choice for choice, name in names.items() if name not in self._journal]
        if unmeasured:
            measured = self._measure(unmeasured, tokens)
            entries: dict[str, float | None] = {}
            for choice, loss in zip(unmeasured, measured, strict=True):
                # A journal is JSON, which has no infinity.
                entries[names[choice]] = loss if math.isfinite(loss) else None
            self._journal.add(entries)
        losses: list[float] = []
        for choice in choices:
            loss = self._journal[names[choice]]
            if loss is None or math.isnan(loss):
                loss = math.inf
            losses.append(loss)
        return losses

    def ranked(self, choices: Sequence[Choice], stage: int = -1) -> list[Choice]:
        """Return different choices, the best first; of equals the one that is less as a tuple."""
        different = list(dict.fromkeys(choices))
        losses = dict(zip(different, self.losses(different, stage), strict=True))
        return sorted(different, key=lambda choice: (losses[choice], choice))

    def narrowed(self, choices: Sequence[Choice], keep: int) -> list[Choice]:
        """Return the `keep` best choices on the tokens of the stage before the last. Each stage up
        to it leaves an equal share of those it got.
        """
        left = list(dict.fromkeys(choices))
        # Without an earlier stage they are judged on the tokens that decide.
        if len(self.stages) == 1:
            return self.ranked(left)[:keep]
        count = len(choices)
        earlier = len(self.stages) - 1
        for stage in range(earlier):
            if len(left) > keep:
                # Each stage leaves the same share, whose product over all stages is keep / count.
                share = (max(keep, 1) / count) ** ((stage + 1) / earlier)
                stage_keeps = max(keep, round(count * share))
                left = self.ranked(left, stage)[:stage_keeps]
        return left

    def settle(self, best: Choice, done: int, total: int) -> None:
        """Note the best choice at the end of a generation, and tell of it.

        Raises `NumericsError` if the best loss isn't finite.
        """
        (loss,) = self.losses([best])
        measured = f"{self.count} choices"
        finite_number(loss, f"the best loss of {measured}", measured)
        self.course.append(loss)
        self.path.append(best)
        if self._tell is not None:
            self._tell(loss, done, total)

    def finish(self, total: int) -> None:
        """Tell that a search is over before all of its generations were needed."""
        if self._tell is not None:
            self._tell(self.course[-1], total, total)


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
    generation has `children` of two parents each, and a parent is the better of two random members.
    Parents are crossed, and often a pair of levels of the child is exchanged. The best children, as
    many as replace all but the `elites` best parents, are measured on the tokens that decide. It
    ends after `generations`, after `patience` of them without a gain, or when there is nothing new
    to try. The best never gets worse.
    """
    known = set(start)
    places = max(population - len(known), 1)
    drawn = _new(partial(trials.space.drawn, chance), 2 * population, known)
    best_drawn = trials.narrowed(drawn, places)
    members = trials.ranked([*start, *best_drawn])[:population]
    trials.settle(members[0], 0, generations)
    for generation in range(generations):
        born = _new(partial(_child, trials.space, members, chance), children, known)
        if not born or _stuck(trials.course, patience):
            trials.finish(generations)
            break
        wanted = population - elites
        grown = trials.ranked(trials.narrowed(born, wanted))
        replacements = [*grown, *members[elites:]][:wanted]
        members = trials.ranked([*members[:elites], *replacements])
        trials.settle(members[0], generation + 1, generations)
    return members[0]


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

    It is first the best of `start` and of `drawn` random choices. Of the random ones the best on
    fewer tokens is measured on those that decide. Each generation tries `offspring` of it, in which
    one to three pairs of levels are exchanged, fewer more often. `survivors` of them are measured
    on the tokens that decide, and the best takes the parent's place if it is better. It ends as
    `evolve` does.
    """
    random = _new(partial(trials.space.drawn, chance), drawn, set(start))
    best_random = trials.narrowed(random, 1)
    parent = trials.ranked([*start, *best_random])[0]
    trials.settle(parent, 0, generations)
    for generation in range(generations):
        born = _new(partial(_moved, trials.space, parent, chance), offspring, {parent})
        if not born or _stuck(trials.course, patience):
            trials.finish(generations)
            break
        best_born = trials.narrowed(born, survivors)
        parent = trials.ranked([parent, *best_born])[0]
        trials.settle(parent, generation + 1, generations)
    return parent


def eliminate(trials: Trials, finalists: int) -> Choice:
    """Return the choice that raising one level at a time comes to, each time the one by which least
    is lost. The space must have one group.

    Of all that can be raised, `finalists` are measured on the tokens that decide.
    """
    choice = (0,) * len(trials.space.groups)
    total = sum(trials.space.sums)
    for step in range(total):
        raised: list[Choice] = []
        for unit, level in enumerate(choice):
            if level < trials.space.most:
                levels = list(choice)
                levels[unit] += 1
                raised.append(tuple(levels))
        best_raised = trials.narrowed(raised, finalists)
        choice = trials.ranked(best_raised)[0]
        trials.settle(choice, step + 1, total)
    return choice


def _new(make: Callable[[], Choice], count: int, known: set[Choice]) -> list[Choice]:
    """Return up to `count` choices that weren't `known`, and add them to those."""
    choices: list[Choice] = []
    # A space may hold fewer new choices than are asked for: so draws are limited.
    for _ in range(TRIES * count):
        if len(choices) == count:
            break
        choice = make()
        if choice not in known:
            known.add(choice)
            choices.append(choice)
    return choices


def _child(space: Space, members: Sequence[Choice], chance: Random) -> Choice:
    """Return a child of two of the `members`, which are ranked: the better come first."""
    mother = members[_better_place(len(members), chance)]
    father = members[_better_place(len(members), chance)]
    child = space.crossed(mother, father, chance)
    if child in (mother, father) or chance.random() < 0.5:
        return space.exchanged(child, chance)
    return child


def _better_place(count: int, chance: Random) -> int:
    """Return the lower of two random places: of ranked choices that of the better one."""
    return min(chance.randrange(count), chance.randrange(count))


def _moved(space: Space, choice: Choice, chance: Random) -> Choice:
    """Return a choice with one to three pairs of levels exchanged."""
    # The smaller of two draws: fewer exchanges are more likely.
    exchanges = min(chance.randint(1, 3), chance.randint(1, 3))
    for _ in range(exchanges):
        choice = space.exchanged(choice, chance)
    return choice


def _stuck(course: Sequence[float], patience: int) -> bool:
    """Return whether the last `patience` generations brought nothing better."""
    return len(course) > patience and course[-1] >= course[-1 - patience]
