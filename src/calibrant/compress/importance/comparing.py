"""Two importance matrices side by side, or one alone: what they cover, and in which tensors they
differ.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
        if not self.alike:
            return None
        return float(np.median(list(self.alike.values())))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "median": self.median}


def compared(imatrix: Imatrix, other: Imatrix | None = None) -> ImatrixSummary:
    """Return what `imatrix` covers and, with `other`, how alike the two are. Raises `DataError` for
    two of different models.

    >>> entry = ImatrixEntry(np.array([[1.0, 2.0, 3.0]]), np.array([4]))
    >>> imatrix = Imatrix({"blk.0.attn_q.weight": entry}, ("text",), 1, 4)
    >>> compared(imatrix, imatrix).median
    1.0
    """
    experts = [entry.counts for entry in imatrix.entries.values() if len(entry.counts) > 1]
    counts = np.concatenate(experts) if experts else np.zeros(0)
    summary = ImatrixSummary(
        tensors=len(imatrix.entries),
        experts=len(counts),
        unseen=int((counts == 0).sum()),
        rare=int(((counts > 0) & (counts < FEW)).sum()),
        datasets=imatrix.datasets,
        chunks=imatrix.chunks,
        chunk_size=imatrix.chunk_size,
    )
    if other is None:
        return summary
    mine = imatrix.entries
    theirs = other.entries
    both = [name for name in mine if name in theirs]
    problem = "the two imatrices are of different models"
    if not both:
        names = f"{min(mine)} is in one and {min(theirs)} in the other, none in both"
        raise DataError(f"{problem}: {names}")
    alike: dict[str, float] = {}
    for name in both:
        columns = mine[name].sums.size
        others = theirs[name].sums.size
        if columns != others:
            sizes = f"{columns} columns in one and {others} in the other"
            raise DataError(f"{problem}: {name} has {sizes}", subject=name)
        alike[name] = _alike(mine[name], theirs[name])
    return replace(
        summary,
        only_here=tuple(sorted(set(mine) - set(theirs))),
        only_there=tuple(sorted(set(theirs) - set(mine))),
        alike=alike,
    )


def _alike(entry: ImatrixEntry, other: ImatrixEntry) -> float:
    """The correlation of the logarithms of two tensors' importance."""
    mine = _logarithms(entry)
    theirs = _logarithms(other)
    if np.ptp(mine - theirs) < 1e-9:
        return 1.0
    # Where all columns of one count alike there is no correlation.
    if min(np.ptp(mine), np.ptp(theirs)) == 0:
        return 0.0
    return float(np.corrcoef(mine, theirs)[0, 1])


def _logarithms(entry: ImatrixEntry) -> np.ndarray:
    return np.log(np.maximum(entry.importance.astype(np.float64).ravel(), 1e-30))
