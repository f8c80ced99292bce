"""Walks through a model matrix by matrix. How a forward is stopped is in `micro_batch` alone.

    for weight, seen in walk(view, batch, method.observes, propagate="arrival"):
        weight.set(method.compress(weight.get(), seen, target).weight)

`arrival`    A block runs once. When its forward reaches a product with one of its matrices, it
             stops there. The loop gets the matrix and what is about to arrive at it, and the
             forward goes on with whatever the loop made of the matrix. So inputs come from
             matrices that are compressed already, those of the same block too.
`reference`  What the papers' code does: inputs of a block whose own matrices are still untouched,
             then a second forward of the block.
`dense`      Inputs in the untouched model: one forward, whatever the loop does to the matrices.

Each micro-batch is one call of the model's own forward, run as a greenlet that stops where the
next block is called. So the model itself calls its blocks, with whatever it hands from one to the
next. Behind the last block the forward ends, before the head.

Micro-batches run in lock-step: within a block every matrix is visited once, in one order. A
micro-batch that is ahead of the others, or that skipped an expert, waits.

Padding and tokens of weight zero never reach a statistic. Rows inside a routed expert are traced
back to their tokens by the gather that picked them.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast, final

import torch
from torch import Tensor

from calibrant.activations import Propagation, Seen, Statistic
from calibrant.data import TokenBatch, micro_batches
from calibrant.models import Block, ModelView, Weight
from calibrant.walk.attention import Weigh
from calibrant.walk.block_statistics import BlockStatistics
from calibrant.walk.micro_batch import Kinds, MicroBatch
from calibrant.walk.offloading import Alive, Offloaded, OffloadFile, OffloadMemory
from calibrant.walk.products import Order, Product, inputs_of
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.rehearsal import Rehearsal, held, rehearse

TOKENS_PER_PASS: Final = 1_024
"""Tokens of one micro-batch. Stored statistics are sums over micro-batches of this size, and a
batch is divided into pieces along them; so it can't be changed without changing their last bits.
"""
LONG_PASS: Final = 4_096
"""Tokens of one micro-batch where matrices are compressed on the way. A processor with matrix tiles
wants long products: there SmolLM2's bfloat16 forward takes at least a quarter less time than in
passes of 1,024 tokens. The float32 forward takes the same time in both.
"""

Arrivals = Iterator[tuple[Weight, Seen]]
_Run = Callable[[MicroBatch, Sequence[Weight], Callable[[Product], None]], None]
"""Runs a micro-batch through a block, and calls a function with each product with some matrices."""


def tokens_per_pass_of(propagate: Propagation) -> int:
    """Return how many tokens a micro-batch of a walk has by default."""
    return TOKENS_PER_PASS if propagate == "dense" else LONG_PASS


def walk(
    view: ModelView,
    batch: TokenBatch | None,
    observes: tuple[type[Statistic], ...],
    propagate: Propagation = "arrival",
    *,
    tokens_per_pass: int | None = None,
    start: int = 0,
    ranks: Ranks = ALONE,
    weigh: Weigh | None = None,
) -> Arrivals:
    """Yield each matrix with what it saw; the loop may `set` the matrix before it asks for the
    next.

    Without statistics to gather (`observes` is empty) nothing is run. `weigh` is asked at the door
    of each block for a weight of each token, with which the token's own weight is multiplied; one
    that becomes 0 adds nothing, and is counted all the same. With other `ranks` this process runs
    its share of the micro-batches and yields what all ranks saw, in the same order on every rank.

    Matrices that no token of weight above 0 reached are not yielded, and neither are those that
    can't be followed; `rehearse(view).left(propagate)` says why. Blocks before `start` run, but
    their matrices aren't yielded: they were compressed before an interruption, and for `dense` must
    still be untouched.

    Raises `ModelError` for a model or padding that can't be followed, `NumericsError`, naming the
    matrix, for activations that are not finite, and `RankError` where another of the `ranks` is
    lost.
    """
    if not observes or batch is None:
        for block in view.blocks[start:]:
            with held(view, block):
                for weight in block.weights:
                    yield weight, Seen({})
        return
    # A walk gathers statistics of inputs only: that is the contract with methods.
    kinds = cast("Kinds", observes)
    rehearsal = rehearse(view)
    left = rehearsal.left(propagate)
    blocks = [_without(block, left) for block in view.blocks]
    calls = list(rehearsal.calls)
    # Blocks behind the last one that has a matrix to yield needn't run.
    while calls and not blocks[calls[-1]].weights:
        calls.pop()
    tokens_per_pass = tokens_per_pass or tokens_per_pass_of(propagate)
    with _under_way(view, rehearsal, calls, batch, tokens_per_pass, ranks) as forwards:
        for index in calls:
            block = blocks[index]
            with held(view, block):
                if index < start or not block.weights:
                    for forward in forwards:
                        forward.run_block()
                    continue
                if weigh is not None:
                    for forward in forwards:
                        forward.weigh(block, weigh)
                if propagate == "arrival":
                    order = Order(block, rehearsal.by_use, rehearsal.apart)
                    yield from _arrival(block, forwards, kinds, ranks, order)
                elif propagate == "reference":
                    yield from _reference(block, forwards, kinds, ranks)
                else:
                    yield from one_by_one(
                        _observe(block, forwards, kinds, ranks, MicroBatch.run_block)
                    )


def walk_blocks(
    view: ModelView,
    batch: TokenBatch,
    observes: tuple[type[Statistic], ...],
    *,
    tokens_per_pass: int = TOKENS_PER_PASS,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Block, Seen]]:
    """Yield each block of the untouched model with its own statistics (`BlockStatistics`), which
    methods that remove blocks or experts look at.
    """
    rehearsal = rehearse(view)
    statistics = BlockStatistics(view, observes)
    device = view.device
    with _under_way(view, rehearsal, rehearsal.calls, batch, tokens_per_pass, ranks) as forwards:
        for index in rehearsal.calls:
            block = view.blocks[index]
            with held(view, block):
                total: Seen | None = None
                for forward in forwards:
                    seen = ranks.part(statistics.of(forward.at_door(block)))
                    forward.offload_input()
                    total = seen if total is None else total + seen
                mine = {block.name: total} if total else {}
                yield block, ranks.totals(mine, device).get(block.name, Seen({}))


def together(
    view: ModelView, walks: Sequence[Arrivals]
) -> Iterator[tuple[Weight, list[Seen | None]]]:
    """Yield each matrix once, with what each of several walks saw at it, each on a batch of its
    own; None for one whose tokens didn't reach it, as may be with experts.

    The walks go through the same model, with `propagate` "arrival". None of them goes on before the
    loop has set the matrix, so all compute with the new one.
    """
    rehearsal = rehearse(view)
    cursors = [_Cursor(arrivals) for arrivals in walks]
    reached = _matrices_at(cursors)
    while reached:
        # A walk whose tokens miss a block's experts may be at a later block already.
        block = min(weight.block for weight in reached)
        order = Order(view.blocks[block], rehearsal.by_use, rehearsal.apart)
        while names := _names_in(block, reached):
            weight = order.next(names)
            yield weight, [cursor.seen_at(weight) for cursor in cursors]
            for cursor in cursors:
                if cursor.is_at(weight):
                    cursor.advance()
            reached = _matrices_at(cursors)


@final
class _Cursor:
    """Where one of several walks is: at which matrix, and what it saw there."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self.weight: Weight | None = None
        """None once the walk is over."""
        self._seen: Seen | None = None
        self.advance()

    def advance(self) -> None:
        """Go on to the next matrix."""
        self.weight, self._seen = next(self._arrivals, (None, None))

    def is_at(self, weight: Weight) -> bool:
        """Return whether the walk is at this matrix."""
        return self.weight is not None and self.weight.name == weight.name

    def seen_at(self, weight: Weight) -> Seen | None:
        """Return what the walk saw at this matrix; None if it is at another."""
        return self._seen if self.is_at(weight) else None


