"""EvoP's search for the blocks to drop: a population of masks evolves (Wu et al. 2025, arXiv
2502.14910; a reconstruction).
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from calibrant.errors import SpecError
from calibrant.methods._base import MOST_CANDIDATES, check_least
from calibrant.methods._searching import Choice, Trials, eliminate, evolve
from calibrant.methods.blocks._blocks import BlockSearch
from calibrant.spec import MOST_STEPS, check_most


@dataclass(frozen=True, repr=False)
class EvoP(BlockSearch):
    """Drops the blocks without which the model loses least, found by evolution.

    Masks are crossed, repaired to the exact count, and mutated by a swap.

    The first population holds what ShortGPT drops, what greedy elimination by few tokens comes to
    (unless `greedy=false`), and the best of random masks; what comes out loses no more than any of
    these on the tokens that decide. Each generation has so many `children`; the `elites` best masks
    stay, the best children take the place of the others. It ends after `generations`, or after
    `patience` of them without a gain. With `--data 'cluster(source=…)'` the calibration set is
    chosen as EvoP chooses it.

    Known of EvoP is its abstract: an evolutionary search for the pruning pattern, on a calibration
    set that is sampled by clusters. No code was found. Inferred are the masks of fixed count, the
    loss as fitness, elites, uniform crossover with repair, and swaps. Ours are growing numbers of
    tokens, the greedy start, the sizes of the populations and the end.
    """

    population: int = 8
    children: int = 16
    elites: int = 2
    generations: int = 16
    patience: int = 4
    greedy: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, population=MOST_CANDIDATES, children=MOST_CANDIDATES)
        check_most(self, generations=MOST_STEPS, patience=MOST_STEPS)
        check_least(self, population=2, children=1, elites=1, generations=1, patience=1, seed=0)
        if self.elites >= self.population:
            most = self.population - 1
            allowed = f"a population of {self.population} keeps {most} elites at most"
            message = f"evop(elites={self.elites}): {allowed}, so that some are new"
            raise SpecError(message, subject="elites")

    def candidates(self, units: int, taken: int) -> tuple[int, int]:
        # `evolve` draws twice as many masks as the population has room for.
        screened = 2 * self.population + self.generations * self.children
        if self.greedy:
            # Elimination tries each block that is left, again and again.
            screened += sum(units - gone for gone in range(taken))
        replaced = self.population - self.elites
        return screened, self.population + self.generations * replaced

    def best(self, trials: Trials, by_short_gpt: Callable[[], Choice] | None) -> Choice:
        start: list[Choice] = []
        if by_short_gpt is not None:
            start.append(by_short_gpt())
        if self.greedy:
            start.append(eliminate(trials.aside(trials.stages[:1]), 1))
        return evolve(
            trials,
            start,
            Random(self.seed),
            population=self.population,
            children=self.children,
            elites=self.elites,
            generations=self.generations,
            patience=self.patience,
        )
