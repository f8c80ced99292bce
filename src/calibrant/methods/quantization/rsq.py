"""RSQ: rounding with updates, where tokens count by the attention they get (Sung, Yadav, Li,
Yoon, Bansal 2025, arXiv 2503.01820).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.activations import Gram, Seen, Statistic
from calibrant.data import TokenBatch
from calibrant.errors import SpecError
from calibrant.job import Job
from calibrant.methods._base import MOST_DAMP, Compressed, MatrixMethod, StandIn, grid, observed
from calibrant.methods.quantization._quantizing import check_updates, rounded
from calibrant.methods.quantization.gptq import GPTQ
from calibrant.models import Weight
from calibrant.spec import check_most
from calibrant.targets import Grid, Target
from calibrant.walk.attention import BlockCall, attention_received

MOST_TURNS: Final = 1_000
"""Each is the whole calibration set once more."""


@dataclass(frozen=True, repr=False)
class RSQ(MatrixMethod):
    """Does what gptq does, on a Gram in which tokens count by the attention that they get in the
    block: the paper's scale and quantize.

    Its first step is a transform of its own, which goes with every method: `--transform rotate`.
    `importance=attention` sums, for each token, the attention of all heads and tokens in the block
    as it is before it is rounded, maps a sequence's sums onto `least` to 1, and divides by their
    mean; `equal` leaves all tokens alike, which is gptq. A token's own weight is multiplied.
    `expand=8` shows every sequence in eight turns, so that each eighth of it comes first once;
    causal attention favours what comes first. `damp`, `order` and `scales` are those of `gptq`.

    Differs from the paper's code in: rotations at run time are left out (see `rotate`); by default
    nothing is expanded, and scales are gptq's, so that both differ in the tokens' weights alone
    (the paper's are `expand=8, scales=mse`); padding neither looks nor is looked at.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    updates: ClassVar[bool] = True

    importance: str = "attention"
    least: float = 0.005
    expand: int = 1
    damp: float = 0.01
    order: str = "natural"
    scales: str = "absmax"

    def __post_init__(self) -> None:
        check_updates("rsq", self.damp, self.order, self.scales)
        if self.importance not in ("attention", "equal"):
            raise SpecError(
                f"rsq(importance={self.importance!r}): tokens count by attention, or all alike (equal); write one",
                subject="importance",
            )
        if not 0 <= self.least <= 1:
            raise SpecError(
                f"rsq(least={self.least}): the least important token counts from 0 to 1; 0.005 is the paper's",
                subject="least",
            )
        if self.expand < 1:
            raise SpecError(
                f"rsq(expand={self.expand}): a sequence is shown in 1 turn or more; 8 is the paper's",
                subject="expand",
            )
        check_most(self, expand=MOST_TURNS, damp=MOST_DAMP)

    def stand_in(self, target: Target) -> StandIn:
        return StandIn(
            GPTQ(self.damp, self.order, self.scales),
            target,
            "all tokens count alike, not by the attention that they get",
        )

    def arrivals(self, job: Job) -> Iterator[tuple[Weight, Seen]]:
        # What others keep on disk is of these sequences as they are.
        shown = (
            job
            if self.expand == 1 or job.batch is None
            else replace(job, batch=turned(job.batch, self.expand), statistics=None)
        )
        return shown.walk(self.observes, self._weigh if self.importance == "attention" else None)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes and errors are those of `gptq`."""
        return rounded(
            weight, observed(seen, Gram), grid(target), self.damp, self.order, self.scales
        )

    def _weigh(self, call: BlockCall) -> Float[Tensor, "sample position"]:
        return spread(attention_received(call), call.real, self.least)


def spread(
    received: Float[Tensor, "sample position"], real: Bool[Tensor, "sample position"], least: float
) -> Float[Tensor, "sample position"]:
    """Return weights of tokens: each sequence's numbers mapped onto `least` to 1, and then divided
    by their mean; padding gets 0.

    >>> spread(torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[True, True, False]]), 0.5)
    tensor([[1.3333, 0.6667, 0.0000]])
    """
    low = received.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    high = received.masked_fill(~real, -torch.inf).amax(1, keepdim=True)
    # Of a sequence of one token, or of equal ones, none counts more than another.
    shares = ((received - low) / (high - low)).where(high > low, 1.0)
    weights = (least + shares * (1 - least)).masked_fill(~real, 0)
    return (
        weights
        * real.sum(1, keepdim=True)
        / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    )


def turned(batch: TokenBatch, times: int) -> TokenBatch:
    """Return the sequences `times` over, the real tokens of each moved on by another `times`-th
    part of it, those at the end to its beginning.
    """
    lengths = batch.mask.sum(1, keepdim=True)
    front = (~batch.mask).long().argsort(dim=1, stable=True)  # real tokens first
    places = torch.arange(batch.ids.shape[1])[None].expand_as(batch.ids)

    def all_turns(numbers: Tensor) -> Tensor:
        numbers, turns = numbers.gather(1, front), list[Tensor]()
        for turn in range(times):
            back = (places - turn * lengths // times) % lengths.clamp_min(1)
            turns.append(numbers.gather(1, back.where(places < lengths, places)))
        return torch.cat(turns)

    pads = None if batch.pads is None else all_turns(batch.pads)
    mixed = tuple((factor / times, turned(part, times)) for factor, part in batch.mixed)
    return replace(
        batch,
        ids=all_turns(batch.ids),
        mask=all_turns(batch.mask),
        weights=all_turns(batch.weights),
        pads=pads,
        mixed=mixed,
    )
