"""Through a model, matrix by matrix: the only place that stops a forward.

    for weight, seen in walk(view, batch, method.observes, propagate="arrival"):
        weight.set(method.compress(weight.get(), seen, target).weight)

`arrival`    a block runs once. When its forward *reaches a product* with one of its matrices, the forward stops there, the matrix and what
             is about to arrive at it are handed to the loop, and the forward goes on with whatever the loop made of the matrix. Inputs
             come from everything upstream already compressed, inside the block too.
`reference`  what the papers' code does: inputs of a block whose own matrices are still untouched, then a second forward of the block.
`dense`      inputs in the untouched model; one forward, whatever the loop does to the matrices.

Each micro-batch is one call of the model's own forward, as a greenlet that stops where the next block is called: so blocks are called as
the model calls them, with whatever it hands from one to the next. Behind the last block the forward ends, before the head.

Micro-batches run in lock-step: within a block every matrix is visited once, in one order; a micro-batch that is further on, or that
skipped an expert, waits. No thread-local context spans a stop: the mode and `no_grad` are entered anew around every switch, and so is the
block that is called next given its stop, so the loop's own code never runs under them.

Padding and tokens of weight zero never reach a statistic. Rows inside a routed expert are traced back to their tokens by the gather that
picked them. Without matrices to watch (`observes` is empty) nothing is run at all.

With `weigh`, tokens count more or less from block to block: it is asked at the door of each, and may run the block aside to see what it does.

Where a model's blocks are on disk, each is held from its door until all forwards have left it (`held`).

With other `ranks` this process runs its share of the micro-batches, and hands out what all of them saw, in the same order on every rank.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, final

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from calibrant.activations import InputStatistic, Seen, Statistic
from calibrant.clock import spent_on
from calibrant.data import TokenBatch, micro_batches
from calibrant.errors import ModelError, NumericsError, WalkError
from calibrant.models import Block, ModelView, Weight
from calibrant.walk.attention import BlockCall, Weigh
from calibrant.walk.block_statistics import BlockRun, BlockStatistics
from calibrant.walk.products import Order, Product, Watch, hidden_of, inputs_of, replaced
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.rehearsal import Rehearsal, held, rehearse

Propagation = Literal["arrival", "reference", "dense"]
Kinds = tuple[type[InputStatistic], ...]
_Entry = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A block's forward, and what it is called with."""

TOKENS_PER_PASS: Final = 4_096
"""Tokens of one micro-batch of a walk. Matrix tiles need long products: SmolLM2's bfloat16 forward takes a third less than in passes of 1,024 on a
processor that has them, and the float32 forward as long. What a pass makes between two products counts little beside what all tokens keep."""
TOKENS_THROUGH_HEAD: Final = 1_024
"""Tokens of one micro-batch that goes on through the head, or is followed by a backward pass: its logits are the largest thing there."""


def walk(
    view: ModelView,
    batch: TokenBatch | None,
    observes: tuple[type[Statistic], ...],
    propagate: Propagation = "arrival",
    *,
    tokens_per_pass: int = TOKENS_PER_PASS,
    start: int = 0,
    ranks: Ranks = ALONE,
    weigh: Weigh | None = None,
) -> Iterator[tuple[Weight, Seen]]:
    """Yield each matrix with what it saw; the loop may `set` the matrix before it asks for the next.

    `weigh` gives each token a weight for each block, with which its own is multiplied; one whose weight is 0 is as if it weren't there.

    Matrices that no token of weight reached are not yielded: who iterates knows them by their absence. Nor are those that can't be followed;
    `rehearse(view).left(propagate)` says why. Blocks before `start` are run but not handed out (they were compressed before an interruption;
    for `dense` they must still be untouched).

    Raises `ModelError` for a model or padding that can't be followed, `NumericsError`, naming the matrix, for activations that are not finite,
    and `RankError` where another of the `ranks` is lost.
    """
    if not observes or batch is None:
        for block in view.blocks[start:]:
            with held(view, block):
                yield from ((weight, Seen({})) for weight in block.weights)
        return
    through = {"arrival": _arrival, "reference": _reference, "dense": _dense}[propagate]
    rehearsal = rehearse(view)
    left = rehearsal.left(propagate)
    followed = [replace(block, weights=tuple(weight for weight in block.weights if weight.name not in left)) for block in view.blocks]
    calls = list(rehearsal.calls)
    while calls and not followed[calls[-1]].weights:
        calls.pop()
    with _under_way(view, rehearsal, calls, batch, tokens_per_pass, ranks) as parts:
        for index in calls:
            block = followed[index]
            passed = index < start or not block.weights
            with held(view, block):
                _weigh(() if passed else parts, block, weigh)
                step = _past if passed else through
                yield from step(block, parts, observes, ranks, rehearsal)  # pyright: ignore[reportArgumentType]  # checked by the method's contract


