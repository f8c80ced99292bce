"""One micro-batch on its way through a model's own forward: a greenlet that stops at the door of
each block, and at products in it.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, final

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from calibrant.activations import InputStatistic, Seen
from calibrant.errors import ModelError, NumericsError, WalkError
from calibrant.models import Block, ModelView, Weight
from calibrant.system.clock import spent_on
from calibrant.walk.attention import BlockCall, Weigh
from calibrant.walk.block_statistics import BlockRun
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
        self.counted, self.weights, self._own_weights = counted, weights, weights
        self._ids: Tensor = inputs["input_ids"]
        self.samples, self.length = self._ids.shape
        self._rehearsal, self._blocks = rehearsal, [view.blocks[index] for index in calls]
        self._called = 0
        self._entry: _Entry | None = None
        self._output: Any = None
        self._watch: Watch | None = None
        self._offloaded, self._looked_at = offloaded, False
        self._loop = getcurrent()
        base = view.base
        # A greenlet is a function with a stack of its own, which can be left in the middle and
        # entered again where it was left. A generator could only yield in its own body; the places
        # where this one stops lie deep in the model's own code.
        self._greenlet = greenlet(lambda: base(**inputs))

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
        self.stopped, self._loop = None, getcurrent()
        self._greenlet.parent = self._loop
        ahead = None if self.at_last else self._blocks[self._called].module
        with (
            torch.no_grad(),
            self._watch or nullcontext(),
            nullcontext() if ahead is None else replaced(ahead, self._door(ahead.forward)),
        ):
            reached = self._greenlet.switch()  # runs the forward until it switches back here, with the product it stands at, or ends
        self.stopped = reached if isinstance(reached, Product) else None
        if self._greenlet.dead and not self.at_last:
            name = self._blocks[self._called].name
            raise WalkError(
                f"the model's forward ended before it came to {name}, which it ran for eight tokens",
                subject=name,
            )

    def go(
        self, weights: Sequence[Weight] = (), on_product: Callable[[Product], None] | None = None
    ) -> None:
        """Let the block run at whose door the forward stands; with `weights`, stop at their
        products, or tell `on_product` of them.
        """
        self._watch = (
            Watch(weights, on_product or self._stop, self.samples * self.length)
            if weights
            else None
        )
        self.resume()

    def wait(self) -> None:
        """Let what the next block is about to be given go to disk, where it is to be there:
        nobody looks at it any more.
        """
        self._looked_at = False
        if self._entry is not None:
            self._output = None
            self._offloaded.offload(hidden_of(*self._entry[1:]))

    def look(self, weights: Sequence[Weight], on_product: Callable[[Product], None]) -> None:
        """Run that block aside, and throw away what it gives; the forward stays at its door."""
        self._aside(Watch(weights, on_product, self.samples * self.length))

    def _aside(self, mode: TorchFunctionMode) -> None:
        assert self._entry is not None
        with self._offloaded.there():
            self._run(self._entry, mode)

    def _run(self, entry: _Entry, mode: TorchFunctionMode) -> None:
        forward, args, kwargs = entry
        if (
            self._rehearsal.changes_input
        ):  # what the block writes over is still needed by its real run
            args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        with torch.no_grad(), mode:
            forward(*args, **kwargs)

    def _kept(self) -> Callable[[TorchFunctionMode], None]:
        assert self._entry is not None
        with self._offloaded.there():
            return partial(self._run, tree_map_only(Tensor, Tensor.clone, self._entry))

    def weigh(self, block: Block, by: Weigh | None) -> None:
        """Let its tokens count by their own weight times what `by` says of the block at whose
        door the forward stands.
        """
        if by is None:
            return
        device = self.block_input().device
        real = torch.zeros(self.samples * self.length, dtype=torch.bool, device=device)
        real[slice(None) if self.counted is None else self.counted] = True
        given = by(
            BlockCall(block, real.reshape(self.samples, self.length), self._aside, self._kept)
        )
        weights = None if given is None else given.flatten()[real].float()
        self.weights = (
            self._own_weights
            if weights is None
            else weights
            if self._own_weights is None
            else weights * self._own_weights
        )

    def unwind(self) -> None:
        """Let a forward that stands somewhere end there, through its own `finally`s."""
        self.stopped = None
        if self._greenlet:  # started and not ended
            self._greenlet.parent = getcurrent()
            with torch.no_grad(), self._watch or nullcontext():
                self._greenlet.throw()  # GreenletExit is raised where the forward stands, and ends it

    def _stop(self, product: Product) -> None:
        assert self._watch is not None
        with (
            self._watch
        ):  # torch takes the mode off while it asks it; the loop leaves the mode once more
            self._loop.switch(product)

    def _door(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What the next block's forward is while the model's runs: it waits, and then is
        `forward`.
        """

        def waiting(*args: Any, **kwargs: Any) -> Any:
            first = self._called == 0
            self._called += 1
            self._entry = forward, args, kwargs
            if not self._looked_at:
                self.wait()
            self._loop.switch()
            self._entry = None
            self._offloaded.fetch()
            self._output = output = forward(*args, **kwargs)
            if self.at_last:
                raise GreenletExit  # nobody needs what the head would make of it, which is the largest product of all
            if (
                first and self._rehearsal.lets_go
            ):  # the model's forward would hold it to its end, as Llama's holds the embeddings
                hidden = hidden_of(args, kwargs)
                hidden.data = hidden.new_empty(0)
            return output

        return waiting

    def block_input(self) -> Tensor:
        """Return what the block is about to be given at whose door the forward stands."""
        assert self._entry is not None
        return hidden_of(*self._entry[1:])

    def at_door(self, block: Block) -> BlockRun:
        """Return the block at whose door the forward stands, ready to be run and looked at,
        until the micro-batch is told to `wait`.
        """
        self._offloaded.fetch()
        self._looked_at = True
        flat, weights = self._ids.flatten(), self.weights
        counted = (
            torch.arange(len(flat), device=flat.device) if self.counted is None else self.counted
        )
        by_position = torch.zeros(len(flat), dtype=torch.float32, device=flat.device)
        by_position[counted] = 1.0 if weights is None else weights
        return BlockRun(
            block,
            self.block_input(),
            flat[counted],
            weights,
            by_position,
            self._block_output,
            partial(self.rows, name=block.name),
        )

    def _block_output(
        self, weights: Sequence[Weight], on_product: Callable[[Product], None]
    ) -> Tensor:
        self.go(weights, on_product)
        return hidden_of(tuple(tree_leaves(self._output)), {})

    def rows(self, x: Tensor, name: str) -> Tensor:
        """Return the rows of `x` [sample, position, …] that count, as [token, in]; `name` is
        what gets them.
        """
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
                f"the activations that reach {weight.name} hold NaN or infinity; the model or its type can't be calibrated on",
                subject=weight.name,
            )
        return seen

    def _traced(self, product: Product, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of an expert, traced to their tokens, so that padding stays out and weights find
        their rows.
        """
        tokens, positions = product.tokens, self.samples * self.length
        if tokens is None or len(tokens) != len(flat):
            raise ModelError(
                f"the {len(flat)} rows that reach {product.weight.name} can't be traced to their tokens; use a packing without padding, such as many",
                subject=product.weight.name,
            )
        # A weight for every position of the micro-batch, zero for what doesn't count; `tokens` then
        # picks those of the expert's rows.
        weigh = torch.zeros(positions, dtype=torch.float32, device=flat.device)
        counted = (
            torch.arange(positions, device=flat.device) if self.counted is None else self.counted
        )
        weigh[counted] = 1.0 if self.weights is None else self.weights
        weigh = weigh[tokens]
        real = weigh > 0
        return flat[real], None if self.weights is None else weigh[real]
