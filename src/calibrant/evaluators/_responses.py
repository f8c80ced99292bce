"""Which neurons respond to which groups of words, and what a compressed model's neurons still do
there.

**The response** of a neuron to a group is its mean over the group's words, each less the mean over
all words of its window: what a window is about moves all of its words alike, and falls away. It is
divided by the neuron's standard deviation within windows, so neurons can be added up.

**Which responses are real** is decided against shuffled labels: within each window the words change
places, and everything is computed once more. With z, the response over its standard deviation under
shuffling, every neuron of every group is a test; groups that are about equally frequent are tested
together, since rare words have heavier tails. Benjamini and Hochberg's procedure (1995), with
p-values from all shuffled z of such a class, gives the class its threshold on |z|, at a false
discovery rate of `RATE`.

**What is kept** of a group is the part of the dense model's pattern over its neurons that the
compressed one still shows, Σ c·c' / Σ c², where c are the dense responses that are real and c'
those of the same neurons in the compressed model, over the same words and standard deviations. It
is 1 for the dense model, 0 where nothing of the pattern is left, and may be more than 1 or less
than 0. The damage D(g) is 1 less that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from calibrant.evaluators._neurons import GroupSums, read
from calibrant.evaluators._word_groups import Groups, WindowWords
from calibrant.models import Weight
from calibrant.system.progress import Progress

RATE: Final = 0.05
"""The share of what is found that may be found by chance."""
STEPS: Final = 50
"""Steps of a threshold in 1 of |z|."""
HIGHEST: Final = 400
"""The highest |z| that is distinguished."""

Reading = tuple[WindowWords, Int[Tensor, " _"]]
"""A window with the group of each of its words, -1 for one in none."""


@final
@dataclass(frozen=True)
class Pattern:
    """How the dense model's neurons respond to groups of words, as far as that is real.

    `responses` are in standard deviations, zero where they aren't real, by block `[group, neuron]`;
    `deviations` are those of the neurons; `tested` and `found` say how many responses were, and
    `thresholds` from which |z| on, by the class of a group's size.
    """

    counts: Int[Tensor, " group"]
    responses: tuple[Float[Tensor, "group _"], ...]
    deviations: tuple[Float[Tensor, " _"], ...]
    thresholds: dict[int, float]
    tested: int
    found: int

    @cached_property
    def strengths(self) -> Float[Tensor, "block group"]:
        """The squares of the responses, summed over each block's neurons."""
        return torch.stack([one.double().square().sum(1).cpu() for one in self.responses])

    @cached_property
    def sizes(self) -> Int[Tensor, "block group"]:
        """How many neurons of each block respond to each group."""
        return torch.stack([(one != 0).sum(1).cpu() for one in self.responses])

    @property
    def known(self) -> list[int]:
        """The groups to which any neuron responds."""
        return self.strengths.sum(0).nonzero().flatten().tolist()

    def of(self, block: int, sums: Float[Tensor, "group neuron"]) -> Float[Tensor, "group neuron"]:
        """Return responses from sums over the words of each group, in the same standard
        deviations.
        """
        return _per(sums / self.counts.to(sums.device)[:, None], self.deviations[block])


@final
@dataclass(frozen=True)
class Shown:
    """What a model showed of a dense model's pattern.

    `by_block` is Σ c·c' by block and group, and `by_window` its sum over the words of each window,
    of a group's words together; `nats` are those of the scored tokens, window by window.
    `responses` are those of all neurons, by block `[group, neuron]`, where somebody wants them.
    """

    by_block: Float[Tensor, "block group"]
    by_window: Float[Tensor, "window group"]
    nats: tuple[Float[Tensor, " _"], ...]
    responses: tuple[Float[Tensor, "group _"], ...] = ()


def pattern(
    model: PreTrainedModel, neurons: Sequence[Weight], readings: Sequence[Reading], groups: Groups, shuffles: int, seed: int, measured: str,
    progress: Progress,
) -> Pattern:  # fmt: skip
    """Find the responses of a dense model's neurons; `shuffles` times the words of each window
    change places, by `seed`.
    """
    chance = np.random.default_rng(seed)
    real, shuffled = (
        GroupSums.of(len(groups.names), neurons),
        [GroupSums.of(len(groups.names), neurons) for _ in range(shuffles)],
    )
    for at, (window, labels) in enumerate(readings):
        orders = [
            labels[torch.from_numpy(chance.permutation(len(labels)))] for _ in range(shuffles)
        ]

        def heard(block: int, rows: Tensor) -> None:
            real.add(block, rows, labels)  # noqa: B023  # called before the loop goes on
            for sums, order in zip(shuffled, orders, strict=True):  # noqa: B023
                sums.add(block, rows, order)

        read(model, neurons, window, heard, measured)
        progress("finding neurons", at + 1, len(readings))
    counts, spread, freedom = _counted([labels for _, labels in readings], len(groups.names))
    deviations = [(squares / freedom).sqrt() for squares in real.squares]
    classes = [int(n).bit_length() for n in counts]
    thresholds, tested = _thresholds(
        _scores(real, deviations, spread),
        [_scores(one, deviations, spread) for one in shuffled],
        classes,
    )
    least = torch.tensor([thresholds[one] for one in classes], dtype=torch.float64)
    responses: list[Tensor] = []
    for z, sums, deviation in zip(
        _scores(real, deviations, spread), real.sums, deviations, strict=True
    ):
        kept = z.abs() >= least.to(z)[:, None]
        responses.append((_per(sums / counts.to(sums)[:, None], deviation) * kept).float())
    found = sum(int((one != 0).sum()) for one in responses)
    return Pattern(counts, tuple(responses), tuple(deviations), thresholds, tested, found)


