"""A guard against overfitting the calibration text: how far weights are fitted is chosen on a
half that they weren't fitted to (ours).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, Statistic, wide
from calibrant.edits.changes import gram_energy
from calibrant.errors import SpecError
from calibrant.job import Job
from calibrant.methods._base import Compressed, MatrixMethod, StandIn, observed, standing_in
from calibrant.methods.pruning._halves import HalvedGram
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.models import Weight
from calibrant.spec import text_of, with_parameters
from calibrant.targets import Removal, Target


@dataclass(frozen=True, repr=False)
class HeldOut(MatrixMethod):
    """Lets `method` fit each matrix to half of the data with each of `damps`, and takes the one
    that errs least on the other half.

    What is damped is held near the dense weights: with the damping λ the error that is made small
    is ‖(W-Ŵ)X‖² + λ‖W-Ŵ‖². The halves are made of different windows. With the damping that was
    chosen the matrix is compressed once more, on all of the data; without `refit` the result of the
    half stays. Matrices that see a single row are compressed as `method` does it. It takes a
    factorisation for each half and damping.

    Halves of one source can't show what is lost on another: for that, calibrate on a mix. `damps`
    and errors stand in the notes.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Removal,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (HalvedGram,)
    updates: ClassVar[bool] = True

    method: Any = SparseGPT()  # noqa: RUF009  # frozen; a MatrixMethod, anything else is refused in a sentence
    damps: tuple[Any, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    refit: bool = True

    def __post_init__(self) -> None:
        damps = self.damps if isinstance(self.damps, tuple) else (self.damps,)
        if (
            not damps
            or any(isinstance(damp, bool) or not isinstance(damp, int | float) for damp in damps)
            or len({*damps}) < len(damps)
        ):
            raise SpecError(
                f"held_out(damps={damps}): give dampings to choose from, each once, such as [0.01, 0.1, 1.0]",
                subject="damps",
            )
        object.__setattr__(self, "damps", tuple(map(float, damps)))
        method = self.method
        fits = (
            isinstance(method, MatrixMethod)
            and method.updates
            and {Gram, FeatureNorms} >= set(method.observes)
        )
        if not fits or any(with_parameters(method, damp=damp) is None for damp in self.damps):
            message = f"held_out(method={text_of(method)}): it needs a method that fits weights to a Gram and has a damp, such as sparsegpt"
            raise SpecError(message, subject=text_of(method))

    def check(self, target: Target) -> None:
        super().check(target)
        self.method.check(target)

    def stand_in(self, target: Target) -> StandIn | None:
        return standing_in(
            self.method,
            target,
            f"{self.method} with its own damping, not one that is chosen on a half of the data",
        )

    def arrivals(self, job: Job) -> Iterator[tuple[Weight, Seen]]:
        if job.ranks.size > 1:
            raise SpecError(
                "held_out divides data among fitting and measuring in one process; start it without torchrun",
                subject=str(self),
            )
        # The whole Gram too, for the record's errors.
        return (
            (weight, Seen({**seen, Gram: seen[HalvedGram].whole}))
            for weight, seen in job.walk(self.observes)
        )

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: `held_out` has the relative error on the other half for each damping. Raises as
        `method` does.
        """
        halves = observed(seen, HalvedGram)
        if halves.measured is None or not halves.measured.mass > 0:
            return self.method.compress(weight, Seen.of_gram(halves.whole), target)
        dtype = wide(weight.dtype)
        energy, dense = gram_energy(halves.measured, dtype), weight.detach().to(dtype)
        errors, best, fitted = dict[float, float](), self.damps[0], Compressed(weight)
        for damp in self.damps:
            tried = self._damped(damp).compress(weight, Seen.of_gram(halves.fitted), target)
            errors[damp] = energy(dense - tried.weight.to(dtype))
            if damp == self.damps[0] or errors[damp] < errors[best]:
                best, fitted = damp, tried
        done = (
            self._damped(best).compress(weight, Seen.of_gram(halves.whole), target)
            if self.refit
            else fitted
        )
        whole = energy(dense)
        shares = {
            f"{damp:g}": float(f"{error / whole:.6g}") if whole > 0 else 0.0
            for damp, error in errors.items()
        }
        return Compressed(
            done.weight, {**done.notes, "held_out": shares, "chosen_damp": best}, done.packed
        )

    def _damped(self, damp: float) -> MatrixMethod:
        damped: MatrixMethod | None = with_parameters(self.method, damp=damp)
        assert damped is not None, "a method without damp is refused when it is given"
        return damped
