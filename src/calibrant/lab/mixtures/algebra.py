"""What mixtures of sources do to matrices, from what the untouched model's matrices saw of each
source: no forward is run.

A mixture's statistics are the sum of its parts', each divided by its own tokens, with the weights:
`blended`. The damage that it does to a judge B is, of each matrix, tr((W − Ŵ) G_B (W − Ŵ)ᵀ) / tr(W
G_B Wᵀ) = ‖(W − Ŵ)X_B‖² / ‖W X_B‖², where Ŵ is what the method makes of W from the mixture's
statistics: `Errors`, averaged over matrices. G_B is of texts that no calibration set can hold,
because a method that fits weights looks better under the very Gram that it was fitted to.

Each matrix is judged on the inputs that it has in the untouched model: how errors add up on their
way through the model isn't in it. A sample of its rows is rounded as they would be in the whole
matrix, also where its scale is shared with other matrices.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen, wide
from calibrant.edits.shared_scales import sharing_scales
from calibrant.methods import MatrixMethod
from calibrant.models import Block, Weight
from calibrant.numerics import not_finite
from calibrant.system.products import exact
from calibrant.targets import FloatGrid, Target
from calibrant.walk.statistics import SeenInBlock


@dataclass(frozen=True)
class Sample:
    """Up to `blocks` blocks and up to `rows` output rows of each of their matrices, evenly spaced:
    always the same ones.

    Rows are pruned independently of one another by methods that choose within a row. A method that
    chooses over many rows sees these alone.
    """

    blocks: int
    rows: int

    def of_blocks(self, count: int) -> list[int]:
        """Return the indices of the blocks among `count`."""
        return spaced(self.blocks, count)

    def of_rows(self, count: int) -> list[int]:
        """Return the indices of the rows among `count`."""
        return spaced(self.rows, count)

    def to_json(self, count: int) -> dict[str, int]:
        """Return how many blocks of `count` there are in it, and how many rows of a matrix at
        most.
        """
        return {"blocks": min(self.blocks, count), "of": count, "rows": self.rows}


def spaced(most: int, count: int) -> list[int]:
    """Return up to `most` numbers below `count`: the middles of as many equal stretches.

    >>> spaced(3, 12)
    [2, 6, 10]
    """
    most = min(most, count)
    # The middle of each stretch is (place + ½) · count / most, in whole numbers.
    return [(2 * place + 1) * count // (2 * most) for place in range(most)]


@dataclass(frozen=True)
class Effort:
    """What a search may look at: how many `evaluations` of a mixture on the sample `search`, the
    sample of the figures that are reported, and that of the meter.
    """

    search: Sample
    evaluations: int
    final: Sample
    meter: Sample


NO_METER: Final = Sample(blocks=0, rows=0)
"""No sample: nobody asks whether the tokens are enough."""

SCORING: Final = Effort(
    search=Sample(blocks=6, rows=32),
    evaluations=120,
    final=Sample(blocks=10, rows=64),
    meter=Sample(blocks=6, rows=32),
)
"""For methods that read the norms of inputs."""

FITTING: Final = Effort(
    search=Sample(blocks=3, rows=32),
    evaluations=30,
    final=Sample(blocks=5, rows=64),
    meter=Sample(blocks=3, rows=32),
)
"""For methods that read a Gram: each mixture has a factorisation of its own, which costs more
than all else.
"""


def effort_of(method: MatrixMethod) -> Effort:
    """Return how much a search may look at, given what the method costs."""
    return FITTING if Gram in method.observes else SCORING


Shares = tuple[Fraction, ...]
"""How much each source weighs in a mixture; exact, and one in all."""


def only(place: int, count: int) -> Shares:
    """Return the mixture of `count` sources that is the source at `place` alone."""
    shares = [Fraction(0)] * count
    shares[place] = Fraction(1)
    return tuple(shares)


def uniform(count: int) -> Shares:
    """Return the mixture in which all of `count` sources weigh the same."""
    return (Fraction(1, count),) * count


def without(place: int, shares: Shares) -> Shares:
    """Return the mixture without its part at `place`, the others as they stand to one another."""
    remaining = 1 - shares[place]
    others = [share / remaining for share in shares]
    others[place] = Fraction(0)
    return tuple(others)


def blended(seen: Sequence[Seen | None], shares: Shares, masses: Sequence[float]) -> Seen | None:
    """Return what one walk over the mixture would see: each part divided by its mass, times its
    share, on the scale of all parts' tokens together.

    The factors, and the order in which parts are added, are those with which a calibration set
    `mix(…)` is used, so its masks are the same to the bit. One part alone is that part, untouched.
    A part of share 0 is left out; None where no part that counts reached the matrix.
    """
    counted = [place for place, share in enumerate(shares) if share]
    if len(counted) == 1:
        return seen[counted[0]]
    whole = sum(masses[place] for place in counted)
    total: Seen | None = None
    for place in counted:
        source = seen[place]
        if source is not None:
            factor = float(shares[place]) * whole / masses[place]
            part = source * factor
            total = part if total is None else total + part
    return total


@final
@dataclass(frozen=True, eq=False)
class SharedInput:
    """Matrices of a block that read the same input, `rows` of each and their `targets`, and what
    that input was: of every source, and of every judge.
    """

    names: tuple[str, ...]
    rows: tuple[Float[Tensor, "_ in"], ...]
    targets: tuple[Target, ...]
    seen: tuple[Seen | None, ...]
    judges: tuple[Gram | None, ...]

    def changes(self, method: MatrixMethod, seen: Seen | None) -> Float[Tensor, "row in"]:
        """Return W − Ŵ of all rows, one matrix below the other; a matrix that no token reached
        stays as it is.
        """
        if seen is None:
            return torch.zeros_like(self._stacked)
        compressed: list[Tensor] = []
        for rows, target in zip(self.rows, self.targets, strict=True):
            weight = method.compress(rows, seen, target).weight
            compressed.append(weight.to(self._stacked.dtype))
        return self._stacked - torch.cat(compressed)

    def damages(
        self, changes: Float[Tensor, "mixture row in"]
    ) -> Float[np.ndarray, "mixture matrix judge"]:
        """Return each matrix's relative error under each judge; NaN where the judge never
        reached it, or its outputs were zero.
        """
        shape = len(changes), len(self.rows), len(self.judges)
        errors = np.full(shape, np.nan)
        for place, gram in enumerate(self.judges):
            if gram is None:
                continue
            dense_energies = self._dense_energies[:, place]
            energies = self._energies(changes, gram)
            known = dense_energies > 0
            errors[:, known, place] = energies[:, known] / dense_energies[known]
        return errors

    def _energies(self, changes: Float[Tensor, "mixture row in"], gram: Gram) -> np.ndarray:
        """tr(D G Dᵀ) of the rows D of each matrix, [mixture, matrix]."""
        # tr(D G Dᵀ) is the sum over rows d of d G dᵀ: no product of D with its own transpose is
        # needed.
        flat = changes.reshape(-1, changes.shape[-1])
        products = flat @ gram.matrix.to(flat.dtype)
        by_row = exact((products * flat).sum(1))
        by_row = by_row.reshape(len(changes), -1)
        sizes = [len(rows) for rows in self.rows]
        by_matrix = [rows.sum(1) for rows in by_row.split(sizes, dim=1)]
        energies = torch.stack(by_matrix, dim=1).cpu().numpy()
        if not np.isfinite(energies).all():
            # No error of them can be predicted.
            raise not_finite(f"the squared outputs of {self.names[0]}", self.names[0])
        return energies

    @cached_property
    def _stacked(self) -> Tensor:
        widened = [rows.to(wide(rows.dtype)) for rows in self.rows]
        return torch.cat(widened)

    @cached_property
    def _dense_energies(self) -> np.ndarray:
        """tr(W G Wᵀ), [matrix, judge]; zero where the judge has no Gram."""
        energies: list[np.ndarray] = []
        for gram in self.judges:
            if gram is None:
                energies.append(np.zeros(len(self.rows)))
            else:
                energies.append(self._energies(self._stacked[None], gram)[0])
        return np.stack(energies, axis=1)

    def typical(self) -> np.ndarray:
        """Return the logarithm of tr(W G Wᵀ) for a judge's token, [matrix, judge]; NaN where
        there is none.
        """
        masses = np.full(len(self.judges), np.nan)
        for place, gram in enumerate(self.judges):
            if gram is not None:
                masses[place] = gram.mass
        known = np.where(self._dense_energies > 0, self._dense_energies, np.nan)
        return np.log(known / masses)


@final
class Errors:
    """The relative error of mixtures under judges, averaged over the matrices that read `inputs`.

    `masses` are those of the sources' batches. `inputs` are read one after the other. An iterator,
    which reads each from the disk when its turn comes, serves one call; a list serves any number.
    """

    def __init__(
        self,
        inputs: Iterable[SharedInput],
        method: MatrixMethod,
        masses: Sequence[float],
    ) -> None:
        self.inputs = inputs
        self.method = method
        self.masses = tuple(masses)

    @torch.no_grad()
    def __call__(self, mixtures: Sequence[Shares]) -> Float[np.ndarray, "mixture judge"]:
        """One row for each mixture; NaN under a judge that reached no matrix."""
        # The first sum gives them their shape [mixture, judge], which isn't known before.
        total = np.zeros(())
        count = np.zeros(())
        for shared in self.inputs:
            changes: list[Tensor] = []
            for shares in mixtures:
                seen = blended(shared.seen, shares, self.masses)
                changes.append(shared.changes(self.method, seen))
            damages = shared.damages(torch.stack(changes))
            known = ~np.isnan(damages)
            total = total + np.nansum(damages, axis=1)
            count = count + known.sum(axis=1)
        return _ratio(total, count, nothing=np.nan)


def shared_inputs(
    sources: Sequence[SeenInBlock], judges: Sequence[SeenInBlock], sample: Sample, target: Target
) -> Iterator[SharedInput]:
    """Yield a block's matrices by the input that they share, with what it was of each source and
    judge. Those that no judge reached are left out.
    """
    block, _ = judges[0]
    targets = targets_of_rows(block, target)
    by_input: dict[tuple[int, ...], list[int]] = {}
    seen_in_block = [statistics for _, statistics in (*sources, *judges)]
    for place, weight in enumerate(block.weights):
        # Matrices that read the same tensor have one and the same statistic.
        inputs = tuple(id(statistics.get(weight)) for statistics in seen_in_block)
        by_input.setdefault(inputs, []).append(place)
    for places in by_input.values():
        weights = [block.weights[place] for place in places]
        any_weight = weights[0]
        seen = tuple(statistics.get(any_weight) for _, statistics in sources)
        grams: list[Gram | None] = []
        is_judged = False
        for _, statistics in judges:
            judged = statistics.get(any_weight)
            if judged is None:
                grams.append(None)
            else:
                grams.append(judged[Gram])
                is_judged = True
        if is_judged:
            names = tuple(weight.name for weight in weights)
            rows = tuple(sampled_rows(weight, sample) for weight in weights)
            own_targets = tuple(targets[name] for name in names)
            yield SharedInput(names, rows, own_targets, seen, tuple(grams))


def targets_of_rows(block: Block, target: Target) -> dict[str, Target]:
    """Return what single rows of a block's matrices are to become, by the matrices' names. Where a
    matrix has a global scale, that follows from all rows and not from those that are sampled.
    """
    names = [weight.name for weight in block.weights]
    targets = sharing_scales(block.weights, dict.fromkeys(names, target))
    for weight in block.weights:
        own = targets[weight.name]
        if isinstance(own, FloatGrid) and own.scale == "e4m3" and own.reach is None:
            largest = weight.get().abs().max()
            targets[weight.name] = replace(own, reach=float(largest))
    return targets


def sampled_rows(weight: Weight, sample: Sample) -> Float[Tensor, "row in"]:
    """Return the sampled rows of a matrix."""
    rows = sample.of_rows(weight.shape[0])
    return weight.get()[torch.tensor(rows, device=weight.stored.device)]


def typical(inputs: Iterable[SharedInput]) -> Float[np.ndarray, "judge"]:
    """Return each judge's ln tr(W G Wᵀ) a token, averaged over matrices: how large its outputs
    are, on a scale of its own.
    """
    energies = np.concatenate([shared.typical() for shared in inputs])
    known = ~np.isnan(energies)
    total = np.where(known, energies, 0).sum(0)
    return _ratio(total, known.sum(0), nothing=0.0)


def _ratio(total: np.ndarray, count: np.ndarray, nothing: float) -> np.ndarray:
    """A mean where something was counted, and `nothing` elsewhere."""
    ratios = np.full(np.shape(count), nothing)
    np.divide(total, count, out=ratios, where=count > 0)
    return ratios
