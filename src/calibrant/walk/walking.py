"""Through a model, matrix by matrix; forwards are stopped in `micro_batch` alone.

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
micro-batch that is further on, or that skipped an expert, waits.

Padding and tokens of weight zero never reach a statistic. Rows inside a routed expert are traced
back to their tokens by the gather that picked them.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor

from calibrant.activations import Seen, Statistic
from calibrant.data import TokenBatch, micro_batches
from calibrant.models import Block, ModelView, Weight
from calibrant.walk.attention import Weigh
from calibrant.walk.block_statistics import BlockStatistics
from calibrant.walk.micro_batch import Kinds, MicroBatch
from calibrant.walk.offloading import Alive, Offloaded, OffloadFile
from calibrant.walk.products import Order, Product, inputs_of
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.rehearsal import Rehearsal, held, rehearse

Propagation = Literal["arrival", "reference", "dense"]

TOKENS_PER_PASS: Final = 1_024
"""Tokens of one micro-batch. What untouched models' matrices saw is stored by such passes, and a
batch is divided into pieces by them.
"""
LONG_PASS: Final = 4_096
"""Tokens of one micro-batch where matrices are compressed on the way. Matrix tiles need long
products: SmolLM2's bfloat16 forward takes a quarter or more less than in passes of 1,024 on a
processor that has them, and the float32 forward as long.
"""

Arrivals = Iterator[tuple[Weight, Seen]]
_Run = Callable[[MicroBatch, Sequence[Weight], Callable[[Product], None]], None]
"""Runs a micro-batch through a block and tells of the products with some matrices."""


def tokens_per_pass_of(propagate: Propagation) -> int:
    """Return how many tokens a micro-batch of a walk has, where nobody says."""
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
    of each block and gives each token a weight there, with which its own is multiplied; one whose
    weight is 0 is as if it weren't there. With other `ranks` this process runs its share of the
    micro-batches and yields what all of them saw, in the same order on every rank.

    Matrices that no token of weight reached are not yielded. Nor are those that can't be followed;
    `rehearse(view).left(propagate)` says why. Blocks before `start` are run but not handed out:
    they were compressed before an interruption, and for `dense` must still be untouched.

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
    kinds = cast("Kinds", observes)  # the method's contract: a walk gathers statistics of inputs
    rehearsal = rehearse(view)
    left = rehearsal.left(propagate)
    blocks = [_without(block, left) for block in view.blocks]
    calls = list(rehearsal.calls)
    # Forwards end behind the last block that has a matrix to hand out.
    while calls and not blocks[calls[-1]].weights:
        calls.pop()
    tokens_per_pass = tokens_per_pass or tokens_per_pass_of(propagate)
    with _under_way(view, rehearsal, calls, batch, tokens_per_pass, ranks) as parts:
        for index in calls:
            block = blocks[index]
            with held(view, block):
                if index < start or not block.weights:
                    for part in parts:
                        part.go()
                    continue
                if weigh is not None:
                    for part in parts:
                        part.weigh(block, weigh)
                if propagate == "arrival":
                    order = Order(block, rehearsal.by_use, rehearsal.apart)
                    yield from _arrival(block, parts, kinds, ranks, order)
                elif propagate == "reference":
                    yield from _reference(block, parts, kinds, ranks)
                else:
                    yield from one_by_one(_observe(block, parts, kinds, ranks, MicroBatch.go))


def walk_blocks(
    view: ModelView,
    batch: TokenBatch,
    observes: tuple[type[Statistic], ...],
    *,
    tokens_per_pass: int = TOKENS_PER_PASS,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Block, Seen]]:
    """Yield each block of the untouched model with what it did (`BlockStatistics`): what methods
    that remove blocks or experts look at.
    """
    rehearsal = rehearse(view)
    statistics = BlockStatistics(view, observes)
    device = view.device
    with _under_way(view, rehearsal, rehearsal.calls, batch, tokens_per_pass, ranks) as parts:
        for index in rehearsal.calls:
            block = view.blocks[index]
            with held(view, block):
                total: Seen | None = None
                for part in parts:
                    seen = ranks.part(statistics.of(part.at_door(block)))
                    part.wait()
                    total = seen if total is None else total + seen
                mine = {block.name: total} if total else {}
                yield block, ranks.totals(mine, device).get(block.name, Seen({}))


def together(
    view: ModelView, walks: Sequence[Arrivals]
) -> Iterator[tuple[Weight, list[Seen | None]]]:
    """Yield each matrix once, with what each of several walks saw at it, each on a batch of its
    own; None for one whose tokens didn't reach it, as may be with experts.

    The walks go through the same model in `arrival`: none goes on before the loop has set the
    matrix, so all see the one that was made of it.
    """
    rehearsal = rehearse(view)
    heads = [next(arrivals, None) for arrivals in walks]
    while any(heads):
        block = min(head[0].block for head in heads if head)
        order = Order(view.blocks[block], rehearsal.by_use, rehearsal.apart)
        while waiting := [head[0].name for head in heads if head and head[0].block == block]:
            weight = order.next(waiting)
            arrived: list[int] = []
            seen: list[Seen | None] = [None] * len(heads)
            for number, head in enumerate(heads):
                if head is not None and head[0].name == weight.name:
                    arrived.append(number)
                    seen[number] = head[1]
            yield weight, seen
            for number in arrived:
                heads[number] = next(walks[number], None)


def held_between_blocks(
    view: ModelView, batch: TokenBatch, *, tokens_per_pass: int = TOKENS_PER_PASS
) -> int:
    """Return about how many bytes all micro-batches hold while they wait between two blocks, but
    for the blocks' inputs.

    Masks, angles of positions, and embeddings that a model's forward keeps: measured by running one
    micro-batch through its first block. It is the largest of those with padding, which have a mask,
    or of all.
    """
    rehearsal = rehearse(view)
    calls = rehearsal.calls
    alive = Alive()
    several = list(micro_batches(batch, tokens_per_pass))
    ids, mask, weights = max(several, key=_padded_and_large)
    largest = replace(batch, ids=ids, mask=mask, weights=weights, mixed=())
    forwards = _under_way(view, rehearsal, calls, largest, tokens_per_pass, ALONE)
    with torch.no_grad(), alive, forwards as (part,):
        with held(view, view.blocks[calls[0]]):
            part.go()
        hidden = 0
        if len(calls) > 1:
            hidden = part.block_input().untyped_storage().nbytes()
        return max(0, alive.held() - hidden) * len(several)


def one_by_one(observed: dict[Weight, Seen]) -> Arrivals:
    """Hand out what each matrix saw, and let go of it: a Gram of a large model takes hundreds of
    megabytes.
    """
    for weight in list(observed):
        yield weight, observed.pop(weight)


def _padded_and_large(part: tuple[Tensor, Tensor, Tensor]) -> tuple[bool, int]:
    ids, mask, _ = part
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
    """Yield this rank's micro-batches, each at the door of the first block; however the walk
    ends, their forwards end with it.
    """
    # A block that writes over its input may reach it by another name, which wouldn't see the
    # numbers that come back from the file.
    file = None
    if view.offload is not None and not rehearsal.changes_input:
        file = OffloadFile(view.offload)
    parts: list[MicroBatch] = []
    for ids, mask, weights in ranks.share(list(micro_batches(batch, tokens_per_pass))):
        parts.append(_micro_batch(view, rehearsal, calls, (ids, mask, weights), Offloaded(file)))
    try:
        for part in parts:
            part.resume()
        yield parts
    finally:
        for part in parts:
            part.unwind()
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
    block: Block, parts: list[MicroBatch], observes: Kinds, ranks: Ranks, order: Order
) -> Arrivals:
    # All forwards stand at a product of this block, or are through with it. The one that comes
    # first in the common order is compressed when every forward that will come to it has: those
    # further on wait, and one whose router picked no token for an expert never comes to it.
    shared = _Shared(ranks)
    for part in parts:
        part.go(block.weights)
    while waiting := ranks.gathered([part.stopped.weight.name for part in parts if part.stopped]):
        weight = order.next(waiting)
        arrived = [part for part in parts if part.stopped and part.stopped.weight is weight]
        products = [(part, part.stopped) for part in arrived if part.stopped]
        seen = shared.seen(products, observes, weight.stored.device)
        del products  # so that each input goes as soon as its own forward goes on
        if seen.tokens:
            yield weight, seen
        del seen  # and with it a Gram, before the next one is gathered
        for part in arrived:
            part.resume()


def _reference(block: Block, parts: list[MicroBatch], observes: Kinds, ranks: Ranks) -> Arrivals:
    yield from one_by_one(_observe(block, parts, observes, ranks, MicroBatch.look))
    for part in parts:
        # Nobody sees what the last block gives, so it needn't run again.
        if not part.at_last:
            part.go()


class _Shared:
    """Recognises that a matrix gets the very tensors that the one before it got (q, k and v;
    gate and up), and then counts them once.
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
        for part, product in arrivals:
            x = product.x
            # `_version` grows when somebody writes into the tensor.
            key.append((id(part), x.data_ptr(), x._version, x.shape, x.stride()))
            inputs.append(weakref.ref(x))
        # An address is a tensor's own only while that lives; held here, the widest inputs of a
        # block would outlive their use.
        alive = all(reference() is not None for reference in self._inputs)
        if not self._ranks.all(key == self._key and alive):
            self._inputs = inputs
            self._key = key
            self._seen = Seen({})  # lets the last Gram go before the next one is summed
            each = (part.arrived(product, observes) for part, product in arrivals)
            self._seen = self._ranks.total(each, device)
        return self._seen


