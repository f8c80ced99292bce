"""MC-Suite: experts go by one of sixteen criteria, at once, in rounds, or with training after
each (Jaiswal et al. 2025, arXiv 2504.05586).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from calibrant.activations import Routing, Seen, Statistic
from calibrant.edits import DropExperts, Edit
from calibrant.errors import SpecError
from calibrant.job import Job
from calibrant.methods._base import ExpertMethod, check_least, finite
from calibrant.methods.experts._expert_gradients import expert_gradients
from calibrant.methods.experts._expert_scores import (
    CRITERIA,
    Criterion,
    LookedAt,
    first,
    first_of_pairs,
)
from calibrant.methods.experts._lottery import Tuned, tuned
from calibrant.models import expert_layers
from calibrant.spec import MOST_STEPS, check_most
from calibrant.spec.foreign import LARGEST, brief, did_you_mean
from calibrant.walk.block_statistics import ExpertOutputs, coverage

ENDS: Final = ("min", "max")


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
            message = f"mc_suite(criterion={brief(self.criterion)}): there is no such criterion{near}; choose one of {', '.join(CRITERIA)}"
            raise SpecError(message, subject="criterion")
        if self.drop not in ENDS:
            raise SpecError(
                f"mc_suite(drop={brief(self.drop)}): experts with the smallest or largest numbers go; write min or max",
                subject="drop",
            )
        check_least(self, rounds=1, steps=0, seed=0)
        if not 0 < self.rate <= 1:
            raise SpecError(
                f"mc_suite(rate={self.rate:g}): a rate of training is above 0 and at most 1, such as 1e-6",
                subject="rate",
            )

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return (
            (Routing, ExpertOutputs) if self.criterion == "ean" else self._observed
        )  # so that lists can read the default without torch

    @property
    def _observed(self) -> tuple[type[Statistic], ...]:
        return self._criterion.observes or ((Routing,) if self.steps else ())

    @property
    def _criterion(self) -> Criterion:
        return CRITERIA[self.criterion]

    def edits(self, job: Job) -> Iterator[Edit]:
        if self.steps and job.ranks.size > 1:
            raise SpecError(
                "training after each round takes one process; start it without torchrun, or leave steps out",
                subject="steps",
            )
        dropped = sum(isinstance(edit, DropExperts) for edit in job.done)
        trained = sum(isinstance(edit, Tuned) for edit in job.done)
        gone = sum(
            max(map(len, edit.experts.values()), default=0)
            for edit in job.done
            if isinstance(edit, DropExperts)
        )
        total = gone + self.left_to_drop(job)
        rounds = min(self.rounds, total)
        for number in range(rounds):
            if number >= dropped:
                yield self._round(
                    job, number, rounds, total * (number + 1) // rounds - total * number // rounds
                )
            if self.steps and number >= trained:
                yield tuned(job, self.steps, self.rate, self.seed + number)

    def _round(self, job: Job, number: int, rounds: int, count: int) -> DropExperts:
        """Return the experts that go now, with what was seen of all that were there."""
        layers = {layer.block: layer for layer in expert_layers(job.view)}
        gradients = (
            expert_gradients(job, list(layers.values())) if self._criterion.gradients else {}
        )
        seen = (
            {block.index: there for block, there in job.blocks(self.observes)}
            if self.observes
            else {}
        )
        words = job.view.model.config.get_text_config(decoder=True).vocab_size
        experts: dict[int, tuple[int, ...]] = {}
        notes: dict[str, Any] = {
            "criterion": self.criterion,
            "drop": self.drop,
            "round": number + 1,
            "of": rounds,
        }
        for block, layer in layers.items():
            chance = (self.seed * 1_000_003 + number) * 1_000_003 + block
            looked = LookedAt(
                layer, seen.get(block, Seen({})), gradients.get(block, ()), words, chance
            )
            scores = finite(self._criterion.of(looked), f"{self.criterion} of {layer.name}")
            chosen = self._chosen(scores, looked, count)
            experts[block] = tuple(sorted(chosen))
            notes.setdefault("scores", {})[str(block)] = _short(scores.tolist())
            if Routing in looked.seen:
                notes.setdefault("routing", {})[str(block)] = coverage(
                    looked.seen[Routing], layer.matrix.shape[1]
                )
        return DropExperts(experts, notes)

    def _chosen(self, scores: Tensor, looked: LookedAt, count: int) -> tuple[int, ...]:
        largest = self.drop == "max"
        return (
            first_of_pairs(scores, looked.seen[Routing].counts, count, largest)
            if self._criterion.pairs
            else first(scores, count, largest)
        )


def _short(numbers: Any) -> Any:
    return list(map(_short, numbers)) if isinstance(numbers, list) else float(f"{numbers:.6g}")