def shown(
    model: PreTrainedModel, neurons: Sequence[Weight], readings: Sequence[Reading], of: Pattern, measured: str, progress: Progress,
    whole: bool = False,
) -> Shown:  # fmt: skip
    """Read the windows with a model, and return what it shows of a pattern; `whole` keeps the
    responses of all neurons.
    """
    groups = len(of.counts)
    sums, by_window = (
        GroupSums.of(groups, neurons),
        torch.zeros(len(readings), groups, dtype=torch.float64),
    )
    nats: list[Tensor] = []
    for at, (window, labels) in enumerate(readings):
        chosen = (labels >= 0).nonzero().flatten()
        own = labels[chosen]

        def heard(block: int, rows: Tensor) -> None:
            sums.add(block, rows, labels)  # noqa: B023  # called before the loop goes on
            here = _per(rows[chosen.to(rows.device)], of.deviations[block])  # noqa: B023
            matched = (of.responses[block][own.to(rows.device)] * here).sum(1).double().cpu()  # noqa: B023
            by_window[at].index_add_(0, own, matched)  # noqa: B023

        nats.append(read(model, neurons, window, heard, measured))
        progress("reading words", at + 1, len(readings))
    by_block: list[Tensor] = []
    responses: list[Tensor] = []
    for block, expected in enumerate(of.responses):
        own = of.of(block, sums.sums[block])
        by_block.append((expected * own).sum(1).double().cpu())
        responses += [own.float().cpu()] if whole else []
    return Shown(torch.stack(by_block), by_window, tuple(nats), tuple(responses))


def _per(
    x: Float[Tensor, "row neuron"], deviation: Float[Tensor, " neuron"]
) -> Float[Tensor, "row neuron"]:
    """Divide by standard deviations; 0 of a neuron that never moves."""
    return torch.where(
        deviation > 0, x / deviation.clamp(min=torch.finfo(deviation.dtype).tiny), 0.0
    )


def _counted(
    labels: Sequence[Int[Tensor, " _"]], groups: int
) -> tuple[Int[Tensor, " group"], Float[Tensor, " group"], int]:
    """How many words each group has; the variance of a group's sum under shuffling, of neurons
    with variance 1; and the degrees of freedom.
    """
    counts, spread, freedom = (
        torch.zeros(groups, dtype=torch.long),
        torch.zeros(groups, dtype=torch.float64),
        0,
    )
    for own in labels:
        here = torch.bincount(own[own >= 0], minlength=groups)
        counts += here
        # A sum of k of n values that add up to 0, drawn without replacement.
        spread += here * (1 - here / max(1, len(own)))
        freedom += max(0, len(own) - 1)
    return counts, spread, max(1, freedom)


def _scores(
    of: GroupSums, deviations: Sequence[Float[Tensor, " _"]], spread: Float[Tensor, " group"]
) -> Iterator[Float[Tensor, "group _"]]:
    """The z of each block."""
    for sums, deviation in zip(of.sums, deviations, strict=True):
        yield (
            _per(sums, deviation)
            / spread.to(sums).clamp(min=torch.finfo(sums.dtype).tiny).sqrt()[:, None]
        )


def _thresholds(
    real: Iterator[Float[Tensor, "group _"]],
    shuffled: Sequence[Iterator[Float[Tensor, "group _"]]],
    classes: Sequence[int],
) -> tuple[dict[int, float], int]:
    """Return from which |z| on the responses of each class of groups are real, and how many were
    tested.
    """
    found = _histograms(real, classes)
    by_chance = [_histograms(one, classes) for one in shuffled]
    thresholds = dict[int, float]()
    for size, counts in found.items():
        shuffled_counts = torch.stack([each[size] for each in by_chance])
        thresholds[size] = threshold(counts, shuffled_counts.sum(0))
    return thresholds, int(sum(int(counts.sum()) for counts in found.values()))


def _histograms(
    scores: Iterator[Float[Tensor, "group _"]], classes: Sequence[int]
) -> dict[int, Int[Tensor, " step"]]:
    """How many |z| of each class lie in each step."""
    kinds = torch.tensor(classes)
    found = {one: torch.zeros(STEPS * HIGHEST + 1, dtype=torch.long) for one in set(classes)}
    for z in scores:
        steps = (z.abs() * STEPS).clamp(max=STEPS * HIGHEST).long().cpu()
        for one, counts in found.items():
            counts += torch.bincount(steps[kinds == one].flatten(), minlength=len(counts))
    return found


def threshold(found: Int[Tensor, " step"], by_chance: Int[Tensor, " step"]) -> float:
    """Return the |z| from which on at most `RATE` of what was found is expected by chance; infinity
    if there is none.

    Both are counts by step of |z|, the one of labels as they are, the other of shuffled ones. This
    is Benjamini and Hochberg's step-up procedure on p-values (1 + shuffled z as large) / (1 +
    shuffled z): the lowest step is taken at which m·p is at most `RATE` times what was found.
    """
    tested, shuffled = int(found.sum()), int(by_chance.sum())
    above, chance = (counts.flip(0).cumsum(0).flip(0).double() for counts in (found, by_chance))
    expected = tested * (1 + chance) / (1 + shuffled)
    sound = ((expected <= RATE * above) & (above > 0)).nonzero().flatten()
    return float(sound[0]) / STEPS if len(sound) else float("inf")
