"""Many variants of a model measured on the same tokens: without some of its blocks, or with other
numbers or parts in them.

    variants = Variants(view, [(AS_IT_IS, SKIPPED)] * len(view.blocks))
    # Without the second block, and without the last two:
    variants.losses([(0, 1, 0), (0, 1, 1)], batch)

A *choice* has one number for each block: which of its variants the block is. The model's own
forward calls its blocks, with whatever it hands to them. A block that is skipped hands on what it
was called with.

Choices are measured in ascending order. Blocks before the first one in which a choice differs from
the last one aren't run again: the forward gets what they gave before. For all swaps of two among
thirty blocks that saves two thirds of the work, and the numbers are the same to the bit.

This works only for a model whose blocks run once each, in order, and hand on one tensor and nothing
beside it. Where blocks are skipped they must be alike too, so that what is left is a model. Eight
tokens show all that before anything is measured: skipping a block must give what dropping it gives.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

from calibrant.data import TokenBatch, micro_batches
from calibrant.errors import DataError, ModelError
from calibrant.models import ModelView
from calibrant.models.divergence import divergences
from calibrant.numerics import not_finite
from calibrant.system.products import exact
from calibrant.walk.products import hidden_of, replaced
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.rehearsal import rehearse, some_ids
from calibrant.walk.walking import TOKENS_PER_PASS

Choice = Sequence[int]
"""Which of its variants each block is."""
Form = Callable[[Tensor], Any]
"""Puts hidden states into what a block returns: a tensor alone, or the first of a tuple."""
_Sum = tuple[float, float]
"""Σ w·x and Σ w over tokens of a micro-batch: x is what is measured of a token, w its weight."""
Compare = Callable[
    [Float[Tensor, "token hidden"], Float[Tensor, "token hidden"]], Float[Tensor, "token"]
]
"""How far apart hidden states are, token by token."""

ROWS_AT_ONCE: Final = 128
"""Tokens whose distributions are compared at a time: three tensors of the vocabulary's size for
each.
"""


@final
@dataclass(frozen=True)
class Variant:
    """What a block is while it is tried: left out (`skipped`), or itself with other `numbers` in
    some parameters, of the same shape and type.

    In the place of some of its modules may be other `parts`, which are called as those are.
    """

    skipped: bool = False
    numbers: tuple[tuple[nn.Parameter, Tensor], ...] = field(default=(), repr=False, compare=False)
    parts: tuple[tuple[nn.Module, nn.Module], ...] = field(default=(), repr=False, compare=False)


AS_IT_IS: Final = Variant()
SKIPPED: Final = Variant(skipped=True)


def loss(view: ModelView, batch: TokenBatch, ranks: Ranks = ALONE) -> float:
    """Return what the model as it is now loses on a batch, in nats a token; a token counts by its
    weight. Of a mix each part counts by its share.

    Padding is neither predicted nor counted. Raises `DataError` where no token is predicted.
    """

    def sums(micro_batch: _MicroBatchOfVariants) -> list[_Sum]:
        return [micro_batch.nats(micro_batch.logits())]

    return _means(view, batch, ranks, sums)[0]


def divergences_alone(
    view: ModelView,
    batch: TokenBatch,
    changes: Sequence[Callable[[], AbstractContextManager[None]]],
    ranks: Ranks = ALONE,
) -> list[float]:
    """Return for each of the `changes` how far it alone takes the model's predictions on a batch:
    KL(as it is ‖ changed), in nats a token.

    Each change is called, and is in force as long as the context that it returns. Raises
    `DataError` where the batch has no token that is predicted.
    """

    def sums(micro_batch: _MicroBatchOfVariants) -> list[_Sum]:
        untouched = micro_batch.logits()
        found: list[_Sum] = []
        for change in changes:
            with change():
                found.append(micro_batch.divergence(untouched, micro_batch.logits()))
        return found

    return _means(view, batch, ranks, sums)


@final
class Variants:
    """A model whose block i can be any of the variants `ways[i]`. Between two measurements the
    model is what it was.

    Raises `ModelError`, saying why, for a model whose blocks can't be exchanged or skipped one by
    one.
    """

    def __init__(self, view: ModelView, ways: Sequence[Sequence[Variant]]) -> None:
        self._view = view
        self._ways = ways
        self._untouched: tuple[int, ...] = (0,) * len(ways)
        self._name = type(view.model).__name__
        rehearsal = rehearse(view)
        self._changes_input = rehearsal.changes_input
        if list(rehearsal.calls) != list(range(len(view.blocks))):
            raise ModelError(
                f"the blocks of {self._name} don't run once each, in order, so none can be left "
                "out of a forward",
                subject=self._name,
            )
        self._forms: list[Form] = []
        self._check()

    def losses(
        self,
        choices: Sequence[Choice],
        batch: TokenBatch,
        *,
        divergence: bool = False,
        ranks: Ranks = ALONE,
    ) -> list[float]:
        """Return for each of the `choices` what the model loses, in nats a token, as `loss`
        measures it.

        With `divergence` it is KL(untouched ‖ variant) of the predictions of the same tokens
        instead, where untouched is the first variant of all.
        """
        measured = [tuple(choice) for choice in choices]

        def sums(micro_batch: _MicroBatchOfVariants) -> list[_Sum]:
            untouched = micro_batch.logits(self._untouched) if divergence else None
            found: dict[tuple[int, ...], _Sum] = {}
            # In order, so that a choice shares as many blocks as possible with the one before.
            for choice in sorted(set(measured)):
                logits = micro_batch.logits(choice)
                if untouched is None:
                    found[choice] = micro_batch.nats(logits)
                else:
                    found[choice] = micro_batch.divergence(untouched, logits)
            return [found[choice] for choice in measured]

        return _means(self._view, batch, ranks, sums, self)

    def moved(
        self, choices: Sequence[Choice], batch: TokenBatch, compare: Compare, ranks: Ranks = ALONE
    ) -> list[float]:
        """Return for each of the `choices` how far the hidden states that the last block gives are
        from those of the first variant of all.

        That is the mean of `compare(untouched, variant)` over the real tokens; a token counts by
        its weight, and of a mix each set by its share.
        """
        measured = [tuple(choice) for choice in choices]

        def sums(micro_batch: _MicroBatchOfVariants) -> list[_Sum]:
            untouched = micro_batch.states(self._untouched)
            found: dict[tuple[int, ...], _Sum] = {}
            for choice in sorted(set(measured)):
                states = micro_batch.states(choice)
                found[choice] = micro_batch.weighted_sum(compare(untouched, states))
            return [found[choice] for choice in measured]

        return _means(self._view, batch, ranks, sums, self)

    @contextmanager
    def choosing(self, choice: Choice, given: list[Tensor], known: int) -> Iterator[None]:
        """While it lasts, a forward of the model runs its blocks as `choice` says.

        `given` are the hidden states that the first `known` blocks gave: these aren't run. What
        each other block gives is added to `given`.
        """
        with ExitStack() as stack:
            for index, block in enumerate(self._view.blocks):
                variant = self._ways[index][choice[index]]
                door = self._door(index, block.module.forward, variant, given, known)
                stack.enter_context(replaced(block.module, door))
            yield

    def _door(
        self,
        index: int,
        forward: Callable[..., Any],
        variant: Variant,
        given: list[Tensor],
        known: int,
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if index < known:
                return self._forms[index](self._copied(given[index]))
            if variant.skipped:
                hidden = hidden_of(args, kwargs)
                result = self._forms[index](hidden)
            else:
                with _exchanged(variant.numbers), _standing_in(variant.parts):
                    result = forward(*args, **kwargs)
                hidden = hidden_of(tuple(tree_leaves(result)), {})
            given.append(self._copied(hidden))
            return result

        return run

    def _copied(self, hidden: Tensor) -> Tensor:
        """The hidden states; a copy of them in a model whose blocks write over their input."""
        return hidden.clone() if self._changes_input else hidden

    def _check(self) -> None:
        """Show the model eight tokens, to see what blocks return, and that skipping a block or
        going on from an earlier forward changes nothing else. Raises `ModelError` where it does.
        """
        ids = some_ids(self._view)
        forms: list[Form | None] = []
        with ExitStack() as stack, torch.no_grad():
            for block in self._view.blocks:
                stack.enter_context(
                    replaced(block.module, _noting_form(block.module.forward, forms))
                )
            logits: Tensor = self._view.model(input_ids=ids, use_cache=False).logits
        if not bool(logits.isfinite().all()):
            raise not_finite(f"the outputs of {self._name}, untouched,", self._name)
        self._forms = [form for form in forms if form is not None]
        if len(self._forms) < len(forms):
            raise ModelError(
                f"the blocks of {self._name} hand on more than their hidden states, so none can "
                "be left out",
                subject=self._name,
            )
        skips = any(variant.skipped for variant in chain.from_iterable(self._ways))
        if skips and not _are_alike(self._view):
            raise ModelError(
                f"the blocks of {self._name} aren't alike, so what is left of them may be no model",
                subject=self._name,
            )
        self._check_going_on(ids)
        if skips:
            self._check_skipping(ids)

    def _check_going_on(self, ids: Int[Tensor, "sample position"]) -> None:
        fresh = _probe(self._view, ids, self)
        late = _probe(self._view, ids, self)
        place = len(self._ways) // 2
        choice = list(self._untouched)
        choice[place] = len(self._ways[place]) - 1
        # The second one goes on from what the first half of the untouched model gave.
        late.logits(self._untouched)
        try:
            same = _equal(fresh.logits(tuple(choice)), late.logits(tuple(choice)))
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, AttributeError, RuntimeError):
            # Later blocks look for what the skipped ones would have left for them.
            same = False
        if not same:
            raise ModelError(
                f"a block of {self._name} looks at more than what the one before it gave, so none "
                "can be left out",
                subject=self._name,
            )

    def _check_skipping(self, ids: Int[Tensor, "sample position"]) -> None:
        view = self._view
        place = len(view.blocks) // 2
        skipping = [number for number, way in enumerate(self._ways[place]) if way.skipped]
        choice = list(self._untouched)
        if skipping:
            choice[place] = skipping[0]
        skipped = _probe(view, ids, self).logits(tuple(choice))
        rehearsed = view.rehearsed
        undo = view.remembered()
        try:
            if any(choice):
                view.drop_blocks([place])
            dropped = _probe(view, ids).logits()
        finally:
            undo()
            view.rehearsed = rehearsed  # `undo` forgot it, and the blocks are the same again
        if not _equal(skipped, dropped):
            raise ModelError(
                f"dropping a block of {self._name} changes what others do, so it isn't as if it "
                "were left out",
                subject=self._name,
            )


@final
class _MicroBatchOfVariants:
    """One micro-batch, and what the blocks gave in the last forward of it."""

    def __init__(
        self,
        view: ModelView,
        ids: Int[Tensor, "sample position"],
        mask: Bool[Tensor, "sample position"],
        weights: Float[Tensor, "sample position"],
        variants: Variants | None = None,
    ) -> None:
        self._view = view
        self._variants = variants
        self._inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if not bool(mask.all()):
            self._inputs["attention_mask"] = mask.long()
        self._next_ids = ids[:, 1:].flatten()
        # In float64, in which sums over thousands of tokens keep their last digits. A token counts
        # as predicted only where a real one stands before it.
        self._next_weights = exact((weights[:, 1:] * mask[:, :-1]).flatten())
        self._weights = exact((weights * mask).flatten())
        self._choice: tuple[int, ...] = ()
        self._given: list[Tensor] = []

    @torch.no_grad()
    def logits(self, choice: tuple[int, ...] = ()) -> Float[Tensor, "sample position word"]:
        """Return the outputs of a variant; without `variants` of the model as it is."""
        with self._running(choice):
            return self._view.model(**self._inputs).logits

    @torch.no_grad()
    def states(self, choice: tuple[int, ...]) -> Float[Tensor, "token hidden"]:
        """Return what the last block of a variant gives."""
        with self._running(choice):
            self._view.base(**self._inputs)
        return self._given[-1].flatten(0, 1)

    @contextmanager
    def _running(self, choice: tuple[int, ...]) -> Iterator[None]:
        """While it lasts, a forward is that of a variant, and gets what blocks gave before the
        first in which it differs from the last one.
        """
        if self._variants is None:
            yield
            return
        # What the blocks gave in the last forward serves for those that both choices begin with.
        known = 0
        while known < len(self._choice) and choice[known] == self._choice[known]:
            known += 1
        del self._given[known:]
        self._choice = choice
        with self._variants.choosing(choice, self._given, known):
            yield

    def weighted_sum(self, values: Float[Tensor, "token"]) -> _Sum:
        """Return Σ w·value and Σ w over the real tokens; every position has a value."""
        return float((exact(values) * self._weights).sum()), float(self._weights.sum())

    def nats(self, logits: Float[Tensor, "sample position word"]) -> _Sum:
        """Return Σ w·nats and Σ w, where nats are the cross entropy of the next token."""
        predictions = logits[:, :-1].flatten(0, 1).float()
        nats = cross_entropy(predictions, self._next_ids, reduction="none")
        return self._sum(exact(nats))

    def divergence(
        self,
        untouched: Float[Tensor, "sample position word"],
        logits: Float[Tensor, "sample position word"],
    ) -> _Sum:
        """Return Σ w·KL(untouched ‖ variant) and Σ w of the predictions of the same tokens."""
        before = untouched[:, :-1].flatten(0, 1).split(ROWS_AT_ONCE)
        after = logits[:, :-1].flatten(0, 1).split(ROWS_AT_ONCE)
        nats = torch.cat(list(map(divergences, before, after)))
        return self._sum(nats.to(self._next_weights))

    def _sum(self, nats: Float[Tensor, "token"]) -> _Sum:
        return float((nats * self._next_weights).sum()), float(self._next_weights.sum())


def _means(
    view: ModelView,
    batch: TokenBatch,
    ranks: Ranks,
    sums: Callable[[_MicroBatchOfVariants], list[_Sum]],
    variants: Variants | None = None,
) -> list[float]:
    """The means over a batch of what `sums` adds up for each choice. Of a mix, the means over its
    sets, weighted by their shares.
    """
    sets = batch.sets
    means_by_set = [_means_of_set(view, part, ranks, sums, variants) for _, part in sets]
    means: list[float] = []
    for means_of_choice in zip(*means_by_set, strict=True):
        weighted: list[float] = []
        for (share, _), mean in zip(sets, means_of_choice, strict=True):
            weighted.append(share * mean)
        means.append(sum(weighted))
    return means


def _means_of_set(
    view: ModelView,
    batch: TokenBatch,
    ranks: Ranks,
    sums: Callable[[_MicroBatchOfVariants], list[_Sum]],
    variants: Variants | None,
) -> list[float]:
    """Means over a batch, from the sums of each micro-batch, of all ranks."""
    device = view.device
    mine: list[list[_Sum]] = []
    for ids, mask, weights in ranks.share(list(micro_batches(batch, TOKENS_PER_PASS))):
        tensors = ids.to(device), mask.to(device), weights.to(device)
        mine.append(sums(_MicroBatchOfVariants(view, *tensors, variants)))
    means: list[float] = []
    # One list of sums for each micro-batch becomes one tuple of sums for each choice.
    for sums_of_choice in zip(*ranks.gathered(mine), strict=True):
        total = sum(value for value, _ in sums_of_choice)
        mass = sum(mass for _, mass in sums_of_choice)
        if mass == 0:
            length = batch.ids.shape[1]
            raise DataError(
                f"no token is predicted in these windows of length {length}, so nothing can be "
                "measured on them; give windows of at least 2 tokens, with weights above 0",
                subject=str(length),
            )
        means.append(total / mass)
    return means


@contextmanager
def _exchanged(numbers: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """While it lasts, parameters have other numbers."""
    # Exchanging `data` copies and writes nothing: both sets of numbers stay where they are.
    before = [(parameter, parameter.data) for parameter, _ in numbers]
    try:
        for parameter, other in numbers:
            parameter.data = other
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


@contextmanager
def _standing_in(parts: Sequence[tuple[nn.Module, nn.Module]]) -> Iterator[None]:
    """While it lasts, calling one module of each pair calls the other."""
    with ExitStack() as stack:
        for module, other in parts:
            stack.enter_context(replaced(module, other))
        yield


def _probe(
    view: ModelView, ids: Int[Tensor, "sample position"], variants: Variants | None = None
) -> _MicroBatchOfVariants:
    """Return a micro-batch of a few tokens without padding, each of weight 1."""
    ones = torch.ones(ids.shape)
    return _MicroBatchOfVariants(view, ids, ones.bool(), ones, variants)


def _noting_form(forward: Callable[..., Any], forms: list[Form | None]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        forms.append(_form(result))
        return result

    return run


def _form(result: Any) -> Form | None:
    """Return the function that makes, of other hidden states, something like a block's `result`.
    None where that holds further tensors.
    """
    if isinstance(result, Tensor):
        return _as_it_is
    if type(result) not in (tuple, list) or not isinstance(result[0], Tensor):
        return None
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result[1:])):
        return None
    rest = result[1:]

    def in_front(hidden: Tensor) -> Any:
        return type(result)((hidden, *rest))

    return in_front


def _as_it_is(hidden: Tensor) -> Tensor:
    return hidden


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether all numbers are the same."""
    if left.shape != right.shape:
        return False
    # A variant may give NaN where the untouched model doesn't, and torch.equal takes no NaN for
    # equal to another.
    return torch.allclose(left, right, rtol=0.0, atol=0.0, equal_nan=True)


def _are_alike(view: ModelView) -> bool:
    shapes: list[dict[str, torch.Size]] = []
    for block in view.blocks:
        parameters = block.module.named_parameters()
        shapes.append({name: parameter.shape for name, parameter in parameters})
    return all(block_shapes == shapes[0] for block_shapes in shapes)