def _observe(
    block: Block, parts: list[MicroBatch], observes: Kinds, ranks: Ranks, run: _Run
) -> dict[Weight, Seen]:
    """Run every micro-batch once through the block as it is, and return what each of its
    matrices saw.
    """
    totals: dict[str, Seen] = {}
    for part in parts:
        _add(totals, _seen_by(part, block, observes, run), ranks)
    weights = {weight.name: weight for weight in block.weights}
    summed = ranks.totals(totals, block.weights[0].stored.device)
    return {weights[name]: seen for name, seen in summed.items() if seen.tokens}


def _seen_by(part: MicroBatch, block: Block, observes: Kinds, run: _Run) -> dict[Weight, Seen]:
    shared = _Shared(ALONE)
    seen: dict[Weight, Seen] = {}

    def add(product: Product) -> None:
        weight = product.weight
        arrived = shared.seen([(part, product)], observes, product.x.device)
        seen[weight] = seen[weight] + arrived if weight in seen else arrived

    run(part, block.weights, add)
    return seen


def _add(totals: dict[str, Seen], seen_here: Mapping[Weight, Seen], ranks: Ranks) -> None:
    """Add what one micro-batch showed. Nothing of it is left once this returns, before the next
    one is looked at.
    """
    merged: dict[tuple[int, int], Seen] = {}  # matrices that share an input go on sharing their sum
    for weight, seen in seen_here.items():
        before = totals.get(weight.name)
        pair = id(before), id(seen)
        if pair not in merged:
            part = ranks.part(seen)
            merged[pair] = part if before is None else before + part
        totals[weight.name] = merged[pair]
