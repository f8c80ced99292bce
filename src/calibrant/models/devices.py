"""Where a model computes, and in which type.

CUDA and MPS follow PyTorch's documented behaviour but are untested here: no such machine was at
hand.
"""

import functools
import time
from typing import Final

import psutil
import torch

from calibrant.errors import ModelError
from calibrant.spec.foreign import brief, did_you_mean
from calibrant.system.wide_products import has_instructions_for

DTYPES: Final = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "float64": torch.float64,
}
DEVICES: Final = ("cpu", "cuda", "mps")
"""The kinds of devices that torch has by itself."""
_CUDA_WITH_BFLOAT16: Final = (8, 0)

WORTH: Final = 1.2
"""bfloat16 must be so many times as fast as float32 to be chosen. Processors are far above or far
below, so a busy moment doesn't decide.
"""


def device_kinds() -> tuple[str, ...]:
    """Return the kinds of devices that may be named here: `DEVICES`, and the one that was
    registered with torch as its "privateuse1" as long as that is there, such as
    `calibrant.testing.pretended_device`.
    """
    registered = torch._C._get_privateuse1_backend_name()
    module = getattr(torch, registered, None)
    if module is None or not module.is_available():
        return DEVICES
    return (*DEVICES, registered)


def device_name(device: object) -> str:
    """Return the text that stands for a device, which may be torch's own object. Raises
    `ModelError` for any other object.
    """
    if isinstance(device, torch.device):
        return str(device)
    if not isinstance(device, str):
        raise ModelError(
            f"device is {brief(device)}; give auto, cpu, cuda, cuda:0, mps or a torch.device",
            subject="device",
        )
    return device


def dtype_name(dtype: object) -> str:
    """Return the text that stands for a type, which may be torch's own object. Raises `ModelError`
    for any other object.
    """
    for name, known in DTYPES.items():
        if dtype is known:
            return name
    if not isinstance(dtype, str):
        raise ModelError(
            f"dtype is {brief(dtype)}; give auto, {', '.join(DTYPES)} or torch's own of these",
            subject="dtype",
        )
    return dtype


def check_device_name(device: str | torch.device) -> None:
    """Raise `ModelError` unless `device` names a kind of device, such as `cuda:0`. This machine may
    lack it.
    """
    device = device_name(device)
    if device == "auto":
        return
    kind, colon, number = device.partition(":")
    # Decimal digits of ASCII, as torch takes them.
    numbered = number.isascii() and number.isdecimal()
    kinds = device_kinds()
    if kind not in kinds or (colon and not numbered):
        hint = did_you_mean(kind, [*kinds, "auto"])
        raise ModelError(
            f"there is no device {device!r}{hint}; use auto, cpu, cuda, cuda:0 or mps",
            subject=device,
        )


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that `device` names; `auto` is CUDA, else the processor. Apple's
    GPUs compute some sums in float32 alone, so they have to be named.

    Raises `ModelError` for a name that isn't known, and for a device that this machine lacks. CUDA
    and MPS are untested here.
    """
    device = device_name(device)
    check_device_name(device)
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    kind, _, number = device.partition(":")
    available = _count(kind)
    if int(number or 0) >= available:
        raise ModelError(
            f"device {device!r} isn't available on this machine (it has {available} of kind "
            f"{kind}); use auto or cpu",
            subject=device,
        )
    return torch.device(device)


def _count(kind: str) -> int:
    """How many devices of a kind this machine has."""
    if kind == "cpu":
        return 1
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return torch.get_device_module(kind).device_count()


def free_on(device: torch.device) -> int:
    """Return how many bytes of memory are free on a device."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info(device)
    # torch keeps memory that it was given once, and uses it again.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was asked to do. The processor has whenever it
    returns.
    """
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def resolve_dtype(dtype: str | torch.dtype, device: str | torch.device = "cpu") -> torch.dtype:
    """Return the type that weights and activations are kept in.

    `auto` is bfloat16 where the device multiplies in it natively (AMX, AVX-512 BF16, ARM BF16, CUDA
    from capability 8.0 on), else float32. A processor must also be a fifth faster in bfloat16,
    which is measured once: AVX-512 BF16 has twice the speed of float32 on some processors, and half
    of it on others. So `auto` depends on the machine alone, and is settled before anything is
    planned. Raises `ModelError` for a name that isn't known.
    """
    dtype = dtype_name(dtype)
    if dtype == "auto":
        target = resolve_device(device) if isinstance(device, str) else device
        return torch.bfloat16 if _native_bfloat16(target) else torch.float32
    if dtype not in DTYPES:
        hint = did_you_mean(dtype, [*DTYPES, "auto"])
        raise ModelError(
            f"there is no dtype {dtype!r}{hint}; use auto, {', '.join(DTYPES)}", subject=dtype
        )
    return DTYPES[dtype]


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _CUDA_WITH_BFLOAT16
    if device.type != "cpu":
        return False
    return has_instructions_for(torch.bfloat16) and bfloat16_gain() >= WORTH


@functools.cache
def bfloat16_gain() -> float:
    """Return how many times as fast this processor multiplies matrices in bfloat16 as in float32.
    The best of six tries counts for each.
    """
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    operands = {dtype: torch.ones(1024, 1024, dtype=dtype) for dtype in best}
    for _ in range(6):
        for dtype, ones in operands.items():
            start = time.perf_counter()
            torch.nn.functional.linear(ones, ones)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]
