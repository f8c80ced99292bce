"""EvoPress' search for the blocks to drop: one mask is improved by swaps (Sieberling et al.
2024, arXiv 2410.14649).
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from calibrant.methods._base import MOST_CANDIDATES, check_least
from calibrant.methods._searching import Choice, Trials, climb
from calibrant.methods.blocks._blocks import BlockSearch
from calibrant.spec import MOST_STEPS, check_most


@dataclass(frozen=True, repr=False)
class EvoPress(BlockSearch):
    """Drops the blocks without which the model's predictions stay nearest to those of the untouched
    one: (1+λ) with selection in stages.

    The best of `drawn` random masks has `offspring` in each generation, in which one to three
    blocks (fewer more often) are exchanged for others; all are measured on few tokens, `survivors`
    of them on the tokens that decide, and the best takes its parent's place if it is better. What
    is measured is KL(untouched ‖ masked) of the predicted distributions. Without a number of
    `generations` it is k·(n − k) / 1.5 for k of n blocks; it ends before that after `patience`
    generations without a gain.

    The numbers of masks are those of the authors' script (64 drawn, 32 offspring, 2 survivors, on
    2,048 and 32,768 tokens, as `tokens=[2048, 32768]`), and so is the number of generations.
    Differs from their code in: the same tokens are used in every generation, where theirs are drawn
    anew, so the best mask never gets worse; there are fewer of them by default; and it may end
    early, where theirs doesn't.
    """

    divergence: ClassVar[bool] = True

    drawn: int = 64
    offspring: int = 32
    survivors: int = 2
    generations: int | None = None
    patience: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, drawn=MOST_CANDIDATES, offspring=MOST_CANDIDATES)
        check_most(self, survivors=MOST_CANDIDATES, generations=MOST_STEPS, patience=MOST_STEPS)
        check_least(self, drawn=1, offspring=1, survivors=1, generations=1, patience=1, seed=0)

    def candidates(self, units: int, taken: int) -> tuple[int, int]:
        generations = self._generations(units, taken)
        # A divergence takes a forward of the untouched model too, each time.
        screened = self.drawn + generations * (self.offspring + 1)
        return screened, 1 + generations * (self.survivors + 1)

    def _generations(self, units: int, taken: int) -> int:
        """The number of generations that is asked for, else that of the authors' script."""
        if self.generations is not None:
            return self.generations
        return max(1, int(taken * (units - taken) / 1.5))

    def best(self, trials: Trials, by_short_gpt: Callable[[], Choice] | None) -> Choice:
        return climb(
            trials,
            (),
            Random(self.seed),
            drawn=self.drawn,
            offspring=self.offspring,
            survivors=self.survivors,
            generations=self._generations(len(trials.space.groups), sum(trials.space.sums)),
            patience=self.patience,
        )
