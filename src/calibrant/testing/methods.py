"""Does a method keep its contract? For our own methods and for those of others."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import InputStatistic, Seen
from calibrant.errors import CalibrantError, TargetError
from calibrant.methods import MatrixMethod, methods
from calibrant.numerics import type_name
from calibrant.system.products import exact_type
from calibrant.targets import (
    FloatGrid,
    GgmlKind,
    Grid,
    NofM,
    Removal,
    SparseGrid,
    Sparsity,
    Target,
    parse_target,
)
from calibrant.testing.naming import mistaken, untyped

_SHARES: Final = ("0.0", "0.3", "0.5")
_PATTERNS: Final = ("2:4", "1:4", "3:4", "4:8")
_GRIDS: Final = ("w4g8", "w3g16a", "w2", "w8", "w8a", "2:4+w4g8", "0.3+w3g16a", "q4_0")
TARGETS: Final = tuple(map(parse_target, (*_SHARES, *_PATTERNS, *_GRIDS)))
"""What is asked of a method, as far as it accepts it."""

SHAPES: Final = ((5, 160), (24, 16), (1, 64), (8, 32))
"""More columns than a block of 128, taller than wide, one row, and an ordinary one."""


def check_method(
    method: MatrixMethod, targets: Sequence[Target] | None = None, device: str = "cpu"
) -> None:
    """Check that `method` keeps the contract of `MatrixMethod` on small random matrices.

    That is done for each of `targets`; without any, for all of `TARGETS` that it accepts and its
    `check` doesn't refuse.

    - Where weights are removed, the count is exact, over rows or over the whole matrix.
    - Rounded to a grid, a group has no more values than there are codes, and zeros stay zero.
    - A packed form gives the weight back bit for bit.
    - The weight and the statistics stay as they were, and the same arguments give the same result.
    - Shape, type and device are kept.
    - Inputs that were always zero, and fewer tokens than inputs, give finite numbers.
    - Rows permuted are results permuted, and a transposed view is the same matrix.
    - A method that says it doesn't update leaves kept weights alone.
    - The text of the method gives it back, as `methods.build` reads it, and its identity is no
      other method's. So a class of another package needs its entry point in the group
      `calibrant.methods`. That is looked at last.

    Raises `CalibrantError`, naming the method, the target and what was wrong, at the first break of
    contract.
    """
    # One that is no frozen dataclass has no text, and so none for a message.
    methods.build(method)
    if targets is None:
        targets = [target for target in TARGETS if _takes(method, target)]
    if not targets:
        known = ", ".join(map(str, TARGETS))
        message = f"{method} accepts none of {known}; say which targets to check it with"
        raise CalibrantError(message, subject=repr(method))
    for target in targets:
        method.check(target)
        for shape in _fitting(target, SHAPES[:2]):
            for check in _CHECKS:
                check(_Case(method, target, shape, device))
        for shape in _fitting(target, SHAPES):
            _check_result(_Case(method, target, shape, device))
        dtypes = (torch.float32, torch.bfloat16, exact_type(torch.device(device)))
        for dtype in dtypes:
            _check_result(_Case(method, target, SHAPES[0], device, dtype))
    broken = untyped(method, methods) or mistaken(method, methods)
    if broken:
        raise CalibrantError(broken, subject=repr(method))


def _takes(method: MatrixMethod, target: Target) -> bool:
    if not isinstance(target, method.accepts):
        return False
    try:
        method.check(target)
    except TargetError:
        return False
    return True


def _fitting(target: Target, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The shapes that a matrix can have that is to become this: blocks of llama.cpp's have 32
    inputs at least.
    """
    if not isinstance(target, GgmlKind):
        return list(shapes)
    return [(outputs, inputs) for outputs, inputs in shapes if inputs % 32 == 0]


