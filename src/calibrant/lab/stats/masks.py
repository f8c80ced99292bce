"""What calibration sets do to a model's matrices: how far their masks and statistics agree, and how
large the outputs' error is, block by block.

All of it comes from what records hold of every matrix: 256 bits of its mask, the sizes of 32 of its
input features, the error of its outputs. Features and bits are chosen by the matrix's name, so
those of two runs of one model are of the same weights. What the masks of two sets share says little
by itself: two draws of one set don't share everything either, and that is what to compare it with
(`overlaps`).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from calibrant.lab.stats.results import Results, grouped
from calibrant.results import Store
from calibrant.spec.families import Family

_BLOCK: Final = re.compile(r"(.*?\.\d+)(?:\.|$)")


@dataclass(frozen=True)
class Layers:
    """One group of runs, block by block. Several draws of a set are averaged; of two sets, draws of
    the same number are compared.

    `masks` is the share of the sampled mask bits that agree, 1 for the same masks. `statistics` is
    the standard deviation, over sampled input features of the block's matrices, of the difference
    of ln √(mean x²): 0 for the same activations, and for such as differ by one factor a matrix,
    which no method that compares within a matrix sees. `error` is the mean relative error of the
    outputs of the block's matrices. NaN is unknown. `families` say what kind of data each set is.
    """

    model: str
    method: str
    target: str
    propagate: str
    sets: tuple[str, ...]
    blocks: tuple[str, ...]
    masks: Float[np.ndarray, "set set block"]
    statistics: Float[np.ndarray, "set set block"]
    error: Float[np.ndarray, "set block"]
    families: Mapping[str, Family] = field(default_factory=dict[str, Family])

    @cached_property
    def error_range(self) -> Float[np.ndarray, "3 block"]:
        """The smallest, the middle and the largest error of the sets in each block; NaN where
        none is known.
        """
        known = [row[np.isfinite(row)] for row in self.error.T]
        return np.array(
            [[f(row) if len(row) else np.nan for row in known] for f in (np.min, np.median, np.max)]
        )

    def among(self, sets: Sequence[str]) -> "Layers":
        """Return the same of some sets only, in this order."""
        at = [self.sets.index(name) for name in sets]
        grid = np.ix_(at, at)
        return replace(
            self,
            sets=tuple(sets),
            masks=self.masks[grid],
            statistics=self.statistics[grid],
            error=self.error[at],
        )


@dataclass(frozen=True)
class _Matrices:
    """What a record holds of its matrices: by block and name signs of mask bits and sizes of
    input features about their matrix's mean; errors.
    """

    signs: Mapping[str, Mapping[str, Float[np.ndarray, " bit"]]]
    sizes: Mapping[str, Mapping[str, Float[np.ndarray, " feature"]]]
    errors: Mapping[str, float]
    blocks: tuple[str, ...]

    @staticmethod
    def of(weights: Sequence[Mapping[str, Any]]) -> "_Matrices":
        by_block: dict[str, list[Mapping[str, Any]]] = {}
        for weight in weights:
            by_block.setdefault(block_of(str(weight["name"])), []).append(weight)
        signs: dict[str, dict[str, np.ndarray]] = {}
        sizes: dict[str, dict[str, np.ndarray]] = {}
        errors: dict[str, float] = {}
        for block, matrices in by_block.items():
            if all("bits" in w for w in matrices):
                signs[block] = {w["name"]: mask_bits([w]) * 2 - 1 for w in matrices}
            if all("inputs" in w for w in matrices):
                features = {
                    w["name"]: np.frombuffer(bytes.fromhex(w["inputs"]), "<f2").astype(np.float64)
                    for w in matrices
                }
                sizes[block] = {name: each - each.mean() for name, each in features.items()}
            if known := [w["error"] for w in matrices if "error" in w]:
                errors[block] = float(np.mean(known))
        return _Matrices(signs, sizes, errors, tuple(by_block))


def block_of(matrix: str) -> str:
    """Return the block of a matrix's name; the name itself where no part of it is a number.

    >>> block_of("model.layers.3.mlp.up_proj")
    'model.layers.3'
    """
    match = _BLOCK.match(matrix)
    return match[1] if match else matrix


def layers(store: Store, results: Results) -> Iterator[Layers]:
    """Yield every group of the grid, in the order of its rankings, that has a record with
    matrices. `DataError` for a record that can't be read.
    """
    for setting, cells in grouped(results.cells).items():
        runs: dict[str, dict[int, _Matrices]] = {}
        for cell in cells:
            if (
                cell.data
                and cell.run in results.records
                and (record := store.record(cell.run)) is not None
                and record.weights
            ):
                runs.setdefault(cell.data, {})[cell.seed] = _Matrices.of(record.weights)
        if not runs:
            continue
        blocks = tuple(
            dict.fromkeys(
                block for of in runs.values() for run in of.values() for block in run.blocks
            )
        )
        count, seeds = len(runs), sorted({seed for of in runs.values() for seed in of})
        masks, statistics = (
            np.full((count, count, len(blocks)), np.nan),
            np.full((count, count, len(blocks)), np.nan),
        )
        error = np.full((count, len(blocks)), np.nan)
        for at, block in enumerate(blocks):
            agreements, distances = [], []
            for seed in seeds:
                signs = _table(
                    [of[seed].signs.get(block) if seed in of else None for of in runs.values()]
                )
                agreements.append(
                    (signs @ signs.T / signs.shape[1] + 1) / 2
                )  # the mean product of signs, from -1 to 1, as a share
                sizes = _table(
                    [of[seed].sizes.get(block) if seed in of else None for of in runs.values()]
                )
                # A row at a time: the difference of large squares would leave something between a
                # set and itself.
                distances.append(np.stack([np.sqrt(((sizes - row) ** 2).mean(1)) for row in sizes]))
            masks[:, :, at], statistics[:, :, at] = _mean(agreements), _mean(distances)
            error[:, at] = [
                _mean([np.array(run.errors.get(block, np.nan)) for run in of.values()])
                for of in runs.values()
            ]
        families: dict[str, Family] = {data: results.label(data).family for data in runs}
        yield Layers(
            **setting._asdict(),
            sets=tuple(runs),
            blocks=blocks,
            masks=masks,
            statistics=statistics,
            error=error,
            families=families,
        )


def _table(sets: Sequence[Mapping[str, np.ndarray] | None]) -> Float[np.ndarray, "set n"]:
    """Put one row a set together, of the matrices that all of them have: an expert that no token of
    one set reached is compared with nothing.

    A row that is missing, or of another model's size, is not a number, and neither is anything
    where all are missing.
    """
    # What is not a number spreads through products and sums, so a set without a row has no figure
    # with any other.
    present = [one for one in sets if one]
    names = (
        [name for name in present[0] if all(name in other for other in present)] if present else []
    )
    rows = [
        np.concatenate([one[name] for name in names]) if one and names else None for one in sets
    ]
    width = max((len(row) for row in rows if row is not None), default=1)
    blank = np.full(width, np.nan)
    return np.stack([blank if row is None or len(row) != width else row for row in rows])


def _mean(tables: Sequence[Float[np.ndarray, "..."]]) -> Float[np.ndarray, "..."]:
    """Over those that are numbers; where none is, not a number."""
    stacked = np.stack(tables)
    known = np.isfinite(stacked)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, stacked, 0.0).sum(0) / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class MaskOverlap:
    """One group of runs. `jaccard` is the share of the weights that both masks keep among those
    that either keeps, of 256 sampled bits a matrix.

    It is averaged over all pairs of draws of the two sets, never a draw with itself: the diagonal
    is between draws of one set, and NaN for a set that was drawn once. `draws` says how many a set
    has. Two masks that keep a share k each at random would have k / (2 − k).
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
            return np.where(known, others, 0.0).sum(1) / np.where(
                known.any(1), known.sum(1), np.nan
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain data; None where a number isn't known."""
        table = [
            [None if math.isnan(value) else value for value in row] for row in self.jaccard.tolist()
        ]
        setting = {
            "model": self.model,
            "method": self.method,
            "target": self.target,
            "propagate": self.propagate,
        }
        return {**setting, "draws": dict(zip(self.sets, self.draws, strict=True)), "jaccard": table}


def overlaps(store: Store, results: Results) -> Iterator[MaskOverlap]:
    """Yield every group of the grid whose records hold mask bits, in the order of its rankings.
    `DataError` for a record that can't be read.
    """
    for setting, cells in grouped(results.cells).items():
        masks: dict[str, dict[int, Float[np.ndarray, " bit"]]] = {}
        for cell in cells:
            record = store.record(cell.run) if cell.data and cell.run in results.records else None
            if (
                record is not None
                and record.weights
                and all("bits" in weight for weight in record.weights)
            ):
                masks.setdefault(cell.data, {})[cell.seed] = mask_bits(
                    sorted(record.weights, key=lambda weight: str(weight["name"]))
                )
        if masks:
            # Masks of another model's size can't be compared: those of the size that most have are.
            sizes = [len(bits) for draws in masks.values() for bits in draws.values()]
            size = max(set(sizes), key=lambda size: (sizes.count(size), size))
            rows = [
                (name, bits)
                for name, draws in masks.items()
                for bits in draws.values()
                if len(bits) == size
            ]
            yield MaskOverlap(
                **setting._asdict(),
                sets=tuple(masks),
                draws=tuple(map(len, masks.values())),
                jaccard=_jaccard(tuple(masks), rows),
            )


def mask_bits(weights: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, " bit"]:
    """Return the sampled mask bits of a record's matrices, one after another."""
    return np.unpackbits(
        np.frombuffer(bytes.fromhex("".join(str(w["bits"]) for w in weights)), np.uint8)
    ).astype(np.float32)


def _jaccard(
    sets: tuple[str, ...], rows: list[tuple[str, Float[np.ndarray, " bit"]]]
) -> Float[np.ndarray, "set set"]:
    table = np.stack([bits for _, bits in rows])
    # Of bits, the product counts where both are 1; the sum of both counts less that is where either
    # is.
    both, each = (table @ table.T).astype(np.float64), table.sum(1, dtype=np.float64)
    either = each[:, None] + each - both
    share = np.where(either > 0, both / np.maximum(either, 1.0), 1.0)
    np.fill_diagonal(share, np.nan)  # a draw with itself
    jaccard = np.full((len(sets), len(sets)), np.nan)
    at = [[i for i, (name, _) in enumerate(rows) if name == label] for label in sets]
    for i, first in enumerate(at):
        for j, second in enumerate(at):
            known = share[np.ix_(first, second)]
            if np.isfinite(known).any():
                jaccard[i, j] = float(np.nanmean(known))
    return jaccard
