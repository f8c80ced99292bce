"""What methods share that search for the blocks to drop: what may go, what a choice loses, and the
edits that come of the best one.

Without `apart` whole blocks go, and what is left is a smaller model. With it a block's attention
and its feed-forward network may go one without the other, which no configuration can say: in a
plain folder the matrices of such a half are zeros. They take as much room in a file, and as much
time in a forward, as before; saved is what a format that leaves zeros out, or a runtime that leaves
the half out, makes of them. A block of which both halves go is dropped whole.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, final

import torch
from torch import nn

from calibrant.activations import BlockChange
from calibrant.data import TokenBatch, divided
from calibrant.edits import DropBlocks, Edit, Replace
from calibrant.errors import ModelError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods._base import BlockMethod, PartMethod, parts_of
from calibrant.methods._searching import Choice, Space, Trials
from calibrant.methods.blocks.short_gpt import influence
from calibrant.models import ModelView, Stream, Weight
from calibrant.numerics import finite_number
from calibrant.packed import Compressed
from calibrant.spec.foreign import brief
from calibrant.targets import Target
from calibrant.walk.statistics import blocks_seen
from calibrant.walk.variants import AS_IT_IS, SKIPPED, Variant, Variants, loss


@dataclass(frozen=True, repr=False)
class BlockSearch(BlockMethod, ABC):
    """Searches for the blocks without which the model loses least on the calibration tokens; a
    subclass says how.

    `tokens` are numbers of calibration tokens, growing. The last one decides; on those before it
    many candidates are narrowed down to a few. They are whole sequences at equal distances in the
    calibration set. What is left of the set is not searched on: the notes say what the best choice
    loses on as many other tokens (`held_out`), which shows how far a search has fitted its own.
    With `apart`, attention and feed-forward networks go one without the other, as zeros.
    """

    tries: ClassVar[bool] = True
    divergence: ClassVar[bool] = False
    """Whether a candidate is judged by how far its predictions are from the untouched model's,
    and not by its loss.
    """

    tokens: tuple[int, ...] | int = (512, 2048)
    apart: bool = False

    def __post_init__(self) -> None:
        given = self.stages
        if (
            not given
            or any(type(one) is not int or one < 2 for one in given)
            or any(one >= other for one, other in pairwise(given))
        ):
            message = f"{self.spec_name()}(tokens={brief(self.tokens)}): write numbers of tokens that grow, from 2, as in tokens=[512, 2048]"
            raise SpecError(message, subject="tokens")
        object.__setattr__(self, "tokens", given)

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of tokens that candidates are measured on, one after the other."""
        return tuple(self.tokens) if isinstance(self.tokens, list | tuple) else (self.tokens,)

    @abstractmethod
    def candidates(self, units: int, taken: int) -> tuple[int, int]:
        """Return how many candidates are measured at most on few tokens, and how many on those
        that decide, where so many of the units go.
        """

    def tried(self, blocks: int, target: Target) -> int:
        units = 2 * blocks if self.apart else blocks
        many, few = self.candidates(units, parts_of(target, self.parts).quota(units))
        return many * self.stages[0] + few * sum(self.stages[1:])

    @abstractmethod
    def best(self, trials: Trials, similar: Callable[[], Choice] | None) -> Choice:
        """Return the best choice of `trials.space`; `similar` gives what ShortGPT would drop,
        and is None where parts of blocks go.
        """

    def drops_parts(self, view: ModelView, target: Target) -> bool:
        if not self.apart:
            return super().drops_parts(view, target)
        # Where no more halves go than there are blocks, the search may leave one half of each, and
        # then no block goes whole.
        blocks = len(view.blocks)
        return parts_of(target, self.parts).quota(2 * blocks) > blocks

    def left_to_drop(self, job: Job) -> int:
        return (
            self._count(len(job.view.blocks), job.target)
            if self.apart
            else super().left_to_drop(job)
        )

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        if not self.apart:
            super().check_model(view, target, targets)
            return
        PartMethod.check_model(self, view, target, targets)
        self._count(len(view.blocks), target)
        _halves(view)

    def edits(self, job: Job) -> Iterator[Edit]:
        if any(isinstance(edit, DropBlocks) for edit in job.done):
            return
        units = _Units(job.view, _halves(job.view) if self.apart else None)
        space = Space.of(units.count, self.left_to_drop(job))
        notes: dict[str, Any] = {}
        choice = (0,) * units.count
        if space.sums[0]:
            search = _Search(self, job, units)
            if not len(job.journal):  # a search that goes on had a sound model
                search.check_untouched()
            trials = Trials(space, search.measure, search.stages, job.journal, search.tell)
            choice = self.best(
                trials, None if self.apart else partial(search.similar, space.sums[0])
            )
            notes = search.notes(choice, trials)
        yield from units.edits(choice, notes, job)

    def _count(self, blocks: int, target: Target) -> int:
        share, halves = parts_of(target, self.parts), 2 * blocks
        count = share.quota(halves)
        if count == 0 and share.fraction > 0:
            least = f"{math.ceil(1000 / halves) / 1000:g}"
            message = f"{share.fraction} of {halves} attention and feed-forward networks is less than one; ask for at least {least}"
            raise TargetError(message, subject=str(target))
        return count


