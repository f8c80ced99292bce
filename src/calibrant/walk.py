"""Through a model, matrix by matrix: the only place that intercepts a forward.

    for weight, seen in walk(view, batch, method.observes, propagate="arrival"):
        weight.set(method.compress(weight.get(), seen, target).weight)

`arrival`    a block runs once. When its forward *reaches a product* with one of its matrices, the forward stops there, the matrix and what
             is about to arrive at it are handed to the loop, and the forward goes on with whatever the loop made of the matrix. Inputs
             come from everything upstream already compressed, inside the block too.
`reference`  what the papers' code does: inputs of a block whose own matrices are still untouched, then a second forward of the block.
`dense`      inputs in the untouched model; one forward, whatever the loop does to the matrices.

Stopping at the product, in a torch-function mode that sees `linear`, `addmm` and the like, makes `nn.Linear`, GPT-2's transposed Conv1D and
the slices of fused 3-D experts one case, and shows which matrices a forward really uses. Micro-batches run in lock-step as greenlets:
within a block every matrix is visited once, in one order; a micro-batch that is further on, or that skipped an expert, waits. No
thread-local context spans a stop: the mode and `no_grad` are entered anew around every switch, so the loop's own code never runs under them.

Padding and tokens of weight zero never reach a statistic. Rows inside a routed expert are traced back to their tokens by the gather that
picked them. Without matrices to watch (`observes` is empty) nothing is run at all.

With other `ranks` this process runs its share of the micro-batches, and hands out what all of them saw, in the same order on every rank.
"""

import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from calibrant.activations import InputStatistic, Seen, Statistic
from calibrant.behaviour import BlockStatistics
from calibrant.clock import spent_on
from calibrant.data import TokenBatch, micro_batches
from calibrant.errors import NumericsError, WalkError
from calibrant.models import Block, ModelView, Weight
from calibrant.ranks import ALONE, Ranks

Propagation = Literal["arrival", "reference", "dense"]
Kinds = tuple[type[InputStatistic], ...]

TOKENS_PER_PASS = 1024
"""Tokens of one micro-batch: large enough to fill the cores, small enough that what a forward makes in passing stays in or near the cache."""

_AS_OUT_IN = {"linear"}
_AS_IN_OUT = {"addmm", "mm", "matmul", "__matmul__", "__rmatmul__"}
_FUSED = {"bmm", "baddbmm", "addbmm", "einsum", "tensordot", "_grouped_mm", "grouped_mm", "multi_dot", "chain_matmul"}


def walk(
    view: ModelView,
    batch: TokenBatch | None,
    observes: tuple[type[Statistic], ...],
    propagate: Propagation = "arrival",
    *,
    tokens_per_pass: int = TOKENS_PER_PASS,
    start: int = 0,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Weight, Seen]]:
    """Yield each matrix with what it saw; the loop may `set` the matrix before it asks for the next.

    Matrices that no token of weight reached are not yielded: who iterates knows them by their absence. Blocks before `start` are run but
    not handed out (they were compressed before an interruption; for `dense` they must still be untouched).

    Raises `WalkError` for a forward that can't be followed, `NumericsError`, naming the matrix, for activations that are not finite, and
    `RankError` where another of the `ranks` is lost.
    """
    if not observes or batch is None:
        yield from ((weight, Seen({})) for block in view.blocks[start:] for weight in block.weights)
        return
    step: Callable[[Block, list[_Part], Kinds, bool, Ranks], Iterator[tuple[Weight, Seen]]]
    step = {"arrival": _arrival, "reference": _reference, "dense": _dense}[propagate]
    parts = _record(view, batch, tokens_per_pass, ranks)
    for block in view.blocks[:start]:
        for part in parts:
            part.advance(block)
    for block in view.blocks[start:]:
        yield from step(block, parts, observes, block is view.blocks[-1], ranks)  # pyright: ignore[reportArgumentType]  # checked by the method's contract


def walk_blocks(
    view: ModelView, batch: TokenBatch, observes: tuple[type[Statistic], ...], *, tokens_per_pass: int = TOKENS_PER_PASS, ranks: Ranks = ALONE
) -> Iterator[tuple[Block, Seen]]:
    """Yield each block of the untouched model with what it did (`BlockStatistics`): what methods that remove blocks or experts look at."""
    did, parts = BlockStatistics(view, observes), _record(view, batch, tokens_per_pass, ranks)
    for block in view.blocks:
        here = [ranks.part(did.of(block, part.state, partial(part.advance, block), part.rows, part.weights)) for part in parts]
        mine = {block.name: sum(here[1:], here[0])} if here and here[0] else {}
        yield block, ranks.totals(mine, next(view.model.parameters()).device).get(block.name, Seen({}))


