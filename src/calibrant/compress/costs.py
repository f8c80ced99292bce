"""How a result came about: where the seconds went, and the least they could be (one forward's
matrix products); on which machine; and whether there were few tokens.
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

from calibrant.data import TokenBatch
from calibrant.models import ModelView, Opened
from calibrant.models.devices import wait_for
from calibrant.numerics import type_name
from calibrant.system.clock import Clock, seconds_of
from calibrant.system.wide_products import wide_products

FEW_TOKENS: Final = "few_tokens"
"""The entry of a record's provenance for a shortage of tokens. Nothing is refused for one, since
studies compare small sets on purpose.
"""
ROWS: Final = 4096
"""Rows of a product that is timed: enough to fill the cores."""
_OWN_ORDER: Final = ("avx512_bf16", "amx_bf16")
"""Instructions of processors that add up products of bfloat16 in an order of their own."""

Shape = tuple[int, int]


@dataclass(frozen=True)
class Costs:
    """Seconds by phase of a job, and by part of the phase in which it compresses.

    `floor` is how many seconds the products of all matrices with these `tokens` take at the least,
    each done once; `peak` is the rate at which they were timed, in operations a second. Both are 0
    where no tokens were shown.
    """

    phases: Mapping[str, float]
    parts: Mapping[str, float]
    floor: float
    peak: float
    tokens: int
    dtype: str

    @classmethod
    def of(cls, clock: Clock, view: ModelView, tokens: int) -> "Costs":
        """Return what `clock` counted, with the floor. That is measured now, which takes half a
        second for each shape of matrix.
        """
        parts = dict(clock.parts)
        # What isn't a named part of compressing is the model's own forward.
        forward = clock.seconds.get("compress", 0.0) - sum(parts.values())
        shapes = Counter(weight.shape for weight in view.weights)
        dtype = view.weights[0].stored.dtype
        floor = 0.0
        operations_in_all = 0.0
        if tokens:
            for shape, count in shapes.items():
                work = count * operations(shape, tokens)
                operations_in_all += work
                floor += work / peak(shape, dtype, view.device)
        timed_rate = 0.0
        if floor:
            timed_rate = operations_in_all / floor
        return cls(
            phases=dict(clock.seconds),
            parts={"forward": forward, **parts},
            floor=floor,
            peak=timed_rate,
            tokens=tokens,
            dtype=type_name(dtype),
        )


def operations(shape: Shape, tokens: int) -> float:
    """Return how many multiplications and additions a matrix's product with `tokens` inputs is."""
    return 2.0 * tokens * shape[0] * shape[1]


def peak(
    shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", seconds: float = 0.5
) -> float:
    """Return the operations a second of the fastest of the products with a matrix of `shape` [out,
    in] that are done within `seconds`. Memory for the result is there already. On the processor
    they are `wide_products`.
    """
    inputs = torch.ones(ROWS, shape[1], dtype=dtype, device=device)
    matrix = torch.ones(shape, dtype=dtype, device=device)
    result = inputs.new_empty(ROWS, shape[0])

    def product() -> None:
        torch.mm(inputs, matrix.T, out=result)
        # A device works on its own: the product is done when it says so.
        wait_for(inputs.device)

    best = float("inf")
    with wide_products():
        # Not timed: the first product may set up threads, or load kernels.
        product()
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            best = min(best, seconds_of(product))
    return operations(shape, ROWS) / best


def provenance(opened: Opened, clock: Clock, note: str = "", shortage: str = "") -> dict[str, Any]:
    """Return what a record says of how its result came about; no identity depends on it. A
    `shortage` of tokens is included if there is one.
    """
    versions = {name: version(name) for name in ("calibrant", "torch", "transformers")}
    entries: dict[str, Any] = {
        "seconds": dict(clock.seconds),
        "peak_memory_bytes": peak_memory(),
        "versions": {**versions, "python": platform.python_version()},
        "device": str(opened.model.device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "model_note": opened.note,
        "note": note,
    }
    if shortage:
        entries[FEW_TOKENS] = shortage
    return entries


def processor() -> str:
    """Return the processor's name, as Linux or else Python says it, and which of the instructions
    for bfloat16 it has: two that differ here may round differently.
    """
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            # All cores are alike: the first one tells.
            fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    instructions = [instruction for instruction in _OWN_ORDER if instruction in flags]
    return f"{name} with {' and '.join(instructions)}" if instructions else name


def peak_memory() -> int:
    """Return the most memory this process has held at once, in bytes; 0 where the system doesn't
    tell.
    """
    if os.name != "posix":
        return 0
    status = Path("/proc/self/status")
    if status.is_file():
        match = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    import resource

    # On Linux `ru_maxrss` begins with what the process that started this one held. It is in
    # bytes on macOS, and in units of 1,024 bytes elsewhere.
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def shortage_of(view: ModelView, batch: TokenBatch | None) -> str:
    """Return a sentence if a batch has fewer tokens than the widest matrix has inputs; empty if it
    has enough, or if there is no batch.
    """
    if batch is None or not view.weights:
        return ""
    count = int(batch.mask.sum())
    widest = max(view.weights, key=lambda weight: weight.shape[1])
    inputs = widest.shape[1]
    if count >= inputs:
        return ""
    tokens = "1 token" if count == 1 else f"{count:,} tokens"
    # A Gram of fewer tokens than inputs is singular.
    problem = (
        f"{tokens} of calibration data can't tell the {inputs:,} inputs of {widest.name} apart"
    )
    advice = f"raise samples, length or tokens: {inputs:,} are the least, many more are better"
    return f"{problem}; {advice}"
