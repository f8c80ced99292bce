"""How this processor multiplies float32 matrices: at its full speed, and as exactly as asked."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch


@contextmanager
def full_speed() -> Iterator[None]:
    """Let float32 products on the processor be oneDNN's where those are of float32 numbers too. On
    processors that aren't Intel's they are twice as fast as MKL's, which torch takes else.
    """
    if not _onednn_is_exact():
        yield
        return
    with rounding_factors():
        yield


@contextmanager
def rounding_factors() -> Iterator[None]:
    """Let float32 products round their factors to bfloat16, where that is faster: what came from a
    bfloat16 forward stays as it is. Sums stay float32.

    torch has one such setting for all threads. It is put back when the last of them leaves.
    """
    _rounding.enter()
    try:
        yield
    finally:
        _rounding.leave()


@final
class _Rounding:
    """Whether factors are rounded now, and how many contexts want it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contexts = 0
        self._before = ""

    def enter(self) -> None:
        with self._lock:
            if not self._contexts:
                self._before = _matmul.fp32_precision
                _matmul.fp32_precision = "bf16"
            self._contexts += 1

    def leave(self) -> None:
        with self._lock:
            self._contexts -= 1
            if not self._contexts:
                _matmul.fp32_precision = self._before


_matmul: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]  # missing in torch's types
_rounding = _Rounding()


@functools.cache
def has_tiles() -> bool:
    """Return whether the processor multiplies bfloat16 matrices in tiles (AMX): several times as
    fast as float32.
    """
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@functools.cache
def _onednn_is_exact() -> bool:
    """Return whether oneDNN multiplies float32 numbers as they are even where it may round them: it
    does so with vectors of 512 bits and without tiles. It is tried, since nothing promises it.
    """
    capabilities = torch.cpu.get_capabilities()
    if has_tiles() or not capabilities.get("avx512_f", False):
        return False
    # As bfloat16 it would be 1.
    fine = torch.full((256, 256), 1 + 2**-12)
    with rounding_factors():
        product = fine @ fine
    exact = 256 * (1 + 2**-12) ** 2
    return bool((product - exact).abs().max() < 1e-3)
