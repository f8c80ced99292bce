"""Robust: refined, for several sources at once, so that none of them suffers more than it must."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Propagation, Seen, wide
from calibrant.methods._base import (
    Compressed,
    Sources,
    StandIn,
    TokenUse,
    finite,
    observed,
    standing_in,
)
from calibrant.methods.pruning._gradients import damped, masked
from calibrant.methods.pruning.refined import Refined, count_of_round, refine
from calibrant.numerics import six_digits
from calibrant.packed import gram_energy
from calibrant.targets import Target


@dataclass(frozen=True, repr=False)
class Robust(Refined):
    """Refines a mask for the source whose outputs suffer most: `refined`, on all sources of a sum
    or a mix, each with a Gram of its own.

    A source's error is tr(E G_s Eᵀ)/tr(W G_s Wᵀ), what the matrix's outputs lose of their size on
    it. In each of `rounds` the weights are refined for the mean of all errors. Then sources with
    large errors count more (by the square of error over mean error). The best round is the one
    whose largest error is smallest. With one round the sources count by their shares of the
    mixture. Each source is walked through the model by itself, all in step, since the weights of
    the block before are the same for all. `start`, `swaps`, `steps`, `damp` and `tolerance` are
    those of `refined`; swaps and steps are divided among the rounds.
    """

    propagations: ClassVar[tuple[Propagation, ...]] = ("arrival",)

    swaps: int = 50
    steps: int = 20
    rounds: int = 4

    @property
    def token_use(self) -> TokenUse:
        return TokenUse(sources_apart=True)

    def squares(self, sources: int) -> int:
        return 4 * sources + 3

    def stand_in(self, target: Target) -> StandIn | None:
        refined = Refined(
            self.start, self.swaps, self.steps, damp=self.damp, tolerance=self.tolerance
        )
        return standing_in(refined, target, "refined on the sum of what all sources gave")

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: the best `round`, from 1, with each source's `errors` after it, and how much each
        `counted` in it, in the order of the mixture.

        Errors that are raised are those of `refined`.
        """
        self.check(target)
        gram_of_all = observed(seen, Gram)
        dense = finite(weight, "the weight").to(wide(weight.dtype))
        of_sources = seen[Sources].grams if Sources in seen else (gram_of_all,)
        # A source of which no token reached the matrix has no say.
        grams = [gram for gram in of_sources if gram.mass > 0]
        energies = [gram_energy(gram, dense.dtype) for gram in grams]
        # A source that makes nothing of the matrix loses nothing by it.
        sizes = [energy(dense) or 1.0 for energy in energies]
        shares = [gram.mass / gram_of_all.mass for gram in grams]
        current = self.started(dense, seen, target).weight
        keep = current != 0
        best = current
        notes: Mapping[str, Any] = {}
        least = float("inf")
        for number in range(self.rounds):
            # A source counts relative to what the dense matrix gives on it, as its error does.
            factors = [share / size for share, size in zip(shares, sizes, strict=True)]
            hessian = damped(weighed(grams, factors), self.damp).to(dense.dtype)
            refined, _ = refine(
                masked(dense, current, keep, hessian),
                hessian,
                target,
                swaps=count_of_round(self.swaps, self.rounds, number),
                steps=count_of_round(self.steps, self.rounds, number),
                rounds=1,
                tolerance=self.tolerance,
            )
            current = refined.weight
            keep = refined.keep
            losses = [energy(dense - current) for energy in energies]
            errors = [loss / size for loss, size in zip(losses, sizes, strict=True)]
            rounded = [six_digits(error) for error in errors]
            # Of equally good rounds the first counts.
            worst = max(rounded)
            if number == 0 or worst < least:
                least = worst
                best = current
                notes = {
                    "round": number + 1,
                    "errors": rounded,
                    "counted": [six_digits(share) for share in shares],
                }
            shares = _shifted(shares, errors)
        return Compressed(finite(best.to(weight.dtype), "the refined weight"), notes)


def weighed(grams: Sequence[Gram], factors: Sequence[float]) -> Gram:
    """Return the sum of Grams, each times its factor, as a Gram of mass 1."""
    matrices = [gram.matrix * factor for gram, factor in zip(grams, factors, strict=True)]
    tokens = sum(gram.tokens for gram in grams)
    return Gram(sum(matrices[1:], matrices[0]), tokens, 1.0)


def _shifted(shares: Sequence[float], errors: Sequence[float]) -> Sequence[float]:
    """How much sources count in the next round: by the square of an error, so that after a few
    rounds the worst source has most of the say.
    """
    pressures = [share * error**2 for share, error in zip(shares, errors, strict=True)]
    total = sum(pressures)
    if total > 0:
        return [pressure / total for pressure in pressures]
    return shares
