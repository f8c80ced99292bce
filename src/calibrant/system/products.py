"""Which of its libraries torch multiplies float32 matrices with on the processor, and whether they
may round what they multiply.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
    """
    before = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]  # missing in torch's types
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before  # pyright: ignore[reportAttributeAccessIssue]


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
