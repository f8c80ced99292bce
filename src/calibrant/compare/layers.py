"""Layer by layer: where the masks of two calibration sets part, where what the model felt of them does, and what pruning did to its outputs.

All of it is told from what records keep of every matrix: 256 bits of its mask, the sizes of 32 of its input features, the error of its outputs.
Features and bits are chosen by the matrix's name, so those of two runs of one model are of the same weights.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from calibrant.compare.answers import Setting, grouped
from calibrant.compare.results import Results
from calibrant.families import Family
from calibrant.store import Store

_BLOCK: Final = re.compile(r"(.*?\.\d+)(?:\.|$)")


@dataclass(frozen=True)
class Layers:
    """One group of runs, block by block. Several draws of a set are averaged; of two sets, draws of the same number are compared.

    `masks` is the share of the sampled mask bits that agree, 1 for the same masks. `statistics` is the standard deviation, over sampled input
    features of the block's matrices, of the difference of ln √(mean x²): 0 for the same activations, and for such as differ by one factor a
    matrix, which no method that compares within a matrix sees. `error` is the mean relative error of the outputs of the block's matrices. NaN is
    unknown.
    `families` say what kind of data each set is.
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
        """The smallest, the middle and the largest error of the sets in each block; NaN where none is known."""
        known = [row[np.isfinite(row)] for row in self.error.T]
        return np.array([[f(row) if len(row) else np.nan for row in known] for f in (np.min, np.median, np.max)])

    def among(self, sets: Sequence[str]) -> "Layers":
        """The same of some sets only, in this order."""
        at = [self.sets.index(name) for name in sets]
        grid = np.ix_(at, at)
        return replace(self, sets=tuple(sets), masks=self.masks[grid], statistics=self.statistics[grid], error=self.error[at])


@dataclass(frozen=True)
class _Run:
    """What a record keeps of its matrices: by block and name signs of mask bits and sizes of input features about their matrix's mean; errors."""

    signs: Mapping[str, Mapping[str, Float[np.ndarray, " bit"]]]
    sizes: Mapping[str, Mapping[str, Float[np.ndarray, " feature"]]]
    errors: Mapping[str, float]
    blocks: tuple[str, ...]


def layers(store: Store, reading: Results) -> Iterator[Layers]:
    """Every group of the grid, in the order of its rankings, that has a record with matrices. `DataError` for a record that can't be read."""
    for group, cells in grouped(reading.cells).items():
        runs: dict[str, dict[int, _Run]] = {}
        for cell in cells:
            if cell.data and cell.run in reading.records and (record := store.record(cell.run)) is not None and record.weights:
                runs.setdefault(cell.data, {})[cell.seed] = _run(record.weights)
        if runs:
            yield _layers(group, runs, {data: reading.label(data).family for data in runs})


def _run(weights: Sequence[Mapping[str, Any]]) -> _Run:
    by_block: dict[str, list[Mapping[str, Any]]] = {}
    for weight in weights:
        by_block.setdefault(block_of(str(weight["name"])), []).append(weight)
    signs = {block: {w["name"]: _signs(w["bits"]) for w in of} for block, of in by_block.items() if all("bits" in w for w in of)}
    sizes = {block: {w["name"]: _sizes(w["inputs"]) for w in of} for block, of in by_block.items() if all("inputs" in w for w in of)}
    errors = {block: float(np.mean([w["error"] for w in of if "error" in w])) for block, of in by_block.items() if any("error" in w for w in of)}
    return _Run(signs, sizes, errors, tuple(by_block))


def block_of(matrix: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj`; the matrix itself where no part of its name is a number."""
    found = _BLOCK.match(matrix)
    return found[1] if found else matrix


def _signs(bits: str) -> Float[np.ndarray, " bit"]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)).astype(np.float32) * 2 - 1


def _sizes(inputs: str) -> Float[np.ndarray, " feature"]:
    sizes = np.frombuffer(bytes.fromhex(inputs), "<f2").astype(np.float64)
    return sizes - sizes.mean()


def _layers(group: Setting, runs: Mapping[str, Mapping[int, _Run]], families: Mapping[str, Family]) -> Layers:
    blocks = tuple(dict.fromkeys(block for of in runs.values() for run in of.values() for block in run.blocks))
    many, draws = len(runs), sorted({seed for of in runs.values() for seed in of})
    masks, statistics = np.full((many, many, len(blocks)), np.nan), np.full((many, many, len(blocks)), np.nan)
    error = np.full((many, len(blocks)), np.nan)
    for at, block in enumerate(blocks):
        masks[:, :, at] = _mean([_agreement(_common([of[d].signs.get(block) if d in of else None for of in runs.values()])) for d in draws])
        statistics[:, :, at] = _mean([_distance(_common([of[d].sizes.get(block) if d in of else None for of in runs.values()])) for d in draws])
        error[:, at] = [_mean([np.array(run.errors.get(block, np.nan)) for run in of.values()]) for of in runs.values()]
    return Layers(**group._asdict(), sets=tuple(runs), blocks=blocks, masks=masks, statistics=statistics, error=error, families=families)


def _common(several: Sequence[Mapping[str, np.ndarray] | None]) -> list[np.ndarray | None]:
    """What each says of the matrices that all of them have: an expert that no token of one set reached is compared with nothing."""
    there = [one for one in several if one]
    names = [name for name in there[0] if all(name in other for other in there)] if there else []
    return [np.concatenate([one[name] for name in names]) if one and names else None for one in several]


def _agreement(signs: Sequence[Float[np.ndarray, " bit"] | None]) -> Float[np.ndarray, "set set"]:
    table = _table(signs)
    return (table @ table.T / table.shape[1] + 1) / 2


def _distance(sizes: Sequence[Float[np.ndarray, " feature"] | None]) -> Float[np.ndarray, "set set"]:
    table = _table(sizes)
    # A row at a time: the difference of large squares would leave something between a set and itself.
    return np.stack([np.sqrt(((table - row) ** 2).mean(1)) for row in table])


def _table(rows: Sequence[Float[np.ndarray, " n"] | None]) -> Float[np.ndarray, "set n"]:
    """The rows as a table; one that is missing, or of another model's size, is not a number, and neither is anything where all are missing."""
    width = max((len(row) for row in rows if row is not None), default=1)
    blank = np.full(width, np.nan)
    return np.stack([blank if row is None or len(row) != width else row for row in rows])


def _mean(tables: Sequence[Float[np.ndarray, "..."]]) -> Float[np.ndarray, "..."]:
    """Over those that are numbers; where none is, not a number."""
    stacked = np.stack(tables)
    known = np.isfinite(stacked)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, stacked, 0.0).sum(0) / np.maximum(count, 1), np.nan)
