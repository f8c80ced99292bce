"""Choices: a level for each of several units, whose sum is fixed; how they are drawn, changed and
crossed. No torch here.

To drop k of n blocks is to give each the level 0 or 1, so that the sum is k. To prune blocks by
different shares is to give each a place in a list of evenly spaced shares, so that the sum is that
of the share that was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import final

from calibrant.errors import SpecError

Choice = tuple[int, ...]


@final
@dataclass(frozen=True)
class Space:
    """Every way to give each unit a level from 0 to `most`, such that the levels of each group of
    units add up to the group's sum.

    `groups` has the group of each unit, and `sums` what each group's levels add up to. Units
    exchange levels within their group alone: where units of a group are equally large, whatever is
    chosen costs the same. `SpecError` for a sum that a group can't have.

    >>> space = Space(groups=(0, 0, 0, 0), sums=(2,))
    >>> space.fits((1, 0, 0, 1)), space.fits((1, 1, 0, 1))
    (True, False)
    """

    groups: tuple[int, ...]
    sums: tuple[int, ...]
    most: int = 1

    def __post_init__(self) -> None:
        for group, wanted in enumerate(self.sums):
            highest = self.most * self.groups.count(group)
            if not 0 <= wanted <= highest:
                raise SpecError(
                    f"levels of {self.groups.count(group)} units can't add up to {wanted}; {highest} is the most",
                    subject=str(wanted),
                )

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
        levels = len(choice) == len(self.groups) and all(
            0 <= level <= self.most for level in choice
        )
        return levels and all(self._surplus(choice, group) == 0 for group in range(len(self.sums)))

    def drawn(self, chance: Random) -> Choice:
        """Draw a choice: random levels, then repaired."""
        return self.repaired([chance.randint(0, self.most) for _ in self.groups], chance)

    def repaired(self, levels: Sequence[int], chance: Random) -> Choice:
        """Return `levels` with as many raised or lowered by one, each time a random one of those
        that can be, as give each group its sum.
        """
        repaired = list(levels)
        for group in range(len(self.sums)):
            while surplus := self._surplus(repaired, group):
                step = -1 if surplus > 0 else 1
                repaired[chance.choice(self._movable(repaired, group, step))] += step
        return tuple(repaired)

    def exchanged(self, choice: Choice, chance: Random) -> Choice:
        """Return `choice` with one unit a level higher and another of its group a level lower;
        the choice itself where nothing can be exchanged.
        """
        pairs = [
            (up, down) for group in range(len(self.sums)) for up, down in self._pairs(choice, group)
        ]
        if not pairs:
            return choice
        up, down = chance.choice(pairs)
        return tuple(level + (unit == up) - (unit == down) for unit, level in enumerate(choice))

    def crossed(self, one: Choice, other: Choice, chance: Random) -> Choice:
        """Return a child of two choices: each unit has the level of one of them, whichever, and
        then the sums are repaired.
        """
        return self.repaired(
            [chance.choice(levels) for levels in zip(one, other, strict=True)], chance
        )

    def _surplus(self, levels: Sequence[int], group: int) -> int:
        return (
            sum(level for level, of in zip(levels, self.groups, strict=True) if of == group)
            - self.sums[group]
        )

    def _movable(self, levels: Sequence[int], group: int, step: int) -> list[int]:
        """The units of a group whose level can be raised (1) or lowered (-1)."""
        return [
            u
            for u, (level, of) in enumerate(zip(levels, self.groups, strict=True))
            if of == group and 0 <= level + step <= self.most
        ]

    def _pairs(self, choice: Choice, group: int) -> list[tuple[int, int]]:
        raised, lowered = self._movable(choice, group, 1), self._movable(choice, group, -1)
        return [(up, down) for up in raised for down in lowered if up != down]