def _matrices_at(cursors: Sequence[_Cursor]) -> list[Weight]:
    """The matrix that each walk is at, of those that aren't over."""
    return [cursor.weight for cursor in cursors if cursor.weight is not None]


def _names_in(block: int, weights: Sequence[Weight]) -> list[str]:
    return [weight.name for weight in weights if weight.block == block]


def held_between_blocks(
    view: ModelView, batch: TokenBatch, *, tokens_per_pass: int = TOKENS_PER_PASS
) -> int:
    """Return about how many bytes all micro-batches hold between two blocks, besides the blocks'
    inputs.

    These are masks, angles of positions, and embeddings that a model's forward keeps. They are
    measured by running one micro-batch through the first block: the largest of those with padding,
    which have a mask; without padding, the largest of all.
    """
    rehearsal = rehearse(view)
    calls = rehearsal.calls
    alive = Alive()
    all_tokens = list(micro_batches(batch, tokens_per_pass))
    ids, mask, weights = max(all_tokens, key=_padded_and_large)
    largest = replace(batch, ids=ids, mask=mask, weights=weights, mixed=())
    under_way = _under_way(view, rehearsal, calls, largest, tokens_per_pass, ALONE)
    # The tokens of one micro-batch make one forward.
    with torch.no_grad(), alive, under_way as (forward,):
        with held(view, view.blocks[calls[0]]):
            forward.run_block()
        hidden = 0
        if len(calls) > 1:
            hidden = forward.block_input().untyped_storage().nbytes()
        return max(0, alive.held() - hidden) * len(all_tokens)


