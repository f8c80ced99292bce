"""MC-Suite: experts go by one of eighteen criteria, at once, in rounds, or with training after
each (Jaiswal et al. 2025, arXiv 2504.05586).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from calibrant.activations import Routing, Seen, Statistic
from calibrant.edits import DropExperts, Edit
from calibrant.errors import SpecError
from calibrant.job import Job
from calibrant.methods._base import check_choice, check_least, finite
from calibrant.methods._model_method import ExpertMethod, check_blocks_together
from calibrant.methods.experts._expert_scores import (
    CRITERIA,
    Criterion,
    LayerEvidence,
    Matrices,
    expert_gradients,
    first_by_score,
    first_of_pairs,
)
from calibrant.methods.experts._training import Tuned, trained
from calibrant.models import expert_layers
from calibrant.numerics import six_digits
from calibrant.spec import MOST_STEPS, check_most
from calibrant.spec.foreign import LARGEST, brief, did_you_mean
from calibrant.walk.block_statistics import ExpertOutputs, coverage


@dataclass(frozen=True, repr=False)
class MCSuite(ExpertMethod):
    """Drops, of every layer equally many, the experts whose `criterion` is smallest (`drop=min`) or
    largest (`drop=max`).

    By weights: `ews` (alike to the others), `rwn` (norm of the router's row), `wsr` (stable rank),
    `ewn` (norm). By what the router does: `euf` (how often it is used), `ecc` (chosen together),
    `evtc` (kinds of tokens), `ets` (kinds shared); of the two experts of a pair the less used goes.
    By what experts give: `eas` (alike), `eae` (log deviations), `eao` (outliers), `ean` (norms). By
    gradients of the loss: `egs`, `ege`, `ego`, `egn`, the same four. Beside these `reap`, the mean
    of the router's weight times the output's norm, and `random`, by chance.

    `drop` says alone which end goes, whatever the criterion. Experts with the largest `ews`, `eas`,
    `egs`, `ets` or `ecc` are those most alike to others, or most often beside them; with the
    largest `rwn` the paper loses less, and experts that matter have a small `wsr`. Write `drop=max`
    with these seven, and leave the others at `min`.

    With `rounds` the share goes little by little, and the criterion is taken anew of what is left.
    With `steps` all parameters are trained after each round, for so many steps of AdamW on the
    calibration tokens, with a `rate` that falls as a cosine: the paper's lottery. `seed` is of the
    order of windows, and of `random`. The record's notes have scores and what each expert got.

    Differs from the paper in: tokens count by their weight, and padding never; `ets` counts kinds
    of tokens, `eas` compares mean outputs, outliers of outputs are counted in bins 4.4 % wide, and
    gradients go row by row.
    """

    criterion: str = "ean"
    drop: str = "min"
    rounds: int = 1
    steps: int = 0
    rate: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        check_most(self, rounds=MOST_STEPS, steps=MOST_STEPS, seed=LARGEST)
        if self.criterion not in CRITERIA:
            near = did_you_mean(self.criterion, CRITERIA)
            problem = f"there is no such criterion{near}; choose one of {', '.join(CRITERIA)}"
            message = f"mc_suite(criterion={brief(self.criterion)}): {problem}"
            raise SpecError(message, subject="criterion")
        check_choice(self, drop=("min", "max"))
        check_least(self, rounds=1, steps=0, seed=0)
        if not 0 < self.rate <= 1:
            allowed = "a rate of training is above 0 and at most 1, such as 1e-6"
            raise SpecError(f"mc_suite(rate={self.rate:g}): {allowed}", subject="rate")

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        if self.criterion == "ean":  # so that lists can read the default without torch
            return (Routing, ExpertOutputs)
        if self._criterion.observes or not self.steps:
            return self._criterion.observes
        return (Routing,)

    @property
    def _criterion(self) -> Criterion:
        return CRITERIA[self.criterion]

    def edits(self, job: Job) -> Iterator[Edit]:
        if self.steps or self._criterion.gradients:
            check_blocks_together(self, job)
        if self.steps and job.ranks.size > 1:
            problem = "training after each round takes one process"
            message = f"{problem}; start it without torchrun, or leave steps out"
            raise SpecError(message, subject="steps")
        rounds_done = sum(isinstance(edit, DropExperts) for edit in job.done)
        trainings_done = sum(isinstance(edit, Tuned) for edit in job.done)
        total = self.dropped(job) + self.left_to_drop(job)
        rounds = min(self.rounds, total)
        for number in range(rounds):
            if number >= rounds_done:
                # Rounds differ by one expert at most, and add up to the total.
                count = total * (number + 1) // rounds - total * number // rounds
                yield self._round(job, number, rounds, count)
            if self.steps and number >= trainings_done:
                yield trained(job, self.steps, self.rate, self.seed + number)

    def _round(self, job: Job, number: int, rounds: int, count: int) -> DropExperts:
        """Return the experts that go in this round, with notes on all that were there."""
        layers = expert_layers(job.view)
        gradients: Mapping[int, Matrices] = {}
        if self._criterion.gradients:
            gradients = expert_gradients(job, layers)
        seen: dict[int, Seen] = {}
        if self.observes:
            seen = {block.index: layer_seen for block, layer_seen in job.blocks(self.observes)}
        vocabulary = job.view.model.config.get_text_config(decoder=True).vocab_size
        experts: dict[int, tuple[int, ...]] = {}
        scored: dict[str, Any] = {}
        routed: dict[str, Any] = {}
        for layer in layers:
            # A seed of its own for each round and block.
            chance = (self.seed * 1_000_003 + number) * 1_000_003 + layer.block
            layer_seen = seen.get(layer.block, Seen({}))
            evidence = LayerEvidence(
                layer, layer_seen, gradients.get(layer.block, ()), vocabulary, chance
            )
            name = f"{self.criterion} of {layer.name}"
            scores = finite(self._criterion.score(evidence), name)
            experts[layer.block] = tuple(sorted(self._chosen(scores, evidence, count)))
            scored[str(layer.block)] = _rounded(scores)
            if Routing in layer_seen:
                routed[str(layer.block)] = coverage(layer_seen[Routing], layer.matrix.shape[1])
        notes: dict[str, Any] = {
            "criterion": self.criterion,
            "drop": self.drop,
            "round": number + 1,
            "of": rounds,
            "scores": scored,
        }
        if routed:
            notes["routing"] = routed
        return DropExperts(experts, notes)

    def _chosen(self, scores: Tensor, evidence: LayerEvidence, count: int) -> tuple[int, ...]:
        largest = self.drop == "max"
        if self._criterion.pairs:
            return first_of_pairs(scores, evidence.seen[Routing].counts, count, largest)
        return first_by_score(scores, count, largest)


def _rounded(scores: Tensor) -> Any:
    """The scores of experts, or of every two of them, as notes have them."""
    if scores.dim() > 1:
        return [_rounded(row) for row in scores]
    return [six_digits(score) for score in scores.tolist()]
