"""Products of bfloat16 and float16 matrices, on processors that have no instructions for them.

There torch multiplies them number by number: a seventh of the speed of float32, or less. A product
in float32, rounded afterwards, is as exact: factors of 16 bits are float32 numbers too, and sums
are kept in float32 either way. Only the order of sums differs.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_INSTRUCTIONS: Final = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""By which of its instructions a processor multiplies matrices of a type."""
_MACHINES: Final = ("x86_64", "AMD64")
"""Where float32 was found to be faster. ARM's processors weren't tried."""
_aten: Any = torch.ops.aten
_MATRICES: Final = (_aten.mm.default, _aten.mm.out, _aten.addmm.default, _aten.addmm.out)
_BATCHES: Final = (_aten.bmm.default, _aten.bmm.out, _aten.baddbmm.default, _aten.baddbmm.out)
_ROWS: Final = 32
"""Rows from which on a product takes longer than to widen the matrix that they are multiplied
with.
"""
_SLICE: Final = 2**24
"""Numbers of a matrix that are held in float32 at once: 64 MiB."""


def multiplies(dtype: torch.dtype) -> bool:
    """Return whether the processor has instructions for products of matrices of this type."""
    if dtype not in _INSTRUCTIONS:
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS[dtype])


@contextmanager
def wide_products() -> Iterator[None]:
    """While it lasts, this thread multiplies matrices of 16 bits in float32 and rounds the result,
    where the processor can't multiply them as they are. Elsewhere nothing changes.
    """
    narrow = [dtype for dtype in _INSTRUCTIONS if not multiplies(dtype)]
    if not narrow or platform.machine() not in _MACHINES:
        yield
        return
    with _WideProducts(narrow):
        yield


@final
class _WideProducts(TorchDispatchMode):
    """Makes products of matrices of the types `narrow` in float32."""

    def __init__(self, narrow: list[torch.dtype]) -> None:
        super().__init__()
        self._narrow = narrow

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _MATRICES and func not in _BATCHES:
            return func(*args, **kwargs)
        # What is added, if anything, comes first.
        *added, left, right = args
        narrow = left.dtype == right.dtype and right.dtype in self._narrow
        if not narrow or right.device.type != "cpu" or left.shape[-2] < _ROWS:
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        if out is None:
            out = left.new_empty(*left.shape[:-1], right.shape[-1])
        product = func.overloadpacket
        columns = right.shape[-1]
        # At least one column, also of matrices without any.
        step = max(columns, 1)
        if func in _MATRICES:
            step = max(_SLICE // max(len(right), 1), 1)
        left = left.float()
        for start in range(0, columns, step):
            part = slice(start, start + step)
            terms = [term.expand_as(out)[..., part].float() for term in added]
            out[..., part] = product(*terms, left, right[..., part].float(), **kwargs)
        return out
