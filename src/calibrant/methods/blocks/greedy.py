"""Greedy elimination of blocks: the one goes without which the model loses least, again and
again (SLEB, Song et al. 2024, arXiv 2402.09025).
"""

from collections.abc import Callable
from dataclasses import dataclass

from calibrant.methods._base import MOST_CANDIDATES, check_least
from calibrant.methods._searching import Choice, Trials, eliminate
from calibrant.methods.blocks._blocks import BlockSearch
from calibrant.spec import check_most


@dataclass(frozen=True, repr=False)
class Greedy(BlockSearch):
    """Drops block after block, each time the one whose absence raises the loss on the calibration
    tokens least, given those that have gone.

    All that are left are tried on few tokens, the `finalists` best of them on the tokens that
    decide.

    Differs from SLEB's code in: SLEB tries each block on all its tokens (`tokens=65536` of one
    number does that), and never drops the first or the last block; here every block may go, tokens
    count by their weight, and padding never.
    """

    finalists: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, finalists=MOST_CANDIDATES)
        check_least(self, finalists=1)

    def candidates(self, units: int, taken: int) -> tuple[int, int]:
        return sum(units - gone for gone in range(taken)), self.finalists * taken

    def best(self, trials: Trials, by_short_gpt: Callable[[], Choice] | None) -> Choice:
        return eliminate(trials, self.finalists)