@final
@dataclass(frozen=True)
class _Halves:
    """The matrices of a block's attention and of its feed-forward network, and those of them
    that write to the residual stream.
    """

    attention: tuple[Weight, ...]
    network: tuple[Weight, ...]
    writers: tuple[tuple[Weight, ...], tuple[Weight, ...]]


@final
class _Units:
    """What may go: blocks, or halves of blocks, attention first."""

    def __init__(self, view: ModelView, halves: Sequence[_Halves] | None) -> None:
        self._blocks, self._halves = len(view.blocks), halves
        self.count = self._blocks if halves is None else 2 * self._blocks
        zeros = [
            [tuple(map(_as_zeros, several)) for several in half.writers] for half in halves or ()
        ]
        self.ways = [(AS_IT_IS, SKIPPED)] * self._blocks if halves is None else [
            (AS_IT_IS, Variant(numbers=network), Variant(numbers=attention), SKIPPED) for attention, network in zeros
        ]  # fmt: skip

    def way(self, choice: Choice) -> tuple[int, ...]:
        """Return which of its `ways` each block is."""
        return (
            choice
            if self._halves is None
            else tuple(
                2 * attention + network
                for attention, network in zip(choice[::2], choice[1::2], strict=True)
            )
        )

    def dropped(self, choice: Choice) -> tuple[int, ...]:
        """Return the blocks of which nothing is left."""
        return tuple(
            index for index, way in enumerate(self.way(choice)) if self.ways[index][way].skipped
        )

    def edits(self, choice: Choice, notes: Mapping[str, Any], job: Job) -> Iterator[Edit]:
        """Yield what makes the model that a choice says: zeros first, block by block, since
        dropping blocks numbers them anew.
        """
        ways = self.way(choice)
        for index, half in enumerate(self._halves or ()):
            if index >= job.start and ways[index] in (1, 2):
                for weight in half.network if ways[index] == 1 else half.attention:
                    yield Replace(
                        weight,
                        Compressed(
                            torch.zeros_like(weight.get()),
                            {"part": "feed_forward" if ways[index] == 1 else "attention"},
                        ),
                    )
        yield DropBlocks(self.dropped(choice), notes)


