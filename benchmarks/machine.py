"""What a machine is, the fewest seconds in which it could do the products of a model's blocks,
and the file that says what was measured on it.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from calibrant.compress import costs

DTYPES: Final = ("float32", "bfloat16")
INSTRUCTIONS: Final = (
    "avx2",
    "avx512_f",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "bf16",
    "sve",
    "sve_bf16",
)
"""What of `torch.cpu.get_capabilities` has to do with products."""

Shape = tuple[int, int]


def facts() -> dict[str, Any]:
    """Processor, cores, instruction sets, memory and threads, as a record keeps them."""
    import psutil
    import torch

    able = torch.cpu.get_capabilities()
    return {
        "processor": costs.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in INSTRUCTIONS if able.get(name)],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "torch": torch.__version__,
    }


def told(machine: Mapping[str, Any]) -> str:
    """The machine in a sentence's part."""
    able = ", ".join(machine["instructions"]) or "none that are asked for"
    cores = f"{machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']} GiB"
    return f"{machine['processor']}, {cores}; instruction sets {able}; torch {machine['torch']}"


def shapes_of(config: Mapping[str, int]) -> dict[Shape, int]:
    """How often a llama's blocks have a matrix of each shape `(out, in)`; `config` is its
    `config.json`.
    """
    width, inner, layers = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
    )
    size = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    found: dict[Shape, int] = {}
    for shape in (
        (queries, width),
        (keys, width),
        (keys, width),
        (width, queries),
        (inner, width),
        (inner, width),
        (width, inner),
    ):
        found[shape] = found.get(shape, 0) + layers
    return found


def peak(shape: Shape, dtype: str, seconds: float = 0.5) -> float:
    """Operations per second of the best of the products with a matrix of this shape that fit
    into `seconds`.
    """
    import torch

    return costs.peak(shape, getattr(torch, dtype), seconds=seconds)


def peaks(shapes: Iterable[Shape]) -> dict[str, dict[Shape, float]]:
    """The peak of every shape in every type; the types take turns, so that a slow moment meets
    all of them.
    """
    found: dict[str, dict[Shape, float]] = {dtype: {} for dtype in DTYPES}
    for shape in shapes:
        for dtype in DTYPES:
            found[dtype][shape] = peak(shape, dtype)
    return found


def floor(shapes: Mapping[Shape, int], peaks: Mapping[Shape, float], tokens: int) -> float:
    """Seconds of all matrices' products with `tokens` inputs, each once, at the peak of its
    shape.
    """
    return sum(
        count * costs.operations(shape, tokens) / peaks[shape] for shape, count in shapes.items()
    )


def question_of(asked: argparse.Namespace, options: Iterable[str]) -> dict[str, Any]:
    """What a record answers: these options of the command line, and this machine."""
    return {"asked": {option: getattr(asked, option) for option in options}, "machine": facts()}


def started(out: Path | None, question: Mapping[str, Any], holds: str) -> dict[str, Any]:
    """The record so far: what `out` holds under `holds` of the same question on the same
    machine, or nothing.
    """
    kept = json.loads(out.read_text("utf-8")) if out is not None and out.is_file() else {}
    same = {name: kept.get(name) for name in question} == json.loads(json.dumps(question))
    return kept if same else {**question, holds: {}}


def keep(out: Path | None, record: Mapping[str, Any]) -> None:
    """Write the record to `out`, if there is one."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
