"""Robust: refined, for several sources at once, so that none of them suffers more than it must."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen, wide
from calibrant.edits.changes import gram_energy
from calibrant.job import Job
from calibrant.methods._base import Compressed, StandIn, finite, observed, standing_in
from calibrant.methods.pruning._gradients import damped, masked
from calibrant.methods.pruning._refining import Refining, refine, share_of_round
from calibrant.methods.pruning._sources import Sources, joined, parts_of, weighed
from calibrant.methods.pruning.refined import Refined
from calibrant.models import Weight
from calibrant.targets import Target
from calibrant.walk import Propagation
from calibrant.walk.walking import together


@dataclass(frozen=True, repr=False)
class Robust(Refining):
    """Refines a mask for the source whose outputs suffer most: `refined`, on all sources of a sum
    or a mix, each with a Gram of its own.

    A source's error is tr(E G_s Eᵀ)/tr(W G_s Wᵀ), what the matrix's outputs lose of their size on
    it. In each of `rounds` the weights are refined for the mean of all errors, then those with
    large errors count more (by the square of error over mean error); the best round is the one
    whose largest error is smallest. With one round the sources count by their shares of the
    mixture. Each source is walked through the model by itself, all in step, since the weights of
    the block before are the same for all. `start`, `swaps`, `steps`, `damp` and `tolerance` are
    those of `refined`; swaps and steps are divided among the rounds.
    """

    propagations: ClassVar[tuple[Propagation, ...]] = ("arrival",)

    swaps: int = 50
    steps: int = 20
    rounds: int = 4

    def squares(self, sources: int) -> int:
        return 4 * sources + 3

    def stand_in(self, target: Target) -> StandIn | None:
        alike = Refined(
            self.start, self.swaps, self.steps, damp=self.damp, tolerance=self.tolerance
        )
        return standing_in(alike, target, "refined on the sum of what all sources gave")

    def arrivals(self, job: Job) -> Iterator[tuple[Weight, Seen]]:
        parts = parts_of(job.batch) if job.batch is not None else ()
        walks = [replace(job, batch=part, statistics=None).walk(self.observes) for _, part in parts]
        last: tuple[list[Seen | None], Seen] | None = None
        for weight, seen in together(job.view, walks):
            # Matrices that share their inputs share what is made of them too.
            if last is None or any(
                one is not other for one, other in zip(seen, last[0], strict=True)
            ):
                last = seen, joined(seen, [share for share, _ in parts])
            yield weight, last[1]

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: the best `round`, from 1, with each source's `errors` after it, and how much each
        `counted` in it, in the order of the mixture.

        Errors that are raised are those of `refined`.
        """
        self.check(target)
        whole = observed(seen, Gram)
        dense = finite(weight, "the weight").to(wide(weight.dtype))
        grams = [
            gram for gram in (seen[Sources].each if Sources in seen else (whole,)) if gram.mass > 0
        ]
        energies = [gram_energy(gram, dense.dtype) for gram in grams]
        sizes = [
            energy(dense) or 1.0 for energy in energies
        ]  # a source that makes nothing of the matrix loses nothing by it
        counted = [gram.mass / whole.mass for gram in grams]
        current = self.begun(dense, seen, target).weight
        keep, rounds = current != 0, list[tuple[Tensor, dict[str, Any]]]()
        for number in range(self.rounds):
            shares = [count / size for count, size in zip(counted, sizes, strict=True)]
            hessian = damped(weighed(grams, shares), self.damp).to(dense.dtype)
            steps, swaps = (
                share_of_round(count, self.rounds, number) for count in (self.steps, self.swaps)
            )
            done, _ = refine(
                masked(dense, current, keep, hessian),
                hessian,
                target,
                swaps,
                steps,
                1,
                self.tolerance,
            )
            current, keep = done.weight, done.keep
            errors = [
                energy(dense - current) / size for energy, size in zip(energies, sizes, strict=True)
            ]
            rounds.append(
                (
                    current,
                    {
                        "round": number + 1,
                        "errors": six_digits(errors),
                        "counted": six_digits(counted),
                    },
                )
            )
            pressing = [count * error**2 for count, error in zip(counted, errors, strict=True)]
            counted = [one / sum(pressing) for one in pressing] if sum(pressing) > 0 else counted
        best, notes = min(rounds, key=lambda found: max(found[1]["errors"]))
        return Compressed(finite(best.to(weight.dtype), "the refined weight"), notes)


def six_digits(numbers: Sequence[float]) -> list[float]:
    """Return the numbers as notes have them."""
    return [float(f"{number:.6g}") for number in numbers]
