"""A forward of eight tokens, before a walk: in which order a model calls its blocks, and which of
its matrices can be followed.

A walk wants of a matrix that one product a forward uses it, in its own block. The others are left
as they are, with the reason: their block is left out, or runs several times; several blocks share
them; something that is no product with one matrix reads them; or, on arrival, a forward uses them
twice.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from calibrant.errors import ModelError
from calibrant.models import Block, ModelView, Weight
from calibrant.system.clock import spent_on
from calibrant.walk.products import Product, Watch, grouped, hidden_of, inputs_of, replaced

SAMPLES: Final = 2
POSITIONS: Final = 4
"""What the model is shown: two numbers that differ, so that it can be seen which of the two
comes first.
"""

_READ_NOTHING: Final = {
    "new_empty",
    "new_full",
    "new_ones",
    "new_tensor",
    "new_zeros",
    "empty_like",
    "full_like",
    "ones_like",
    "zeros_like",
}
_READ_THEIR_FIRST: Final = {"to", "type_as", "view_as", "expand_as"}


@final
@dataclass(frozen=True)
class Rehearsal:
    """What eight tokens showed of a model's forward.

    `calls` are the indices of its blocks in the order in which they are called. `turned` are names
    of matrices and blocks whose rows come position by position (`[position, sample, …]`); `by_use`
    and `apart` are groups of matrices as `Order` has them. `changes_input` is true where a block
    writes into what it is called with, `lets_go` where nothing but the first block reads its input.
    """

    calls: tuple[int, ...]
    turned: frozenset[str]
    by_use: frozenset[str]
    apart: frozenset[str]
    changes_input: bool
    lets_go: bool
    _left: Mapping[str, str] = field(repr=False)
    _twice: Mapping[str, str] = field(repr=False)

    def left(self, propagate: str) -> Mapping[str, str]:
        """Names of the matrices that a walk leaves as they are, each with the reason. Only on
        arrival can't one be compressed that is used twice.
        """
        return {**self._left, **self._twice} if propagate == "arrival" else self._left


def rehearse(view: ModelView) -> Rehearsal:
    """Show the model eight tokens, once for each view. Raises `ModelError` where none of its
    matrices can be followed.
    """
    if view.rehearsed is None:
        view.rehearsed = _Rehearsing(view).run()
    return view.rehearsed


@contextmanager
def held(view: ModelView, block: Block) -> Iterator[None]:
    """While it lasts, the numbers of `block` are in memory; reading them from disk is a part of
    a job's time.
    """
    with ExitStack() as stack:
        with spent_on("reading blocks") if view.residence.on_disk else nullcontext():
            stack.enter_context(view.held(block))
        yield


@final
class _Rehearsing(TorchFunctionMode):
    """The forward, and what is noted of it."""

    def __init__(self, view: ModelView) -> None:
        super().__init__()
        self._view = view
        self._watch = Watch((), self._note, SAMPLES * POSITIONS)
        self._calls: list[int] = []
        self._within: list[int] = []
        self._first: Tensor | None = None
        self._turned: set[str] = set()
        self._changes = self._first_is_used = False
        self._uses: dict[str, list[int]] = {}
        self._read_by: dict[str, str] = {}
        self._now: set[str] = set()
        self._know(() if view.residence.on_disk else range(len(view.blocks)))

    def _know(self, blocks: Iterable[int]) -> None:
        """Learn where the matrices of these blocks are in memory, and forget where others were."""
        weights = [
            weight for index in dict.fromkeys(blocks) for weight in self._view.blocks[index].weights
        ]
        self._watch.look_for(weights)
        self._spans = sorted(
            (
                (w.address, w.address + w.stored.numel() * w.stored.element_size(), w)
                for w in weights
            ),
            key=lambda span: span[0],
        )
        self._ends = [
            end for _, end, _ in self._spans
        ]  # in order too, since no two matrices overlap
        self._storages = {weight.stored.untyped_storage().data_ptr() for weight in weights}

    @contextmanager
    def _held(self, block: Block) -> Iterator[None]:
        """While its forward runs, a block has its numbers, and those of others may be on disk."""
        with held(self._view, block):
            self._within.append(block.index)
            if self._view.residence.on_disk:
                self._know(self._within)
            yield
            self._within.pop()
        if self._view.residence.on_disk:
            self._know(self._within)

    def run(self) -> Rehearsal:
        """Show the tokens, and say what came of it."""
        base, vocabulary = (
            self._view.base,
            self._view.model.config.get_text_config(decoder=True).vocab_size,
        )
        ids = (
            torch.arange(SAMPLES * POSITIONS).reshape(SAMPLES, POSITIONS) + vocabulary // 2
        ) % vocabulary
        inputs = inputs_of(base, ids.to(self._view.device))
        with ExitStack() as stack:
            for block in self._view.blocks:
                stack.enter_context(replaced(block.module, self._followed(block)))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self)
            self._shown(base, inputs)
        reasons = {weight: self._reason(weight) for weight in self._view.weights}
        left, twice = (
            {w.name: reason for w, (reason, only) in reasons.items() if reason and only is on}
            for on in (False, True)
        )
        if len(left) == len(reasons) and reasons:
            name, reason = next(iter(left.items()))
            kind = type(self._view.model).__name__
            raise ModelError(
                f"no matrix of {kind} can be followed through a forward ({name}: {reason}); it needs a walk of its own",
                subject=kind,
            )
        by_use, apart = (
            frozenset().union(*groups)
            for groups in zip(*map(self._grouped, self._view.blocks), strict=True)
        )
        return Rehearsal(
            tuple(self._calls),
            frozenset(self._turned),
            by_use,
            apart,
            self._changes,
            not self._first_is_used,
            left,
            twice,
        )

    def _shown(self, base: nn.Module, inputs: Mapping[str, Any]) -> None:
        try:
            base(**inputs)
        except RuntimeError as error:  # of a parameter without numbers
            if not self._view.residence.on_disk or "meta" not in str(error):
                raise
            kind = type(self._view.model).__name__
            message = f"the forward of {kind} needs numbers of a block that it doesn't run, so its blocks can't be left on disk; allow more memory"
            raise ModelError(message, subject=kind) from error

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._first_is_used = self._first_is_used or any(
            tensor is self._first for tensor in tensors
        )
        # Products say which matrices they multiply with, through `_note`; whatever else takes
        # numbers from a matrix's memory, `_read` notes.
        self._now, name = set(), getattr(func, "__name__", str(func))
        self._watch.see(name, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if name not in _READ_NOTHING:
            self._read(name, tensors[:1] if name in _READ_THEIR_FIRST else tensors, result)
        return result

    def _followed(self, block: Block) -> Callable[..., Any]:
        forward = block.module.forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            hidden, tensors = (
                hidden_of(args, kwargs),
                [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)],
            )
            versions = [tensor._version for tensor in tensors]
            if tuple(hidden.shape[:2]) == (POSITIONS, SAMPLES):
                self._turned.add(block.name)
            self._calls.append(block.index)
            with self._held(block):
                output = forward(*args, **kwargs)
            self._changes = self._changes or versions != [tensor._version for tensor in tensors]
            if self._first is None:
                self._first_is_used = any(leaf is hidden for leaf in tree_leaves(output))
                self._first = hidden
            return output

        return noted

    def _note(self, product: Product) -> None:
        name, shape = product.weight.name, tuple(product.x.shape)
        self._uses.setdefault(name, []).append(self._within[-1] if self._within else -1)
        self._now.add(name)
        if len(shape) > 2 and shape[:2] == (POSITIONS, SAMPLES):
            self._turned.add(name)

    def _read(self, name: str, tensors: list[Tensor], result: Any) -> None:
        """Note which matrices `name` took numbers from: what gives a tensor, and neither a view
        of a matrix nor a product with it, does.
        """
        results = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor)
        }
        for tensor in tensors if results else ():
            storage = tensor.untyped_storage().data_ptr()
            if storage not in self._storages or storage in results:
                continue
            for weight in self._under(tensor):
                if weight.name not in self._now:
                    self._read_by.setdefault(weight.name, name)

    def _under(self, tensor: Tensor) -> list[Weight]:
        """The matrices that `tensor` is memory of."""
        last = sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        # From the first to the last number that it has, with what lies between: a view with steps
        # counts as all of it.
        start, end = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
        weights: list[Weight] = []
        for begins, ends, weight in self._spans[bisect_left(self._ends, start + 1) :]:
            if begins >= end:
                break
            if ends > start:
                weights.append(weight)
        return weights

    def _reason(self, weight: Weight) -> tuple[str, bool]:
        """Why `weight` is left as it is, and whether only on arrival."""
        runs, uses = self._calls.count(weight.block), self._uses.get(weight.name, [])
        others = sorted(set(uses) - {weight.block})
        if runs == 0:
            return "its block isn't run for text alone", False
        if runs > 1:
            return f"its block runs {runs} times in one forward", False
        if weight.name in self._read_by:
            return f"read by {self._read_by[weight.name]}, not by a product with it alone", False
        if others:
            return (
                f"shared with block{'s' if others[1:] else ''} {', '.join(map(str, others))}",
                False,
            )
        return (f"used {len(uses)} times in one forward" if len(uses) > 1 else ""), True

    def _grouped(self, block: Block) -> tuple[set[str], set[str]]:
        """Groups of experts that don't do all their products one expert after the other, and
        groups that others come between.
        """
        weights, ranks = {weight.name: weight for weight in block.weights}, dict[str, int]()
        places: dict[str, list[tuple[int, int]]] = {}
        last, by_use, apart = "", set[str](), set[str]()
        for name in [name for name in self._uses if name in weights]:
            group, number, use = grouped(weights[name], block)
            place = number, ranks.setdefault(f"{group} {use}", len(ranks))
            if group in places and group != last:
                apart.add(group)
            elif group in places and place < places[group][-1]:
                by_use.add(group)
            places.setdefault(group, []).append(place)
            last = group
        return by_use, apart
