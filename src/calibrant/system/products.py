"""In which type torch sums, and where it computes what some devices lack; which of its libraries it
multiplies float32 matrices with on the processor, and whether they may round what they multiply.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor

LACKING: Final = {"mps"}
"""The kinds of devices that lack float64, `frexp` and decompositions of matrices: Apple's GPUs."""


def exact_type(device: torch.device) -> torch.dtype:
    """Return the type of sums over many numbers: float64, or float32 where a device lacks that."""
    return torch.float32 if device.type in LACKING else torch.float64


def exact(numbers: Tensor) -> Tensor:
    """Return numbers in the `exact_type` of their device."""
    return numbers.to(exact_type(numbers.device))


def where_exact(device: torch.device) -> torch.device:
    """Return where to compute what `device` may lack: there, or on the processor."""
    return torch.device("cpu") if device.type in LACKING else device


def in_float64(numbers: Tensor) -> Tensor:
    """Return numbers in float64: where they are, or on the processor if their device lacks it."""
    return numbers.to(where_exact(numbers.device)).double()


def frexp(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return mantissas from a half to one, and exponents."""
    mantissa, exponent = numbers.to(where_exact(numbers.device)).frexp()
    return mantissa.to(numbers.device), exponent.to(numbers.device)


@contextmanager
def full_speed() -> Iterator[None]:
    """While it lasts, oneDNN makes the float32 products of the processor, where it rounds no factor
    either. Else MKL makes them, which on processors that aren't Intel's takes twice as long.

    The order of sums is another one, so results may differ from MKL's in their last bits.
    """
    if not _onednn_is_exact():
        yield
        return
    with rounding_factors():
        yield


@contextmanager
def rounding_factors() -> Iterator[None]:
    """While it lasts, float32 products may round their factors to bfloat16, where that is faster.
    Sums stay float32. It is for factors that came from a bfloat16 forward: they are what they were.

    torch has one such setting for all threads. It is put back when the last of them leaves. Until
    then the products of other threads are made so too, with other last bits.
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
    """Return whether oneDNN multiplies float32 numbers as they are, even where it may round them.

    With vectors of 512 bits and without tiles it does. Nothing promises that, so it is tried.
    """
    capabilities = torch.cpu.get_capabilities()
    if has_tiles() or not capabilities.get("avx512_f", False):
        return False
    # Rounded to bfloat16, the number would be 1.
    number = 1 + 2**-12
    factor = torch.full((256, 256), number)
    with rounding_factors():
        product = factor @ factor
    return bool((product - 256 * number**2).abs().max() < 1e-3)
