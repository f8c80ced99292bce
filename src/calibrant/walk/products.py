"""The products that a forward makes with a model's matrices, and how it is asked for them.

A torch-function mode sees `linear`, `addmm`, `matmul`, `bmm` and the like, whatever module asks for
them. So `nn.Linear`, GPT-2's transposed Conv1D, the slices of fused 3-D experts, and a matrix that
stands on the left, as in Mamba's step size, are all seen in the same way.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from calibrant.errors import ModelError
from calibrant.models import Block, Weight

_AS_OUT_IN: Final = {"linear"}
"""Products that take their matrix as [out, in]."""
_AS_IN_OUT: Final = {"addmm", "mm", "matmul", "__matmul__", "bmm", "baddbmm"}
"""Products that take their matrix as [in, out]."""
_SUMMED: Final = {"addmm", "baddbmm"}
"""Products whose first argument is what the product is added to."""
_OPERANDS: Final = (
    "input",
    "weight",
    "mat1",
    "mat2",
    "other",
    "batch1",
    "batch2",
    "tensor1",
    "tensor2",
)
"""Names of the operands of products, in their order."""


@final
@dataclass(frozen=True)
class Product:
    """A matrix that is about to be multiplied with `x` [… token, in].

    Where a router picked the rows of `x`, `tokens` has the position of each row's token; None
    elsewhere, and where it isn't known.
    """

    weight: Weight
    x: Tensor
    tokens: Tensor | None = None


@final
class Watch(TorchFunctionMode):
    """While it is entered, `on_product` is called with every product with one of the `weights`,
    before it is made. What it returns, if anything, takes the place of the product's `x`.

    `positions` is how many tokens the forward has. A gather from a table of so many rows shows of
    which tokens an expert gets the rows.
    """

    def __init__(
        self,
        weights: Iterable[Weight],
        on_product: Callable[[Product], Tensor | None],
        positions: int,
    ) -> None:
        super().__init__()
        self._on_product = on_product
        self._positions = positions
        self._gathered: Tensor | None = None
        self.look_for(weights)

    def look_for(self, weights: Iterable[Weight]) -> None:
        """Report products with these matrices, where they are now, and with no others."""
        self._weights = {weight.address: weight for weight in weights}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        args = self.see(getattr(func, "__name__", ""), args, kwargs)
        return func(*args, **kwargs)

    def see(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Report the products that the function `name`, called so, is about to make. Return the
        arguments that it is to be called with.
        """
        if name in _AS_OUT_IN or name in _AS_IN_OUT:
            for product in self._products(name, args, kwargs):
                x = self._on_product(product)
                if x is not None:
                    args = _exchanged(args, product.x, x)
        elif name in ("__getitem__", "index_select"):
            self._note_gather(args[0], args[-1])
        return args

    def _products(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Product]:
        named_operands = [kwargs[key] for key in _OPERANDS if key in kwargs]
        operands = [*args, *named_operands]
        if name in _SUMMED:
            del operands[0]
        x, matrix = operands[:2]
        if not isinstance(x, Tensor) or not isinstance(matrix, Tensor):
            return
        # An address says where a matrix begins. A part of it may begin there too, so shape and
        # strides are compared as well.
        weight = self._weights.get(matrix.data_ptr())
        if weight is None:
            # W @ x: the matrix stands on the left, and its inputs are columns.
            if x.dim() == 2 and matrix.dim() > 1 and name not in _AS_OUT_IN:
                weight = self._weights.get(x.data_ptr())
                if weight is not None and _is_whole(weight, x):
                    yield Product(weight, matrix.mT)
        elif matrix.dim() == 3:
            yield from self._batched(x, matrix)
        else:
            out_in = matrix if name in _AS_OUT_IN else matrix.mT
            if _is_whole(weight, out_in):
                yield Product(weight, x, self._gathered)

    def _batched(self, x: Tensor, matrices: Tensor) -> Iterator[Product]:
        """One product over all experts, as Llama 4 has it: every expert is multiplied with all
        tokens, those of others being rows of zeros.
        """
        for expert, matrix in enumerate(matrices.mT):
            weight = self._weights.get(matrix.data_ptr())
            if weight is None or not _is_whole(weight, matrix):
                continue
            rows = x if x.dim() < 3 else x[expert]
            if len(rows) == self._positions:
                tokens = rows.ne(0).any(-1).nonzero().flatten()
                yield Product(weight, rows[tokens], tokens)
            else:
                yield Product(weight, rows)

    def _note_gather(self, table: Any, index: Any) -> None:
        if isinstance(index, tuple):
            # `table[None, index]` takes rows by `index` as `table[index]` does.
            if any(part is not None for part in index[:-1]):
                return
            index = index[-1]
        if not isinstance(index, Tensor) or index.dim() != 1:
            return
        if index.dtype not in (torch.int64, torch.int32):
            return
        # A table with a row for each token: what comes out of it are the rows of one expert, which
        # its products get next.
        if table.is_floating_point() and len(table) == self._positions:
            self._gathered = index


