"""Where numbers flow in a forward: which matrices read what, and what is added to what.

A forward of a few tokens runs under a mode that sees every operation of PyTorch. Each tensor of
interest carries a *label*. It says that the tensor is the residual stream, that a norm made it of
the stream, that it is a sum of what matrices *made*, or that its features are functions of certain
*rows* of matrices. An operation passes a label on only where that is certain to stay true; through
any other operation it is lost. Where the stream or a norm's output is lost so, that is noted. So an
architecture is never taken for simpler than it is, whatever its modules are called.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_LAYOUT: Final = """
view _unsafe_view _reshape_alias reshape expand unsqueeze squeeze clone _to_copy alias detach
detach_ contiguous slice select index index_select t transpose permute repeat split split_with_sizes
unbind lift_fresh chunk
"""
_UNARY: Final = """
silu silu_ gelu relu relu_ sigmoid tanh pow clamp clamp_ clamp_min clamp_max neg abs exp erf
softplus leaky_relu hardtanh square elu mish
"""
_ZERO: Final = "zeros_like new_zeros zeros"
_EMPTY: Final = f"{_ZERO} empty_like new_empty ones_like new_ones full_like new_full"
LAYOUT: Final = frozenset(_LAYOUT.split())
"""Operations that take all features or some of them, unchanged, or move tokens."""
UNARY: Final = frozenset(_UNARY.split())
"""Functions of each number alone."""
EMPTY: Final = frozenset(_EMPTY.split())
"""Operations that take nothing but shape and type from a tensor."""
PRODUCTS: Final = ("mm", "addmm", "bmm", "linear", "baddbmm")
"""Products with a matrix, or with those of all experts."""
ZERO: Final = frozenset(_ZERO.split())
SUMS: Final = ("add", "add_", "index_add", "index_add_")
MULTIPLES: Final = ("mul", "mul_", "div", "div_")

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
    """True where the tensor's memory was written into through another tensor since."""


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

    def __init__(self) -> None:
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
        self._products: Mapping[int, TracedProduct] = {}
        self._holders: Mapping[int, tuple[TracedProduct, ...]] = {}
        self._vectors: Mapping[int, str] = {}
        self._copies: dict[int, TracedProduct] = {}
        self._labels: dict[int, tuple[Tensor, Label]] = {}
        self._in_memory: dict[int, set[int]] = {}
        self._inside_norm = 0
        self._away = False

    def locate(
        self,
        products: Mapping[int, TracedProduct],
        holders: Mapping[int, tuple[TracedProduct, ...]],
        vectors: Mapping[int, str],
    ) -> None:
        """Learn where in memory matrices, experts' tensors and vectors are from now on."""
        self._products = products
        self._holders = holders
        self._vectors = vectors

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """While it lasts, nothing is written down: what runs is no part of the forward."""
        self._away = True
        try:
            yield
        finally:
            self._away = False

    def label(self, x: Any) -> Label:
        """Return what is known of a tensor; `NOTHING` for any other value."""
        tensor, label = self._labels.get(id(x), (None, NOTHING))
        # An `id` is used again when its tensor is gone, so the tensor itself is compared too.
        return label if tensor is x else NOTHING

    def put(self, x: Tensor, label: Label) -> None:
        """Note what is known of a tensor. It is held, so that its address stays its own."""
        if label == NOTHING:
            self._labels.pop(id(x), None)
            return
        self._labels[id(x)] = (x, label)
        self._in_memory.setdefault(_memory_of(x), set()).add(id(x))

    def into_norm(self) -> None:
        """Note that a norm begins; the operations inside it aren't looked at."""
        self._inside_norm += 1

    def out_of_norm(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Note that the norm `name` made `result` of its `arguments`."""
        self._inside_norm -= 1
        inputs = [self.label(x) for x in _tensors(arguments)]
        results = list(_tensors([result]))
        outcome = NOTHING
        # One that is given more, such as a gate, does more than normalise.
        if len(inputs) == len(results) == 1:
            label = inputs[0]
            if label.stream:
                outcome = Label(norm=name)
                inputs = []  # the stream has arrived where it may
            elif label.made and not any(norm for _, norm in label.made):
                outcome = Label(made=frozenset((matrix, name) for matrix in _names(label.made)))
        for y in results:
            self.put(y, outcome)
        self._settle(f"the norm {name}", inputs, [outcome])

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # A class of tensors may be asked by an operator where it is; that reads nothing.
        if self._away or func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        # Labels are of what went in: they are read before the operation, which may write over its
        # inputs.
        inputs = _tensors([*args, *kwargs.values()])
        labels = [self._refreshed(name, x) for x in inputs]
        result = func(*args, **kwargs)
        outputs = list(_tensors([result]))
        if func._schema.is_mutable:
            self._overwritten(outputs)
        if self._inside_norm:  # `out_of_norm` will say what its result is
            return result
        outcome, message = self._outcome(name, args, kwargs, labels, outputs)
        for y, label in zip(outputs, outcome, strict=True):
            self.put(y, label)
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
        # A token's vector is made by the table, as a matrix makes its outputs.
        if name == "embedding" and args[0].data_ptr() in self._vectors:
            table = self._vectors[args[0].data_ptr()]
            return [Label(made=frozenset([(table, "")]))], name
        if name in LAYOUT:
            return self._layout(name, args, outputs), name
        if name in PRODUCTS:
            return [self._product(name, args)], name
        if name in SUMS and kwargs.get("alpha", 1) == 1:
            label, message = self._sum(name, args)
            return [label], message
        if name in MULTIPLES and not kwargs:
            return [self._multiple(name, args)], name
        if name == "sum" and _keeps_features_apart(args):
            # A sum over anything but the features adds up experts or tokens: it stays a sum of what
            # matrices made, but no row is told from another.
            return [replace(labels[0], rows=frozenset())], name
        if name == "cat":
            return [_joined(args, labels, outputs[0])], name
        if name in UNARY and len(labels) == 1:
            return [Label(rows=labels[0].rows)], name
        return [NOTHING] * len(outputs), name

    def _inputs_to_settle(
        self, name: str, args: tuple[Any, ...], labels: list[Label], outcome: list[Label]
    ) -> list[Label]:
        """The labels of an operation's inputs that must come out of it, or be noted as lost. What a
        known product reads, and what a sum adds to the stream, is where it belongs.
        """
        if name in EMPTY:
            return []
        if name in PRODUCTS and self._matrices(name, args):
            return [Label(made=label.made) for label in labels]
        if any(label.stream for label in outcome):
            return [replace(label, made=frozenset()) for label in labels]
        return labels

    def _settle(self, name: str, labels: Sequence[Label], outcome: Sequence[Label]) -> None:
        """Note what went into an operation and didn't come out of it."""
        came_out = {(label.stream, label.norm) for label in outcome}
        matrices: set[str] = set()
        rows: set[str] = set()
        for label in outcome:
            matrices |= _names(label.made)
            rows |= _matrices_of(label.rows)
        for label in labels:
            reads = label.stream or label.norm
            if reads and (label.stream, label.norm) not in came_out:
                others = self.others.setdefault(label.norm, set())
                others.add(f"{name} in {self.place}")
            for matrix in _names(label.made) - matrices:
                self.spilled.setdefault(matrix, name)
            self.mixed |= _matrices_of(label.rows) - rows

    def _overwritten(self, outputs: Sequence[Tensor]) -> None:
        """Mark other tensors whose memory an operation wrote into: should anybody still use them,
        they hold something else now.
        """
        for y in outputs:
            memory = _memory_of(y)
            for key in self._in_memory.get(memory, set()) - {id(y)}:
                if key not in self._labels:
                    continue
                x, label = self._labels[key]
                # The `id` may belong to a newer tensor, in another memory.
                if _memory_of(x) == memory:
                    self._labels[key] = x, replace(label, stale=True)

    def _refreshed(self, name: str, x: Tensor) -> Label:
        """What is known of a tensor that is used now."""
        label = self.label(x)
        if label.stale:
            self._settle(f"{name} after it was written over", [label], [])
            self.put(x, NOTHING)
            return NOTHING
        return label

    def _layout(self, name: str, args: tuple[Any, ...], outputs: list[Tensor]) -> list[Label]:
        x = args[0]
        label = self.label(x)
        product = self._stored(x) if name in ("_to_copy", "clone") else None
        if product is not None:
            # A matrix in another type: held, it keeps its place in memory.
            copied = replace(product, strides=strides(outputs[0]))
            self._copies[outputs[0].data_ptr()] = copied
            return [Label(copy=True)]
        if label == NOTHING or label.copy:
            return [NOTHING] * len(outputs)
        labels: list[Label] = []
        for number, y in enumerate(outputs):
            if _keeps_features(name, x, y, args):
                labels.append(label)
            else:
                labels.append(_selected(name, x, args, number, label))
        return labels

    def _stored(self, x: Any) -> TracedProduct | None:
        """The matrix that `x` is, as `[out, in]`."""
        if not isinstance(x, Tensor) or x.dim() != 2:
            return None
        address = x.data_ptr()
        product = self._copies.get(address) or self._products.get(address)
        if product is None:
            return None
        # A part of the matrix may begin at the same place.
        if product.shape != tuple(x.shape) or product.strides != x.stride():
            return None
        return product

    def _product(self, name: str, args: tuple[Any, ...]) -> Label:
        bias, x, _ = _operands(name, args)
        matrices = self._matrices(name, args)
        label = self.label(x)
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
        made = frozenset((matrix, "") for matrix in matrices)
        rows = frozenset(Rows(matrix) for matrix in matrices)
        return Label(made=made | added.made, rows=rows | added.rows)

    def _matrices(self, name: str, args: tuple[Any, ...]) -> list[str]:
        """The matrices that a product multiplies with: one, or those of all experts; none where
        it is anything else.
        """
        _, _, operand = _operands(name, args)
        turned = operand if name == "linear" else operand.mT
        known = self._stored(turned)
        if known is not None:
            return [known.name]
        if operand.dim() != 3:
            return []
        shape = tuple(turned.shape[1:])
        strides_of_each = turned.stride()[1:]
        names: list[str] = []
        for expert in self._holders.get(operand.data_ptr(), ()):
            if expert.shape == shape and expert.strides == strides_of_each:
                names.append(expert.name)
        return names

    def _sum(self, name: str, args: tuple[Any, ...]) -> tuple[Label, str]:
        """What is known of a sum, and what to call it."""
        scatters = name.startswith("index_add")
        a = args[0]
        b = args[3] if scatters else args[1]
        left = self._addend(a)
        right = self._addend(b)
        if not isinstance(b, Tensor) or b.dim() == 0:
            # A number added to every feature is no sum of what matrices made.
            return Label(rows=left.rows), name
        if left.norm or right.norm or (scatters and _is_last(args[1], a)):
            return NOTHING, name
        if left.stream and right.stream:
            return NOTHING, f"{name} of the stream to itself"
        same_width = _width(a) == _width(b)
        if left.stream or right.stream:
            added = right if left.stream else left
            if same_width and (added.made or added.zero):
                for matrix, norm in added.made:
                    self.writes.setdefault(matrix, set()).add(norm)
                return Label(stream=True), name
            # An embedding of positions, say, would be a part of the stream that nobody rotates or
            # folds.
            return NOTHING, f"{name} of what no matrix made"
        if same_width:
            return _label_of_sum(left, right), name
        return Label(zero=left.zero and right.zero), name

    def _addend(self, x: Any) -> Label:
        """What is known of a term; a vector of the model is made by itself."""
        label = self.label(x)
        if label == NOTHING and isinstance(x, Tensor) and x.dim() == 1:
            name = self._vectors.get(x.data_ptr())
            if name is not None:
                return Label(made=frozenset([(name, "")]), rows=frozenset([Rows(name)]))
        return label

    def _multiple(self, name: str, args: tuple[Any, ...]) -> Label:
        left = self.label(args[0])
        right = self.label(args[1])
        left_is_one = _width(args[0]) == 1
        right_is_one = _width(args[1]) == 1
        # By one number for all features of a token: still the same sum of the same things.
        if right_is_one and not left_is_one:
            return left
        if left_is_one and not right_is_one and name.startswith("mul"):
            return right
        if (left_is_one and right_is_one) or not left.rows or not right.rows:
            return NOTHING
        # Feature by feature, as gate times up: a function of both their rows, and no sum of
        # anything.
        return Label(rows=left.rows | right.rows)


def strides(x: Tensor) -> tuple[int, int]:
    """Return the strides of a matrix."""
    down, across = x.stride()
    return down, across


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that normalise, by name: those whose class has "norm" in its name, and
    that have no modules inside.
    """
    norms: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__.lower()
        is_leaf = not list(module.children())
        if "norm" in kind and is_leaf:
            norms[name] = module
    return norms


def _names(made: Products) -> set[str]:
    return {matrix for matrix, _ in made}


def _matrices_of(rows: frozenset[Rows]) -> set[str]:
    return {part.matrix for part in rows}


def _memory_of(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _operands(name: str, args: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """What a product adds (if anything), what it multiplies, and with what."""
    if name in ("addmm", "baddbmm"):
        return args[0], args[1], args[2]
    x, matrix, *rest = args
    bias = rest[0] if rest and name == "linear" else None
    return bias, x, matrix


def _label_of_sum(left: Label, right: Label) -> Label:
    """What is known of a sum of two tensors that have the same features."""
    # Zeros are where experts put their outputs: they add nothing, and what is added to them is all
    # there is.
    made: Products = frozenset()
    rows: frozenset[Rows] = frozenset()
    if (left.made or left.zero) and (right.made or right.zero):
        made = left.made | right.made
    if (left.rows or left.zero) and (right.rows or right.zero):
        rows = left.rows | right.rows
    return Label(made=made, rows=rows, zero=left.zero and right.zero)


def _joined(args: tuple[Any, ...], labels: list[Label], result: Tensor) -> Label:
    """What is known of several tensors put together token by token, as experts' outputs are."""
    dim = args[1] if len(args) > 1 else 0
    # Put side by side, features would get other numbers.
    if _is_last(dim, result):
        return NOTHING
    # Tensors of different kinds have no label in common.
    kinds = {(label.stream, label.norm, bool(label.made), bool(label.rows)) for label in labels}
    if len(kinds) != 1:
        return NOTHING
    made: Products = frozenset()
    rows: frozenset[Rows] = frozenset()
    for label in labels:
        made |= label.made
        rows |= label.rows
    return Label(labels[0].stream, labels[0].norm, made, rows)


def _width(x: Any) -> int:
    """How many features a tensor has; a number counts as one."""
    if isinstance(x, Tensor) and x.dim():
        return x.shape[-1]
    return 1


def _is_last(dim: int, x: Tensor) -> bool:
    """Whether a dimension, counted from either end, is the last one, that of the features."""
    return dim % x.dim() == x.dim() - 1


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _keeps_features_apart(args: tuple[Any, ...]) -> bool:
    """Whether a sum is over dimensions that are named and don't have the features."""
    if len(args) < 2 or not args[1]:
        return False
    x, dims, *_ = args
    return not any(_is_last(dim, x) for dim in dims)


def _keeps_features(name: str, x: Tensor, y: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether the last dimension of `y` is that of `x`, feature by feature."""
    if not x.dim() or not y.dim() or x.shape[-1] != y.shape[-1]:
        return False
    match name, list(args[1:]):
        case "t", _:
            return x.dim() < 2
        case "transpose", [first, second]:
            return not _is_last(first, x) and not _is_last(second, x)
        case "permute", [dims]:
            return _is_last(dims[-1], x)
        case "repeat", [times]:
            return times[-1] == 1
        case "unbind", []:
            return not _is_last(0, x)
        case "select" | "unbind" | "index_select", [dim, *_]:
            return not _is_last(dim, x)
        case "index", [indices]:
            return indices[-1] is None or _dimensions_of(indices) < x.dim()
        # Called otherwise than torch does today.
        case "transpose" | "permute" | "repeat" | "select" | "index_select" | "index", _:
            return False
        case _:
            return True


def _dimensions_of(indices: Sequence[Tensor | None]) -> int:
    """How many dimensions are indexed: by a mask as many as it has."""
    dimensions = 0
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            dimensions += index.dim()
        else:
            dimensions += 1
    return dimensions


def _selected(name: str, x: Tensor, args: Sequence[Any], number: int, label: Label) -> Label:
    """What is known of the result with this number where it has some of the features of `x`."""
    match name, list(args):
        case "slice", [_, dim, *rest] if _is_last(dim, x):
            # What follows are the start, the end and the step, as far as they are given.
            first = 0
            if rest and rest[0] is not None:
                first = rest[0]
            if first < 0:
                first += x.shape[-1]
            step = rest[2] if len(rest) > 2 else 1
        case "split", [_, int(size), dim] if _is_last(dim, x):
            first = number * size
            step = 1
        case "split" | "split_with_sizes", [_, sizes, dim] if _is_last(dim, x):
            first = sum(sizes[:number])
            step = 1
        case _:
            return NOTHING
    selected: list[Rows] = []
    for rows in label.rows:
        first_row = rows.first + first * rows.step
        selected.append(Rows(rows.matrix, first_row, rows.step * step))
    return Label(rows=frozenset(selected))
