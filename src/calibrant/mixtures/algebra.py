"""What mixtures of sources do to matrices, from what the untouched model's matrices saw of each source: no forward is run.

A mixture's statistics are the sum of its parts', each divided by its own tokens, with the weights: `blended`. The damage that it does to a
judge B is, of each matrix, tr((W − Ŵ) G_B (W − Ŵ)ᵀ) / tr(W G_B Wᵀ) = ‖(W − Ŵ)X_B‖² / ‖W X_B‖², where Ŵ is what the method makes of W from the
mixture's statistics: `Errors`, averaged over matrices. G_B is of texts that no calibration set can hold, because a method that fits weights
looks better under the very Gram that it was fitted to.

Each matrix is judged on the inputs that it has in the untouched model: how errors add up on their way through the model isn't in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen, wide
from calibrant.methods import MatrixMethod
from calibrant.mixtures.sampling import Sample
from calibrant.targets import Target
from calibrant.walk.statistics import Dense

Shares = tuple[Fraction, ...]
"""How much each source weighs in a mixture; exact, and one in all."""


def only(place: int, count: int) -> Shares:
    """The mixture of `count` sources that is the source at `place` alone."""
    return tuple(Fraction(int(i == place)) for i in range(count))


def uniform(count: int) -> Shares:
    """The mixture in which all of `count` sources weigh the same."""
    return (Fraction(1, count),) * count


def without(place: int, shares: Shares) -> Shares:
    """The mixture without its part at `place`, the others as they stand to one another."""
    left = 1 - shares[place]
    return tuple(Fraction(0) if i == place else share / left for i, share in enumerate(shares))


def blended(seen: Sequence[Seen | None], shares: Shares, masses: Sequence[float]) -> Seen | None:
    """What one walk over the mixture would see: each part divided by its mass, times its share, on the scale of all parts' tokens together.

    The factors, and the order in which parts are added, are those with which a calibration set `mix(…)` is used, so its masks are the same to
    the bit. One part alone is that part, untouched. A part of share 0 is left out; None where no part that counts reached the matrix.
    """
    counted = [place for place, share in enumerate(shares) if share]
    if len(counted) == 1:
        return seen[counted[0]]
    whole = sum(masses[place] for place in counted)
    total: Seen | None = None
    for place in counted:
        here = seen[place]
        if here is not None:
            part = here * (float(shares[place]) * whole / masses[place])
            total = part if total is None else total + part
    return total


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Matrices of a block that read the same input, `rows` of each, and what that input was: of every source, and of every judge."""

    names: tuple[str, ...]
    rows: tuple[Float[Tensor, "_ in"], ...]
    seen: tuple[Seen | None, ...]
    judges: tuple[Gram | None, ...]

    def changes(self, method: MatrixMethod, target: Target, seen: Seen | None) -> Float[Tensor, "row in"]:
        """W − Ŵ of all rows, one matrix below the other; a matrix that no token reached stays as it is."""
        if seen is None:
            return torch.zeros_like(self._stacked)
        return self._stacked - torch.cat([method.compress(rows, seen, target).weight.to(self._stacked.dtype) for rows in self.rows])

    def damages(self, changes: Float[Tensor, "mixture row in"]) -> Float[np.ndarray, "mixture matrix judge"]:
        """Each matrix's relative error under each judge; NaN where the judge never reached it, or its outputs were zero."""
        found = np.full((len(changes), len(self.rows), len(self.judges)), np.nan)
        for place, gram in enumerate(self.judges):
            whole = self._energy[:, place]
            if gram is not None:
                found[:, :, place] = np.divide(self._energies(changes, gram), whole, out=found[:, :, place], where=whole > 0)
        return found

    def _energies(self, rows: Tensor, gram: Gram) -> np.ndarray:
        """tr(D G Dᵀ) of each matrix, [mixture, matrix]."""
        flat = rows.reshape(-1, rows.shape[-1])
        each = ((flat @ gram.matrix.to(flat.dtype)) * flat).sum(1).double().reshape(len(rows), -1)
        return torch.stack([part.sum(1) for part in each.split([len(r) for r in self.rows], dim=1)], dim=1).cpu().numpy()

    @cached_property
    def _stacked(self) -> Tensor:
        return torch.cat([rows.to(wide(rows.dtype)) for rows in self.rows])

    @cached_property
    def _energy(self) -> np.ndarray:
        """tr(W G Wᵀ), [matrix, judge]; zero where the judge has no Gram."""
        nothing = np.zeros(len(self.rows))
        return np.stack([nothing if gram is None else self._energies(self._stacked[None], gram)[0] for gram in self.judges], axis=1)

    def typical(self) -> np.ndarray:
        """The logarithm of tr(W G Wᵀ) for a judge's token, [matrix, judge]; NaN where there is none."""
        masses = np.array([np.nan if gram is None else gram.mass for gram in self.judges])
        return np.log(np.where(self._energy > 0, self._energy, np.nan) / masses)


@final
class Errors:
    """The relative error of mixtures under judges, averaged over the matrices of `groups`.

    `masses` are those of the sources' batches. Groups are looked at one after the other and may be made when their turn comes; a sequence can be
    asked again.
    """

    def __init__(self, groups: Iterable[Group], method: MatrixMethod, target: Target, masses: Sequence[float]) -> None:
        self.groups, self.method, self.target, self.masses = groups, method, target, tuple(masses)

    @torch.no_grad()
    def __call__(self, mixtures: Sequence[Shares]) -> Float[np.ndarray, "mixture judge"]:
        """One row for each mixture; NaN under a judge that reached no matrix."""
        total, count = 0.0, 0.0
        for group in self.groups:
            changes = [group.changes(self.method, self.target, blended(group.seen, shares, self.masses)) for shares in mixtures]
            damages = group.damages(torch.stack(changes))
            total, count = total + np.nansum(damages, axis=1), count + (~np.isnan(damages)).sum(axis=1)
        return np.divide(total, count, out=np.full(np.shape(count), np.nan), where=np.asarray(count) > 0)


def groups_of(sources: Sequence[Dense], judges: Sequence[Dense], sample: Sample) -> Iterator[Group]:
    """A block's groups, from what its matrices saw of each source and of each judge. A matrix that no judge reached is in none."""
    block = judges[0][0]
    gathered: dict[tuple[int, ...], list[int]] = {}
    for place, weight in enumerate(block.weights):
        key = tuple(id(there.get(weight)) for _, there in (*sources, *judges))
        gathered.setdefault(key, []).append(place)
    for places in gathered.values():
        weights = [block.weights[place] for place in places]
        seen = tuple(there.get(weights[0]) for _, there in sources)
        grams = tuple(there[weights[0]][Gram] if weights[0] in there else None for _, there in judges)
        if any(gram is not None for gram in grams):
            rows = tuple(w.get()[torch.tensor(sample.of_rows(w.shape[0]), device=w.stored.device)] for w in weights)
            yield Group(tuple(w.name for w in weights), rows, seen, grams)


def typical(groups: Iterable[Group]) -> Float[np.ndarray, "judge"]:
    """Each judge's ln tr(W G Wᵀ) a token, averaged over matrices: how large its outputs are, on a scale of its own."""
    each = np.concatenate([group.typical() for group in groups])
    there = ~np.isnan(each)
    return np.divide(np.where(there, each, 0).sum(0), there.sum(0), out=np.zeros(each.shape[1]), where=there.any(0))
