"""What is predicted of every candidate: under the goal's held-out text, and under its held-out
sibling where there is one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float

from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import resolved
from calibrant.lab.choose.halves import Halves, swapped
from calibrant.lab.mixtures import (
    Effort,
    Errors,
    Mixture,
    MixtureStatistics,
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


@final
@dataclass(frozen=True)
class Prediction:
    """The predicted error of a set.

    `own` is that under what the goal holds out. `sibling` is that where it is calibrated on one
    half of the goal's file and judged by the other, both ways; None where there is no sibling.
    """

    own: float | None
    sibling: float | None = None

    @property
    def value(self) -> float:
        """What decides: the sibling's figure, if there is one."""
        if self.sibling is not None:
            return self.sibling
        return float("inf") if self.own is None else self.own


def with_siblings(
    mixture: Mixture,
    stand_in: StandIn,
    judge: str,
    halves: Sequence[Halves],
    opened: Opened,
    effort: Effort,
    root: Path,
    judge_tokens: int,
    progress: Progress = silent,
) -> dict[str, Prediction]:
    """Return the predictions for sets, with and without a held-out sibling.

    The sets are each source of a mixture alone, all of them alike, the mixture, and the best
    mixture under the sibling. `stand_in` predicts the method, `judge` is the goal as an
    expression. All errors are on the sample `effort.final`. Statistics that are in `root` already
    aren't gathered again.
    """
    sources = list(mixture.weights)
    model_view = view(opened.model)

    def gathered(names: Sequence[str], judge_text: str) -> MixtureStatistics:
        """What the model's matrices see of sets, and of what judges them."""
        batches: list[tuple[str, TokenBatch]] = []
        for name in names:
            data = CalibrationSet(name, length=mixture.length, tokens=mixture.tokens)
            data = resolved(data, opened, progress)
            batches.append((name, data.tokens(opened.tokenizer)))
        # Draw 1, with which `mix` judges too: its statistics are there already.
        judging = CalibrationSet(judge_text, seed=1, length=mixture.length, tokens=judge_tokens)
        judged = judging.held_out().tokens(opened.tokenizer)
        return gather_statistics(
            opened,
            model_view,
            stand_in.method,
            batches,
            [(judge_text, judged)],
            root / STATISTICS,
            effort.meter,
            progress,
        )

    # The file as it is; its first half, judged by the second; and its second, judged by the first.
    whole = gathered(sources, judge)
    crossed: list[MixtureStatistics] = []
    for side in (0, 1):
        names = [swapped(source, halves, side) for source in sources]
        crossed.append(gathered(names, swapped(judge, halves, 1 - side)))
    count = len(sources)
    best_crossed = _best_over_halves(crossed, stand_in, effort, count)
    alone = [only(place, count) for place in range(count)]
    all_mixtures = [*alone, uniform(count), _exact_shares(mixture), best_crossed]
    mixtures = list(dict.fromkeys(all_mixtures))
    errors = _errors([whole, *crossed], stand_in, effort.final)
    predictions: dict[str, Prediction] = {}
    for weights, row in zip(mixtures, errors(mixtures), strict=True):
        name = expression(sources, weights)
        predictions[name] = Prediction(float(row[0]), sibling=float(row[1:].mean()))
    return predictions


def _best_over_halves(
    crossed: Sequence[MixtureStatistics], stand_in: StandIn, effort: Effort, count: int
) -> Shares:
    """The mixture that is best on average over the halves, each judged by the other."""

    def mean_over_halves(errors: Any) -> Any:
        return errors.mean(1)

    errors = _errors(crossed, stand_in, effort.search)
    search = Search(errors, mean_over_halves, count, effort.evaluations)
    search.begin()
    search.descend()
    return search.ranked[0]


def _exact_shares(mixture: Mixture) -> Shares:
    """The weights of a mixture, which has them as floats; exact ones are whole hundredths."""
    shares: list[Fraction] = []
    for weight in mixture.weights.values():
        shares.append(Fraction(str(weight)).limit_denominator(100))
    return tuple(shares)


def _errors(
    statistics: Sequence[MixtureStatistics], stand_in: StandIn, sample: Sample
) -> Callable[[Sequence[Shares]], Float[np.ndarray, "mixture judge"]]:
    """What gives the errors of mixtures on a sample, a column for each of the statistics."""
    by_statistics: list[Errors] = []
    for of_set in statistics:
        inputs = list(of_set.inputs(sample, stand_in.target))
        by_statistics.append(Errors(inputs, stand_in.method, of_set.masses))

    def errors(mixtures: Sequence[Shares]) -> Float[np.ndarray, "mixture judge"]:
        return np.concatenate([of_one(mixtures) for of_one in by_statistics], axis=1)

    return errors


def of_mixture(mixture: Mixture, judge: str, names: Mapping[str, str]) -> dict[str, Prediction]:
    """Return the predictions that a mixture's own table has; `names` are the expressions of rows
    that are called otherwise there.
    """
    predictions: dict[str, Prediction] = {}
    for row in mixture.rows:
        name = names.get(row.calibrated_on, row.calibrated_on)
        predictions[name] = Prediction(row.errors[judge])
    return predictions
