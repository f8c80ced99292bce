"""What is predicted of every candidate: under the target's held-out text, and under its held-out
sibling where there is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from calibrant.data import CalibrationSet
from calibrant.data.select import resolved
from calibrant.lab.choose.halves import Halves
from calibrant.lab.mixtures import (
    Effort,
    Errors,
    Mixture,
    Sample,
    Search,
    Shares,
    expression,
    gather_statistics,
    only,
    uniform,
)
from calibrant.methods import StandIn
from calibrant.models import Opened, view
from calibrant.results import STATISTICS
from calibrant.system.progress import Progress, silent

_NOTHING: Final = Sample(0, 0)


@final
@dataclass(frozen=True)
class Prediction:
    """The predicted error of a set: `own` under what the target holds out; `sibling` where it is
    calibrated on one half of the target's file and judged by the other, both ways, None where
    there is no sibling.
    """

    own: float | None
    sibling: float | None = None

    @property
    def value(self) -> float:
        """What decides: the sibling's figure, if there is one."""
        return (
            self.sibling
            if self.sibling is not None
            else self.own
            if self.own is not None
            else float("inf")
        )


def swapped(data: str, halves: Sequence[Halves], side: int) -> str:
    """Return the expression with half `side` of each file in the place of that file."""
    for each in halves:
        data = each.of(data, side)
    return data


def with_siblings(
    mixture: Mixture,
    standing: StandIn,
    judge: str,
    halves: Sequence[Halves],
    opened: Opened,
    effort: Effort,
    root: Path,
    judge_tokens: int,
    progress: Progress = silent,
) -> dict[str, Prediction]:
    """Return the predictions for each source of a mixture alone, for all of them alike, for the
    mixture, and for the best mixture under the sibling.

    `standing` predicts the method, `judge` is the target as an expression. All errors are on the
    sample `effort.final`; statistics that are in `root` already aren't gathered again.
    """
    sources = list(mixture.weights)
    budget = {"length": mixture.length, "tokens": mixture.tokens}
    # The file as it is; its first half, judged by the second; and its second, judged by the first.
    ways = [
        (sources, judge),
        *(
            ([swapped(one, halves, side) for one in sources], swapped(judge, halves, 1 - side))
            for side in (0, 1)
        ),
    ]
    gathered = []
    for names, by in ways:
        sets = [(name, CalibrationSet(name, **budget)) for name in names]
        judging = CalibrationSet(by, seed=1, length=mixture.length, tokens=judge_tokens).held_out()
        batches = [
            (name, resolved(one, opened, progress).tokens(opened.tokenizer)) for name, one in sets
        ]
        judged = [(by, judging.tokens(opened.tokenizer))]
        gathered.append(
            gather_statistics(
                opened,
                view(opened.model),
                standing.method,
                batches,
                judged,
                root / STATISTICS,
                _NOTHING,
                progress,
            )
        )

    def errors(sample: Sample, which: slice) -> Any:
        each = [
            Errors(list(of.inputs(sample)), standing.method, standing.target, of.masses)
            for of in gathered[which]
        ]
        return lambda mixtures: np.concatenate([one(mixtures) for one in each], axis=1)

    search = Search(
        errors(effort.search, slice(1, None)),
        lambda found: found.mean(1),
        len(sources),
        effort.evaluations,
    )
    search.begin()
    search.descend()
    whole: Shares = tuple(
        Fraction(str(mixture.weights[source])).limit_denominator(100) for source in sources
    )
    shares = list(
        dict.fromkeys(
            [
                *(only(place, len(sources)) for place in range(len(sources))),
                uniform(len(sources)),
                whole,
                search.ranked[0],
            ]
        )
    )
    figures = errors(effort.final, slice(None))(shares)
    return {
        expression(sources, one): Prediction(float(row[0]), float(row[1:].mean()))
        for one, row in zip(shares, figures, strict=True)
    }


def of_mixture(mixture: Mixture, judge: str, names: Mapping[str, str]) -> dict[str, Prediction]:
    """Return the predictions that a mixture's own table has; `names` are the expressions of rows
    that are called otherwise there.
    """
    return {
        names.get(row.calibrated_on, row.calibrated_on): Prediction(row.errors[judge])
        for row in mixture.rows
    }