def _exchanged(args: tuple[Any, ...], before: Tensor, after: Tensor) -> tuple[Any, ...]:
    """Return the arguments with one tensor in the place of another."""
    exchanged = list(args)
    for place, value in enumerate(args):
        if value is before:
            exchanged[place] = after
    return tuple(exchanged)


def _is_whole(weight: Weight, matrix: Tensor) -> bool:
    """Whether `matrix` is all of `weight`. Products with a part of a matrix aren't followed; the
    rehearsal tells the user.
    """
    whole = weight.get()
    return matrix.shape == whole.shape and matrix.stride() == whole.stride()


def inputs_of(base: nn.Module, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor | bool]:
    """Return the arguments with which `base` runs on `ids` [sample, position] without a cache.

    `mask` [sample, position] is false for padding. Raises `ModelError` where `base` takes no mask.
    """
    parameters = signature(base.forward).parameters
    parameter_kinds = {parameter.kind for parameter in parameters.values()}
    inputs: dict[str, Tensor | bool] = {"input_ids": ids}
    if "use_cache" in parameters or Parameter.VAR_KEYWORD in parameter_kinds:
        inputs["use_cache"] = False
    if mask is None:
        return inputs
    # A decorated forward that takes anything hands it on to one that may take a mask.
    hands_on = {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD} <= parameter_kinds
    if "attention_mask" not in parameters and not hands_on:
        name = type(base).__name__
        raise ModelError(
            f"{name} takes no attention mask, so padding can't be kept from it; "
            "use a packing without padding, such as many",
            subject=name,
        )
    inputs["attention_mask"] = mask.long()
    return inputs


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, `module` has another `forward`; its hooks run around that as usual."""
    before = vars(module).get("forward")  # accelerate's, where it has put one there
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states among what a block is called with: its first tensor."""
    for value in (*args, kwargs.get("hidden_states"), *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise ModelError("a block was called without hidden states, so it can't be followed")


@final
class Order:
    """The order in which the matrices of a block are visited, the same for all micro-batches.

    Matrices come in the order of their first use. Experts come by number, and each expert's
    matrices by use. In the groups `by_use` it is the other way round: all experts do their first
    product before any does its second. Groups in `apart` have numbers in their names, but other
    matrices come between them: each of theirs is visited by its own first use.
    """

    def __init__(
        self,
        block: Block,
        by_use: frozenset[str] = frozenset(),
        apart: frozenset[str] = frozenset(),
    ) -> None:
        self._block = block
        self._by_use = by_use
        self._apart = apart
        self._weights = {weight.name: weight for weight in block.weights}
        self._numbers: dict[str, int] = {}
        self._last: tuple[int, int, int] | None = None

    def next(self, waiting: Sequence[str]) -> Weight:
        """Return the first in this order of the matrices that forwards wait at, given by name.

        Raises `ModelError` for a matrix that was visited before, or that comes before the last one.
        """
        places = {name: self._place(self._weights[name]) for name in waiting}
        name = min(places, key=places.__getitem__)
        place = places[name]
        if self._last is not None and place <= self._last:
            raise ModelError(
                f"{name} is used twice in one forward of {self._block.name}, so it can't be "
                "compressed on arrival; use reference or dense",
                subject=name,
            )
        self._last = place
        return self._weights[name]

    def _place(self, weight: Weight) -> tuple[int, int, int]:
        group, number, use = grouped(weight, self._block)
        if group in self._apart:
            return self._number(weight.name), 0, 0
        if group in self._by_use:
            return self._number(f"{group} {use}"), number, 0
        return self._number(group), number, self._number(f"{group} {use}")

    def _number(self, key: str) -> int:
        """The number of a key in the order in which keys are first asked for."""
        return self._numbers.setdefault(key, len(self._numbers))


def grouped(weight: Weight, block: Block) -> tuple[str, int, str]:
    """Return the group of experts that a matrix belongs to, the number of its expert, and which of
    the expert's matrices it is (its use). A matrix of no expert is a group by itself.
    """
    name = weight.name.removeprefix(block.name + ".")
    if weight.expert is not None:
        return name.rpartition(".")[0], weight.expert, weight.tensor_name
    numbered = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
    if numbered is None:
        return name, 0, ""
    return numbered[1], int(numbered[2]), numbered[3]
