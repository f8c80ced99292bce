"""Where numbers flow in a forward: which matrices read what, and what is added to what.

A forward of a few tokens runs under a mode that sees every operation of PyTorch. Each tensor of
interest carries a *label*: it is the residual stream; it is what a norm made of the stream; it is a
sum of what matrices *made*; its features are functions of certain *rows* of matrices. An operation
passes a label on only where that is certain to stay true. What isn't known to keep it loses it, and
where the stream or a norm's output goes into such an operation, that is written down. So an
architecture is never taken for simpler than it is: what isn't understood is said, whatever its
modules are called.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_LAYOUT: Final = """
view _unsafe_view _reshape_alias reshape expand unsqueeze squeeze clone _to_copy alias detach detach_ contiguous slice select index index_select
t transpose permute repeat split split_with_sizes unbind lift_fresh chunk
"""
_UNARY: Final = """
silu silu_ gelu relu relu_ sigmoid tanh pow clamp clamp_ clamp_min clamp_max neg abs exp erf softplus leaky_relu hardtanh square elu mish
"""
LAYOUT: Final = frozenset(_LAYOUT.split())
"""Operations that take features as they are, or some of them, or put tokens elsewhere."""
UNARY: Final = frozenset(_UNARY.split())
"""Functions of each number alone."""
EMPTY: Final = {
    "zeros_like",
    "new_zeros",
    "zeros",
    "empty_like",
    "new_empty",
    "ones_like",
    "new_ones",
    "full_like",
    "new_full",
}
"""Operations that take nothing but shape and type from a tensor."""
PRODUCTS: Final = ("mm", "addmm", "bmm", "linear", "baddbmm")
ZERO: Final = {"zeros_like", "new_zeros", "zeros"}

Products = frozenset[tuple[str, str]]
"""Names of matrices (or of vectors that are added), each with the norm that what it made went
through, or nothing.
"""


@final
@dataclass(frozen=True)
class Rows:
    """Feature c of a tensor is a function of row `first + step · c` of the matrix."""

    matrix: str
    first: int = 0
    step: int = 1


@final
@dataclass(frozen=True)
class Label:
    """What is known of a tensor's last dimension."""

    stream: bool = False
    norm: str = ""
    made: Products = frozenset()
    rows: frozenset[Rows] = frozenset()
    copy: bool = False
    """True of a matrix in another type."""
    zero: bool = False
    stale: bool = False
    """True of another name of a memory that was written into since."""


NOTHING: Final = Label()
ELSEWHERE: Final = "?"
"""What stands for an input of a matrix that is neither the stream nor a norm's output."""


@final
@dataclass(frozen=True)
class TracedProduct:
    """A matrix as a forward may multiply with it."""

    name: str
    shape: tuple[int, int]
    """`[out, in]`."""
    strides: tuple[int, int]
    """Of the matrix as `[out, in]`: a product that takes it otherwise is no product with it."""