@final
class _Search:
    """The job of a search: how a choice is measured, and what is said of the best one."""

    def __init__(self, method: BlockSearch, job: Job, units: _Units) -> None:
        self._method, self._job, self._units = method, job, units
        batches = {tokens: divided(job.tokens(), tokens)[0] for tokens in method.stages}
        sizes = {tokens: int(batch.mask.sum()) for tokens, batch in batches.items()}
        # Of stages that the calibration set has no more tokens for than the last one gets, the last
        # is enough.
        self.stages = [
            tokens
            for tokens in batches
            if sizes[tokens] < sizes[method.stages[-1]] or tokens == method.stages[-1]
        ]
        self._batches = {tokens: batches[tokens] for tokens in self.stages}
        self._other = divided(job.tokens(), method.stages[-1])[1]
        self._why = ""
        try:
            self._variants = Variants(job.view, units.ways)
        except ModelError as error:
            if method.apart or method.divergence:
                raise
            self._variants, self._why = None, str(error)

    def measure(self, choices: Sequence[Choice], tokens: int) -> Sequence[float]:
        """Return what each choice loses on about so many tokens."""
        return self._measured(choices, self._batches[tokens], self._method.divergence)

    def _measured(
        self, choices: Sequence[Choice], batch: TokenBatch, divergence: bool = False
    ) -> list[float]:
        if self._variants is None:
            return [self._without(choice, batch) for choice in choices]
        return self._variants.losses(
            [self._units.way(choice) for choice in choices],
            batch,
            divergence=divergence,
            ranks=self._job.ranks,
        )

    def _without(self, choice: Choice, batch: TokenBatch) -> float:
        """The slow way: the blocks are dropped. A choice that leaves no model loses all."""
        job, dropped = self._job, self._units.dropped(choice)
        try:
            with job.trying(DropBlocks(dropped)):
                return loss(job.view, batch, job.ranks)
        except ModelError:
            # What is wrong with the untouched model is wrong with every choice.
            if not dropped:
                raise
            return math.inf

    def check_untouched(self) -> None:
        """Raise `NumericsError` for a loss that isn't finite: a search would hide its cause."""
        few = self._batches[self.stages[-1]]
        (untouched,) = self._measured([(0,) * self._units.count], few)
        name = self._job.opened.name
        finite_number(untouched, f"the loss of {name}, untouched,", name)

    def similar(self, count: int) -> Choice:
        """Return what ShortGPT would drop, by the tokens that decide."""
        job, few = self._job, self._batches[self._method.stages[-1]]
        scores = [
            influence(seen)
            for _, seen in blocks_seen(job.opened, job.view, few, (BlockChange,), ranks=job.ranks)
        ]
        dropped = sorted(range(len(scores)), key=lambda index: (scores[index], index))[:count]
        return tuple(int(index in dropped) for index in range(len(scores)))

    def tell(self, best: float, done: int, total: int) -> None:
        """Report progress, with the best so far."""
        self._job.progress(
            f"{self._method.spec_name()} {self._job.target}; best {best:.4f}", done, total
        )

    def notes(self, choice: Choice, trials: Trials) -> dict[str, Any]:
        """Return what the record says: by what it was chosen, what it and the untouched model
        lose, there and on tokens that weren't searched on.
        """
        last, untouched = self._batches[trials.stages[-1]], (0,) * self._units.count
        lost = self._measured([untouched, choice], last)
        (best,) = trials.losses([choice])
        notes = {
            "by": "divergence" if self._method.divergence else "loss",
            "best": _short(best),
            "course": [_short(one) for one in trials.course],
            "measured": trials.count,
            "tokens": [int(batch.mask.sum()) for batch in self._batches.values()],
            **_losses(lost),
        }
        if self._other is not None:
            other, _ = divided(self._other, trials.stages[-1])
            notes["held_out"] = {
                "tokens": int(other.mask.sum()),
                **_losses(self._measured([untouched, choice], other)),
            }
        return {**notes, **({"one_by_one": self._why} if self._why else {})}


def _losses(measured: Sequence[float]) -> dict[str, float]:
    return {"untouched_loss": _short(measured[0]), "loss": _short(measured[1])}


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _as_zeros(weight: Weight) -> tuple[nn.Parameter, torch.Tensor]:
    parameter = getattr(weight.owner, weight.key)
    return parameter, torch.zeros_like(parameter.data)


def _halves(view: ModelView) -> list[_Halves]:
    """The halves of every block. `ModelError`, by name, where they can't be told, or where more
    than matrices write to the stream.
    """
    stream = Stream.of(view)
    writing = {writer.weight.name for writer in stream.writers}
    biases = {name for name, _ in stream.vectors}
    return [_halves_of(view, index, writing, biases, stream) for index in range(len(view.blocks))]


def _halves_of(
    view: ModelView, index: int, writing: set[str], biases: set[str], stream: Stream
) -> _Halves:
    block = view.blocks[index]
    of_network = {
        weight.name
        for hidden in stream.hidden
        if hidden.block == index
        for weight in (*hidden.up, hidden.down)
    }
    attention, network = (
        tuple(w for w in block.weights if (w.name in of_network) is inside)
        for inside in (False, True)
    )
    writers = tuple(tuple(w for w in half if w.name in writing) for half in (attention, network))
    if not all(writers):
        what = f"{block.name} has no attention and feed-forward network that both add to the residual stream"
        raise ModelError(
            f"{what}, so they can't go apart; leave apart=true out to drop whole blocks",
            subject=block.name,
        )
    if own := sorted(name for name in biases if name.startswith(f"{block.name}.")):
        raise ModelError(
            f"{own[0]} is added to the residual stream beside the matrices' outputs; drop whole blocks of this model",
            subject=own[0],
        )
    return _Halves(attention, network, (writers[0], writers[1]))