class _Case:
    """One method asked for one target of one random matrix; its failures say which."""

    def __init__(
        self,
        method: MatrixMethod,
        target: Target,
        shape: tuple[int, int],
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.method = method
        self.target = target
        self.shape = shape
        self.device = device
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])

    def exact(self) -> "_Case":
        """Return the same in float64, where a product whose sums depend on a row's place moves
        no near tie.
        """
        dtype = exact_type(torch.device(self.device))
        return _Case(self.method, self.target, self.shape, self.device, dtype)

    def weight(self) -> Float[Tensor, "out in"]:
        """Normal numbers, none of them zero."""
        numbers = self._normal(*self.shape).to(self.dtype)
        return numbers.masked_fill(numbers == 0, 1).to(self.device)

    def inputs(self, tokens: int) -> Float[Tensor, "token in"]:
        """Correlated features of different sizes."""
        features = self.shape[1]
        normal = self._normal(tokens, features)
        mixing = torch.eye(features) + self._normal(features, features) / features**0.5
        sizes = 0.1 + torch.rand(features, generator=self._generator)
        return (normal @ mixing * sizes).to(self.device, self.dtype)

    def seen(self, inputs: Float[Tensor, "token in"]) -> Seen:
        """Return what a matrix sees of these inputs, by the kinds that the method observes."""
        kinds = [kind for kind in self.method.observes if issubclass(kind, InputStatistic)]
        return Seen({kind: kind.of(inputs) for kind in kinds})

    def compress(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """Return the compressed weight; shape, type and device are those of `weight`."""
        compressed = self.method.compress(weight, self.seen(inputs), self.target)
        result = compressed.weight
        packed = compressed.packed
        if packed is not None:
            same = _equal(packed.dense(), result)
            self.require(same, "the packed form stands for another matrix than the weight")
            count = f"the packed form says that it has {packed.weights} weights"
            self.require(packed.weights == result.numel(), count)
        self._require_same("shape", weight.shape, result.shape)
        self._require_same("type", weight.dtype, result.dtype)
        self._require_same("device", weight.device, result.device)
        if compressed.only_removes:
            same = torch.equal(result, weight.masked_fill(result == 0, 0))
            self.require(same, "kept weights changed, though the result only removes")
        return result

    def _require_same(self, noun: str, expected: object, actual: object) -> None:
        self.require(expected == actual, f"the {noun} became {actual}, and was {expected}")

    def require(self, holds: bool, broken: str) -> None:
        """Raise `CalibrantError` that says what is `broken` unless something `holds`."""
        if not holds:
            dtype = type_name(self.dtype)
            asked = f"{self.target} of {list(self.shape)} in {dtype}"
            message = f"{self.method}, asked for {asked}: {broken}"
            raise CalibrantError(message, subject=str(self.method))

    def require_sound(self, before: Tensor, result: Tensor) -> None:
        """Require finite numbers, and as many zeros as were asked for."""
        self.require(bool(result.isfinite().all()), "the result holds NaN or infinity")
        if not self.method.prunes:
            return
        target = self.target
        zeros = int((result == 0).sum())
        grid = _grid(target)
        if grid is not None:
            groups = result.reshape(-1, grid.width(self.shape[1]))
            values = max(len(group.unique()) for group in groups)
            codes = 2**grid.bits
            many = f"a group has {values} values, and there are {codes} codes"
            self.require(values <= codes, many)
        if isinstance(target, SparseGrid):
            least = min(_allowed_zeros(target.removal, self.shape))
            self.require(zeros >= least, f"{zeros} weights are zero, asked were {least}")
        if isinstance(target, Removal):
            allowed = _allowed_zeros(target, self.shape)
            asked = " or ".join(map(str, sorted(allowed)))
            self.require(zeros in allowed, f"{zeros} weights are zero, asked were {asked}")
            same = self.method.updates or torch.equal(result[result != 0], before[result != 0])
            moved = "kept weights changed, though the method says that it doesn't update"
            self.require(same, moved)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)


def _grid(target: Target) -> Grid | FloatGrid | None:
    """The grid that remaining weights are rounded to; None where they aren't."""
    if isinstance(target, SparseGrid):
        return target.grid
    return target if isinstance(target, Grid | FloatGrid) else None


