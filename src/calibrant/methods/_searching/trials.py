"""What was tried and how it did. Many choices are measured on few tokens, and the best of them
on more. No torch here.
"""

import math
from collections.abc import Callable, Sequence
from typing import final

from calibrant.methods._searching.space import Choice, Space
from calibrant.numerics import finite_number
from calibrant.results.outcomes import Journal

Measure = Callable[[Sequence[Choice], int], Sequence[float]]
"""Called with choices and a number of tokens; gives what each choice loses on them, in the same
order.
"""


@final
class Trials:
    """The choices of `space` that were measured, each once on each number of tokens: the less one
    loses, the better.

    `stages` are numbers of tokens, growing: the last one decides, those before it are what narrows
    many choices down to a few. All that is measured goes into `journal`, and what is there isn't
    measured again; since all else in a search follows from its seed, one that was killed takes the
    same way to where it was, without measuring anything. `tell` is told of the best so far, and how
    much of the search is done. Searches that share a journal have a `name` each.

    >>> trials = Trials(Space.of(3, 1), lambda choices, tokens: [3.0 * c[0] + 2.0 * c[1] + c[2] for c in choices], stages=(10, 100))
    >>> trials.ranked([(1, 0, 0), (0, 0, 1), (0, 1, 0)])
    [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    """

    def __init__(
        self,
        space: Space,
        measure: Measure,
        stages: Sequence[int],
        journal: Journal | None = None,
        tell: Callable[[float, int, int], None] = lambda best, done, total: None,
        name: str = "",
    ) -> None:
        self.space, self.stages = space, tuple(stages)
        self._measure, self._tell, self._name = measure, tell, name
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
        search: with a course of its own, and not told of.
        """
        other = Trials(self.space, self._measure, stages, self._journal, name=self._name)
        other._asked = self._asked
        return other

    def losses(self, choices: Sequence[Choice], stage: int = -1) -> list[float]:
        """Return what each choice loses on the tokens of a stage, of the last one if none is said.

        What isn't finite counts as infinite.
        """
        tokens = self.stages[stage]
        names = {choice: f"{self._name}{tokens} {' '.join(map(str, choice))}" for choice in choices}
        self._asked.update(names.values())
        new = [choice for choice, name in names.items() if name not in self._journal]
        if new:
            found = self._measure(new, tokens)
            known: dict[str, float | None] = {}
            for choice, loss in zip(new, found, strict=True):
                # A journal is JSON, which has no infinity.
                known[names[choice]] = loss if math.isfinite(loss) else None
            self._journal.add(known)
        losses = [self._journal[names[choice]] for choice in choices]
        return [math.inf if loss is None or math.isnan(loss) else loss for loss in losses]

    def ranked(self, choices: Sequence[Choice], stage: int = -1) -> list[Choice]:
        """Return different choices, the best first; of equals the one that is less as a tuple."""
        different = list(dict.fromkeys(choices))
        losses = dict(zip(different, self.losses(different, stage), strict=True))
        return sorted(different, key=lambda choice: (losses[choice], choice))

    def narrowed(self, choices: Sequence[Choice], keep: int) -> list[Choice]:
        """Return the `keep` best choices on the tokens of the stage before the last; each stage
        before it leaves an equal share of those it got.
        """
        left, count = list(dict.fromkeys(choices)), len(choices)
        for stage in range(len(self.stages) - 1):
            if len(left) > keep:
                share = (max(keep, 1) / count) ** ((stage + 1) / (len(self.stages) - 1))
                left = self.ranked(left, stage)[: max(keep, round(count * share))]
        return left if len(self.stages) > 1 else self.ranked(left)[:keep]

    def settle(self, best: Choice, done: int, total: int) -> None:
        """Note the best choice at the end of a generation, and tell of it.

        Raises `NumericsError` if the best loss isn't finite.
        """
        (loss,) = self.losses([best])
        many = f"{self.count} choices"
        finite_number(loss, f"the best loss of {many}", many)
        self.course.append(loss)
        self.path.append(best)
        self._tell(loss, done, total)

    def finish(self, total: int) -> None:
        """Tell that a search is over before all of its generations were needed."""
        self._tell(self.course[-1], total, total)
