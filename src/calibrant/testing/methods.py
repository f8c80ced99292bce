"""Does a method keep its contract? For our own methods and for those of others."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import InputStatistic, Seen
from calibrant.errors import CalibrantError
from calibrant.methods import MatrixMethod, methods
from calibrant.targets import (
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

TARGETS: Final = tuple(
    parse_target(t)
    for t in (
        "0.0",
        "0.3",
        "0.5",
        "2:4",
        "1:4",
        "3:4",
        "4:8",
        "w4g8",
        "w3g16a",
        "w2",
        "w8",
        "w8a",
        "2:4+w4g8",
        "0.3+w3g16a",
        "q4_0",
    )
)
"""What is asked of a method, as far as it accepts it."""

SHAPES: Final = ((5, 160), (24, 16), (1, 64), (8, 32))
"""More columns than a block of 128, taller than wide, one row, and an ordinary one."""

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float64)


def check_method(
    method: MatrixMethod, targets: Sequence[Target] | None = None, device: str = "cpu"
) -> None:
    """Check that `method` keeps the contract of `MatrixMethod` on small random matrices, for each
    of `targets`; without any, for all of `TARGETS` that it accepts.

    Where weights are removed the count is exact (over rows or over the whole matrix); rounded to a
    grid, a group has no more values than there are codes, and zeros stay zero; a packed form gives
    the weight back bit for bit. The weight and the statistics stay as they were; the same arguments
    give the same result; shape, type and device are kept; inputs that were always zero, and fewer
    tokens than inputs, give finite numbers; rows permuted are results permuted, and a transposed
    view is the same matrix; a method that says it doesn't update leaves kept weights alone. The
    text of the method gives it back, as `methods.build` reads it, and its identity is no other
    method's: so a class of another package needs its entry point in the group `calibrant.methods`.
    That is looked at last.

    Raises `CalibrantError`, naming the method, the target and what was wrong, at the first break of
    contract.
    """
    chosen = (
        [target for target in TARGETS if isinstance(target, method.accepts)]
        if targets is None
        else targets
    )
    if not chosen:
        raise CalibrantError(
            f"{method} accepts none of {', '.join(map(str, TARGETS))}; say which targets to check it with",
            subject=repr(method),
        )
    for target in chosen:
        method.check(target)
        for shape in _fitting(target, SHAPES[:2]):
            for check in (
                _check_purity,
                _check_dead_inputs,
                _check_dead_rows,
                _check_few_tokens,
                _check_permutation,
                _check_view,
            ):
                check(_Case(method, target, shape, device))
        for shape in _fitting(target, SHAPES):
            _check_result(_Case(method, target, shape, device))
        for dtype in DTYPES:
            _check_result(_Case(method, target, SHAPES[0], device, dtype))
    if broken := untyped(method, methods) or mistaken(method, methods):
        raise CalibrantError(broken, subject=repr(method))


def _fitting(target: Target, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The shapes that a matrix can have that is to become this: blocks of llama.cpp's have 32
    inputs at least.
    """
    return [shape for shape in shapes if not isinstance(target, GgmlKind) or shape[1] % 32 == 0]


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
        self.method, self.target, self.shape, self.device, self.dtype = (
            method,
            target,
            shape,
            device,
            dtype,
        )
        self._generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])

    def exact(self) -> "_Case":
        """Return the same in float64, where a product whose sums depend on a row's place moves
        no near tie.
        """
        return _Case(
            self.method,
            self.target,
            self.shape,
            self.device,
            torch.float64 if self.device != "mps" else torch.float32,
        )

    def weight(self) -> Float[Tensor, "out in"]:
        """Normal numbers, none of them zero."""
        numbers = self._normal(*self.shape).to(self.dtype)
        return numbers.masked_fill(numbers == 0, 1).to(self.device)

    def inputs(self, tokens: int) -> Float[Tensor, "token in"]:
        """Correlated features of different sizes."""
        features = self.shape[1]
        mixed = self._normal(tokens, features) @ (
            torch.eye(features) + self._normal(features, features) / features**0.5
        )
        return (mixed * (0.1 + torch.rand(features, generator=self._generator))).to(
            self.device, self.dtype
        )

    def seen(self, x: Float[Tensor, "token in"]) -> Seen:
        """Return what a matrix sees of `x`, by the kinds that the method observes."""
        return Seen(
            {kind: kind.of(x) for kind in self.method.observes if issubclass(kind, InputStatistic)}
        )

    def compress(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return the compressed weight; shape, type and device are those of `weight`."""
        compressed = self.method.compress(weight, self.seen(x), self.target)
        result = compressed.weight
        if compressed.packed is not None:
            self.require(
                _equal(compressed.packed.dense(), result),
                "the packed form stands for another matrix than the weight",
            )
            self.require(
                compressed.packed.weights == result.numel(),
                f"the packed form says that it has {compressed.packed.weights} weights",
            )
        for what, expected, actual in (
            ("shape", weight.shape, result.shape),
            ("type", weight.dtype, result.dtype),
            ("device", weight.device, result.device),
        ):
            self.require(expected == actual, f"the {what} became {actual}, and was {expected}")
        return result

    def require(self, holds: bool, broken: str) -> None:
        if not holds:
            what = (
                f"{self.target} of {list(self.shape)} in {str(self.dtype).removeprefix('torch.')}"
            )
            raise CalibrantError(
                f"{self.method}, asked for {what}: {broken}", subject=str(self.method)
            )

    def require_sound(self, before: Tensor, result: Tensor) -> None:
        """Finite, and as many zeros as were asked for."""
        self.require(bool(result.isfinite().all()), "the result holds NaN or infinity")
        if (grid := _grid(self.target)) is not None and self.method.prunes:
            grouped = result.reshape(-1, grid.width(self.shape[1]))
            values, codes = max(len(group.unique()) for group in grouped), 2**grid.bits
            self.require(
                values <= codes, f"a group has {values} values, and there are {codes} codes"
            )
        if isinstance(self.target, SparseGrid) and self.method.prunes:
            zeros, least = (
                int((result == 0).sum()),
                min(_allowed_zeros(self.target.removal, self.shape)),
            )
            self.require(zeros >= least, f"{zeros} weights are zero, asked were {least}")
        if isinstance(self.target, Removal) and self.method.prunes:
            zeros, allowed = int((result == 0).sum()), _allowed_zeros(self.target, self.shape)
            self.require(
                zeros in allowed,
                f"{zeros} weights are zero, asked were {' or '.join(map(str, sorted(allowed)))}",
            )
            same = self.method.updates or torch.equal(result[result != 0], before[result != 0])
            self.require(
                same, "kept weights changed, though the method says that it doesn't update"
            )

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)


def _grid(target: Target) -> Grid | None:
    """The grid that remaining weights are rounded to; None where they aren't."""
    return (
        target.grid
        if isinstance(target, SparseGrid)
        else target
        if isinstance(target, Grid)
        else None
    )


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
    weight, x = case.weight(), case.inputs(2 * case.shape[1])
    untouched, seen = weight.clone(), case.seen(x)
    before = _tensors(seen)
    first = case.method.compress(weight, seen, case.target).weight
    case.require(torch.equal(weight, untouched), "the weight that was given changed")
    case.require(
        all(map(torch.equal, before, _tensors(seen, copy=False))),
        "the statistics that were given changed",
    )
    for again in (
        case.method.compress(weight, seen, case.target).weight,
        case.compress(untouched, x),
    ):
        case.require(torch.equal(first, again), "the same arguments gave another result")


def _check_dead_inputs(case: _Case) -> None:
    weight, x = case.weight(), case.inputs(2 * case.shape[1])
    x[:, ::3] = 0
    case.require_sound(weight, case.compress(weight, x))


def _check_dead_rows(case: _Case) -> None:
    """A group of zeros has no scale of its own, and stays zero."""
    if _grid(case.target) is not None:
        weight, x = case.weight(), case.inputs(2 * case.shape[1])
        weight[1] = 0
        result = case.compress(weight, x)
        case.require_sound(weight, result)
        case.require(bool((result[1] == 0).all()), "a row of zeros became something else")


def _check_few_tokens(case: _Case) -> None:
    weight, x = case.weight(), case.inputs(max(1, case.shape[1] // 4))
    case.require_sound(weight, case.compress(weight, x))


def _check_permutation(case: _Case) -> None:
    case = case.exact()
    weight, x = case.weight(), case.inputs(2 * case.shape[1])
    order = torch.arange(case.shape[0] - 1, -1, -1, device=weight.device)
    case.require(
        _same(case.compress(weight, x)[order], case.compress(weight[order], x)),
        "permuted rows gave another result than the permuted result",
    )


def _check_view(case: _Case) -> None:
    """Some models keep matrices as `[in, out]`; a method gets a transposed view of them."""
    case = case.exact()
    weight, x = case.weight(), case.inputs(2 * case.shape[1])
    case.require(
        _same(case.compress(weight, x), case.compress(weight.T.contiguous().T, x)),
        "a transposed view gave another result",
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a == 0, b == 0) and torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def _tensors(seen: Seen, copy: bool = True) -> list[Tensor]:
    """The numbers of the statistics; what is cached on them is theirs to change."""
    return [
        value.clone() if copy else value
        for s in seen.values()
        for value in vars(s).values()
        if isinstance(value, Tensor)
    ]
