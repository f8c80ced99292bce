"""Calibration sets ranked: the values that a reader of results gets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from calibrant.compare.estimate import LEVEL, Estimate
from calibrant.families import Family
from calibrant.grammar import SetLabel, TargetLabel, read_target

MEAN: Final = "mean"
"""Stands beside the measured sets for the average over those that are averaged."""


@dataclass(frozen=True)
class RankingEntry:
    """One row of a ranking: a calibration set, or a baseline that looks at no data.

    `losses` and `increases` (over the dense model; empty without one) are by measured set; `mean` is the mean increase over `averaged` sets,
    or the mean loss where there is no dense model. `to_best` is how much worse it is than the best set, None for the best itself; `tied` says
    that it can't be told apart from the best at the ranking's joint level. `to_baseline` is how much worse it is than the ranking's baseline, by
    measured set and "mean"; empty for the baseline itself, and where there is none.

    By measured set and "mean": `letters`, of which two rows share one where they can't be told apart; `share_kept`, the share of the dense model's
    performance; `best_on`, where it is surely better than every other row. `ranks` are the first and the last place among the sets that fit
    what is sure. Of an `overlapping` set the draws share rows, and its errors cover items only. `label` is a set's name in its parts, None for a
    baseline and the dense model; a `control` is a set without content, that real text ought to beat.
    """

    name: str
    control: bool
    runs: tuple[str, ...]
    draws: int
    losses: Mapping[str, Estimate]
    increases: Mapping[str, Estimate]
    mean: Estimate
    to_best: Estimate | None
    tied: bool
    letters: Mapping[str, str] = field(default_factory=dict[str, str])
    ranks: tuple[int, int] = (0, 0)
    share_kept: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    best_on: frozenset[str] = frozenset()
    overlapping: bool = False
    to_baseline: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    label: SetLabel | None = None

    @property
    def family(self) -> Family | Literal["none"]:
        """What kind of data the set is; `none` for what looks at no data."""
        return "none" if self.label is None else self.label.family


@dataclass(frozen=True)
class Ranking:
    """Calibration sets for one model, method, target and propagation, the best first.

    `baseline` is the set that the others are compared with; empty if it has no place here. `missing` names what has no answer, and why; the rows
    that it is about are `partial`: they hold what is known, and their mean is not a number. `units`, `better` and `metrics` are by measured set.
    """

    model: str
    method: str
    target: str
    measured: tuple[str, ...]
    averaged: tuple[str, ...]
    unit: str
    entries: tuple[RankingEntry, ...]
    baselines: tuple[RankingEntry, ...]
    dense: RankingEntry | None
    missing: tuple[str, ...]
    level: float = LEVEL
    propagate: str = ""
    partial: tuple[RankingEntry, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    better: Mapping[str, str] = field(default_factory=dict[str, str])
    metrics: Mapping[str, str] = field(default_factory=dict[str, str])
    baseline: str = ""

    @property
    def best(self) -> RankingEntry:
        """The set with the smallest mean."""
        return self.entries[0]

    @property
    def comparisons(self) -> int:
        """Pairs that a difference to the best was picked from: every two of the sets and baselines."""
        return pairs(len(self.entries) + len(self.baselines))

    @property
    def baseline_comparisons(self) -> int:
        """Comparisons with the baseline: every other set and what looks at no data, on one measured set."""
        return max(1, len(self.entries) + len(self.baselines) - 1)

    @property
    def one_draw(self) -> bool:
        """Whether some set was drawn only once, so that no interval covers another draw."""
        return any(e.draws == 1 for e in self.entries)


def pairs(count: int) -> int:
    """How many twos there are among `count`; at least 1."""
    return max(1, count * (count - 1) // 2)


def describe_target(target: str) -> str:
    """`60 % sparsity` for `0.6` (the space doesn't break), `2:4 sparsity` for `2:4`, `4 bits in groups of 64 (w4g64)` for `w4g64`.

    Several targets, divided by commas, or none may be meant; what is none of these stands as it is written.
    """
    if not target:
        return "any sparsity"
    shares, others = list[str](), list[str]()
    for one in map(read_target, target.split(", ")):
        if (share := _share(one)) is not None:
            shares.append(share)
        else:
            others.append(_grid(one) or _parts(one) or one.text)
    return join_names([*([f"{join_names(shares)} sparsity"] if shares else []), *others])


def is_grid(target: str) -> bool:
    """Whether weights are rounded for this target, and not removed."""
    return read_target(target).bits is not None


def bits_of(target: str) -> int | None:
    """Return the bits of a code of a grid, 4 for `w4g64`; None for what is no grid."""
    return read_target(target).bits


def target_noun(targets: Iterable[str]) -> str:
    """Return what all of these can be called: `sparsity` where each is one or an N:M pattern, else `target`."""
    return "sparsity" if all(_share(read_target(target)) is not None for target in targets) else "target"


def _share(target: TargetLabel) -> str | None:
    """A sparsity in percent, a pattern as it is written; None for what is neither."""
    if target.pattern is not None:
        return target.text
    return None if target.share is None or target.parts else f"{target.share * 100:g}\u00a0%"


def _parts(target: TargetLabel) -> str:
    """A share of a model's parts in words; nothing for what is none."""
    return f"{target.share * 100:g}\u00a0% of the {target.parts}" if target.share is not None and target.parts else ""


def _grid(target: TargetLabel) -> str:
    """A grid in words; nothing for what is none."""
    if target.bits is None:
        return ""
    groups = "by row" if target.group is None else f"in groups of {target.group}"
    return f"{target.bits} bits {groups}{' with zero points' if target.zeros else ''} ({target.text})"


def join_names(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; nothing for none."""
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"
