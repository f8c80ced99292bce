"""A guard against overfitting the calibration text: how far weights are fitted is chosen on a
half that they weren't fitted to (ours).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import (
    FeatureNorms,
    Gram,
    InputStatistic,
    Seen,
    Statistic,
    wide,
)
from calibrant.errors import SpecError, TargetError
from calibrant.methods._base import (
    Compressed,
    MatrixMethod,
    StandIn,
    TokenUse,
    observed,
    removes,
    standing_in,
)
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.numerics import six_digits
from calibrant.packed import gram_energy
from calibrant.spec import text_of, with_parameters
from calibrant.targets import Removal, Target


@final
class HalvedGram(InputStatistic):
    """Two Grams of different texts: micro-batches, which are made of whole windows, are added to
    one and the other by turns.

    Weights are `fitted` to one Gram and `measured` on the other. A single micro-batch is divided in
    the middle of its rows; of a single row `measured` is None.
    """

    square = True

    def __init__(self, fitted: Gram, measured: Gram | None, batches: int = 1) -> None:
        self.fitted = fitted
        self.measured = measured
        self.batches = batches
        self.tokens = fitted.tokens
        self.mass = fitted.mass
        if measured:
            self.tokens += measured.tokens
            self.mass += measured.mass

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "HalvedGram":
        middle = (len(x) + 1) // 2
        fitted_weights = None if weights is None else weights[:middle]
        fitted = Gram.of(x[:middle], fitted_weights)
        # Fewer than two rows can't be halved.
        if len(x) < 2:
            return cls(fitted, None)
        measured_weights = None if weights is None else weights[middle:]
        return cls(fitted, Gram.of(x[middle:], measured_weights))

    def __add__(self, other: "HalvedGram") -> "HalvedGram":
        if self.batches == 1 and other.batches > 1:
            return other + self
        batches = self.batches + other.batches
        if self.batches == 1:
            # Beside another micro-batch a single one isn't divided any more.
            return HalvedGram(self.whole, other.whole, batches)
        assert self.measured is not None, "several micro-batches have two halves"
        if other.batches > 1:
            assert other.measured is not None, "several micro-batches have two halves"
            # As of two sets: both are divided already.
            measured = self.measured + other.measured
            return HalvedGram(self.fitted + other.fitted, measured, batches)
        # A micro-batch alone goes into the half whose turn it is.
        if self.batches % 2 == 0:
            return HalvedGram(self.fitted + other.whole, self.measured, batches)
        return HalvedGram(self.fitted, self.measured + other.whole, batches)

    def __mul__(self, factor: float) -> "HalvedGram":
        if self.measured is None:
            return HalvedGram(self.fitted * factor, None, self.batches)
        # Scaled is what was seen of a whole source: a single micro-batch of it stays divided.
        return HalvedGram(self.fitted * factor, self.measured * factor, max(self.batches, 2))

    def norms(self) -> Float[Tensor, "in"]:
        norms = self.fitted.norms()
        if self.measured:
            norms = norms + self.measured.norms()
        return norms

    @cached_property
    def whole(self) -> Gram:
        """The Gram of both halves."""
        return self.fitted + self.measured if self.measured else self.fitted


@dataclass(frozen=True, repr=False)
class HeldOut(MatrixMethod):
    """Lets `method` fit each matrix to half of the data with each of `damps`, and takes the one
    that errs least on the other half.

    What is damped is held near the dense weights: with the damping λ the error that is made small
    is ‖(W-Ŵ)X‖² + λ‖W-Ŵ‖². The halves are made of different windows. With the damping that was
    chosen the matrix is compressed once more, on all of the data; without `refit` the result of the
    half stays. Matrices that see a single row are compressed as `method` does it. It takes a
    factorisation for each half and damping.

    Halves of one source can't show what is lost on another: for that, calibrate on a mix. Each of
    its sources is halved by itself; in `reference` micro-batches of all go by turns. `damps` and
    errors stand in the notes.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Removal,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (HalvedGram,)
    updates: ClassVar[bool] = True

    method: Any = SparseGPT()  # noqa: RUF009  # frozen; `__post_init__` refuses what is no MatrixMethod
    damps: tuple[Any, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    refit: bool = True

    def __post_init__(self) -> None:
        damps = self.damps if isinstance(self.damps, tuple) else (self.damps,)
        are_numbers = all(type(damp) in (int, float) for damp in damps)
        # What is no number may have no hash, and a set of it would raise.
        if not damps or not are_numbers or len(set(damps)) < len(damps):
            advice = "give dampings to choose from, each once, such as [0.01, 0.1, 1.0]"
            raise SpecError(f"held_out(damps={damps}): {advice}", subject="damps")
        object.__setattr__(self, "damps", tuple(map(float, damps)))
        if not self._can_fit():
            needs = (
                "it needs a method that fits weights to a Gram and has a damp, such as sparsegpt"
            )
            text = text_of(self.method)
            raise SpecError(f"held_out(method={text}): {needs}", subject=text)

    def _can_fit(self) -> bool:
        """Return whether the method fits weights to a Gram of half of the tokens, with each of the
        dampings.
        """
        method = self.method
        if not isinstance(method, MatrixMethod) or not method.updates:
            return False
        if method.token_use != TokenUse() or not {Gram, FeatureNorms} >= set(method.observes):
            return False
        return all(with_parameters(method, damp=damp) is not None for damp in self.damps)

    def check(self, target: Target) -> None:
        if not removes(self.method):
            problem = f"{self} fits no target, since {self.method} removes no weights"
            raise TargetError(f"{problem}; write held_out(method=sparsegpt)", subject=str(self))
        super().check(target)
        self.method.check(target)

    def stand_in(self, target: Target) -> StandIn | None:
        differs = "with its own damping, not one that is chosen on a half of the data"
        return standing_in(self.method, target, f"{self.method} {differs}")

    @property
    def compressions(self) -> int:
        return len(self.damps) + int(self.refit)

    def squares(self, sources: int) -> int:
        # The Grams of the halves and of both, one of which the method counts too, and a root for
        # each damping: matrices that share an input share them.
        squares = self.method.squares(sources) + 2 + len(self.damps)
        if sources > 1:
            # Each source has halves of its own.
            squares += 2 * sources
        return squares

    def copies_on(self, device: torch.device) -> int:
        # Beside the matrix as it was, the best result until now.
        return self.method.copies_on(device) + 2

    @property
    def token_use(self) -> TokenUse:
        # Which half a micro-batch belongs to depends on how many came before it.
        return TokenUse(sources_halved=True, one_process=True)

    def judged_by(self, seen: Seen) -> Seen:
        return Seen({**seen, Gram: seen[HalvedGram].whole})

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: `held_out` has the relative error on the other half for each damping. Raises as
        `method` does.
        """
        halves = observed(seen, HalvedGram)
        whole = Seen.of_gram(halves.whole)
        if halves.measured is None or not min(halves.fitted.mass, halves.measured.mass) > 0:
            return self.method.compress(weight, whole, target)
        dtype = wide(weight.dtype)
        # The error is measured on the half that nothing was fitted to.
        energy = gram_energy(halves.measured, dtype)
        dense = weight.detach().to(dtype)
        fitted = Seen.of_gram(halves.fitted)
        errors: dict[float, float] = {}
        best = self.damps[0]
        result = Compressed(weight)
        for damp in self.damps:
            candidate = self._damped(damp).compress(weight, fitted, target)
            errors[damp] = energy(dense - candidate.weight.to(dtype))
            if damp == self.damps[0] or errors[damp] < errors[best]:
                best = damp
                result = candidate
        if self.refit:
            result = self._damped(best).compress(weight, whole, target)
        size = energy(dense)
        shares: dict[str, float] = {}
        for damp, error in errors.items():
            # Outputs that are all zero on that half lose nothing.
            shares[f"{damp:g}"] = six_digits(error / size) if size > 0 else 0.0
        notes = {**result.notes, "held_out": shares, "chosen_damp": best}
        return Compressed(result.weight, notes, result.packed)

    def _damped(self, damp: float) -> MatrixMethod:
        damped: MatrixMethod | None = with_parameters(self.method, damp=damp)
        assert damped is not None, "a method without damp is refused when it is given"
        return damped
