"""One micro-batch on its way through a model's own forward: a greenlet that stops at the door of
each block (where the model calls it), and at products in it.

A greenlet is a function with a stack of its own, which can be left in the middle and entered again
where it was left. A generator could only yield in its own body; the places where a forward stops
lie deep in the model's own code. No thread-local context spans a stop: the mode and `no_grad` are
entered anew around every switch, so the loop's own code never runs under them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from threading import get_ident
from typing import Any, final

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from calibrant.activations import InputStatistic, Seen
from calibrant.errors import ModelError, NumericsError, WalkError
from calibrant.models import Block, ModelView, Weight
from calibrant.models.devices import wait_for
from calibrant.models.rounded_inputs import rounding_of
from calibrant.system.clock import spent_on
from calibrant.walk.attention import BlockCall, KeptCall, Weigh
from calibrant.walk.block_statistics import BlockVisit
from calibrant.walk.offloading import Offloaded
from calibrant.walk.products import Product, Watch, hidden_of, replaced
from calibrant.walk.rehearsal import Rehearsal

Kinds = tuple[type[InputStatistic], ...]
_Entry = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A block's forward, and what it is called with."""


@final
class MicroBatch:
    """One micro-batch on its way through the model's own forward, which stops where a block is
    called, and at products in it.

    `counted` are the positions of tokens that count, in the flattened micro-batch (None: all), and
    `weights` says how much each of them counts (None: 1). `stopped` is the product at which the
    forward stands now; None at a door, or at the end.
    """

    def __init__(
        self,
        view: ModelView,
        rehearsal: Rehearsal,
        calls: Sequence[int],
        inputs: dict[str, Any],
        counted: Tensor | None,
        weights: Tensor | None,
        offloaded: Offloaded,
    ) -> None:
        self.stopped: Product | None = None
        self.counted = counted
        self.weights = weights
        # `weights` may be others in each block; these are the batch's own.
        self._token_weights = weights
        self._ids: Tensor = inputs["input_ids"]
        self.samples, self.length = self._ids.shape
        self._rehearsal = rehearsal
        self._blocks = [view.blocks[index] for index in calls]
        self._called = 0
        self._entry: _Entry | None = None
        self._output: Any = None
        self._watch: Watch | None = None
        self._offloaded = offloaded
        self._input_in_use = False
        self._loop = getcurrent()
        self._greenlet = greenlet(partial(view.base, **inputs))
        self._thread = get_ident()

    @property
    def at_last(self) -> bool:
        """True at the door of the last block, or behind it."""
        return self._called == len(self._blocks)

    def resume(self) -> None:
        """Let the forward go on to the next product that is watched for, or to the door of the
        next block.
        """
        # Whoever resumes is whom the forward returns to: a walk may be begun in one greenlet and
        # ended in another, as a generator may be.
        self.stopped = None
        self._loop = getcurrent()
        self._greenlet.parent = self._loop
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._watch or nullcontext())
            if not self.at_last:
                ahead = self._blocks[self._called].module
                stack.enter_context(replaced(ahead, self._door(ahead.forward)))
            # Runs the forward until it switches back here, with the product that it stands at or
            # with nothing at a door, or until it ends.
            reached = self._greenlet.switch()
        if isinstance(reached, Product):
            self.stopped = reached
        if self._greenlet.dead and not self.at_last:
            name = self._blocks[self._called].name
            raise WalkError(
                f"the model's forward ended before it came to {name}, which it ran for eight "
                "tokens",
                subject=name,
            )

    def run_block(
        self, weights: Sequence[Weight] = (), on_product: Callable[[Product], None] | None = None
    ) -> None:
        """Let the block run at whose door the forward stands.

        At each product with one of the `weights` call `on_product`; without it, stop there.
        """
        self._watch = None
        if weights:
            self._watch = Watch(weights, on_product or self._stop, self.samples * self.length)
        self.resume()

    def offload_input(self) -> None:
        """Move the next block's input to disk, in a walk that keeps it there: nobody looks at it
        until the block runs.
        """
        self._input_in_use = False
        if self._entry is not None:
            self._output = None
            self._offloaded.offload(self.block_input())

    def run_aside(self, weights: Sequence[Weight], on_product: Callable[[Product], None]) -> None:
        """Run the block ahead and throw away what it gives; the forward stays at its door."""
        self._aside(Watch(weights, on_product, self.samples * self.length))

    def weigh(self, block: Block, weigh: Weigh) -> None:
        """Ask `weigh` for the weights of the tokens in this block, at whose door the forward
        stands, and multiply the tokens' own weights with them.
        """
        device = self.block_input().device
        real = torch.zeros(self.samples * self.length, dtype=torch.bool, device=device)
        if self.counted is None:
            real[:] = True
        else:
            real[self.counted] = True
        by_sample = real.reshape(self.samples, self.length)
        self.weights = self._token_weights
        rows = partial(self.rows, name=block.name)
        call = BlockCall(block, by_sample, self.weights, self._aside, self._kept, rows)
        block_weights = weigh(call)
        if block_weights is not None:
            weights = block_weights.flatten()[real].float()
            if self._token_weights is not None:
                weights = weights * self._token_weights
            self.weights = weights

    def unwind(self) -> None:
        """End a forward where it stands, through its own `finally`s.

        A walk that was dropped in the middle may be freed in another thread, which can't enter the
        forward. It is then ended in its own thread, which greenlet sees to.
        """
        self.stopped = None
        if self._thread != get_ident():
            return
        if self._greenlet:  # started and not ended
            self._greenlet.parent = getcurrent()
            with torch.no_grad(), self._watch or nullcontext():
                # Raises GreenletExit where the forward stands, which ends it and comes back here.
                self._greenlet.throw()

    def block_input(self) -> Tensor:
        """Return the hidden states that the block ahead is about to be called with."""
        assert self._entry is not None
        _, args, kwargs = self._entry
        return hidden_of(args, kwargs)

    def at_door(self, block: Block) -> BlockVisit:
        """Return the block at whose door the forward stands, ready to be run and looked at. Call
        `offload_input` afterwards.
        """
        self._offloaded.fetch()
        self._input_in_use = True
        ids = self._ids.flatten()
        by_position = self._weight_by_position(ids.device)
        real_ids = ids if self.counted is None else ids[self.counted]
        rows = partial(self.rows, name=block.name)
        before = self.block_input()
        if self._rehearsal.changes_input:
            before = before.clone()
        return BlockVisit(
            block, before, real_ids, self.weights, by_position, self._block_output, rows
        )

    def rows(self, x: Tensor, name: str) -> Tensor:
        """Return the rows of `x` [sample, position, …] that count, as [token, in]; `name` is the
        matrix or block that gets them.
        """
        if name in self._rehearsal.turned:  # there `x` is [position, sample, …]
            x = x.transpose(0, 1)
        flat = x.reshape(self.samples * self.length, -1)
        return flat if self.counted is None else flat[self.counted]

    def arrived(self, product: Product, observes: Kinds) -> Seen:
        """Return what reached a matrix: statistics of the rows that count."""
        weight = product.weight
        flat = product.x.reshape(-1, product.x.shape[-1])
        # A matrix of no expert gets a row for every position. Experts get the rows of some tokens,
        # which are traced only where padding or weights make a difference.
        if weight.expert is None and len(flat) == self.samples * self.length:
            rows = self.rows(product.x, weight.name)
            weights = self.weights
        elif self.counted is None and self.weights is None:
            rows = flat
            weights = None
        else:
            rows, weights = self._traced(product, flat)
        # What the device still does is the forward's, and asking whether it is finite waits too.
        wait_for(rows.device)
        with spent_on("statistics"):
            seen = Seen({kind: kind.of(rows, weights) for kind in observes})
            finite = all(seen[kind].finite() for kind in observes)
        if not finite:
            raise NumericsError(
                f"the activations that reach {weight.name} hold NaN or infinity; the model or its "
                "type can't be calibrated on",
                subject=weight.name,
            )
        return seen

    def _traced(self, product: Product, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of an expert that count, and their weights, found through the rows' tokens."""
        tokens = product.tokens
        if tokens is None or len(tokens) != len(flat):
            name = product.weight.name
            raise ModelError(
                f"the {len(flat)} rows that reach {name} can't be traced to their tokens; "
                "use a packing without padding, such as many",
                subject=name,
            )
        weights = self._weight_by_position(flat.device)[tokens]
        real = weights > 0
        rows = flat[real]
        if self.weights is None:
            return rows, None
        return rows, weights[real]

    def _weight_by_position(self, device: torch.device) -> Tensor:
        """How much every position of the micro-batch counts, 0 for what doesn't count."""
        positions = self.samples * self.length
        by_position = torch.zeros(positions, dtype=torch.float32, device=device)
        weights = 1.0 if self.weights is None else self.weights
        if self.counted is None:
            by_position[:] = weights
        else:
            by_position[self.counted] = weights
        return by_position

    def _stop(self, product: Product) -> Tensor | None:
        """Stop at a product: called from within the forward, in its greenlet. Return the inputs
        after rounding, where the loop made the matrix's module round them meanwhile.
        """
        assert self._watch is not None
        module = product.weight.owner
        before = rounding_of(module)
        # torch takes a mode off while it asks it, and the loop leaves the mode as it returns from
        # its switch: entered here once more, it can be left there.
        with self._watch:
            # Back to the loop, which may set the matrix; comes back when the forward is resumed.
            self._loop.switch(product)
        # The module's forward is under way, so it doesn't round these inputs itself.
        after = rounding_of(module)
        if after is None or after is before:
            return None
        return after.grid.rounded(product.x, after.static_scale)

    def _door(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in the place of the next block's `forward` while the model runs: it waits
        for the loop, and then calls `forward`.
        """

        def wait_and_run(*args: Any, **kwargs: Any) -> Any:
            first = self._called == 0
            self._called += 1
            self._entry = forward, args, kwargs
            if not self._input_in_use:
                self.offload_input()
            # Back to the loop, which takes the other micro-batches to this door; comes back when
            # the loop lets this block run.
            self._loop.switch()
            self._entry = None
            self._offloaded.fetch()
            output = forward(*args, **kwargs)
            self._output = output
            if self.at_last:
                # Ends the greenlet: nobody needs what the head would make of it, which is the
                # largest product of all.
                raise GreenletExit
            if first and self._rehearsal.frees_input:
                # The model would hold the first block's input to the end, as Llama holds the
                # embeddings. Its memory is let go here, since no other block reads it.
                hidden = hidden_of(args, kwargs)
                hidden.data = hidden.new_empty(0)
            return output

        return wait_and_run

    def _block_output(
        self, weights: Sequence[Weight], on_product: Callable[[Product], None]
    ) -> Tensor:
        self.run_block(weights, on_product)
        return hidden_of(tuple(tree_leaves(self._output)), {})

    def _aside(self, mode: AbstractContextManager[Any]) -> None:
        assert self._entry is not None
        with self._offloaded.in_memory():
            self._call_aside(self._entry, mode)

    def _kept(self) -> KeptCall:
        assert self._entry is not None
        with self._offloaded.in_memory():
            entry = tree_map_only(Tensor, Tensor.clone, self._entry)
        _, args, kwargs = entry
        return KeptCall(hidden_of(args, kwargs), partial(self._call_aside, entry))

    def _call_aside(
        self, entry: _Entry, mode: AbstractContextManager[Any], hidden: Tensor | None = None
    ) -> Tensor:
        forward, args, kwargs = entry
        if hidden is not None:
            shown = hidden_of(args, kwargs)

            def in_its_place(tensor: Tensor) -> Tensor:
                return hidden if tensor is shown else tensor

            args, kwargs = tree_map_only(Tensor, in_its_place, (args, kwargs))
        if self._rehearsal.changes_input:
            # What the block writes over is still needed by its real run.
            args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        with torch.no_grad(), mode:
            output = forward(*args, **kwargs)
        return hidden_of(tuple(tree_leaves(output)), {})