@dataclass(eq=False)
class _Part:
    """One micro-batch on its way through the blocks."""

    state: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    kept: Tensor | None
    weights: Tensor | None
    positions: int
    gathered: Tensor | None = None

    def advance(self, block: Block) -> Tensor:
        """Run `block` and keep its output in place of its input."""
        with torch.no_grad():
            self.state = self.run(block.module, block.index, self.state)
        return self.state

    def run(self, module: nn.Module, index: int, state: Tensor) -> Tensor:
        """The block's output for `state`, called as the model itself called it."""
        args, kwargs = self.calls[index]
        output = module(state, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def rows(self, x: Tensor) -> Tensor:
        """The rows of `x` [sample, position, …] that count, as [token, in]."""
        flat = x.reshape(-1, x.shape[-1])
        return flat if self.kept is None else flat[self.kept]

    def arrived(self, weight: Weight, x: Tensor, observes: Kinds) -> Seen:
        """What reached `weight`: statistics of the rows that count."""
        flat = x.reshape(-1, x.shape[-1])
        if weight.expert is None and len(flat) == self.positions:
            rows, weights = self.rows(flat), self.weights
        elif self.kept is None and self.weights is None:
            rows, weights = flat, None
        else:
            rows, weights = self._traced(weight, flat)
        with spent_on("statistics"):
            seen = Seen({kind: kind.of(rows, weights) for kind in observes})
        if not all(seen[kind].finite() for kind in observes):
            raise NumericsError(
                f"the activations that reach {weight.name} hold NaN or infinity; the model or its type can't be calibrated on", subject=weight.name
            )
        return seen

    def _traced(self, weight: Weight, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of an expert, traced to their tokens, so that padding stays out and weights find their rows."""
        if self.gathered is None or len(self.gathered) != len(flat):
            raise WalkError(
                f"the {len(flat)} rows that reach {weight.name} can't be traced to their tokens; use a packing without padding, such as many",
                subject=weight.name,
            )
        weigh = torch.zeros(self.positions, dtype=torch.float32, device=flat.device)
        kept = torch.arange(self.positions, device=flat.device) if self.kept is None else self.kept
        weigh[kept] = 1.0 if self.weights is None else self.weights
        weigh = weigh[self.gathered]
        real = weigh > 0
        return flat[real], None if self.weights is None else weigh[real]


def _record(view: ModelView, batch: TokenBatch, tokens_per_pass: int, ranks: Ranks = ALONE) -> list[_Part]:
    """This rank's micro-batches with the first block's input and the arguments of every block's call.

    Nothing is computed: while the model is asked, its blocks hand their input on. Every block has a call of its own because models give
    their blocks different masks (Gemma 3).
    """
    parts: list[_Part] = []
    for ids, mask, weights in ranks.share(list(micro_batches(batch, tokens_per_pass))):
        with _Recorder(view.blocks) as recorder, torch.no_grad():
            device = next(view.model.parameters()).device
            padding = {} if bool(mask.all()) else {"attention_mask": mask.to(device).long()}
            view.base(input_ids=ids.to(device), use_cache=False, **padding)
        counts = weights.flatten() > 0
        kept = None if bool(counts.all()) else counts.nonzero().flatten().to(device)
        mass = weights.flatten()[counts]
        parts.append(_Part(recorder.first, recorder.calls, kept, None if bool((mass == 1).all()) else mass.to(device), ids.numel()))
    return parts


class _Recorder:
    """While it is entered, blocks are identities that write down how they are called."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {}) for _ in blocks]
        self.first = torch.empty(0)
        self._patched = [vars(block.module).get("forward") for block in blocks]  # accelerate's hooks, where there are any

    def __enter__(self) -> "_Recorder":
        for place, block in enumerate(self.blocks):
            block.module.forward = self._identity(place)
        return self

    def __exit__(self, *_: object) -> None:
        for block, patched in zip(self.blocks, self._patched, strict=True):
            del block.module.forward
            if patched is not None:
                block.module.forward = patched

    def _identity(self, place: int) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            hidden = args[0] if args else kwargs["hidden_states"]
            if place == 0:
                self.first = hidden
            self.calls[place] = args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}
            return hidden

        return forward


class _Watch(TorchFunctionMode):
    """Sees the products of one block's matrices in the forward of `part`, and the gathers that route tokens to experts."""

    def __init__(self, block: Block, on_product: Callable[[Weight, Tensor], None]) -> None:
        super().__init__()
        self.part: _Part | None = None
        self._on_product = on_product
        self._weights = {weight.address: weight for weight in block.weights}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _AS_OUT_IN or name in _AS_IN_OUT:
            self._product(name, args, kwargs)
        elif name in _FUSED:
            self._refuse_fused(name, args)
        elif name in ("__getitem__", "index_select"):
            self._gather(args)
        return func(*args, **kwargs)

    def _product(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        operands = [*args, *(kwargs[k] for k in ("input", "weight", "mat1", "mat2", "other") if k in kwargs)]
        x, matrix = operands[1:3] if name == "addmm" else operands[:2]
        weight = self._weights.get(matrix.data_ptr()) if isinstance(matrix, Tensor) else None
        if weight is None:
            return
        seen_as = matrix if name in _AS_OUT_IN else matrix.mT
        kept_as = weight.get()
        if seen_as.shape != kept_as.shape or seen_as.stride() != kept_as.stride():
            raise WalkError(f"{weight.name} is multiplied as {tuple(seen_as.shape)} but kept as {tuple(kept_as.shape)}", subject=weight.name)
        self._on_product(weight, x)

    def _refuse_fused(self, name: str, args: tuple[Any, ...]) -> None:
        for operand in args:
            for tensor in operand if isinstance(operand, list | tuple) else [operand]:
                weight = self._weights.get(tensor.data_ptr()) if isinstance(tensor, Tensor) else None
                if weight is not None:
                    raise WalkError(
                        f"{weight.name} is used in one {name} over several matrices, which can't be followed matrix by matrix", subject=weight.name
                    )

    def _gather(self, args: tuple[Any, ...]) -> None:
        table, index = args[0], args[-1]
        if isinstance(index, tuple):
            index = index[-1] if all(i is None for i in index[:-1]) else None
        if self.part is None or not isinstance(index, Tensor) or index.dim() != 1 or index.dtype not in (torch.int64, torch.int32):
            return
        if table.is_floating_point() and len(table) == self.part.positions:
            self.part.gathered = index


def _arrival(block: Block, parts: list[_Part], observes: Kinds, last: bool, ranks: Ranks) -> Iterator[tuple[Weight, Seen]]:
    loop = getcurrent()

    def stop(weight: Weight, x: Tensor) -> None:
        with watch:  # torch takes the mode off while it asks it; the loop leaves the mode once more
            loop.switch((weight, x))

    watch = _Watch(block, stop)
    forwards = [_Suspended(part, block, watch) for part in parts]
    order, shared = _Order(block), _Shared(ranks)
    try:
        for forward in forwards:
            forward.resume()
        while waiting := ranks.gathered([f.stopped[0].name for f in forwards if f.stopped]):
            weight = order.next(waiting)
            here = [f for f in forwards if f.stopped and f.stopped[0] is weight]
            seen = shared.seen(weight, [(f.part, f.stopped[1]) for f in here if f.stopped], observes)
            if seen.tokens:
                yield weight, seen
            for forward in here:
                forward.resume()
    finally:
        for forward in forwards:
            forward.unwind()


class _Suspended:
    """The forward of one micro-batch through one block, stopping at every product with one of the block's matrices."""

    def __init__(self, part: _Part, block: Block, watch: _Watch) -> None:
        self.part, self._watch = part, watch
        self.stopped: tuple[Weight, Tensor] | None = None
        self._greenlet = greenlet(lambda: part.run(block.module, block.index, part.state))

    def resume(self) -> None:
        """Run until the next product, or to the end, where the block's output becomes the part's state."""
        self.stopped, self._watch.part = None, self.part
        with torch.no_grad(), self._watch:
            result = self._greenlet.switch()
        if self._greenlet.dead:
            self.part.state = result
        else:
            self.stopped = result

    def unwind(self) -> None:
        """Let a forward that stands at a product end there, through its own `finally`s."""
        self.stopped = None
        if self._greenlet:  # started and not ended
            with torch.no_grad(), self._watch:
                self._greenlet.throw()


class _Order:
    """One order of visits for all micro-batches: by first use; experts by number, and each expert's matrices by use."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._weights = {weight.name: weight for weight in block.weights}
        self._rank: dict[str, int] = {}
        self._last: tuple[int, int, int] | None = None

    def next(self, waiting: Sequence[str]) -> Weight:
        """The first of the matrices that some forward stands at, by name."""
        place, weight = min(((self._place(w), w) for w in map(self._weights.__getitem__, waiting)), key=lambda pair: pair[0])
        if self._last is not None and place <= self._last:
            raise WalkError(
                f"{weight.name} is used twice in one forward of {self._block.name}, so it can't be compressed on arrival; use reference or dense",
                subject=weight.name,
            )
        self._last = place
        return weight

    def _place(self, weight: Weight) -> tuple[int, int, int]:
        name = weight.name.removeprefix(self._block.name + ".")
        numbered = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
        if weight.expert is not None:
            group, number, use = name.rpartition(".")[0], weight.expert, re.sub(r"\[\d+\]$", "", name)
        elif numbered:
            group, number, use = numbered[1], int(numbered[2]), numbered[3]
        else:
            group, number, use = name, 0, ""
        return self._ranked(group), number, self._ranked(f"{group} {use}")

    def _ranked(self, key: str) -> int:
        return self._rank.setdefault(key, len(self._rank))


class _Shared:
    """Recognises that a matrix gets the very tensors that the one before it got (q, k and v; gate and up), and then counts them once."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._inputs: list[weakref.ref[Tensor]] = []
        self._key: list[Any] = []
        self._seen = Seen({})

    def seen(self, weight: Weight, arrivals: Sequence[tuple[_Part, Tensor]], observes: Kinds) -> Seen:
        """The sum of what arrives from all micro-batches of all ranks."""
        key = [(id(part), x.data_ptr(), x._version, x.shape, x.stride()) for part, x in arrivals]
        # An address is a tensor's own only while that lives; held here, the widest inputs of a block would outlive their use.
        if not self._ranks.all(key == self._key and all(x() is not None for x in self._inputs)):
            self._inputs, self._key = [weakref.ref(x) for _, x in arrivals], key
            self._seen = self._ranks.total((part.arrived(weight, x, observes) for part, x in arrivals), weight.stored.device)
        return self._seen


def _reference(block: Block, parts: list[_Part], observes: Kinds, last: bool, ranks: Ranks) -> Iterator[tuple[Weight, Seen]]:
    totals = dict(_observe(block, parts, observes, ranks, keep_outputs=False))
    yield from totals.items()
    for part in parts if not last else []:
        part.advance(block)


def _dense(block: Block, parts: list[_Part], observes: Kinds, last: bool, ranks: Ranks) -> Iterator[tuple[Weight, Seen]]:
    yield from list(_observe(block, parts, observes, ranks, keep_outputs=True))


def _observe(block: Block, parts: list[_Part], observes: Kinds, ranks: Ranks, *, keep_outputs: bool) -> Iterator[tuple[Weight, Seen]]:
    """One forward of every micro-batch through the block as it is, and what each of its matrices saw."""
    totals: dict[str, Seen] = {}
    for part in parts:
        shared, here = _Shared(ALONE), dict[Weight, Seen]()
        watch = _Watch(block, lambda w, x: _add(here, w, shared.seen(w, [(part, x)], observes)))  # noqa: B023  # used before the loop goes on
        watch.part = part
        with torch.no_grad(), watch:
            output = part.run(block.module, block.index, part.state)
        if keep_outputs:
            part.state = output
        merged: dict[tuple[int, int], Seen] = {}  # matrices that share an input go on sharing their sum
        for weight, seen in here.items():
            before = totals.get(weight.name)
            pair = id(before), id(seen)
            if pair not in merged:
                merged[pair] = ranks.part(seen) if before is None else before + ranks.part(seen)
            totals[weight.name] = merged[pair]
    weights = {weight.name: weight for weight in block.weights}
    summed = ranks.totals(totals, block.weights[0].stored.device) if weights else {}
    return ((weights[name], seen) for name, seen in summed.items() if seen.tokens)


def _add(seen: dict[Weight, Seen], weight: Weight, new: Seen) -> None:
    seen[weight] = seen[weight] + new if weight in seen else new
