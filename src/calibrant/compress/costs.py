"""What a job cost, beside what its arithmetic costs at least: where the seconds went, and the
floor of one forward's matrix products.
"""

import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from calibrant.compress.shortage import FEW_TOKENS
from calibrant.models import ModelView, Opened
from calibrant.system.clock import Clock

ROWS: Final = 4096
"""Rows of a product that is timed: enough to fill the cores."""
_ROUNDING: Final = ("avx512_bf16", "amx_bf16")
"""Instructions that add up products of bfloat16 in an order of their own."""

Shape = tuple[int, int]


@dataclass(frozen=True)
class Costs:
    """Seconds by phase; of those spent compressing, seconds by part; and the floor: the blocks'
    products with these tokens, once, at their peak.

    `peak` is the rate of all of them together, in operations a second. No floor (0) where nothing
    was observed.
    """

    phases: Mapping[str, float]
    parts: Mapping[str, float]
    floor: float
    peak: float
    tokens: int
    dtype: str

    @classmethod
    def of(cls, clock: Clock, seen_by: ModelView, tokens: int) -> "Costs":
        """Return what `clock` counted, with the floor measured now, in half a second for each
        shape of matrix.
        """
        inside = dict(clock.parts)
        forward = clock.seconds.get("compress", 0.0) - sum(inside.values())
        shapes = Counter(weight.shape for weight in seen_by.weights) if tokens else Counter[Shape]()
        dtype = seen_by.weights[0].stored.dtype
        seconds = sum(
            (
                count * operations(shape, tokens) / peak(shape, dtype, seen_by.device)
                for shape, count in shapes.items()
            ),
            0.0,
        )
        whole = sum(count * operations(shape, tokens) for shape, count in shapes.items())
        kind = str(dtype).removeprefix("torch.")
        return cls(
            dict(clock.seconds),
            {"forward": forward, **inside},
            seconds,
            whole / seconds if seconds else 0.0,
            tokens,
            kind,
        )


def operations(shape: Shape, tokens: int) -> float:
    """Multiplications and additions of a matrix's product with `tokens` inputs."""
    return 2.0 * tokens * shape[0] * shape[1]


def peak(
    shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", seconds: float = 0.5
) -> float:
    """Operations a second of the best product with a matrix `shape` [out, in] within `seconds`,
    its result's memory being there.
    """
    inputs, matrix = (
        torch.ones(rows, shape[1], dtype=dtype, device=device) for rows in (ROWS, shape[0])
    )
    result = inputs.new_empty(ROWS, shape[0])
    wait = torch.cuda.synchronize if inputs.is_cuda else lambda: None
    torch.mm(inputs, matrix.T, out=result)
    best, ends = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ends:
        wait()
        began = time.perf_counter()
        torch.mm(inputs, matrix.T, out=result)
        wait()
        best = min(best, time.perf_counter() - began)
    return operations(shape, ROWS) / best


def provenance(opened: Opened, clock: Clock, note: str = "", shortage: str = "") -> dict[str, Any]:
    """Return how a result came about, a `shortage` of tokens included if there is one: outside
    every identity.
    """
    about = {
        "seconds": dict(clock.seconds),
        "peak_memory_bytes": peak_memory(),
        "versions": {name: version(name) for name in ("calibrant", "torch", "transformers")}
        | {"python": platform.python_version()},
        "device": str(opened.model.device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "model_note": opened.note,
        "note": note,
    }
    return {**about, FEW_TOKENS: shortage} if shortage else about


def processor() -> str:
    """The name that Linux knows the processor by, else what Python says, with what it has for
    bfloat16: two that differ here may round otherwise.
    """
    about = Path("/proc/cpuinfo")
    lines = (
        [line.partition(":") for line in about.read_text().splitlines()] if about.is_file() else []
    )
    known = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    name = known.get("model name") or platform.processor() or platform.machine()
    able = " and ".join(one for one in _ROUNDING if one in known.get("flags", "").split())
    return f"{name} with {able}" if able else name


def peak_memory() -> int:
    """Return the most memory this process has held at once, in bytes; 0 where the system doesn't
    tell.
    """
    if os.name != "posix":
        return 0
    status = Path("/proc/self/status")
    match = (
        re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if status.is_file()
        else None
    )
    if match:  # on Linux `ru_maxrss` begins with what the process that started this one held
        return int(match[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
