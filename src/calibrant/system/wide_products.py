"""Products of bfloat16 and float16 matrices, on processors that have no instructions for them.

There torch multiplies them number by number, which takes several times as long as in float32. A
product in float32 that is rounded afterwards is as exact: numbers of 16 bits are float32 numbers
too, and sums are kept in float32 either way. Only their order differs.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_INSTRUCTIONS: Final = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""By which of its instructions a processor multiplies matrices of a type."""
_MACHINES: Final = ("x86_64", "AMD64")
"""Where float32 was found to be faster. ARM's processors weren't tried."""
_aten: Any = torch.ops.aten
_COMPOSED: Final = (_aten.linear.default, _aten.matmul.default)
"""What is made of products. Torch takes it apart itself, but for in inference mode."""
_MATRIX_PRODUCTS: Final = (_aten.mm.default, _aten.mm.out, _aten.addmm.default)
_BATCH_PRODUCTS: Final = (_aten.bmm.default, _aten.baddbmm.default)
_ROWS: Final = 32
"""From so many rows on, to widen the matrix takes less time than it saves."""
_SLICE: Final = 2**24
"""Numbers of a matrix that are held in float32 at once: 64 MiB."""


def has_instructions_for(dtype: torch.dtype) -> bool:
    """Return whether the processor has instructions for products of matrices of this type, as far
    as torch tells.
    """
    if dtype not in _INSTRUCTIONS:
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS[dtype])


@contextmanager
def wide_products() -> Iterator[None]:
    """While it lasts, this thread multiplies matrices of 16 bits in float32 and rounds the result,
    on an x86 processor without instructions for them. Elsewhere nothing changes.
    """
    lacking = [dtype for dtype in _INSTRUCTIONS if not has_instructions_for(dtype)]
    if not lacking or platform.machine() not in _MACHINES:
        yield
        return
    with _WideProducts(lacking):
        yield


@final
class _WideProducts(TorchDispatchMode):
    """Makes products of matrices of these types in float32."""

    def __init__(self, dtypes: list[torch.dtype]) -> None:
        super().__init__()
        self._dtypes = dtypes

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _COMPOSED:
            # Its parts come here.
            with self:
                return func.decompose(*args, **kwargs)
        if func not in _MATRIX_PRODUCTS and func not in _BATCH_PRODUCTS:
            return func(*args, **kwargs)
        # What is added, if anything, comes first.
        *added, left, right = args
        out = kwargs.get("out")
        if types or not self._widens(args, out):
            return func(*args, **kwargs)
        if out is None:
            out = left.new_empty(*left.shape[:-1], right.shape[-1])
        settings = {name: value for name, value in kwargs.items() if name != "out"}
        operation = func.overloadpacket
        columns = right.shape[-1]
        step = columns
        if func in _MATRIX_PRODUCTS:
            step = max(_SLICE // len(right), 1)
        left = left.float()
        for start in range(0, columns, step):
            part = slice(start, start + step)
            terms = [term.expand_as(out)[..., part].float() for term in added]
            out[..., part] = operation(*terms, left, right[..., part].float(), **settings)
        return out

    def _widens(self, args: tuple[Tensor, ...], out: Tensor | None) -> bool:
        """Whether a product is made here. All others are torch's, which also refuses what doesn't
        fit together.
        """
        left, right = args[-2:]
        if left.dim() != right.dim() or left.shape[-1] != right.shape[-2]:
            return False
        if left.shape[:-2] != right.shape[:-2] or right.numel() == 0:
            return False
        for tensor in args:
            if tensor.dtype != right.dtype or tensor.layout is not torch.strided:
                return False
        if out is not None and out.shape != (left.shape[0], right.shape[1]):
            return False
        if out is not None and out.dtype != right.dtype:
            return False
        is_lacking = right.dtype in self._dtypes and right.device.type == "cpu"
        return is_lacking and left.shape[-2] >= _ROWS
