"""The values of a block's attention, and the output matrix that reads them. They are found by
running one token, for which attention changes nothing.

Attention takes a weighted mean of values; of a single token that is its own value. So where the
inputs of one matrix are the outputs of another, head by head, these are the values, whatever their
names are, and wherever they are in a fused matrix. Anything that attention does to values besides
averaging them (a norm, a gate, a sink) shows as a difference.
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
"""How far an input may be from a value, as a share of the largest output."""

_Passed = dict[str, tuple[Tensor, Tensor]]
"""For each matrix its input and output of one token."""


@final
@dataclass(frozen=True)
class Heads:
    """The values of a block's attention. Head h has `width` rows of the matrix `values` from row
    `first[h]` on, and as many columns of the matrix `output` from column h · width on. `bias` is
    that of `values`.

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
        """Return the heads of every block in which they are found, by its index: none where the
        configuration has another width for some layers. The model isn't changed.
        """
        config = view.config
        try:
            width = getattr(config, "head_dim", None)
            heads = getattr(config, "num_attention_heads", None)
        except RuntimeError:
            # transformers refuses to name one width, or one number, for layers that differ.
            return {}
        if not width and heads:
            width = config.hidden_size // heads
        if not width:
            return {}
        passed = _passed(view)
        found: dict[int, Heads] = {}
        for block in view.blocks:
            block_heads = _heads_of(block, passed, width)
            if block_heads is not None:
                found[block.index] = block_heads
        return found

    def multiply(self, matrix: Float[Tensor, "width width"]) -> None:
        """Multiply every head's values, as row vectors, by an orthogonal `matrix`, and undo it in
        `output`: the block computes the same.
        """
        # Computed in the type of `matrix`, mostly float64, and rounded to the model's type once.
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
        """Return the heads that share values, by the first row of the values."""
        heads: dict[int, list[int]] = {place: [] for place in sorted(set(self.first))}
        for head, place in enumerate(self.first):
            heads[place].append(head)
        return {place: tuple(sharing) for place, sharing in heads.items()}

    def permute(self, place: int, order: Int[Tensor, "width"]) -> None:
        """Put the values that begin at row `place` into another order, and so the columns of all
        heads that read them: the block computes the same. `order` has the old place of each value.
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
    """Each matrix's input and output for one token; experts' matrices, which share a module, are
    left out.
    """
    passed: _Passed = {}
    with ExitStack() as stack, torch.no_grad():
        for weight in view.weights:
            if weight.expert is None:
                note = partial(_note, passed, weight.name)
                stack.callback(weight.owner.register_forward_hook(note).remove)
        ids = torch.ones(1, 1, dtype=torch.long, device=view.device)
        view.model(input_ids=ids, use_cache=False)
    return passed


def _note(passed: _Passed, name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if args and isinstance(output, Tensor):
        passed[name] = args[0].flatten(), output.flatten()


def _heads_of(block: Block, passed: _Passed, width: int) -> Heads | None:
    """The first pair of matrices of a block of which one reads just what the other gave."""
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
    """The first row in `made` of each head of `read`. Empty unless each is in it exactly once."""
    if len(read) % width or len(made) % width:
        return ()
    distances = (read.reshape(-1, 1, width) - made.reshape(1, -1, width)).abs().amax(2)
    alike = distances <= ALIKE * made.abs().max()
    # A head that is like two values can't be told to read one of them.
    if not bool((alike.sum(1) == 1).all()):
        return ()
    return tuple((alike.int().argmax(1) * width).tolist())