def walk_blocks(
    view: ModelView, batch: TokenBatch, observes: tuple[type[Statistic], ...], *, tokens_per_pass: int = TOKENS_PER_PASS, ranks: Ranks = ALONE
) -> Iterator[tuple[Block, Seen]]:
    """Yield each block of the untouched model with what it did (`BlockStatistics`): what methods that remove blocks or experts look at."""
    rehearsal, did, device = rehearse(view), BlockStatistics(view, observes), view.device
    with _under_way(view, rehearsal, rehearsal.calls, batch, tokens_per_pass, ranks) as parts:
        for block in (view.blocks[index] for index in rehearsal.calls):
            with held(view, block):
                local = [ranks.part(did.of(part.at_door(block))) for part in parts]
                mine = {block.name: sum(local[1:], local[0])} if local and local[0] else {}
                yield block, ranks.totals(mine, device).get(block.name, Seen({}))


@contextmanager
def _under_way(
    view: ModelView, rehearsal: Rehearsal, calls: Sequence[int], batch: TokenBatch, tokens_per_pass: int, ranks: Ranks
) -> Iterator[list["_MicroBatch"]]:
    """Yield this rank's micro-batches, each at the door of the first block; however the walk ends, their forwards end with it."""
    device = view.device
    parts: list[_MicroBatch] = []
    for ids, mask, weights in ranks.share(list(micro_batches(batch, tokens_per_pass))):
        counts = weights.flatten() > 0
        counted = None if bool(counts.all()) else counts.nonzero().flatten().to(device)
        mass = weights.flatten()[counts]
        inputs = inputs_of(view.base, ids.to(device), None if bool(mask.all()) else mask.to(device))
        parts.append(_MicroBatch(view, rehearsal, calls, inputs, counted, None if bool((mass == 1).all()) else mass.to(device)))
    try:
        for part in parts:
            part.resume()
        yield parts
    finally:
        for part in parts:
            part.unwind()


