"""Where numbers flow in a forward: which matrices read what, and what is added to what.

A forward of a few tokens runs under a mode that sees every operation of PyTorch. Each tensor of interest carries a *label*: it is the residual
stream; it is what a norm made of the stream; it is a sum of what matrices *made*; its features are functions of certain *rows* of matrices.
An operation passes a label on only where that is certain to stay true. What isn't known to keep it loses it, and where the stream or a norm's
output goes into such an operation, that is written down. So an architecture is never taken for simpler than it is: what isn't understood is
said, whatever its modules are called.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

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
EMPTY: Final = {"zeros_like", "new_zeros", "zeros", "empty_like", "new_empty", "ones_like", "new_ones", "full_like", "new_full"}
"""Operations that take nothing but shape and type from a tensor."""
ZERO: Final = {"zeros_like", "new_zeros", "zeros"}

Made = frozenset[tuple[str, str]]
"""Names of matrices (or of vectors that are added), each with the norm that what it made went through, or nothing."""


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
    made: Made = frozenset()
    rows: frozenset[Rows] = frozenset()
    matrix: str = ""
    zero: bool = False


NOTHING: Final = Label()


class Flow(TorchDispatchMode):
    """Runs a forward, and writes down who reads the stream, who writes to it, and which matrices are a feed-forward layer's."""

    def __init__(self, products: Mapping[int, tuple[str, int]], holders: Mapping[int, tuple[str, ...]], vectors: Mapping[int, str]) -> None:
        super().__init__()
        self.reads: dict[str, set[str]] = {}
        """For each matrix the norms it read the stream through; an empty name where through none."""
        self.writes: dict[str, set[str]] = {}
        """For each matrix or vector the norms through which it was added to the stream."""
        self.pairs: dict[str, set[frozenset[Rows]]] = {}
        """For each matrix the rows of others that its inputs are functions of."""
        self.others: dict[str, set[str]] = {}
        """For each norm (and an empty name for the stream) the operations that it went into besides."""
        self.used: set[str] = set()
        self.place = "before the blocks"
        self._products, self._holders, self._vectors = products, holders, vectors
        self._held: dict[int, tuple[Tensor, Label]] = {}
        self._inside_norm = 0

    def label(self, x: Any) -> Label:
        """What is known of a tensor; nothing of anything else."""
        held = self._held.get(id(x))
        return held[1] if held is not None and held[0] is x else NOTHING

    def put(self, x: Tensor, label: Label) -> None:
        """Say what a tensor is. It is held, so that its address stays its own."""
        if label == NOTHING:
            self._held.pop(id(x), None)
        else:
            self._held[id(x)] = (x, label)

    def into_norm(self) -> None:
        """A norm begins: what it computes inside is its own affair."""
        self._inside_norm += 1

    def out_of_norm(self, name: str, given: tuple[Any, ...], result: Any) -> None:
        """A norm made `result` of what it was `given`."""
        self._inside_norm -= 1
        several = list(_tensors(given))
        came = self.label(several[0]) if len(several) == 1 and isinstance(result, Tensor) else NOTHING
        if came.stream:
            self.put(result, Label(norm=name))
        elif came.made and not any(norm for _, norm in came.made):
            self.put(result, Label(made=frozenset((matrix, name) for matrix, _ in came.made)))
        else:
            for one in several:
                self._lost(f"the norm {name}", self.label(one))
            for one in _tensors(result if isinstance(result, tuple | list) else (result,)):
                self.put(one, NOTHING)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        labels = [self.label(x) for x in _tensors(args)]
        result = func(*args, **kwargs)
        if self._inside_norm:
            return result
        if name in EMPTY:
            self.put(result, Label(zero=name in ZERO))
        elif name == "embedding" and args[0].data_ptr() in self._vectors:
            self.put(result, Label(made=frozenset([(self._vectors[args[0].data_ptr()], "")])))
        elif name in LAYOUT:
            self._layout(name, args, result)
        elif name in ("mm", "addmm", "bmm", "linear", "baddbmm"):
            self._product(name, args, result)
        elif name in ("add", "add_", "index_add", "index_add_") and kwargs.get("alpha", 1) == 1:
            self._sum(name, args, result)
        elif name in ("mul", "mul_", "div", "div_"):
            self._multiple(name, args, result)
        elif name == "sum" and len(args) > 1 and args[1] and all(dim % args[0].dim() != args[0].dim() - 1 for dim in args[1]):
            self.put(result, replace(labels[0], rows=frozenset()))
        elif name == "cat":
            self._joined(args, labels, result)
        elif name in UNARY:
            self._lost(name, Label(stream=labels[0].stream, norm=labels[0].norm))
            self.put(result, Label(rows=labels[0].rows))
        else:
            for label in labels:
                self._lost(name, label)
            for one in _tensors(result if isinstance(result, tuple | list) else (result,)):
                self.put(one, NOTHING)
        return result

    def _lost(self, name: str, label: Label) -> None:
        if label.stream or label.norm:
            self.others.setdefault(label.norm, set()).add(f"{name} in {self.place}")

    def _layout(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        x, label = args[0], self._known(args[0])
        if label == NOTHING:
            return
        for number, y in enumerate(result if isinstance(result, tuple | list) else [result]):
            if label.matrix:
                self.put(y, label if y.numel() == x.numel() else NOTHING)
            elif _keeps_features(name, x, y, args):
                self.put(y, label)
            else:
                self._lost(name, label)
                taken = _taken(name, x, args, number)
                self.put(y, NOTHING if taken is None else Label(rows=frozenset(_among(rows, *taken) for rows in label.rows)))

    def _joined(self, args: tuple[Any, ...], labels: list[Label], result: Tensor) -> None:
        """Rows of several tensors one below the other, as experts' outputs are put together."""
        across = (args[1] if len(args) > 1 else 0) % result.dim() != result.dim() - 1
        same = {(label.stream, label.norm, bool(label.made), bool(label.rows), label.matrix) for label in labels}
        if across and len(same) == 1 and not labels[0].matrix:
            made, rows = frozenset(m for label in labels for m in label.made), frozenset(r for label in labels for r in label.rows)
            self.put(result, Label(labels[0].stream, labels[0].norm, made, rows))
            return
        for label in labels:
            self._lost("cat", label)
        self.put(result, NOTHING)

    def _known(self, x: Any) -> Label:
        """A tensor's label; that of a matrix which isn't labelled yet is the matrix."""
        label = self.label(x)
        if label == NOTHING and isinstance(x, Tensor) and x.dim() == 2:
            name, size = self._products.get(x.data_ptr(), ("", -1))
            return Label(matrix=name) if size == x.numel() else NOTHING
        return label

    def _product(self, name: str, args: tuple[Any, ...], result: Tensor) -> None:
        bias, x, other = args[:3] if "add" in name else (args[2] if len(args) > 2 else None, *args[:2])
        matrices = self._matrices(other)
        came = self.label(x)
        if not matrices:
            self._lost(name, came)
            self._lost(name, self.label(other))
            self.put(result, NOTHING)
            return
        for matrix in matrices:
            self.used.add(matrix)
            if came.stream or came.norm:
                self.reads.setdefault(matrix, set()).add(came.norm)
            if came.rows:
                self.pairs.setdefault(matrix, set()).add(came.rows)
        own = frozenset((matrix, "") for matrix in matrices)
        added = self._addend(bias)
        self.put(result, Label(made=own | added.made, rows=frozenset(Rows(matrix) for matrix in matrices) | added.rows))

    def _matrices(self, operand: Tensor) -> tuple[str, ...]:
        known = self._known(operand).matrix
        if known:
            return (known,)
        if operand.dim() == 3 and operand.data_ptr() in self._holders:
            return self._holders[operand.data_ptr()]
        return ()

    def _sum(self, name: str, args: tuple[Any, ...], result: Tensor) -> None:
        along_features = name.startswith("index_add") and args[1] % args[0].dim() == args[0].dim() - 1
        a, b = args[0], args[3] if name.startswith("index_add") else args[1]
        one, other = self._addend(a), self._addend(b)
        if along_features or self._breaks(name, one, other):
            self.put(result, NOTHING)
        elif not isinstance(b, Tensor) or b.dim() == 0:
            self._lost(name, one)  # a number added to every feature is no sum of what matrices made
            self.put(result, Label(rows=one.rows))
        elif one.stream or other.stream:
            for matrix, norm in one.made | other.made:
                self.writes.setdefault(matrix, set()).add(norm)
            self.put(result, Label(stream=True))
        else:
            made = one.made | other.made if (one.made or one.zero) and (other.made or other.zero) else frozenset[tuple[str, str]]()
            rows = one.rows | other.rows if one.rows and other.rows else frozenset[Rows]()
            if bool(one.rows) != bool(other.rows) and (one.zero or other.zero):
                rows = one.rows | other.rows
            self.put(result, Label(made=made, rows=rows, zero=one.zero and other.zero))

    def _addend(self, x: Any) -> Label:
        label = self.label(x)
        if label == NOTHING and isinstance(x, Tensor) and x.data_ptr() in self._vectors and x.dim() == 1:
            name = self._vectors[x.data_ptr()]
            return Label(made=frozenset([(name, "")]), rows=frozenset([Rows(name)]))
        return label

    def _breaks(self, name: str, one: Label, other: Label) -> bool:
        """True, and written down, for sums that aren't those of a residual stream."""
        if one.norm or other.norm:
            self._lost(name, one)
            self._lost(name, other)
            return True
        if one.stream and other.stream:
            self._lost(f"{name} of the stream to itself", one)
            return True
        if (one.stream and not (other.made or other.zero)) or (other.stream and not (one.made or one.zero)):
            self._lost(f"{name} of what no matrix made", Label(stream=True))
            return True
        return False

    def _multiple(self, name: str, args: tuple[Any, ...], result: Tensor) -> None:
        one, other = self.label(args[0]), self.label(args[1])
        a, b = (_width(args[0]), _width(args[1]))
        if b == 1 or (a == 1 and name.startswith("mul")):
            # By one number for all features of a token: still the same sum of the same things.
            kept, lost = (one, other) if b == 1 and (a != 1 or one != NOTHING) else (other, one)
            self._lost(name, lost)
            self.put(result, kept)
            return
        for label in (one, other):
            self._lost(name, label)
        self.put(result, Label(rows=one.rows | other.rows if one.rows and other.rows else frozenset()))


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
        return len(args[1]) < x.dim() or args[1][-1] is None
    if name == "index_select":
        return args[1] % x.dim() != last
    return True


def _taken(name: str, x: Tensor, args: Sequence[Any], number: int) -> tuple[int, int] | None:
    """Where features of `x` were taken as those of the result with this number: the first, and the step; None where it is anything else."""
    last = x.dim() - 1
    match name, list(args):
        case "slice", [_, dim, *rest] if dim % x.dim() == last:
            start, step = rest[0] if rest and rest[0] is not None else 0, rest[2] if len(rest) > 2 else 1
            return (start + x.shape[-1] if start < 0 else start), step
        case "split" | "split_with_sizes", [_, size, dim] if dim % x.dim() == last:
            return (number * size if isinstance(size, int) else sum(size[:number])), 1
        case _:
            return None


def _among(rows: Rows, first: int, step: int) -> Rows:
    return Rows(rows.matrix, rows.first + first * rows.step, rows.step * step)


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that normalise, by name: those that are called so, and have no parts of their own."""
    return {name: m for name, m in model.named_modules() if "norm" in type(m).__name__.lower() and not any(True for _ in m.children())}
