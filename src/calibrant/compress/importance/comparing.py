"""Two importance matrices side by side, or one alone: what they cover, and in which tensors they
differ.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import numpy as np

from calibrant.errors import DataError
from calibrant.models.imatrix import Imatrix, ImatrixEntry

FEW: Final = 16
"""Tokens below which an expert's importance is mostly chance."""


@final
@dataclass(frozen=True)
class ImatrixSummary:
    """What one importance matrix covers, and how far another is from it.

    `alike` is, for each tensor of both, the correlation of the logarithms of their columns'
    importance: 1 where they ask the same of a quantizer. A factor that all columns share makes no
    difference to one. `unseen` and `rare` count the experts that no token, or fewer than 16,
    reached.
    """

    tensors: int
    experts: int
    unseen: int
    rare: int
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    only_here: tuple[str, ...] = ()
    only_there: tuple[str, ...] = ()
    alike: Mapping[str, float] | None = None

    @property
    def median(self) -> float | None:
        """The median correlation; None without another imatrix."""
        return float(np.median(list(self.alike.values()))) if self.alike else None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "median": self.median}


def compared(imatrix: Imatrix, other: Imatrix | None = None) -> ImatrixSummary:
    """Return what `imatrix` covers and, with `other`, how alike the two are. Raises `DataError` for
    two of different models.

    >>> ones = Imatrix({"blk.0.attn_q.weight": ImatrixEntry(np.array([[1.0, 2.0, 3.0]]), np.array([4]))}, ("text",), 1, 4)
    >>> compared(ones, ones).median
    1.0
    """
    experts = [entry.counts for entry in imatrix.entries.values() if len(entry.counts) > 1]
    counts = np.concatenate(experts) if experts else np.zeros(0)
    about = (
        len(imatrix.entries),
        len(counts),
        int((counts == 0).sum()),
        int(((counts > 0) & (counts < FEW)).sum()),
    )
    facts = *about, imatrix.datasets, imatrix.chunks, imatrix.chunk_size
    if other is None:
        return ImatrixSummary(*facts)
    mine, theirs = imatrix.entries, other.entries
    both = [name for name in mine if name in theirs]
    if not both:
        raise DataError(
            f"the two imatrices are of different models: {min(mine)} is in one and {min(theirs)} in the other, none in both"
        )
    for name in both:
        if mine[name].sums.size != theirs[name].sums.size:
            sizes = (
                f"{mine[name].sums.size} columns in one and {theirs[name].sums.size} in the other"
            )
            raise DataError(
                f"the two imatrices are of different models: {name} has {sizes}", subject=name
            )
    alike = {name: _alike(mine[name], theirs[name]) for name in both}
    only = tuple(sorted(set(mine) - set(theirs))), tuple(sorted(set(theirs) - set(mine)))
    return ImatrixSummary(*facts, *only, alike)


def _alike(one: ImatrixEntry, other: ImatrixEntry) -> float:
    mine, theirs = (
        np.log(np.maximum(entry.importance.astype(np.float64).ravel(), 1e-30))
        for entry in (one, other)
    )
    if np.ptp(mine - theirs) < 1e-9:
        return 1.0
    return float(np.corrcoef(mine, theirs)[0, 1]) if min(np.ptp(mine), np.ptp(theirs)) > 0 else 0.0