def _allowed_zeros(target: Removal, shape: tuple[int, int]) -> set[int]:
    rows, columns = shape
    match target:
        case Sparsity():
            return {rows * target.quota(columns), target.quota(rows * columns)}
        case NofM():
            return {rows * columns // target.m * (target.m - target.n)}
        case _:
            keep = target.keep(torch.arange(1.0, rows * columns + 1).reshape(shape), "matrix")
            return {int((~keep).sum())}


def _check_result(case: _Case) -> None:
    weight = case.weight()
    case.require_sound(weight, case.compress(weight, case.inputs(2 * case.shape[1])))


def _check_purity(case: _Case) -> None:
    """Arguments untouched, and nothing remembered: once more with the same arguments, and once
    with fresh ones.
    """
    weight = case.weight()
    inputs = case.inputs(2 * case.shape[1])
    untouched = weight.clone()
    seen = case.seen(inputs)
    before = [numbers.clone() for numbers in _tensors(seen)]
    first = case.method.compress(weight, seen, case.target).weight
    case.require(torch.equal(weight, untouched), "the weight that was given changed")
    kept = all(map(torch.equal, before, _tensors(seen)))
    case.require(kept, "the statistics that were given changed")
    second = case.method.compress(weight, seen, case.target).weight
    third = case.compress(untouched, inputs)
    same = torch.equal(first, second) and torch.equal(first, third)
    case.require(same, "the same arguments gave another result")


def _check_dead_inputs(case: _Case) -> None:
    weight = case.weight()
    inputs = case.inputs(2 * case.shape[1])
    inputs[:, ::3] = 0
    case.require_sound(weight, case.compress(weight, inputs))


def _check_dead_rows(case: _Case) -> None:
    """A group of zeros has no scale of its own, and stays zero."""
    if _grid(case.target) is not None:
        weight = case.weight()
        inputs = case.inputs(2 * case.shape[1])
        weight[1] = 0
        result = case.compress(weight, inputs)
        case.require_sound(weight, result)
        case.require(bool((result[1] == 0).all()), "a row of zeros became something else")


def _check_few_tokens(case: _Case) -> None:
    weight = case.weight()
    inputs = case.inputs(max(1, case.shape[1] // 4))
    case.require_sound(weight, case.compress(weight, inputs))


def _check_permutation(case: _Case) -> None:
    case = case.exact()
    weight = case.weight()
    inputs = case.inputs(2 * case.shape[1])
    order = torch.arange(case.shape[0] - 1, -1, -1, device=weight.device)
    permuted = case.compress(weight, inputs)[order]
    same = _alike(permuted, case.compress(weight[order], inputs))
    case.require(same, "permuted rows gave another result than the permuted result")


def _check_view(case: _Case) -> None:
    """Some models keep matrices as `[in, out]`; a method gets a transposed view of them."""
    case = case.exact()
    weight = case.weight()
    inputs = case.inputs(2 * case.shape[1])
    transposed = weight.T.contiguous().T
    same = _alike(case.compress(weight, inputs), case.compress(transposed, inputs))
    case.require(same, "a transposed view gave another result")


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same type and the same numbers, to the bit."""
    return first.dtype == second.dtype and torch.equal(first, second)


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two results have the same zeros, and the same numbers but for rounding."""
    same_zeros = torch.equal(first == 0, second == 0)
    return same_zeros and torch.allclose(first, second, rtol=1e-6, atol=1e-9)


def _tensors(seen: Seen) -> list[Tensor]:
    """The numbers of the statistics; what is cached on them is theirs to change."""
    found: list[Tensor] = []
    for statistic in seen.values():
        found += [value for value in vars(statistic).values() if isinstance(value, Tensor)]
    return found


_CHECKS: Final = (
    _check_purity,
    _check_dead_inputs,
    _check_dead_rows,
    _check_few_tokens,
    _check_permutation,
    _check_view,
)
"""What is checked for each target and shape, beside the result itself."""
