"""What passes from a block's values to its output matrix through attention: found by running one
token, for which attention changes nothing.

Of a single token the weighted mean of values is its own value. So where the inputs of one matrix
are the outputs of another, head by head, these are the values, whatever their names are and
wherever in a fused matrix they stand. Anything that attention does to values besides averaging them
(a norm, a gate, a sink) shows as a difference.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calibrant.models.changing import overwrite
from calibrant.models.viewing import Block, ModelView, Weight

ALIKE: Final = 1e-4
"""How far an input may be from a value, as a share of the largest."""

_Passed = dict[str, tuple[Tensor, Tensor]]
"""For each matrix its input and output of one token."""


@final
@dataclass(frozen=True)
class Heads:
    """The values of a block: of head h `width` rows of `values` from `first[h]` on, and the same
    number of columns of `output` from h · width on.

    Several heads share rows where queries are grouped.
    """

    block: int
    width: int
    first: tuple[int, ...]
    values: Weight
    output: Weight
    bias: Tensor | None = field(repr=False, compare=False)

    @classmethod
    def of(cls, view: ModelView) -> dict[int, "Heads"]:
        """Return those of every block in which they are found, by its index. The model's numbers
        stay as they are.
        """
        config = view.config
        width = getattr(config, "head_dim", None)
        heads = getattr(config, "num_attention_heads", None)
        if not width and heads:
            width = config.hidden_size // heads
        if not width:
            return {}
        passed = _passed(view)
        found: dict[int, Heads] = {}
        for block in view.blocks:
            of_block = _heads_of(block, passed, width)
            if of_block is not None:
                found[block.index] = of_block
        return found

    def multiply(self, matrix: Float[Tensor, "width width"]) -> None:
        """Multiply every head's values, as rows, by an orthogonal `matrix`, and what reads them
        by its transpose: the block computes the same.
        """
        # In the type of `matrix`, mostly float64, and rounded to the model's own once.
        turned = self.values.get().to(matrix.dtype, copy=True)
        bias = None if self.bias is None else self.bias.detach().to(matrix.dtype, copy=True)
        # Heads that share values have them turned once.
        for place in sorted(set(self.first)):
            rows = slice(place, place + self.width)
            turned[rows] = matrix.T @ turned[rows]
            if bias is not None:
                bias[rows] = bias[rows] @ matrix
        self.values.set(turned)
        if bias is not None and self.bias is not None:
            overwrite(self.bias, bias)
        read = self.output.get().to(matrix.dtype)
        self.output.set((read.unflatten(1, (-1, self.width)) @ matrix).flatten(1))

    def sharing(self) -> Mapping[int, tuple[int, ...]]:
        """Return the heads that share values, by the row at which these begin."""
        heads: dict[int, list[int]] = {place: [] for place in sorted(set(self.first))}
        for head, place in enumerate(self.first):
            heads[place].append(head)
        return {place: tuple(sharing) for place, sharing in heads.items()}

    def permute(self, place: int, order: Int[Tensor, "width"]) -> None:
        """Put the values that begin at row `place` into another order, and the columns of all
        heads that read them: the block computes the same.
        """
        order = order.to(self.values.stored.device)
        rows = slice(place, place + self.width)
        values = self.values.get().clone()
        values[rows] = values[place + order]
        read = self.output.get().clone()
        for head in self.sharing()[place]:
            column = head * self.width
            read[:, column : column + self.width] = read[:, column + order]
        self.values.set(values)
        self.output.set(read)
        if self.bias is not None:
            bias = self.bias.detach().clone()
            bias[rows] = bias[place + order]
            overwrite(self.bias, bias)


def _passed(view: ModelView) -> _Passed:
    """What each matrix of a module of its own makes of one token: input and output."""
    passed: _Passed = {}
    with ExitStack() as stack, torch.no_grad():
        for weight in view.weights:
            if weight.expert is None:
                note = partial(_note, passed, weight.name)
                stack.callback(weight.owner.register_forward_hook(note).remove)
        device = next(view.model.parameters()).device
        view.model(input_ids=torch.ones(1, 1, dtype=torch.long, device=device), use_cache=False)
    return passed


def _note(passed: _Passed, name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if args and isinstance(output, Tensor):
        passed[name] = args[0].flatten(), output.flatten()


def _heads_of(block: Block, passed: _Passed, width: int) -> Heads | None:
    weights = [weight for weight in block.weights if weight.name in passed]
    for output in weights:
        read, _ = passed[output.name]
        for values in weights:
            if values is output:
                continue
            _, made = passed[values.name]
            first = _places(read, made, width)
            if first:
                bias = getattr(values.owner, "bias", None)
                if not isinstance(bias, Tensor):
                    bias = None
                return Heads(block.index, width, first, values, output, bias)
    return None


def _places(read: Tensor, made: Tensor, width: int) -> tuple[int, ...]:
    """Where in `made` each head of `read` stands; nothing if one doesn't, or in two places."""
    if len(read) % width or len(made) % width:
        return ()
    apart = (read.reshape(-1, 1, width) - made.reshape(1, -1, width)).abs().amax(2)
    same = apart <= ALIKE * made.abs().max()
    # In two places at once a head's values can't be told from another's.
    if not bool((same.sum(1) == 1).all()):
        return ()
    return tuple((same.int().argmax(1) * width).tolist())
