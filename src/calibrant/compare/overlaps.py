"""How much the masks of calibration sets have in common, and how much those of two draws of one set. No torch here.

What two sets share says little by itself: two draws of the same set don't share everything either, and that is what to hold it against.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from calibrant.compare.answers import grouped
from calibrant.compare.results import Results
from calibrant.store import Store


@dataclass(frozen=True)
class MaskOverlap:
    """One group of runs. `jaccard` is the share of the weights kept by either mask that both keep, of 256 sampled bits a matrix.

    It is averaged over all pairs of draws of the two sets, never a draw with itself: the diagonal is between draws of one set, and NaN for a set
    that was drawn once. `draws` says how many a set has. Two masks that keep a share k each at random would have k / (2 − k).
    """

    model: str
    method: str
    target: str
    propagate: str
    sets: tuple[str, ...]
    draws: tuple[int, ...]
    jaccard: Float[np.ndarray, "set set"]

    @property
    def within(self) -> Float[np.ndarray, " set"]:
        """Between draws of each set."""
        return self.jaccard.diagonal()

    @property
    def across(self) -> Float[np.ndarray, " set"]:
        """Between each set and the others, on average; NaN for a set alone."""
        others = np.where(np.eye(len(self.sets), dtype=bool), np.nan, self.jaccard)
        known = np.isfinite(others)
        with np.errstate(invalid="ignore"):
            return np.where(known, others, 0.0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)

    def to_json(self) -> dict[str, Any]:
        """Plain data; None where a number isn't known."""
        table = [[None if value != value else value for value in row] for row in self.jaccard.tolist()]
        told = {"model": self.model, "method": self.method, "target": self.target, "propagate": self.propagate}
        return {**told, "draws": dict(zip(self.sets, self.draws, strict=True)), "jaccard": table}


def overlaps(store: Store, reading: Results) -> Iterator[MaskOverlap]:
    """Every group of the grid whose records keep mask bits, in the order of its rankings. `DataError` for a record that can't be read."""
    for group, cells in grouped(reading.cells).items():
        kept: dict[str, dict[int, Float[np.ndarray, " bit"]]] = {}
        for cell in cells:
            if cell.data and cell.run in reading.records and (bits := _bits(store, cell.run)) is not None:
                kept.setdefault(cell.data, {})[cell.seed] = bits
        if kept:
            rows = [(name, bits) for name, draws in kept.items() for bits in draws.values() if len(bits) == _usual(kept)]
            yield MaskOverlap(**group._asdict(), sets=tuple(kept), draws=tuple(map(len, kept.values())), jaccard=_jaccard(tuple(kept), rows))


def _bits(store: Store, run: str) -> Float[np.ndarray, " bit"] | None:
    """The sampled mask bits of a run's matrices, one after another; None where a matrix has none."""
    record = store.record(run)
    if record is None or not record.weights or not all("bits" in weight for weight in record.weights):
        return None
    ordered = sorted(record.weights, key=lambda weight: str(weight["name"]))
    return np.unpackbits(np.frombuffer(bytes.fromhex("".join(str(w["bits"]) for w in ordered)), np.uint8)).astype(np.float32)


def _usual(kept: dict[str, dict[int, Float[np.ndarray, " bit"]]]) -> int:
    """As many bits as most runs have: those of another model's size can't be compared."""
    sizes = [len(bits) for draws in kept.values() for bits in draws.values()]
    return max(set(sizes), key=lambda size: (sizes.count(size), size))


def _jaccard(sets: tuple[str, ...], rows: list[tuple[str, Float[np.ndarray, " bit"]]]) -> Float[np.ndarray, "set set"]:
    table = np.stack([bits for _, bits in rows])
    both, each = (table @ table.T).astype(np.float64), table.sum(1, dtype=np.float64)
    either = each[:, None] + each - both
    share = np.where(either > 0, both / np.maximum(either, 1.0), 1.0)
    np.fill_diagonal(share, np.nan)
    found = np.full((len(sets), len(sets)), np.nan)
    at = [[i for i, (name, _) in enumerate(rows) if name == wanted] for wanted in sets]
    for i, mine in enumerate(at):
        for j, theirs in enumerate(at):
            known = share[np.ix_(mine, theirs)]
            if np.isfinite(known).any():
                found[i, j] = float(np.nanmean(known))
    return found
