"""Which experts of a mixture each calibration set keeps, layer by layer, where experts were
dropped; from the edits of records.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from calibrant.lab.stats.results import Results, grouped

DROPPED: Final = "drop_experts"


@dataclass(frozen=True)
class KeptExperts:
    """One group of runs. `kept` is the share of a set's draws that keep an expert, numbered as in
    the dense model.

    `jaccard` is the share of the experts of a layer that both keep among those that either keeps,
    the mean over layers and over all pairs of draws of the two sets, never a draw with itself: the
    diagonal is between draws of one set, and NaN for a set that was drawn once. `chance` is what
    two sets of as many experts have that are drawn at random.
    """

    model: str
    method: str
    target: str
    propagate: str
    sets: tuple[str, ...]
    draws: tuple[int, ...]
    blocks: tuple[int, ...]
    kept: Float[np.ndarray, "set block expert"]
    jaccard: Float[np.ndarray, "set set"]
    chance: float


def kept_experts(results: Results) -> Iterator[KeptExperts]:
    """Yield every group of the grid whose runs dropped experts, in the order of its rankings.

    Where runs of a group have layers of other blocks or numbers of experts, those of the first are
    compared.
    """
    for setting, cells in grouped(results.cells).items():
        runs: dict[str, list[dict[int, frozenset[int]]]] = {}
        shape: dict[int, int] = {}
        # A run that answers several cells of a set is one draw of it.
        for cell in {(cell.data, cell.run): cell for cell in cells}.values():
            record = results.records.get(cell.run) if cell.data else None
            counts, left = survivors(record.edits) if record is not None else ({}, {})
            shape = shape or counts
            if counts and counts == shape:
                runs.setdefault(cell.data, []).append(left)
        if runs:
            sets, blocks, most = tuple(runs), tuple(sorted(shape)), max(shape.values())
            kept = np.array(
                [
                    [
                        [np.mean([e in one[b] for one in runs[name]]) for e in range(most)]
                        for b in blocks
                    ]
                    for name in sets
                ]
            )
            jaccard = np.array(
                [
                    [_mean_overlap(runs[one], runs[other], one == other) for other in sets]
                    for one in sets
                ]
            )
            sizes = [
                (shape[b], len(left[b])) for of in runs.values() for left in of for b in blocks
            ]
            chance = float(np.mean([overlap_by_chance(*size) for size in sizes]))
            yield KeptExperts(
                **setting._asdict(),
                sets=sets,
                draws=tuple(map(len, runs.values())),
                blocks=blocks,
                kept=kept,
                jaccard=jaccard,
                chance=chance,
            )


def survivors(
    edits: Sequence[Mapping[str, Any]],
) -> tuple[dict[int, int], dict[int, frozenset[int]]]:
    """Return by block how many experts there were and which are left, by their first numbers. A
    later edit counts those that the earlier ones left.

    >>> survivors([{"edit": "drop_experts", "experts": {"0": [1]}, "of": 4}, {"edit": "drop_experts", "experts": {"0": [1]}, "of": 3}])
    ({0: 4}, {0: frozenset({0, 3})})
    """
    counts: dict[int, int] = {}
    left: dict[int, list[int]] = {}
    for edit in edits:
        for block, gone in edit["experts"].items() if edit.get("edit") == DROPPED else ():
            counts.setdefault(int(block), edit["of"])
            there = left.get(int(block), list(range(edit["of"])))
            left[int(block)] = [expert for place, expert in enumerate(there) if place not in gone]
    return counts, {block: frozenset(there) for block, there in left.items()}


def overlap(one: Mapping[int, frozenset[int]], other: Mapping[int, frozenset[int]]) -> float:
    """Return |A ∩ B| / |A ∪ B| of the experts that two runs keep, the mean over blocks."""
    return float(
        np.mean([len(one[block] & other[block]) / len(one[block] | other[block]) for block in one])
    )


def overlap_by_chance(experts: int, kept: int) -> float:
    """Return the mean of |A ∩ B| / |A ∪ B| over sets of `kept` of so many `experts`, each as likely
    as any other (hypergeometric).

    >>> f"{overlap_by_chance(16, 8):.3f}"
    '0.343'
    """
    from scipy.stats import hypergeom

    shared = np.arange(max(0, 2 * kept - experts), kept + 1)
    return float((hypergeom.pmf(shared, experts, kept, kept) * shared / (2 * kept - shared)).sum())


def _mean_overlap(
    one: Sequence[Mapping[int, frozenset[int]]],
    other: Sequence[Mapping[int, frozenset[int]]],
    same: bool,
) -> float:
    pairs = list(combinations(one, 2) if same else product(one, other))
    return float(np.mean([overlap(a, b) for a, b in pairs])) if pairs else float("nan")
