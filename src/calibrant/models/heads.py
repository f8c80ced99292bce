"""What passes from a block's values to its output matrix through attention: found by running one
token, for which attention changes nothing.

Of a single token the weighted mean of values is its own value. So where the inputs of one matrix
are the outputs of another, head by head, these are the values, whatever their names are and
wherever in a fused matrix they stand. Anything that attention does to values besides averaging them
(a norm, a gate, a sink) shows as a difference.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.models.changing import overwrite
from calibrant.models.viewing import Block, ModelView, Weight

ALIKE: Final = 1e-4
"""How far an input may be from a value, as a share of the largest."""


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
        config = view.model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_attention_heads", None)
        width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        if not width:
            return {}
        passed = _passed(view)
        found = {block.index: next(_pairs(block, passed, width), None) for block in view.blocks}
        return {index: one for index, one in found.items() if one is not None}

    def multiply(self, matrix: Float[Tensor, "width width"]) -> None:
        """Multiply every head's values, as rows, by an orthogonal `matrix`, and what reads them
        by its transpose: the block computes the same.
        """
        turned = self.values.get().to(matrix.dtype, copy=True)
        bias = None if self.bias is None else self.bias.detach().to(matrix.dtype, copy=True)
        for at in sorted(set(self.first)):
            rows = slice(at, at + self.width)
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
        return {
            place: tuple(head for head, first in enumerate(self.first) if first == place)
            for place in sorted(set(self.first))
        }

    def permute(self, place: int, order: Int[Tensor, "width"]) -> None:
        """Put the values that begin at row `place` into another order, and the columns of all
        heads that read them: the block computes the same.
        """
        order = order.to(self.values.stored.device)
        values, read = self.values.get().clone(), self.output.get().clone()
        values[place : place + self.width] = values[place + order]
        for head in self.sharing()[place]:
            at = head * self.width
            read[:, at : at + self.width] = read[:, at + order]
        self.values.set(values)
        self.output.set(read)
        if self.bias is not None:
            bias = self.bias.detach().clone()
            bias[place : place + self.width] = bias[place + order]
            overwrite(self.bias, bias)


def _passed(view: ModelView) -> Mapping[str, tuple[Tensor, Tensor]]:
    """What each matrix of a module of its own makes of one token: input and output."""
    passed: dict[str, tuple[Tensor, Tensor]] = {}
    handles: list[Any] = []
    try:
        for weight in (weight for weight in view.weights if weight.expert is None):
            handles.append(
                weight.owner.register_forward_hook(
                    lambda _, args, out, name=weight.name: (
                        passed.__setitem__(name, (args[0].flatten(), out.flatten()))
                        if args and isinstance(out, Tensor)
                        else None
                    )
                )
            )
        with torch.no_grad():
            device = next(view.model.parameters()).device
            view.model(input_ids=torch.ones(1, 1, dtype=torch.long, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return passed


def _pairs(
    block: Block, passed: Mapping[str, tuple[Tensor, Tensor]], width: int
) -> Iterator[Heads]:
    there = [weight for weight in block.weights if weight.name in passed]
    for output in there:
        for values in (weight for weight in there if weight is not output):
            first = _places(passed[output.name][0], passed[values.name][1], width)
            if first:
                bias = getattr(values.owner, "bias", None)
                yield Heads(
                    block.index,
                    width,
                    first,
                    values,
                    output,
                    bias if isinstance(bias, Tensor) else None,
                )


def _places(read: Tensor, made: Tensor, width: int) -> tuple[int, ...]:
    """Where in `made` each head of `read` stands; nothing if one doesn't, or in two places."""
    if len(read) % width or len(made) % width:
        return ()
    apart = (read.reshape(-1, 1, width) - made.reshape(1, -1, width)).abs().amax(2)
    same = apart <= ALIKE * made.abs().max()
    return tuple((same.int().argmax(1) * width).tolist()) if bool((same.sum(1) == 1).all()) else ()
