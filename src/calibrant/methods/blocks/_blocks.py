"""What methods have in common that search for the blocks to drop: what may go, what a choice loses,
and the edits that come of the best choice.

Without `apart` whole blocks go, and what is left is a smaller model. With `apart` a block's two
halves, its attention and its feed-forward network, may go one without the other. No configuration
can say so: the matrices of such a half become zeros. These take as much room in a plain folder, and
as much time in a forward, as before. Room is saved by a format that leaves zeros out, and time by a
runtime that leaves the half out. A block of which both halves go is dropped whole.
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
from calibrant.methods._model_method import BlockMethod, PartMethod, as_share, least_share
from calibrant.methods._searching import Choice, Space, Trials
from calibrant.methods.blocks.short_gpt import influence, least_influence
from calibrant.models import ModelView, Stream, Weight
from calibrant.numerics import finite_number, six_digits
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
    calibration set. The rest of the set is not searched on: the notes say what the best choice
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
        whole = all(type(tokens) is int for tokens in stages)
        growing = whole and list(stages) == sorted(set(stages))
        if not stages or not growing or stages[0] < 2:
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
        """Return how many candidates are measured at most on the first stage's tokens, and how many
        on each later stage's, where `taken` of so many units go.
        """

    def tried(self, blocks: int, target: Target) -> int:
        units = 2 * blocks if self.apart else blocks
        screened, decided = self.candidates(units, as_share(target, self.parts).quota(units))
        return screened * self.stages[0] + decided * sum(self.stages[1:])

    @abstractmethod
    def best(self, trials: Trials, by_short_gpt: Callable[[], Choice] | None) -> Choice:
        """Return the best choice of `trials.space`. `by_short_gpt` computes the choice of ShortGPT,
        and is None where halves of blocks go.
        """

    def drops_parts(self, blocks: int, target: Target) -> bool:
        if not self.apart:
            return super().drops_parts(blocks, target)
        # Where no more halves go than there are blocks, the search may leave one half of each, and
        # then no block goes whole.
        return as_share(target, self.parts).quota(2 * blocks) > blocks

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
        # Made only because it refuses a model whose blocks have no halves.
        _HalfBlocks(view)

    def edits(self, job: Job) -> Iterator[Edit]:
        if any(isinstance(edit, DropBlocks) for edit in job.done):
            return
        units = _HalfBlocks(job.view) if self.apart else _WholeBlocks(job.view)
        space = Space.of(units.count, self.left_to_drop(job))
        notes: dict[str, Any] = {}
        choice = (0,) * units.count
        if space.sums[0]:
            search = _Search(self, job, units)
            # A search that goes on after an interruption had a sound model.
            if not len(job.journal):
                search.check_untouched()
            trials = Trials(space, search.measure, search.stages, job.journal, search.tell)
            by_short_gpt = None
            if not self.apart:
                by_short_gpt = partial(search.short_gpt_choice, space.sums[0])
            choice = self.best(trials, by_short_gpt)
            notes = search.notes(choice, trials)
        # Zeros first: dropping blocks numbers those that are left anew.
        yield from units.zeros(choice, job.start)
        yield DropBlocks(units.dropped(choice), notes)

    def _count(self, blocks: int, target: Target) -> int:
        """How many halves of blocks go. Raises `TargetError` for a share that is less than one."""
        share = as_share(target, self.parts)
        halves = 2 * blocks
        count = share.quota(halves)
        if count == 0 and share.fraction > 0:
            problem = f"{share.fraction} of {halves} attention and feed-forward networks"
            advice = f"ask for at least {least_share(halves)}"
            raise TargetError(f"{problem} is less than one; {advice}", subject=str(target))
        return count


class _WholeBlocks:
    """What may go: whole blocks."""

    def __init__(self, view: ModelView) -> None:
        self.count = len(view.blocks)

    @cached_property
    def variants(self) -> Sequence[Sequence[Variant]]:
        """The variants of each block: as it is, and without what may go."""
        return [(AS_IT_IS, SKIPPED)] * self.count

    def variant_of_each(self, choice: Choice) -> tuple[int, ...]:
        """Return, for each block, the number of the variant that a choice makes of it."""
        return choice

    def dropped(self, choice: Choice) -> tuple[int, ...]:
        """Return the blocks of which nothing is left."""
        dropped: list[int] = []
        for index, number in enumerate(self.variant_of_each(choice)):
            if self.variants[index][number].skipped:
                dropped.append(index)
        return tuple(dropped)

    def zeros(self, choice: Choice, start: int) -> Iterator[Edit]:
        """Yield the edits that make the matrices of single halves zeros, from the block `start`
        on; none where whole blocks go.
        """
        return iter(())


@final
class _HalfBlocks(_WholeBlocks):
    """What may go: halves of blocks, of each its attention and then its feed-forward network.

    Raises `ModelError` for a block whose halves can't be told apart, or where something beside
    matrices, such as a bias, is added to the residual stream.
    """

    def __init__(self, view: ModelView) -> None:
        stream = Stream.of(view)
        writer_names = {writer.weight.name for writer in stream.writers}
        in_networks: set[str] = set()
        for hidden in stream.hidden:
            in_networks |= {weight.name for weight in (*hidden.up, hidden.down)}
        self.count = 2 * len(view.blocks)
        self._parts: list[tuple[list[Weight], list[Weight]]] = []
        self._writers: list[tuple[list[Weight], list[Weight]]] = []
        for block in view.blocks:
            attention = [weight for weight in block.weights if weight.name not in in_networks]
            network = [weight for weight in block.weights if weight.name in in_networks]
            attention_writers = [weight for weight in attention if weight.name in writer_names]
            network_writers = [weight for weight in network if weight.name in writer_names]
            if not attention_writers or not network_writers:
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
            self._writers.append((attention_writers, network_writers))

    @cached_property
    def variants(self) -> Sequence[Sequence[Variant]]:
        variants: list[Sequence[Variant]] = []
        for attention, network in self._writers:
            variants.append((AS_IT_IS, _silenced(network), _silenced(attention), SKIPPED))
        return variants

    def variant_of_each(self, choice: Choice) -> tuple[int, ...]:
        # A choice has two levels for a block, which are the two bits of its variant's number.
        halves = zip(choice[::2], choice[1::2], strict=True)
        return tuple(2 * attention + network for attention, network in halves)

    def zeros(self, choice: Choice, start: int) -> Iterator[Edit]:
        numbers = self.variant_of_each(choice)
        for index, (attention, network) in enumerate(self._parts):
            if index < start:
                continue
            weights: list[Weight] = []
            part = ""
            # A block of which both halves go is dropped, so it needs no zeros.
            if numbers[index] == 1:
                weights = network
                part = "feed_forward"
            elif numbers[index] == 2:
                weights = attention
                part = "attention"
            for weight in weights:
                yield Replace(weight, Compressed(torch.zeros_like(weight.get()), {"part": part}))


def _silenced(writers: Sequence[Weight]) -> Variant:
    """The variant of a block in which these matrices write nothing to the stream."""
    numbers: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}
    for weight in writers:
        parameter = getattr(weight.owner, weight.key)
        # All experts of a block may be in one parameter, which is zeroed once.
        if id(parameter) not in numbers:
            numbers[id(parameter)] = parameter, torch.zeros_like(parameter.data)
    return Variant(numbers=tuple(numbers.values()))


@final
class _Search:
    """Measures choices on the tokens of each stage, and says what the record should know of the
    best one.
    """

    def __init__(self, method: BlockSearch, job: Job, units: _WholeBlocks) -> None:
        self._method = method
        self._job = job
        self._units = units
        deciding, self._rest = divided(job.tokens(), method.stages[-1])
        self._batches: dict[int, TokenBatch] = {}
        for tokens in method.stages[:-1]:
            batch, _ = divided(job.tokens(), tokens)
            # A stage that has as many tokens as the last one narrows nothing down.
            if int(batch.mask.sum()) < int(deciding.mask.sum()):
                self._batches[tokens] = batch
        self._batches[method.stages[-1]] = deciding
        # A calibration set may have fewer tokens than a stage asks for, and so fewer stages.
        self.stages = list(self._batches)
        self._deciding = deciding
        self._untouched = (0,) * units.count
        self._variants: Variants | None = None
        self._why_one_by_one = ""
        try:
            self._variants = Variants(job.view, units.variants)
        except ModelError as error:
            # Choices can still be measured one by one, but neither halves nor divergences.
            if method.apart or method.divergence:
                raise
            self._why_one_by_one = str(error)

    def measure(self, choices: Sequence[Choice], tokens: int) -> Sequence[float]:
        """Return what each choice loses on about so many tokens."""
        return self._losses_of(choices, self._batches[tokens], self._method.divergence)

    def _losses_of(
        self, choices: Sequence[Choice], batch: TokenBatch, divergence: bool = False
    ) -> list[float]:
        if self._variants is None:
            return [self._loss_without(choice, batch) for choice in choices]
        numbers = [self._units.variant_of_each(choice) for choice in choices]
        return self._variants.losses(numbers, batch, divergence=divergence, ranks=self._job.ranks)

    def _loss_without(self, choice: Choice, batch: TokenBatch) -> float:
        """The loss of one choice, measured the slow way: its blocks are dropped, and put back."""
        job = self._job
        dropped = self._units.dropped(choice)
        try:
            with job.trying(DropBlocks(dropped)):
                return loss(job.view, batch, job.ranks)
        except ModelError:
            # Without these blocks it is no model, so the choice loses everything. An error of the
            # untouched model would be one of every choice.
            if not dropped:
                raise
            return math.inf

    def check_untouched(self) -> None:
        """Raise `NumericsError` for a loss that isn't finite: a search would hide its cause."""
        (untouched,) = self._losses_of([self._untouched], self._deciding)
        name = self._job.opened.name
        finite_number(untouched, f"the loss of {name}, untouched,", name)

    def short_gpt_choice(self, count: int) -> Choice:
        """Return the choice that drops the `count` blocks that ShortGPT would, judged on the tokens
        that decide.
        """
        job = self._job
        blocks = blocks_seen(job.opened, job.view, self._deciding, (BlockChange,), ranks=job.ranks)
        dropped = least_influence([influence(seen) for _, seen in blocks], count)
        return tuple(int(index in dropped) for index in range(self._units.count))

    def tell(self, best: float, done: int, total: int) -> None:
        """Report progress, with the best so far."""
        text = f"{self._method.spec_name()} {self._job.target}; best {best:.4f}"
        self._job.progress(text, done, total)

    def notes(self, choice: Choice, trials: Trials) -> dict[str, Any]:
        """Return what the record says of the best choice: by what it was chosen, and what it and
        the untouched model lose, on the tokens that decide and on others.
        """
        losses = self._losses_beside(choice, self._deciding)
        (best,) = trials.losses([choice])
        judged_by = "loss"
        if self._method.divergence:
            judged_by = "divergence"
        course = [six_digits(settled) for settled in trials.course]
        searched_on = [int(batch.mask.sum()) for batch in self._batches.values()]
        notes: dict[str, Any] = {
            "by": judged_by,
            "best": six_digits(best),
            "course": course,
            "measured": trials.count,
            "tokens": searched_on,
            **losses,
        }
        if self._rest is not None:
            held_out, _ = divided(self._rest, trials.stages[-1])
            tokens = int(held_out.mask.sum())
            notes["held_out"] = {"tokens": tokens, **self._losses_beside(choice, held_out)}
        if self._why_one_by_one:
            notes["one_by_one"] = self._why_one_by_one
        return notes

    def _losses_beside(self, choice: Choice, batch: TokenBatch) -> dict[str, float]:
        """The losses of the untouched model and of a choice, as notes have them."""
        untouched, lost = self._losses_of([self._untouched, choice], batch)
        return {"untouched_loss": six_digits(untouched), "loss": six_digits(lost)}
