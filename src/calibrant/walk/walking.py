"""Through a model, matrix by matrix; forwards are stopped in `micro_batch` alone.

    for weight, seen in walk(view, batch, method.observes, propagate="arrival"):
        weight.set(method.compress(weight.get(), seen, target).weight)

`arrival`    a block runs once. When its forward *reaches a product* with one of its matrices, the forward stops there, the matrix and what
             is about to arrive at it are handed to the loop, and the forward goes on with whatever the loop made of the matrix. Inputs
             come from everything upstream already compressed, inside the block too.
`reference`  what the papers' code does: inputs of a block whose own matrices are still untouched, then a second forward of the block.
`dense`      inputs in the untouched model; one forward, whatever the loop does to the matrices.

Each micro-batch is one call of the model's own forward, as a greenlet that stops where the next
block is called: so blocks are called as the model calls them, with whatever it hands from one to
the next. Behind the last block the forward ends, before the head.

Micro-batches run in lock-step: within a block every matrix is visited once, in one order; a
micro-batch that is further on, or that skipped an expert, waits. No thread-local context spans a
stop: the mode and `no_grad` are entered anew around every switch, and so is the block that is
called next given its stop, so the loop's own code never runs under them.

Padding and tokens of weight zero never reach a statistic. Rows inside a routed expert are traced
back to their tokens by the gather that picked them. Without matrices to watch (`observes` is empty)
nothing is run at all.

With `weigh`, tokens count more or less from block to block: it is asked at the door of each, and
may run the block aside to see what it does.

Where a model's blocks are on disk, each is held from its door until all forwards have left it
(`held`). Where its view says that activations are too (`ModelView.offload`), a micro-batch that
waits at a door has its numbers in a file (`offloading`).

With other `ranks` this process runs its share of the micro-batches, and hands out what all of them
saw, in the same order on every rank.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Literal

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
) -> Iterator[tuple[Weight, Seen]]:
    """Yield each matrix with what it saw; the loop may `set` the matrix before it asks for the
    next.

    `weigh` gives each token a weight for each block, with which its own is multiplied; one whose
    weight is 0 is as if it weren't there.

    Matrices that no token of weight reached are not yielded: who iterates knows them by their
    absence. Nor are those that can't be followed; `rehearse(view).left(propagate)` says why. Blocks
    before `start` are run but not handed out (they were compressed before an interruption; for
    `dense` they must still be untouched).

    Raises `ModelError` for a model or padding that can't be followed, `NumericsError`, naming the
    matrix, for activations that are not finite, and `RankError` where another of the `ranks` is
    lost.
    """
    if not observes or batch is None:
        for block in view.blocks[start:]:
            with held(view, block):
                yield from ((weight, Seen({})) for weight in block.weights)
        return
    through = {"arrival": _arrival, "reference": _reference, "dense": _dense}[propagate]
    rehearsal = rehearse(view)
    left = rehearsal.left(propagate)
    followed = [
        replace(block, weights=tuple(weight for weight in block.weights if weight.name not in left))
        for block in view.blocks
    ]
    calls = list(rehearsal.calls)
    while calls and not followed[calls[-1]].weights:
        calls.pop()
    with _under_way(
        view, rehearsal, calls, batch, tokens_per_pass or tokens_per_pass_of(propagate), ranks
    ) as parts:
        for index in calls:
            block = followed[index]
            passed = index < start or not block.weights
            with held(view, block):
                _weigh(() if passed else parts, block, weigh)
                step = _past if passed else through
                yield from step(block, parts, observes, ranks, rehearsal)  # pyright: ignore[reportArgumentType]  # checked by the method's contract


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
    rehearsal, did, device = rehearse(view), BlockStatistics(view, observes), view.device
    with _under_way(view, rehearsal, rehearsal.calls, batch, tokens_per_pass, ranks) as parts:
        for block in (view.blocks[index] for index in rehearsal.calls):
            with held(view, block):
                local = [ranks.part(_looked_at(did, part, block)) for part in parts]
                mine = {block.name: sum(local[1:], local[0])} if local and local[0] else {}
                yield block, ranks.totals(mine, device).get(block.name, Seen({}))


def _looked_at(did: BlockStatistics, part: MicroBatch, block: Block) -> Seen:
    seen = did.of(part.at_door(block))
    part.wait()
    return seen


def held_between_blocks(
    view: ModelView, batch: TokenBatch, *, tokens_per_pass: int = TOKENS_PER_PASS
) -> int:
    """Return about how many bytes all micro-batches hold while they wait between two blocks, but
    for the blocks' inputs.

    Masks, angles of positions, and embeddings that a model's forward keeps: measured by running one
    micro-batch through its first block, the largest of those with padding, which have a mask, or of
    all.
    """
    rehearsal, alive = rehearse(view), Alive()
    several = list(micro_batches(batch, tokens_per_pass))
    ids, mask, weights = max(several, key=lambda one: (not bool(one[1].all()), one[0].numel()))
    first, calls = replace(batch, ids=ids, mask=mask, weights=weights, mixed=()), rehearsal.calls
    with (
        torch.no_grad(),
        alive,
        _under_way(view, rehearsal, calls, first, tokens_per_pass, ALONE) as (part,),
    ):
        with held(view, view.blocks[calls[0]]):
            part.go()
        hidden = part.block_input().untyped_storage().nbytes() if calls[1:] else 0
        return max(0, alive.held() - hidden) * len(several)


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
    device = view.device
    parts: list[MicroBatch] = []
    # A block that writes over its input may reach it by another name, which wouldn't see the
    # numbers that come back.
    file = None if view.offload is None or rehearsal.changes_input else OffloadFile(view.offload)
    for ids, mask, weights in ranks.share(list(micro_batches(batch, tokens_per_pass))):
        counts = weights.flatten() > 0
        counted = None if bool(counts.all()) else counts.nonzero().flatten().to(device)
        mass = weights.flatten()[counts]
        inputs = inputs_of(view.base, ids.to(device), None if bool(mask.all()) else mask.to(device))
        parts.append(
            MicroBatch(
                view,
                rehearsal,
                calls,
                inputs,
                counted,
                None if bool((mass == 1).all()) else mass.to(device),
                Offloaded(file),
            )
        )
    try:
        for part in parts:
            part.resume()
        yield parts
    finally:
        for part in parts:
            part.unwind()
        if file is not None:
            file.close()


def _weigh(parts: Sequence[MicroBatch], block: Block, by: Weigh | None) -> None:
    for part in parts:
        part.weigh(block, by)


def _past(
    block: Block, parts: list[MicroBatch], observes: Kinds, ranks: Ranks, rehearsal: Rehearsal
) -> Iterator[tuple[Weight, Seen]]:
    """The forwards run through the block, and nothing looks."""
    for part in parts:
        part.go()
    return iter(())


def _arrival(
    block: Block, parts: list[MicroBatch], observes: Kinds, ranks: Ranks, rehearsal: Rehearsal
) -> Iterator[tuple[Weight, Seen]]:
    # All forwards stand at a product of this block, or are through with it. The one that comes
    # first in the common order is compressed when every forward that will come to it has: those
    # further on wait, and one whose router picked no token for an expert never comes to it.
    order, shared = Order(block, rehearsal.by_use, rehearsal.apart), _Shared(ranks)
    for part in parts:
        part.go(block.weights)
    while waiting := ranks.gathered([part.stopped.weight.name for part in parts if part.stopped]):
        weight = order.next(waiting)
        arrived = [part for part in parts if part.stopped and part.stopped.weight is weight]
        seen = shared.seen(
            [(part, part.stopped) for part in arrived if part.stopped],
            observes,
            weight.stored.device,
        )
        if seen.tokens:
            yield weight, seen
        del seen  # and with it a Gram, before the next one is gathered
        for part in arrived:
            part.resume()


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
        inputs = [(part, product.x) for part, product in arrivals]
        key = [(id(part), x.data_ptr(), x._version, x.shape, x.stride()) for part, x in inputs]
        # An address is a tensor's own only while that lives; held here, the widest inputs of a
        # block would outlive their use.
        if not self._ranks.all(key == self._key and all(x() is not None for x in self._inputs)):
            self._inputs, self._key, self._seen = [weakref.ref(x) for _, x in inputs], key, Seen({})
            self._seen = self._ranks.total(
                (part.arrived(product, observes) for part, product in arrivals), device
            )
        return self._seen


def _reference(
    block: Block, parts: list[MicroBatch], observes: Kinds, ranks: Ranks, rehearsal: Rehearsal
) -> Iterator[tuple[Weight, Seen]]:
    yield from one_by_one(_observe(block, parts, observes, ranks, MicroBatch.look))
    for part in parts:
        if not part.at_last:
            part.go()


def _dense(
    block: Block, parts: list[MicroBatch], observes: Kinds, ranks: Ranks, rehearsal: Rehearsal
) -> Iterator[tuple[Weight, Seen]]:
    yield from one_by_one(_observe(block, parts, observes, ranks, MicroBatch.go))


def one_by_one(observed: dict[Weight, Seen]) -> Iterator[tuple[Weight, Seen]]:
    """Hand out what each matrix saw, and let go of it: a Gram of a large model takes hundreds of
    megabytes.
    """
    for weight in list(observed):
        yield weight, observed.pop(weight)


def _observe(
    block: Block,
    parts: list[MicroBatch],
    observes: Kinds,
    ranks: Ranks,
    run: Callable[[MicroBatch, Sequence[Weight], Callable[[Product], None]], None],
) -> dict[Weight, Seen]:
    """One forward of every micro-batch through the block as it is, and what each of its matrices
    saw.
    """
    totals: dict[str, Seen] = {}
    for part in parts:
        _add(totals, _seen_by(part, block, observes, run), ranks)
    weights = {weight.name: weight for weight in block.weights}
    summed = ranks.totals(totals, block.weights[0].stored.device) if weights else {}
    return {weights[name]: seen for name, seen in summed.items() if seen.tokens}


def _seen_by(
    part: MicroBatch,
    block: Block,
    observes: Kinds,
    run: Callable[[MicroBatch, Sequence[Weight], Callable[[Product], None]], None],
) -> dict[Weight, Seen]:
    shared, seen_here = _Shared(ALONE), dict[Weight, Seen]()

    def saw(product: Product) -> None:
        weight, one = product.weight, shared.seen([(part, product)], observes, product.x.device)
        seen_here[weight] = seen_here[weight] + one if weight in seen_here else one

    run(part, block.weights, saw)
    return seen_here


def _add(totals: dict[str, Seen], seen_here: Mapping[Weight, Seen], ranks: Ranks) -> None:
    """Add what one micro-batch showed. Nothing of it is left once this returns, before the next
    one is looked at.
    """
    merged: dict[tuple[int, int], Seen] = {}  # matrices that share an input go on sharing their sum
    for weight, seen in seen_here.items():
        before = totals.get(weight.name)
        pair = id(before), id(seen)
        if pair not in merged:
            merged[pair] = ranks.part(seen) if before is None else before + ranks.part(seen)
        totals[weight.name] = merged[pair]