@final
class _MicroBatch:
    """One micro-batch on its way through the model's own forward, which stops where a block is called, and at products in it."""

    def __init__(
        self, view: ModelView, rehearsal: Rehearsal, calls: Sequence[int], inputs: dict[str, Any], counted: Tensor | None, weights: Tensor | None
    ) -> None:
        self.stopped: Product | None = None
        self.counted, self.weights, self._own_weights = counted, weights, weights
        self._ids: Tensor = inputs["input_ids"]
        self.samples, self.length = self._ids.shape
        self._rehearsal, self._blocks = rehearsal, [view.blocks[index] for index in calls]
        self._called = 0
        self._entry: _Entry | None = None
        self._output: Any = None
        self._watch: Watch | None = None
        self._loop = getcurrent()
        base = view.base
        # A greenlet is a function with a stack of its own, which can be left in the middle and entered again where it was left. A generator could
        # only yield in its own body; the places where this one stops lie deep in the model's own code.
        self._greenlet = greenlet(lambda: base(**inputs))

    @property
    def at_last(self) -> bool:
        """True at the door of the last block, or behind it."""
        return self._called == len(self._blocks)

    def resume(self) -> None:
        """Let the forward go on to the next product that is watched for, or to the door of the next block."""
        # Whoever resumes is whom the forward returns to: a walk may be begun in one greenlet and ended in another, as a generator may be.
        self.stopped, self._loop = None, getcurrent()
        self._greenlet.parent = self._loop
        ahead = None if self.at_last else self._blocks[self._called].module
        with torch.no_grad(), self._watch or nullcontext(), nullcontext() if ahead is None else replaced(ahead, self._door(ahead.forward)):
            reached = self._greenlet.switch()  # runs the forward until it switches back here, with the product it stands at, or ends
        self.stopped = reached if isinstance(reached, Product) else None
        if self._greenlet.dead and not self.at_last:
            name = self._blocks[self._called].name
            raise WalkError(f"the model's forward ended before it came to {name}, which it ran for eight tokens", subject=name)

    def go(self, weights: Sequence[Weight] = (), on_product: Callable[[Product], None] | None = None) -> None:
        """Let the block run at whose door the forward stands; with `weights`, stop at their products, or tell `on_product` of them."""
        self._watch = Watch(weights, on_product or self._stop, self.samples * self.length) if weights else None
        self.resume()

    def look(self, weights: Sequence[Weight], on_product: Callable[[Product], None]) -> None:
        """Run that block aside, and throw away what it gives; the forward stays at its door."""
        self._aside(Watch(weights, on_product, self.samples * self.length))

    def _aside(self, mode: TorchFunctionMode) -> None:
        assert self._entry is not None
        self._run(self._entry, mode)

    def _run(self, entry: _Entry, mode: TorchFunctionMode) -> None:
        forward, args, kwargs = entry
        if self._rehearsal.changes_input:  # what the block writes over is still needed by its real run
            args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        with torch.no_grad(), mode:
            forward(*args, **kwargs)

    def _kept(self) -> Callable[[TorchFunctionMode], None]:
        assert self._entry is not None
        return partial(self._run, tree_map_only(Tensor, Tensor.clone, self._entry))

    def weigh(self, block: Block, by: Weigh | None) -> None:
        """Let its tokens count by their own weight times what `by` says of the block at whose door the forward stands."""
        if by is None:
            return
        device = self.block_input().device
        real = torch.zeros(self.samples * self.length, dtype=torch.bool, device=device)
        real[slice(None) if self.counted is None else self.counted] = True
        given = by(BlockCall(block, real.reshape(self.samples, self.length), self._aside, self._kept))
        weights = None if given is None else given.flatten()[real].float()
        self.weights = self._own_weights if weights is None else weights if self._own_weights is None else weights * self._own_weights

    def unwind(self) -> None:
        """Let a forward that stands somewhere end there, through its own `finally`s."""
        self.stopped = None
        if self._greenlet:  # started and not ended
            self._greenlet.parent = getcurrent()
            with torch.no_grad(), self._watch or nullcontext():
                self._greenlet.throw()  # GreenletExit is raised where the forward stands, and ends it

    def _stop(self, product: Product) -> None:
        assert self._watch is not None
        with self._watch:  # torch takes the mode off while it asks it; the loop leaves the mode once more
            self._loop.switch(product)

    def _door(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What the next block's forward is while the model's runs: it waits, and then is `forward`."""

        def waiting(*args: Any, **kwargs: Any) -> Any:
            first = self._called == 0
            self._called += 1
            self._entry = forward, args, kwargs
            self._loop.switch()
            self._entry = None
            self._output = output = forward(*args, **kwargs)
            if self.at_last:
                raise GreenletExit  # nobody needs what the head would make of it, which is the largest product of all
            if first and self._rehearsal.lets_go:  # the model's forward would hold it to its end, as Llama's holds the embeddings
                hidden = hidden_of(args, kwargs)
                hidden.data = hidden.new_empty(0)
            return output

        return waiting

    def block_input(self) -> Tensor:
        """Return what the block is about to be given at whose door the forward stands."""
        assert self._entry is not None
        return hidden_of(*self._entry[1:])

    def at_door(self, block: Block) -> BlockRun:
        """Return the block at whose door the forward stands, ready to be run and looked at."""
        flat, weights = self._ids.flatten(), self.weights
        counted = torch.arange(len(flat), device=flat.device) if self.counted is None else self.counted
        by_position = torch.zeros(len(flat), dtype=torch.float32, device=flat.device)
        by_position[counted] = 1.0 if weights is None else weights
        return BlockRun(block, self.block_input(), flat[counted], weights, by_position, self._block_output, partial(self.rows, name=block.name))

    def _block_output(self, weights: Sequence[Weight], on_product: Callable[[Product], None]) -> Tensor:
        self.go(weights, on_product)
        return hidden_of(tuple(tree_leaves(self._output)), {})

    def rows(self, x: Tensor, name: str) -> Tensor:
        """Return the rows of `x` [sample, position, …] that count, as [token, in]; `name` is what gets them."""
        turned = x.transpose(0, 1) if name in self._rehearsal.turned else x
        flat = turned.reshape(self.samples * self.length, -1)
        return flat if self.counted is None else flat[self.counted]

    def arrived(self, product: Product, observes: Kinds) -> Seen:
        """Return what reached a matrix: statistics of the rows that count."""
        weight, positions = product.weight, self.samples * self.length
        flat = product.x.reshape(-1, product.x.shape[-1])
        if weight.expert is None and len(flat) == positions:
            rows, weights = self.rows(product.x, weight.name), self.weights
        elif self.counted is None and self.weights is None:
            rows, weights = flat, None
        else:
            rows, weights = self._traced(product, flat)
        with spent_on("statistics"):
            seen = Seen({kind: kind.of(rows, weights) for kind in observes})
        if not all(seen[kind].finite() for kind in observes):
            raise NumericsError(
                f"the activations that reach {weight.name} hold NaN or infinity; the model or its type can't be calibrated on", subject=weight.name
            )
        return seen

    def _traced(self, product: Product, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of an expert, traced to their tokens, so that padding stays out and weights find their rows."""
        tokens, positions = product.tokens, self.samples * self.length
        if tokens is None or len(tokens) != len(flat):
            raise ModelError(
                f"the {len(flat)} rows that reach {product.weight.name} can't be traced to their tokens; use a packing without padding, such as many",
                subject=product.weight.name,
            )
        # A weight for every position of the micro-batch, zero for what doesn't count; `tokens` then picks those of the expert's rows.
        weigh = torch.zeros(positions, dtype=torch.float32, device=flat.device)
        counted = torch.arange(positions, device=flat.device) if self.counted is None else self.counted
        weigh[counted] = 1.0 if self.weights is None else self.weights
        weigh = weigh[tokens]
        real = weigh > 0
        return flat[real], None if self.weights is None else weigh[real]


def _weigh(parts: Sequence[_MicroBatch], block: Block, by: Weigh | None) -> None:
    for part in parts:
        part.weigh(block, by)


def _past(block: Block, parts: list[_MicroBatch], observes: Kinds, ranks: Ranks, rehearsal: Rehearsal) -> Iterator[tuple[Weight, Seen]]:
    """The forwards run through the block, and nothing looks."""
    for part in parts:
        part.go()
    return iter(())


def _arrival(block: Block, parts: list[_MicroBatch], observes: Kinds, ranks: Ranks, rehearsal: Rehearsal) -> Iterator[tuple[Weight, Seen]]:
    # All forwards stand at a product of this block, or are through with it. The one that comes first in the common order is compressed when every
    # forward that will come to it has: those further on wait, and one whose router picked no token for an expert never comes to it.
    order, shared = Order(block, rehearsal.by_use, rehearsal.apart), _Shared(ranks)
    for part in parts:
        part.go(block.weights)
    while waiting := ranks.gathered([part.stopped.weight.name for part in parts if part.stopped]):
        weight = order.next(waiting)
        arrived = [part for part in parts if part.stopped and part.stopped.weight is weight]
        seen = shared.seen([(part, part.stopped) for part in arrived if part.stopped], observes, weight.stored.device)
        if seen.tokens:
            yield weight, seen
        for part in arrived:
            part.resume()


class _Shared:
    """Recognises that a matrix gets the very tensors that the one before it got (q, k and v; gate and up), and then counts them once."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._inputs: list[weakref.ref[Tensor]] = []
        self._key: list[Any] = []
        self._seen = Seen({})

    def seen(self, arrivals: Sequence[tuple[_MicroBatch, Product]], observes: Kinds, device: torch.device) -> Seen:
        """Return the sum of what arrives from all micro-batches of all ranks."""
        inputs = [(part, product.x) for part, product in arrivals]
        key = [(id(part), x.data_ptr(), x._version, x.shape, x.stride()) for part, x in inputs]
        # An address is a tensor's own only while that lives; held here, the widest inputs of a block would outlive their use.
        if not self._ranks.all(key == self._key and all(x() is not None for x in self._inputs)):
            self._inputs, self._key = [weakref.ref(x) for _, x in inputs], key
            self._seen = self._ranks.total((part.arrived(product, observes) for part, product in arrivals), device)
        return self._seen


def _reference(block: Block, parts: list[_MicroBatch], observes: Kinds, ranks: Ranks, rehearsal: Rehearsal) -> Iterator[tuple[Weight, Seen]]:
    yield from list(_observe(block, parts, observes, ranks, _MicroBatch.look))
    for part in parts:
        if not part.at_last:
            part.go()


def _dense(block: Block, parts: list[_MicroBatch], observes: Kinds, ranks: Ranks, rehearsal: Rehearsal) -> Iterator[tuple[Weight, Seen]]:
    yield from list(_observe(block, parts, observes, ranks, _MicroBatch.go))


def _observe(
    block: Block,
    parts: list[_MicroBatch],
    observes: Kinds,
    ranks: Ranks,
    run: Callable[[_MicroBatch, Sequence[Weight], Callable[[Product], None]], None],
) -> Iterator[tuple[Weight, Seen]]:
    """One forward of every micro-batch through the block as it is, and what each of its matrices saw."""
    totals: dict[str, Seen] = {}
    for part in parts:
        shared, seen_here = _Shared(ALONE), dict[Weight, Seen]()

        def saw(product: Product) -> None:
            weight, one = product.weight, shared.seen([(part, product)], observes, product.x.device)  # noqa: B023  # used before the loop goes on
            seen_here[weight] = seen_here[weight] + one if weight in seen_here else one  # noqa: B023

        run(part, block.weights, saw)
        merged: dict[tuple[int, int], Seen] = {}  # matrices that share an input go on sharing their sum
        for weight, seen in seen_here.items():
            before = totals.get(weight.name)
            pair = id(before), id(seen)
            if pair not in merged:
                merged[pair] = ranks.part(seen) if before is None else before + ranks.part(seen)
            totals[weight.name] = merged[pair]
    weights = {weight.name: weight for weight in block.weights}
    summed = ranks.totals(totals, block.weights[0].stored.device) if weights else {}
    return ((weights[name], seen) for name, seen in summed.items() if seen.tokens)
