"""A forward of eight tokens, before a walk: in which order a model calls its blocks, and which of
its matrices can be followed.

A walk can follow a matrix that a forward uses in one product, in the matrix's own block. All other
matrices are left as they are, with the reason:

- their block doesn't run, or runs several times;
- several blocks share them;
- an operation that is no product with the one matrix reads them;
- on arrival, a forward uses them twice.
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
"""The model is shown [SAMPLES, POSITIONS] tokens. The two numbers differ, so that a tensor's shape
shows which of the two comes first.
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
"""Operations that take a tensor's shape and type, and none of its numbers."""
_READ_THEIR_FIRST: Final = {"to", "type_as", "view_as", "expand_as"}
"""Operations that take numbers from their first tensor, and shape and type from the second."""


@final
@dataclass(frozen=True)
class Rehearsal:
    """What eight tokens showed of a model's forward.

    `calls` are the indices of its blocks in the order in which they are called. `turned` are names
    of matrices and blocks whose rows come position by position (`[position, sample, …]`). `by_use`
    and `apart` are groups of matrices as `Order` has them. `changes_input` is true where a block
    writes into what it is called with. `frees_input` is true where nothing but the first block
    reads that block's input, so that its memory may be freed afterwards. `past_module` are names of
    matrices that a forward multiplies with without calling their module.
    """

    calls: tuple[int, ...]
    turned: frozenset[str]
    by_use: frozenset[str]
    apart: frozenset[str]
    changes_input: bool
    frees_input: bool
    past_module: frozenset[str]
    _left: Mapping[str, str] = field(repr=False)
    _twice: Mapping[str, str] = field(repr=False)

    def left(self, propagate: str) -> Mapping[str, str]:
        """Return the names of the matrices that a walk leaves as they are, each with the reason.

        A matrix that is used twice is left only on arrival.
        """
        if propagate == "arrival":
            return {**self._left, **self._twice}
        return self._left


def rehearse(view: ModelView) -> Rehearsal:
    """Show the model eight tokens, and return what that showed; a view remembers it.

    Raises `ModelError` where none of the model's matrices can be followed.
    """
    if view.rehearsed is None:
        view.rehearsed = _Rehearsing(view).run()
    return view.rehearsed


