"""AWQ's two searches: how strongly columns are scaled by the size of their inputs, and how far
the grid of each group reaches.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calibrant.activations import FeatureSizes, Gram, Seen, wide
from calibrant.methods.quantization._rounding import Scales, absmax, reaching, within
from calibrant.models import Weight
from calibrant.targets import Grid

Judge = Callable[[Mapping[Weight, Tensor]], float]
"""Says how far outputs are off where matrices are replaced by these."""

SHARES: Final = tuple(1 - step / 20 for step in range(10))
"""How much of its reach a group's grid may keep, as in the paper's code: from all of it down to
0.55.
"""

LEAST: Final = 1e-4


def sizes_of(seen: Sequence[Seen]) -> Float[Tensor, "in"]:
    """Return the mean |x| of the inputs that matrices share, or, of experts, of all that they
    get together.
    """
    distinct = list({id(one[FeatureSizes]): one[FeatureSizes] for one in seen}.values())
    total = distinct[0]
    for other in distinct[1:]:
        total = total + other
    return total.means()


def strength(sizes: Float[Tensor, "in"], alpha: float) -> Float[Tensor, "in"]:
    """Return s = m^α, between its extremes' geometric mean and that again; 1 for an input that
    was always zero.
    """
    alive = sizes > 0
    if alpha == 0 or not bool(alive.any()):
        return torch.ones_like(sizes)
    raw = sizes.pow(alpha).clamp_min(LEAST)
    return (raw / (raw[alive].max() * raw[alive].min()).sqrt()).where(alive, 1.0)


def best_strength(
    matrices: Mapping[Weight, Grid], sizes: Float[Tensor, "in"], steps: int, judge: Judge
) -> tuple[float, Float[Tensor, "in"], tuple[float, float]]:
    """Return the α of 0, 1/`steps` … whose scales make the least error, its scales, and the
    errors without and with them.
    """
    errors: list[float] = []
    for step in range(steps):
        s = strength(sizes, step / steps)
        errors.append(
            judge({weight: effective(weight.get(), grid, s) for weight, grid in matrices.items()})
        )
    best = min(range(steps), key=lambda step: (errors[step], step))
    return best / steps, strength(sizes, best / steps), (errors[0], errors[best])


def effective(
    weight: Float[Tensor, "out in"], grid: Grid, s: Float[Tensor, "in"]
) -> Float[Tensor, "out in"]:
    """Return what a matrix effectively is when its columns are multiplied by `s`, rounded, and
    divided again.
    """
    scaled = (weight.to(wide(weight.dtype)) * s.to(wide(weight.dtype))).to(weight.dtype)
    return absmax(scaled, grid).nearest(scaled).dense().to(wide(weight.dtype)) / s.to(
        wide(weight.dtype)
    )


def linear(seen: Mapping[Weight, Seen]) -> Judge:
    """Judge by the matrices' own outputs: Σ tr(ΔW G ΔWᵀ)."""

    def judge(candidates: Mapping[Weight, Tensor]) -> float:
        total = 0.0
        for weight, candidate in candidates.items():
            change = candidate - weight.get().to(candidate.dtype)
            total += float(((change @ seen[weight][Gram].matrix.to(change.dtype)) * change).sum())
        return total

    return judge


def module_output(
    writer: Weight,
    aside: Callable[[TorchFunctionMode], None],
    real: Bool[Tensor, "sample position"],
) -> Judge:
    """Judge by what `writer`, the last matrix of an attention or a feed-forward network, gives
    for the `real` tokens of a micro-batch.
    """

    def run() -> Tensor:
        watch = _Output(writer.address)
        with suppress(_Reached):
            aside(watch)
        assert watch.output is not None, f"{writer.name} was not reached"
        return watch.output.flatten(0, -2)[real.flatten()].to(wide(watch.output.dtype))

    whole = run()

    def judge(candidates: Mapping[Weight, Tensor]) -> float:
        before = {weight: weight.get().clone() for weight in candidates}
        try:
            for weight, candidate in candidates.items():
                weight.set(candidate)
            return float((run() - whole).square().mean())
        finally:
            for weight, numbers in before.items():
                weight.set(numbers)

    return judge


class _Reached(BaseException):
    """The output is there, and the rest of the block needn't run."""


@final
class _Output(TorchFunctionMode):
    """Takes the output of the product with the matrix at an address, and ends the forward there."""

    def __init__(self, address: int) -> None:
        super().__init__()
        self._address = address
        self.output: Tensor | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        named = getattr(func, "__name__", "") in ("linear", "addmm", "mm", "matmul", "__matmul__")
        if named and any(
            isinstance(one, Tensor) and one.data_ptr() == self._address for one in args
        ):
            self.output = result.detach().clone()
            raise _Reached
        return result


def clipped(weight: Float[Tensor, "out in"], grid: Grid, gram: Gram) -> Scales:
    """Return for each group the scales of the reach, of `SHARES` of the largest weight, whose
    error in the group's outputs is least.
    """
    least, most = within(weight, grid)
    largest, width = torch.maximum(most, -least), grid.width(weight.shape[1])
    corner = gram.symmetric().to(least.dtype)
    grams = torch.stack(
        [corner[at : at + width, at : at + width] for at in range(0, weight.shape[1], width)]
    )
    exact = weight.to(least.dtype)
    best = absmax(weight, grid)
    scales, zeros, lowest = best.scales, best.zeros, torch.full_like(least, torch.inf)
    for share in SHARES:
        tried = reaching(
            torch.maximum(least, -largest * share),
            torch.minimum(most, largest * share),
            grid,
            weight.dtype,
        )
        change = (tried.nearest(weight).dense().to(least.dtype) - exact).unflatten(1, (-1, width))
        error = (torch.einsum("ogi,gij->ogj", change, grams) * change).sum(2)
        better = error < lowest
        lowest, scales = error.where(better, lowest), tried.scales.where(better, scales)
        zeros = None if zeros is None or tried.zeros is None else tried.zeros.where(better, zeros)
    return Scales(grid, scales, zeros)