def one_by_one(observed: dict[Weight, Seen]) -> Arrivals:
    """Yield what each matrix saw, and forget it: a large Gram takes hundreds of megabytes."""
    for weight in list(observed):
        yield weight, observed.pop(weight)


def _padded_and_large(tokens: tuple[Tensor, Tensor, Tensor]) -> tuple[bool, int]:
    ids, mask, _ = tokens
    return not bool(mask.all()), ids.numel()


def _without(block: Block, left: Mapping[str, str]) -> Block:
    """Return the block without the matrices that are left as they are."""
    followed = tuple(weight for weight in block.weights if weight.name not in left)
    return replace(block, weights=followed)


@contextmanager
def _under_way(
    view: ModelView,
    rehearsal: Rehearsal,
    calls: Sequence[int],
    batch: TokenBatch,
    tokens_per_pass: int,
    ranks: Ranks,
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches, each at the door of the first block. Their forwards end with
    the context, however it ends.
    """
    # A block that writes over its input may reach it through another tensor. That one wouldn't see
    # the numbers that come back from the file, so nothing is offloaded then.
    file = None
    if view.offload == "memory" and not rehearsal.changes_input:
        file = OffloadMemory()
    elif isinstance(view.offload, Path) and not rehearsal.changes_input:
        file = OffloadFile(view.offload)
    forwards: list[MicroBatch] = []
    for ids, mask, weights in ranks.share(list(micro_batches(batch, tokens_per_pass))):
        forwards.append(_micro_batch(view, rehearsal, calls, (ids, mask, weights), Offloaded(file)))
    try:
        for forward in forwards:
            forward.resume()
        yield forwards
    finally:
        for forward in forwards:
            forward.unwind()
        if file is not None:
            file.close()


def _micro_batch(
    view: ModelView,
    rehearsal: Rehearsal,
    calls: Sequence[int],
    tokens: tuple[Tensor, Tensor, Tensor],
    offloaded: Offloaded,
) -> MicroBatch:
    ids, mask, weights = tokens
    device = view.device
    counts = weights.flatten() > 0
    # None stands for the usual case, every token with the weight 1: nothing is indexed or
    # multiplied then.
    counted: Tensor | None = None
    if not bool(counts.all()):
        counted = counts.nonzero().flatten().to(device)
    mass = weights.flatten()[counts]
    mass = None if bool((mass == 1).all()) else mass.to(device)
    padding = None if bool(mask.all()) else mask.to(device)
    inputs = inputs_of(view.base, ids.to(device), padding)
    return MicroBatch(view, rehearsal, calls, inputs, counted, mass, offloaded)


def _arrival(
    block: Block, forwards: list[MicroBatch], observes: Kinds, ranks: Ranks, order: Order
) -> Arrivals:
    # Every forward stands at a product of this block, or has left the block. Of the matrices that
    # they stand at, the first in the common order is next: no forward will come to it later. Those
    # that stand at a later matrix wait. One whose router picked no token for an expert never comes
    # to that expert's matrices.
    shared = _SharedInputs(ranks)
    for forward in forwards:
        forward.run_block(block.weights)
    while waiting := ranks.gathered(_names_at(forwards)):
        weight = order.next(waiting)
        products = _products_with(weight, forwards)
        arrived = [forward for forward, _ in products]
        seen = shared.seen(products, observes, weight.stored.device)
        # Each input is freed as soon as its own forward goes on, and a Gram before the next one is
        # gathered.
        del products
        if seen.tokens:
            yield weight, seen
        del seen
        for forward in arrived:
            forward.resume()


def _names_at(forwards: Sequence[MicroBatch]) -> list[str]:
    """The name of the matrix that each forward stands at; a name may come several times."""
    return [forward.stopped.weight.name for forward in forwards if forward.stopped]


def _products_with(
    weight: Weight, forwards: Sequence[MicroBatch]
) -> list[tuple[MicroBatch, Product]]:
    """The forwards that stand at a product with this matrix, each with that product."""
    products: list[tuple[MicroBatch, Product]] = []
    for forward in forwards:
        product = forward.stopped
        if product is not None and product.weight is weight:
            products.append((forward, product))
    return products


def _reference(block: Block, forwards: list[MicroBatch], observes: Kinds, ranks: Ranks) -> Arrivals:
    yield from one_by_one(_observe(block, forwards, observes, ranks, MicroBatch.run_aside))
    for forward in forwards:
        # The second run makes the next block's input from the compressed matrices. Behind the last
        # block nobody needs it.
        if not forward.at_last:
            forward.run_block()


class _SharedInputs:
    """Sums up what arrives at one matrix after the other. One that gets the very tensors of the one
    before it (q, k and v; gate and up) shares its statistics.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._inputs: list[weakref.ref[Tensor]] = []
        self._key: list[Any] = []
        self._seen = Seen({})

    def seen(
        self, arrivals: Sequence[tuple[MicroBatch, Product]], observes: Kinds, device: torch.device
    ) -> Seen:
        """Return the sum of what arrives from all micro-batches of all ranks."""
        key: list[Any] = []
        inputs: list[weakref.ref[Tensor]] = []
        for forward, product in arrivals:
            x = product.x
            # `_version` grows when somebody writes into the tensor. One that was made in inference
            # mode has none, and shares nothing.
            version = object() if x.is_inference() else x._version
            key.append((id(forward), x.data_ptr(), version, x.shape, x.stride()))
            inputs.append(weakref.ref(x))
        # An address is a tensor's own only while that lives. References are weak, since the widest
        # inputs of a block would outlive their use otherwise.
        alive = all(reference() is not None for reference in self._inputs)
        if not self._ranks.all(key == self._key and alive):
            self._inputs = inputs
            self._key = key
            # Frees the last Gram before the next one is summed.
            self._seen = Seen({})
            # A generator, so that one micro-batch's Gram is in memory at a time beside the sum.
            seen_by_each = (forward.arrived(product, observes) for forward, product in arrivals)
            self._seen = self._ranks.total(seen_by_each, device)
        return self._seen


def _observe(
    block: Block, forwards: list[MicroBatch], observes: Kinds, ranks: Ranks, run: _Run
) -> dict[Weight, Seen]:
    """Run every micro-batch once through the block, and return what each of the block's matrices
    saw.
    """
    totals: dict[str, Seen] = {}
    for forward in forwards:
        _add(totals, _seen_by(forward, block, observes, run), ranks)
    weights = {weight.name: weight for weight in block.weights}
    summed = ranks.totals(totals, block.weights[0].stored.device)
    return {weights[name]: seen for name, seen in summed.items() if seen.tokens}


def _seen_by(forward: MicroBatch, block: Block, observes: Kinds, run: _Run) -> dict[Weight, Seen]:
    shared = _SharedInputs(ALONE)
    seen: dict[Weight, Seen] = {}

    def add(product: Product) -> None:
        weight = product.weight
        arrived = shared.seen([(forward, product)], observes, product.x.device)
        seen[weight] = seen[weight] + arrived if weight in seen else arrived

    run(forward, block.weights, add)
    return seen


def _add(totals: dict[str, Seen], seen_here: Mapping[Weight, Seen], ranks: Ranks) -> None:
    """Add what one micro-batch showed to `totals`."""
    # Matrices that share an input go on sharing their sum.
    merged: dict[tuple[int, int], Seen] = {}
    for weight, seen in seen_here.items():
        before = totals.get(weight.name)
        pair = id(before), id(seen)
        if pair not in merged:
            summand = ranks.part(seen)
            merged[pair] = summand if before is None else before + summand
        totals[weight.name] = merged[pair]