def some_ids(view: ModelView) -> Tensor:
    """Return the tokens that a model is shown, [sample, position]: from the middle of its
    vocabulary, where special tokens hardly are.
    """
    vocabulary = view.config.vocab_size
    numbers = torch.arange(SAMPLES * POSITIONS).reshape(SAMPLES, POSITIONS)
    return ((numbers + vocabulary // 2) % vocabulary).to(view.device)


@contextmanager
def held(view: ModelView, block: Block) -> Iterator[None]:
    """While it lasts, the numbers of `block` are where the model computes; the time of bringing
    them in is counted.
    """
    with ExitStack() as stack:
        with spent_on("reading blocks") if view.residence.elsewhere else nullcontext():
            stack.enter_context(view.held(block))
        yield


@final
class _Rehearsing(TorchFunctionMode):
    """The forward, and what is noted of it."""

    def __init__(self, view: ModelView) -> None:
        super().__init__()
        self._view = view
        self._watch = Watch((), self._note_product, SAMPLES * POSITIONS)
        self._calls: list[int] = []
        self._running: list[int] = []
        """Blocks whose forward runs now; one may call another."""
        self._first_input: Tensor | None = None
        """The hidden states that the first block was called with, once it has run."""
        self._turned: set[str] = set()
        self._changes_input = False
        self._first_input_is_used = False
        self._uses: dict[str, list[int]] = {}
        """For each matrix the block of each product with it, -1 outside of all; in the order of
        first products.
        """
        self._read_by: dict[str, str] = {}
        """For each matrix the first operation besides products that reads it."""
        self._multiplied: set[str] = set()
        """Matrices that the operation which runs now multiplies with."""
        self._called: set[nn.Module] = set()
        """Modules of matrices that were called."""
        # A block whose numbers are elsewhere is located when it is held.
        here = () if view.residence.elsewhere else range(len(view.blocks))
        self._locate(here)

    def run(self) -> Rehearsal:
        """Show the tokens, and say what came of it."""
        view = self._view
        base = view.base
        inputs = inputs_of(base, some_ids(view))
        with ExitStack() as stack:
            for block in view.blocks:
                stack.enter_context(replaced(block.module, self._noting_forward(block)))
                for module in {weight.owner for weight in block.weights}:
                    handle = module.register_forward_pre_hook(self._note_call)
                    stack.callback(handle.remove)
            # Tensors that are made in inference mode have no `_version`.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self)
            self._show(base, inputs)
        left = self._left()
        twice: dict[str, str] = {}
        past_module: set[str] = set()
        for weight in view.weights:
            uses = self._uses.get(weight.name, ())
            if uses and weight.owner not in self._called:
                past_module.add(weight.name)
            if len(uses) > 1 and weight.name not in left:
                twice[weight.name] = f"used {len(uses)} times in one forward"
        by_use: set[str] = set()
        apart: set[str] = set()
        for block in view.blocks:
            self._group(block, by_use, apart)
        return Rehearsal(
            tuple(self._calls),
            frozenset(self._turned),
            frozenset(by_use),
            frozenset(apart),
            self._changes_input,
            not self._first_input_is_used,
            frozenset(past_module),
            left,
            twice,
        )

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        if any(tensor is self._first_input for tensor in tensors):
            self._first_input_is_used = True
        name = getattr(func, "__name__", str(func))
        # Products say which matrices they multiply with, through `_note_product`; whatever else
        # takes numbers from a matrix's memory, `_note_reading` notes.
        self._multiplied = set()
        self._watch.see(name, args, kwargs)
        result = func(*args, **kwargs)
        if name in _READ_THEIR_FIRST:
            tensors = tensors[:1]
        if name not in _READ_NOTHING:
            self._note_reading(name, tensors, result)
        return result

    def _locate(self, blocks: Iterable[int]) -> None:
        """Learn where the matrices of these blocks are in memory, and forget where others were."""
        weights: list[Weight] = []
        for index in dict.fromkeys(blocks):
            weights += self._view.blocks[index].weights
        self._watch.look_for(weights)
        self._spans: list[tuple[int, int, Weight]] = []
        for weight in sorted(weights, key=_address):
            size = weight.stored.numel() * weight.stored.element_size()
            self._spans.append((weight.address, weight.address + size, weight))
        # In ascending order like the starts, since no two matrices overlap.
        self._ends = [end for _, end, _ in self._spans]
        self._storages = {weight.stored.untyped_storage().data_ptr() for weight in weights}

    @contextmanager
    def _held(self, block: Block) -> Iterator[None]:
        """While it lasts, the block counts as running, and its numbers are in memory."""
        elsewhere = self._view.residence.elsewhere
        with held(self._view, block):
            self._running.append(block.index)
            if elsewhere:
                self._locate(self._running)
            yield
            self._running.pop()
        if elsewhere:
            self._locate(self._running)

    def _show(self, base: nn.Module, inputs: Mapping[str, Any]) -> None:
        try:
            base(**inputs)
        except RuntimeError as error:
            # A parameter without numbers is on torch's device "meta", which its message then names.
            if not self._view.residence.on_disk or "meta" not in str(error):
                raise
            kind = type(self._view.model).__name__
            raise ModelError(
                f"the forward of {kind} needs numbers of a block that it doesn't run, so its "
                "blocks can't be left on disk; allow more memory",
                subject=kind,
            ) from error

    def _noting_forward(self, block: Block) -> Callable[..., Any]:
        """The block's forward, which notes how it is called."""
        forward = block.module.forward

        def noting(*args: Any, **kwargs: Any) -> Any:
            hidden = hidden_of(args, kwargs)
            tensors = _tensors((args, kwargs))
            # `_version` grows with every write in place.
            versions = [tensor._version for tensor in tensors]
            if tuple(hidden.shape[:2]) == (POSITIONS, SAMPLES):
                self._turned.add(block.name)
            self._calls.append(block.index)
            with self._held(block):
                output = forward(*args, **kwargs)
            if versions != [tensor._version for tensor in tensors]:
                self._changes_input = True
            if self._first_input is None:
                # A block that returns its very input hands it on to others.
                self._first_input_is_used = any(leaf is hidden for leaf in tree_leaves(output))
                self._first_input = hidden
            return output

        return noting

    def _note_call(self, module: nn.Module, _: Any) -> None:
        self._called.add(module)

    def _note_product(self, product: Product) -> None:
        name = product.weight.name
        block = self._running[-1] if self._running else -1
        self._uses.setdefault(name, []).append(block)
        self._multiplied.add(name)
        shape = tuple(product.x.shape)
        if len(shape) > 2 and shape[:2] == (POSITIONS, SAMPLES):
            self._turned.add(name)

    def _note_reading(self, name: str, tensors: list[Tensor], result: Any) -> None:
        """Note which matrices the operation `name` took numbers from.

        One that returns no tensor took none, and neither did one that returns a view of the matrix.
        A product with the matrix is noted elsewhere.
        """
        results = {leaf.untyped_storage().data_ptr() for leaf in _tensors(result)}
        if not results:
            return
        for tensor in tensors:
            storage = tensor.untyped_storage().data_ptr()
            if storage not in self._storages or storage in results:
                continue
            for weight in self._overlapped_by(tensor):
                if weight.name not in self._multiplied:
                    self._read_by.setdefault(weight.name, name)

    def _overlapped_by(self, tensor: Tensor) -> list[Weight]:
        """The matrices whose memory `tensor` overlaps."""
        last = 0
        for size, step in zip(tensor.shape, tensor.stride(), strict=True):
            last += (size - 1) * step
        # From the first to the last number that it has, with what lies between: a view with steps
        # counts as all of it.
        start = tensor.data_ptr()
        end = start + (last + 1) * tensor.element_size()
        weights: list[Weight] = []
        first = bisect_left(self._ends, start + 1)
        for weight_start, weight_end, weight in self._spans[first:]:
            if weight_start >= end:
                break
            if weight_end > start:
                weights.append(weight)
        return weights

    def _left(self) -> dict[str, str]:
        """The matrices that every walk leaves as they are, each with the reason. Raises
        `ModelError` where these are all.
        """
        weights = self._view.weights
        left: dict[str, str] = {}
        for weight in weights:
            reason = self._reason(weight)
            if reason:
                left[weight.name] = reason
        if left and len(left) == len(weights):
            first = weights[0].name
            kind = type(self._view.model).__name__
            raise ModelError(
                f"no matrix of {kind} can be followed through a forward ({first}: {left[first]}); "
                "it needs a walk of its own",
                subject=kind,
            )
        return left

    def _reason(self, weight: Weight) -> str:
        """Why `weight` is left as it is by every walk; nothing where it can be followed."""
        runs = self._calls.count(weight.block)
        if runs == 0:
            return "its block isn't run for text alone"
        if runs > 1:
            return f"its block runs {runs} times in one forward"
        if weight.name in self._read_by:
            return f"read by {self._read_by[weight.name]}, not by a product with it alone"
        others = sorted(set(self._uses.get(weight.name, ())) - {weight.block})
        if others:
            plural = "s" if len(others) > 1 else ""
            return f"shared with block{plural} {', '.join(map(str, others))}"
        return ""

    def _group(self, block: Block, by_use: set[str], apart: set[str]) -> None:
        """Add to `by_use` the groups whose experts don't do all their products one expert after the
        other, and to `apart` the groups that other matrices come between.
        """
        weights = {weight.name: weight for weight in block.weights}
        use_numbers: dict[str, int] = {}
        last_place: dict[str, tuple[int, int]] = {}
        last_group = ""
        for name in self._uses:
            if name not in weights:
                continue
            group, number, use = grouped(weights[name], block)
            use_number = use_numbers.setdefault(f"{group} {use}", len(use_numbers))
            place = number, use_number
            if group in last_place and group != last_group:
                apart.add(group)
            elif group in last_place and place < last_place[group]:
                by_use.add(group)
            last_place[group] = place
            last_group = group


def _address(weight: Weight) -> int:
    return weight.address


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
