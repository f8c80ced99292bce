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
from functools import cached_property, partial
from typing import Any, ClassVar, final

import torch
from torch import nn

from calibrant.activations import BlockChange
from calibrant.data import TokenBatch, divided
from calibrant.edits import DropBlocks, Edit, Replace
from calibrant.errors import ModelError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods._base import six_digits
from calibrant.methods._model_method import BlockMethod, PartMethod, least_share, parts_of
from calibrant.methods._searching import Choice, Space, Trials
from calibrant.methods.blocks.short_gpt import influence, least_influence
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
        stages = self.stages
        sound = bool(stages) and all(type(tokens) is int and tokens >= 2 for tokens in stages)
        if not sound or list(stages) != sorted(set(stages)):
            allowed = "write numbers of tokens that grow, from 2, as in tokens=[512, 2048]"
            message = f"{self.spec_name()}(tokens={brief(self.tokens)}): {allowed}"
            raise SpecError(message, subject="tokens")
        object.__setattr__(self, "tokens", stages)

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of tokens that candidates are measured on, one after the other."""
        if isinstance(self.tokens, list | tuple):
            return tuple(self.tokens)
        return (self.tokens,)

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

    def drops_parts(self, blocks: int, target: Target) -> bool:
        if not self.apart:
            return super().drops_parts(blocks, target)
        # Where no more halves go than there are blocks, the search may leave one half of each, and
        # then no block goes whole.
        return parts_of(target, self.parts).quota(2 * blocks) > blocks

    def left_to_drop(self, job: Job) -> int:
        if not self.apart:
            return super().left_to_drop(job)
        return self._count(len(job.view.blocks), job.target)

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        if not self.apart:
            super().check_model(view, target, targets)
            return
        PartMethod.check_model(self, view, target, targets)
        self._count(len(view.blocks), target)
        _Halves(view)  # which refuses what has no halves

    def edits(self, job: Job) -> Iterator[Edit]:
        if any(isinstance(edit, DropBlocks) for edit in job.done):
            return
        units = _Halves(job.view) if self.apart else _Whole(job.view)
        space = Space.of(units.count, self.left_to_drop(job))
        notes: dict[str, Any] = {}
        choice = (0,) * units.count
        if space.sums[0]:
            search = _Search(self, job, units)
            if not len(job.journal):  # a search that goes on had a sound model
                search.check_untouched()
            trials = Trials(space, search.measure, search.stages, job.journal, search.tell)
            similar = None if self.apart else partial(search.similar, space.sums[0])
            choice = self.best(trials, similar)
            notes = search.notes(choice, trials)
        yield from units.zeros(choice, job.start)
        yield DropBlocks(units.dropped(choice), notes)

    def _count(self, blocks: int, target: Target) -> int:
        """How many halves of blocks go."""
        share = parts_of(target, self.parts)
        halves = 2 * blocks
        count = share.quota(halves)
        if count == 0 and share.fraction > 0:
            problem = f"{share.fraction} of {halves} attention and feed-forward networks"
            advice = f"ask for at least {least_share(halves)}"
            raise TargetError(f"{problem} is less than one; {advice}", subject=str(target))
        return count


class _Whole:
    """What may go: whole blocks."""

    def __init__(self, view: ModelView) -> None:
        self.count = len(view.blocks)

    @cached_property
    def ways(self) -> Sequence[Sequence[Variant]]:
        """What each block can be."""
        return [(AS_IT_IS, SKIPPED)] * self.count

    def way(self, choice: Choice) -> tuple[int, ...]:
        """Return which of its `ways` each block is."""
        return choice

    def dropped(self, choice: Choice) -> tuple[int, ...]:
        """Return the blocks of which nothing is left."""
        dropped: list[int] = []
        for index, way in enumerate(self.way(choice)):
            if self.ways[index][way].skipped:
                dropped.append(index)
        return tuple(dropped)

    def zeros(self, choice: Choice, start: int) -> Iterator[Edit]:
        """Yield what makes zeros of halves of blocks, from the block `start` on: before blocks are
        dropped, which numbers them anew.
        """
        return iter(())


@final
class _Halves(_Whole):
    """What may go: halves of blocks, of each its attention and then its feed-forward network.

    Raises `ModelError`, by name, where they can't be told, or where more than matrices write to
    the residual stream.
    """

    def __init__(self, view: ModelView) -> None:
        stream = Stream.of(view)
        writing = {writer.weight.name for writer in stream.writers}
        in_networks: set[str] = set()
        for hidden in stream.hidden:
            in_networks |= {weight.name for weight in (*hidden.up, hidden.down)}
        self.count = 2 * len(view.blocks)
        self._parts: list[tuple[list[Weight], list[Weight]]] = []
        self._writers: list[tuple[list[Weight], list[Weight]]] = []
        for block in view.blocks:
            attention = [weight for weight in block.weights if weight.name not in in_networks]
            network = [weight for weight in block.weights if weight.name in in_networks]
            writers = (
                [weight for weight in attention if weight.name in writing],
                [weight for weight in network if weight.name in writing],
            )
            if not all(writers):
                problem = f"{block.name} has no attention and feed-forward network"
                message = (
                    f"{problem} that both add to the residual stream, so they can't go apart; "
                    "leave apart=true out to drop whole blocks"
                )
                raise ModelError(message, subject=block.name)
            # A bias would still be added where a half is all zeros.
            biases = [name for name, _ in stream.vectors if name.startswith(f"{block.name}.")]
            if biases:
                bias = min(biases)
                problem = f"{bias} is added to the residual stream beside the matrices' outputs"
                message = f"{problem}; drop whole blocks of this model"
                raise ModelError(message, subject=bias)
            self._parts.append((attention, network))
            self._writers.append(writers)

    @cached_property
    def ways(self) -> Sequence[Sequence[Variant]]:
        ways: list[Sequence[Variant]] = []
        for attention, network in self._writers:
            ways.append((AS_IT_IS, _silent(network), _silent(attention), SKIPPED))
        return ways

    def way(self, choice: Choice) -> tuple[int, ...]:
        """Return which of its `ways` each block is."""
        halves = zip(choice[::2], choice[1::2], strict=True)
        return tuple(2 * attention + network for attention, network in halves)

    def zeros(self, choice: Choice, start: int) -> Iterator[Edit]:
        ways = self.way(choice)
        for index, (attention, network) in enumerate(self._parts):
            if index < start:
                continue
            weights: list[Weight] = []
            part = ""
            if ways[index] == 1:
                weights = network
                part = "feed_forward"
            elif ways[index] == 2:
                weights = attention
                part = "attention"
            for weight in weights:
                yield Replace(weight, Compressed(torch.zeros_like(weight.get()), {"part": part}))


def _silent(writers: Sequence[Weight]) -> Variant:
    """A block in which these matrices write nothing to the stream."""
    numbers: list[tuple[nn.Parameter, torch.Tensor]] = []
    for weight in writers:
        parameter = getattr(weight.owner, weight.key)
        numbers.append((parameter, torch.zeros_like(parameter.data)))
    return Variant(numbers=tuple(numbers))


@final
class _Search:
    """The job of a search: how a choice is measured, and what is said of the best one."""

    def __init__(self, method: BlockSearch, job: Job, units: _Whole) -> None:
        self._method = method
        self._job = job
        self._units = units
        last, self._other = divided(job.tokens(), method.stages[-1])
        self._batches: dict[int, TokenBatch] = {}
        for tokens in method.stages[:-1]:
            batch, _ = divided(job.tokens(), tokens)
            # A stage that has as many tokens as the last one narrows nothing down.
            if int(batch.mask.sum()) < int(last.mask.sum()):
                self._batches[tokens] = batch
        self._batches[method.stages[-1]] = last
        self.stages = list(self._batches)
        self._last = last
        self._untouched = (0,) * units.count
        self._variants: Variants | None = None
        self._why_one_by_one = ""
        try:
            self._variants = Variants(job.view, units.ways)
        except ModelError as error:
            if method.apart or method.divergence:
                raise
            self._why_one_by_one = str(error)

    def measure(self, choices: Sequence[Choice], tokens: int) -> Sequence[float]:
        """Return what each choice loses on about so many tokens."""
        return self._measured(choices, self._batches[tokens], self._method.divergence)

    def _measured(
        self, choices: Sequence[Choice], batch: TokenBatch, divergence: bool = False
    ) -> list[float]:
        if self._variants is None:
            return [self._without(choice, batch) for choice in choices]
        ways = [self._units.way(choice) for choice in choices]
        return self._variants.losses(ways, batch, divergence=divergence, ranks=self._job.ranks)

    def _without(self, choice: Choice, batch: TokenBatch) -> float:
        """The slow way: the blocks are dropped. A choice that leaves no model loses all."""
        job = self._job
        dropped = self._units.dropped(choice)
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
        (untouched,) = self._measured([self._untouched], self._last)
        name = self._job.opened.name
        finite_number(untouched, f"the loss of {name}, untouched,", name)

    def similar(self, count: int) -> Choice:
        """Return what ShortGPT would drop, by the tokens that decide."""
        job = self._job
        blocks = blocks_seen(job.opened, job.view, self._last, (BlockChange,), ranks=job.ranks)
        dropped = least_influence([influence(seen) for _, seen in blocks], count)
        return tuple(int(index in dropped) for index in range(self._units.count))

    def tell(self, best: float, done: int, total: int) -> None:
        """Report progress, with the best so far."""
        doing = f"{self._method.spec_name()} {self._job.target}; best {best:.4f}"
        self._job.progress(doing, done, total)

    def notes(self, choice: Choice, trials: Trials) -> dict[str, Any]:
        """Return what the record says: by what it was chosen, what it and the untouched model
        lose, there and on tokens that weren't searched on.
        """
        lost = self._losses(choice, self._last)
        (best,) = trials.losses([choice])
        notes: dict[str, Any] = {
            "by": "divergence" if self._method.divergence else "loss",
            "best": six_digits(best),
            "course": [six_digits(settled) for settled in trials.course],
            "measured": trials.count,
            "tokens": [int(batch.mask.sum()) for batch in self._batches.values()],
            **lost,
        }
        if self._other is not None:
            other, _ = divided(self._other, trials.stages[-1])
            tokens = int(other.mask.sum())
            notes["held_out"] = {"tokens": tokens, **self._losses(choice, other)}
        if self._why_one_by_one:
            notes["one_by_one"] = self._why_one_by_one
        return notes

    def _losses(self, choice: Choice, batch: TokenBatch) -> dict[str, float]:
        untouched, lost = self._measured([self._untouched, choice], batch)
        return {"untouched_loss": six_digits(untouched), "loss": six_digits(lost)}