class Flow(TorchDispatchMode):
    """Runs a forward, and writes down who reads the stream, who writes to it, and which matrices
    are a feed-forward layer's.
    """

    def __init__(
        self,
        products: Mapping[int, TracedProduct],
        holders: Mapping[int, tuple[TracedProduct, ...]],
        vectors: Mapping[int, str],
    ) -> None:
        super().__init__()
        self.inputs: dict[str, set[str]] = {}
        """For each matrix the norms it read the stream through, an empty name where through
        none, and `ELSEWHERE` for any other input.
        """
        self.writes: dict[str, set[str]] = {}
        """For each matrix or vector the norms through which it was added to the stream."""
        self.pairs: dict[str, set[frozenset[Rows]]] = {}
        """For each matrix the rows of others that its inputs are functions of."""
        self.others: dict[str, set[str]] = {}
        """For each norm (and an empty name for the stream) the operations that it went into
        besides.
        """
        self.spilled: dict[str, str] = {}
        """For each matrix an operation besides sums that what it made went into."""
        self.mixed: set[str] = set()
        """Matrices of which rows went into more than functions of each row alone."""
        self.place = "before the blocks"
        self._products, self._holders, self._vectors = dict(products), holders, vectors
        self._labels: dict[int, tuple[Tensor, Label]] = {}
        self._in_memory: dict[int, set[int]] = {}
        self._inside_norm = 0

    def label(self, x: Any) -> Label:
        """Return what is known of a tensor; nothing of anything else."""
        entry = self._labels.get(
            id(x)
        )  # a number is given anew when a tensor is gone, so the tensor itself is compared too
        return entry[1] if entry is not None and entry[0] is x else NOTHING

    def put(self, x: Tensor, label: Label) -> None:
        """Say what a tensor is. It is held, so that its address stays its own."""
        if label == NOTHING:
            self._labels.pop(id(x), None)
            return
        self._labels[id(x)] = (x, label)
        self._in_memory.setdefault(x.untyped_storage().data_ptr(), set()).add(id(x))

    def into_norm(self) -> None:
        """A norm begins: what it computes inside is its own affair."""
        self._inside_norm += 1

    def out_of_norm(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        """A norm made `result` of what it was `given`."""
        self._inside_norm -= 1
        inputs, results = [self.label(x) for x in _tensors(arguments)], list(_tensors([result]))
        outcome = NOTHING
        if len(inputs) == len(results) == 1 and inputs[0].stream:
            outcome = Label(norm=name)
            inputs = []
        elif (
            len(inputs) == len(results) == 1
            and inputs[0].made
            and not any(norm for _, norm in inputs[0].made)
        ):
            outcome = Label(made=frozenset((matrix, name) for matrix, _ in inputs[0].made))
        for one in results:
            self.put(one, outcome)
        self._settle(f"the norm {name}", inputs, [outcome])

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        # Labels are of what went in: they are read before the operation, which may write over its
        # inputs.
        labels = [self._refreshed(name, x) for x in _tensors([*args, *kwargs.values()])]
        result = func(*args, **kwargs)
        outputs = list(_tensors([result]))
        if func._schema.is_mutable:
            self._overwritten(outputs)
        if self._inside_norm:  # `out_of_norm` will say what its result is
            return result
        outcome, message = self._outcome(name, args, kwargs, labels, outputs)
        for one, label in zip(outputs, outcome, strict=True):
            self.put(one, label)
        self._settle(message, self._inputs_to_settle(name, args, labels, outcome), outcome)
        return result

    def _outcome(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        labels: list[Label],
        outputs: list[Tensor],
    ) -> tuple[list[Label], str]:
        """What is known of what an operation gives, and what to call it."""
        if name in EMPTY:
            return [Label(zero=name in ZERO)], name
        if name == "embedding" and args[0].data_ptr() in self._vectors:
            return [Label(made=frozenset([(self._vectors[args[0].data_ptr()], "")]))], name
        if name in LAYOUT:
            return self._layout(name, args, outputs), name
        if name in PRODUCTS:
            return [self._product(name, args)], name
        if name in ("add", "add_", "index_add", "index_add_") and kwargs.get("alpha", 1) == 1:
            return self._sum(name, args)
        if name in ("mul", "mul_", "div", "div_") and not kwargs:
            return [self._multiple(name, args)], name
        # A sum over anything but the features adds up experts or tokens: it stays a sum of what
        # matrices made, but no row is told from another.
        if (
            name == "sum"
            and len(args) > 1
            and args[1]
            and all(dim % args[0].dim() != args[0].dim() - 1 for dim in args[1])
        ):
            return [replace(labels[0], rows=frozenset())], name
        if name == "cat":
            return [_joined(args, labels, outputs[0])], name
        if name in UNARY and len(labels) == 1:
            return [Label(rows=labels[0].rows)], name
        return [NOTHING] * len(outputs), name

    def _inputs_to_settle(
        self, name: str, args: tuple[Any, ...], labels: list[Label], outcome: list[Label]
    ) -> list[Label]:
        """What went into an operation and must come out of it. What a product reads and what a
        sum writes has arrived.
        """
        if name in EMPTY:
            return []
        if name in PRODUCTS and self._matrices(name, args):
            return [Label(made=label.made) for label in labels]
        if any(label.stream for label in outcome):
            return [replace(label, made=frozenset()) for label in labels]
        return labels

    def _settle(self, name: str, labels: Sequence[Label], outcome: Sequence[Label]) -> None:
        """Write down what went into an operation and is not what came out of it."""
        matrices = {matrix for label in outcome for matrix, _ in label.made}
        rows = {one.matrix for label in outcome for one in label.rows}
        for label in labels:
            if (label.stream or label.norm) and not any(
                (out.stream, out.norm) == (label.stream, label.norm) for out in outcome
            ):
                self.others.setdefault(label.norm, set()).add(f"{name} in {self.place}")
            for matrix in {matrix for matrix, _ in label.made} - matrices:
                self.spilled.setdefault(matrix, name)
            self.mixed |= {one.matrix for one in label.rows} - rows

    def _overwritten(self, outputs: Sequence[Tensor]) -> None:
        """Mark other names of a memory that an operation wrote into: they are something else
        now, should anybody still use them.
        """
        for one in outputs:
            place = one.untyped_storage().data_ptr()
            for key in self._in_memory.get(place, set()) - {id(one)}:
                # A tensor that was forgotten may have left its number to another, which lies
                # elsewhere.
                if (
                    key in self._labels
                    and self._labels[key][0].untyped_storage().data_ptr() == place
                ):
                    x, label = self._labels[key]
                    self._labels[key] = x, replace(label, stale=True)

    def _refreshed(self, name: str, x: Tensor) -> Label:
        """What is known of a tensor that is used now."""
        label = self.label(x)
        if label.stale:
            self._settle(f"{name} after it was written over", [label], [])
            self.put(x, NOTHING)
        return self.label(x)

    def _layout(self, name: str, args: tuple[Any, ...], outputs: list[Tensor]) -> list[Label]:
        x, label = args[0], self.label(args[0])
        product = self._stored(x) if name in ("_to_copy", "clone") else None
        if product is not None:  # a matrix in another type: held, it keeps its place in memory
            self._products[outputs[0].data_ptr()] = TracedProduct(
                product.name, product.shape, strides(outputs[0])
            )
            return [Label(copy=True)]
        if label == NOTHING or label.copy:
            return [NOTHING] * len(outputs)
        return [self._laid_out(name, x, y, args, number, label) for number, y in enumerate(outputs)]

    def _laid_out(
        self, name: str, x: Tensor, y: Tensor, args: tuple[Any, ...], number: int, label: Label
    ) -> Label:
        if _keeps_features(name, x, y, args):
            return label
        part = _selected_features(name, x, args, number)
        if part is None:
            return NOTHING
        first, step = part
        return Label(
            rows=frozenset(
                Rows(rows.matrix, rows.first + first * rows.step, rows.step * step)
                for rows in label.rows
            )
        )

    def _stored(self, x: Any) -> TracedProduct | None:
        """The matrix that `x` is, as `[out, in]`."""
        product = (
            self._products.get(x.data_ptr()) if isinstance(x, Tensor) and x.dim() == 2 else None
        )
        return (
            product
            if product is not None
            and (product.shape, product.strides) == (tuple(x.shape), x.stride())
            else None
        )

    def _product(self, name: str, args: tuple[Any, ...]) -> Label:
        bias, x, _ = _operands(name, args)
        matrices, label = self._matrices(name, args), self.label(x)
        source = label.norm if label.stream or label.norm else ELSEWHERE
        for matrix in matrices:
            self.inputs.setdefault(matrix, set()).add(source)
            if label.rows:
                self.pairs.setdefault(matrix, set()).add(label.rows)
        added = self._addend(bias)
        # A product is a sum with its bias: where that is nothing that the model holds, more went
        # into the result than a label could say.
        if not matrices or (isinstance(bias, Tensor) and not added.made):
            return NOTHING
        products = frozenset((matrix, "") for matrix in matrices) | added.made
        return Label(
            made=products, rows=frozenset(Rows(matrix) for matrix in matrices) | added.rows
        )

    def _matrices(self, name: str, args: tuple[Any, ...]) -> tuple[str, ...]:
        """The matrices that a product multiplies with: one, or those of all experts; none where
        it is anything else.
        """
        operand = _operands(name, args)[2]
        turned = operand if name == "linear" else operand.mT
        known = self._stored(turned)
        if known is not None:
            return (known.name,)
        holders = self._holders.get(operand.data_ptr(), ()) if operand.dim() == 3 else ()
        return tuple(
            one.name
            for one in holders
            if (one.shape, one.strides) == (tuple(turned.shape[1:]), turned.stride()[1:])
        )

    def _sum(self, name: str, args: tuple[Any, ...]) -> tuple[list[Label], str]:
        a, b = args[0], args[3] if name.startswith("index_add") else args[1]
        one, other = self._addend(a), self._addend(b)
        if not isinstance(b, Tensor) or b.dim() == 0:
            return [
                Label(rows=one.rows)
            ], name  # a number added to every feature is no sum of what matrices made
        if (
            one.norm
            or other.norm
            or (name.startswith("index_add") and args[1] % a.dim() == a.dim() - 1)
        ):
            return [NOTHING], name
        if one.stream or other.stream:
            rest = other if one.stream else one
            # Only what matrices made may be added to the stream; an embedding of positions, say,
            # would be a part of it that nobody rotates or folds.
            if rest.stream or not (rest.made or rest.zero) or a.shape[-1] != b.shape[-1]:
                return [NOTHING], f"{name} of " + (
                    "the stream to itself" if rest.stream else "what no matrix made"
                )
            for matrix, norm in rest.made:
                self.writes.setdefault(matrix, set()).add(norm)
            return [Label(stream=True)], name
        # Zeros are where experts put their outputs: they add nothing, and what is added to them is
        # all there is.
        products = (
            one.made | other.made
            if (one.made or one.zero) and (other.made or other.zero) and a.shape[-1] == b.shape[-1]
            else frozenset()
        )
        rows = (
            one.rows | other.rows
            if (one.rows or one.zero) and (other.rows or other.zero) and a.shape[-1] == b.shape[-1]
            else frozenset()
        )
        return [Label(made=products, rows=rows, zero=one.zero and other.zero)], name

    def _addend(self, x: Any) -> Label:
        """What is known of a term; a vector of the model is made by itself."""
        label = self.label(x)
        if (
            label == NOTHING
            and isinstance(x, Tensor)
            and x.data_ptr() in self._vectors
            and x.dim() == 1
        ):
            name = self._vectors[x.data_ptr()]
            return Label(made=frozenset([(name, "")]), rows=frozenset([Rows(name)]))
        return label

    def _multiple(self, name: str, args: tuple[Any, ...]) -> Label:
        one, other = self.label(args[0]), self.label(args[1])
        a, b = _width(args[0]), _width(args[1])
        # By one number for all features of a token: still the same sum of the same things.
        if b == 1 and a != 1:
            return one
        if a == 1 and b != 1 and name.startswith("mul"):
            return other
        if a == b == 1:
            return NOTHING
        # Feature by feature, as gate times up: a function of both their rows, and no sum of
        # anything.
        return Label(rows=one.rows | other.rows if one.rows and other.rows else frozenset())


def strides(x: Tensor) -> tuple[int, int]:
    """Return those of a matrix."""
    down, across = list(x.stride())
    return down, across


def _operands(name: str, args: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """What a product adds (if anything), what it multiplies, and with what."""
    if name in ("addmm", "baddbmm"):
        return args[0], args[1], args[2]
    x, matrix, *bias = args
    return bias[0] if bias and name == "linear" else None, x, matrix


def _joined(args: tuple[Any, ...], labels: list[Label], result: Tensor) -> Label:
    """Tokens of several tensors one below the other, as experts' outputs are put together."""
    # Side by side their features would be renumbered, and what one of them is says nothing of
    # another.
    across = (args[1] if len(args) > 1 else 0) % result.dim() != result.dim() - 1
    alike = {(label.stream, label.norm, bool(label.made), bool(label.rows)) for label in labels}
    if not across or len(alike) != 1:
        return NOTHING
    products, rows = (
        frozenset(m for label in labels for m in label.made),
        frozenset(r for label in labels for r in label.rows),
    )
    return Label(labels[0].stream, labels[0].norm, products, rows)


def _width(x: Any) -> int:
    return x.shape[-1] if isinstance(x, Tensor) and x.dim() else 1


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _keeps_features(name: str, x: Tensor, y: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether the last dimension of `y` is that of `x`, feature by feature."""
    last = x.dim() - 1
    if not x.dim() or not y.dim() or x.shape[-1] != y.shape[-1]:
        return False
    if name == "t":
        return x.dim() < 2
    if name == "transpose":
        return last not in (args[1] % x.dim(), args[2] % x.dim())
    if name == "permute":
        return args[1][-1] % x.dim() == last
    if name == "repeat":
        return args[1][-1] == 1
    if name in ("select", "unbind"):
        return (args[1] if len(args) > 1 else 0) % x.dim() != last
    if name == "index":
        # A mask takes as many dimensions as it has; the features are safe if the indices end before
        # the last one.
        dimensions = sum(
            1 if one is None or one.dtype != torch.bool else one.dim() for one in args[1]
        )
        return dimensions < x.dim() or args[1][-1] is None
    if name == "index_select":
        return args[1] % x.dim() != last
    return True


def _selected_features(
    name: str, x: Tensor, args: Sequence[Any], number: int
) -> tuple[int, int] | None:
    """Where features of `x` were taken as those of the result with this number: the first, and
    the step; None where it is anything else.
    """
    last = x.dim() - 1
    match name, list(args):
        case "slice", [_, dim, *rest] if dim % x.dim() == last:
            start, step = (
                rest[0] if rest and rest[0] is not None else 0,
                rest[2] if len(rest) > 2 else 1,
            )
            return (start + x.shape[-1] if start < 0 else start), step
        case "split" | "split_with_sizes", [_, size, dim] if dim % x.dim() == last:
            return (number * size if isinstance(size, int) else sum(size[:number])), 1
        case _:
            return None


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that normalise, by name: those that are called so, and have no parts of
    their own.
    """
    return {
        name: m
        for name, m in model.named_modules()
        if "norm" in type(m).__name__.lower() and not any(True for _ in m.children())
    }
