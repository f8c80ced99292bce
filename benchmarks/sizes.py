"""What models of 7, 32 and 70 billion numbers would take, by the plans of calibrant.compress: the
tables of docs/cost.md. Nothing is opened; shapes follow from configurations.

    python benchmarks/table.py    # writes them, with the rates of benchmarks/records/plans.json

The processor's rates are those that `plans.py` measured, and the larger one's a multiple of them.
Those of the GPUs are assumed: about four tenths of what their makers promise.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calibrant.compress import rates
from calibrant.compress.exporting import forms_of
from calibrant.compress.planning import IN_TURN, CompressionPlanner, JobPlan, Machine
from calibrant.compress.rates import Rates
from calibrant.compress.recipe import Recipe
from calibrant.data import CalibrationSet
from calibrant.models import ModelOutline, ModelShape
from calibrant.models.shape import BlockShape, MatrixShape
from calibrant.numerics import duration

MODELS: Final[Mapping[str, Mapping[str, int]]] = {
    "Qwen2.5-7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "Qwen2.5-32B": {
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
    },
    "Llama-3.1-70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
"""What their configurations say."""
METHODS: Final = {
    "wanda": "0.5",
    "sparsegpt": "0.5",
    "gptq": "w4g128",
    "refined": "0.5",
    "awq": "w4g128",
}
ROUNDING: Final = ("gptq", "awq")
SAMPLES: Final = 128
LENGTH: Final = 2048
PROCESS: Final = 700_000_000
"""Bytes that a process has taken before it opens a model: torch and transformers."""
CORES: Final = 16
"""A processor of 32 cores is assumed to be so many times as fast as the two that were measured."""
PROMISED: Final = 32_000_000_000
"""The `--memory` of the processor's second column of memory."""
PLENTY: Final = 10**15
"""Bytes of memory and disk of a machine that lacks none."""


@dataclass(frozen=True)
class Device:
    """A GPU that isn't here: bytes that a process may hold on it, and rates that are assumed."""

    room: int
    rates: Rates
    link: float


DEVICES: Final = {
    "24 GB": Device(22_500_000_000, Rates(80e12, 30e12, 20e12, 0.2e12, 6e-6), 20e9),
    "80 GB": Device(76_000_000_000, Rates(400e12, 40e12, 30e12, 0.6e12, 6e-6), 40e9),
}


def shape_of(config: Mapping[str, int]) -> ModelShape:
    """The shape of a Llama with this configuration. Biases are left out."""
    width = config["hidden_size"]
    inner = config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    matrices = (
        MatrixShape(width, width, "self_attn"),
        MatrixShape(keys, width, "self_attn"),
        MatrixShape(keys, width, "self_attn"),
        MatrixShape(width, width, "self_attn"),
        MatrixShape(inner, width, "mlp"),
        MatrixShape(inner, width, "mlp"),
        MatrixShape(width, inner, "mlp"),
    )
    norms = 2 * width
    block = BlockShape(norms + sum(matrix.numbers for matrix in matrices), matrices)
    blocks = (block,) * config["num_hidden_layers"]
    outside = 2 * config["vocab_size"] * width + width
    return ModelShape(
        numbers=outside + len(blocks) * block.numbers,
        outside=outside,
        hidden=width,
        vocabulary=config["vocab_size"],
        blocks=blocks,
        cached=len(blocks) * 2 * keys,
    )


def planned(
    model: str, method: str, device: str, machine: Machine, memory: int | None = None
) -> JobPlan:
    """The plan of one job on a machine that isn't here; `memory` bytes are promised, if given."""
    shape = shape_of(MODELS[model])
    outline = ModelOutline(
        name=model,
        shape=shape,
        dtype=torch.bfloat16,
        device=torch.device(device),
        storage="folder",
        stored=2 * shape.numbers,
        divisible=True,
    )
    recipe = Recipe.parse(method, METHODS[method])
    calibration = CalibrationSet("c4", samples=SAMPLES, length=LENGTH)
    out = Path("out")
    planner = CompressionPlanner(outline, recipe, calibration, forms_of(()), memory, out, machine)
    return planner.plan("quantize" if method in ROUNDING else "prune")


def on_processor(record: Mapping[str, Any]) -> str:
    """The table of a processor: memory with all of the model in it, and with what was promised;
    time on two cores, as measured, and on many.
    """
    two = Rates(**record["rates"])
    many = Rates(CORES * two.products, CORES * two.exact, CORES * two.grams, CORES * two.passes)
    rows: list[Sequence[str]] = []
    for model in MODELS:
        for method, target in METHODS.items():
            small = planned(model, method, "cpu", machine_of(two))
            large = planned(model, method, "cpu", machine_of(many))
            parted = planned(model, method, "cpu", machine_of(two), PROMISED)
            rows.append(
                (
                    model,
                    f"`{method} {target}`",
                    f"{small.memory / 1e9:,.0f}",
                    f"{parted.memory / 1e9:,.0f}" if parted.fits else "too little",
                    f"{sum(small.disk.values()) / 1e9:,.0f}",
                    duration(compressing(small)),
                    duration(compressing(large)),
                )
            )
    heads = (
        "model",
        "job",
        "memory, GB",
        f"with `--memory {PROMISED / 1e9:.0f}`, GB",
        "disk, GB",
        "2 cores, measured rates",
        f"{2 * CORES} cores, assumed",
    )
    return table(heads, rows)


def on_devices(_: Mapping[str, Any]) -> str:
    """The table of one GPU of 24 and of 80 GB: memory on it and beside it, and time. Nothing of a
    record is in it, since no GPU was measured.
    """
    rows: list[Sequence[str]] = []
    for model in MODELS:
        for method, target in METHODS.items():
            cells = [model, f"`{method} {target}`"]
            for device in DEVICES.values():
                machine = Machine(device.rates, PROCESS, PLENTY, device.room, PLENTY, device.link)
                cells += device_cells(planned(model, method, "cuda", machine))
            rows.append(cells)
    heads = ["model", "job"]
    for name in DEVICES:
        heads += [f"on {name}, GB", "beside it, GB", "time"]
    return table(heads, rows)


def device_cells(plan: JobPlan) -> list[str]:
    """Memory on a GPU, memory beside it, and time."""
    if not plan.fits:
        return [f"{plan.memory / 1e9:,.0f}, too much", "", ""]
    where = " in turn" if IN_TURN in plan.notes else ""
    memory = f"{plan.memory / 1e9:,.0f}{where}"
    return [memory, f"{plan.host / 1e9:,.0f}", duration(compressing(plan))]


def machine_of(rates: Rates) -> Machine:
    """A machine without a GPU that has memory enough."""
    return Machine(rates, process=PROCESS, memory=PLENTY, room=PLENTY, disk=PLENTY)


def compressing(plan: JobPlan) -> float:
    """Seconds without opening and saving, which a disk decides."""
    return plan.seconds["compress"]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under heads."""
    rule = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def assumed(_: Mapping[str, Any]) -> str:
    """The table of what is assumed of each GPU."""
    rows: list[list[str]] = [
        ["memory that a process may hold, GB"],
        ["products in bfloat16, TFLOP/s"],
        ["products in float32, TFLOP/s"],
        ["Grams, TFLOP/s"],
        ["numbers passed over, billions a second"],
        ["to the GPU or back, GB/s"],
        ["beginning a small operation, microseconds"],
    ]
    for device in DEVICES.values():
        assumption = device.rates
        values = (
            device.room / 1e9,
            assumption.products / 1e12,
            assumption.exact / 1e12,
            assumption.grams / 1e12,
            assumption.passes / 1e9,
            device.link / 1e9,
            assumption.launch * 1e6,
        )
        for row, value in zip(rows, values, strict=True):
            row.append(f"{value:g}")
    return table(["of one GPU", *DEVICES], rows)


def factors(_: Mapping[str, Any]) -> str:
    """The table of what each part of a plan needs, as `rates.py` has it."""
    attention = f"attention at {rates.ATTENTION_SHARE:g} of the rate"
    rows: list[Sequence[str]] = [
        (
            "forward of a block",
            f"2 · weights · tokens; {attention}",
            f"{rates.FORWARD_PASSES:g} over each number of a token",
        ),
        ("sums of squares", "", f"{rates.SUM_PASSES:g} over each input"),
        ("Gram", f"{rates.GRAM_SHARE:g} · in² · tokens", f"{rates.GRAM_PASSES:g} over each input"),
        *map(_factors_of, rates.WORK),
        ("scores of `evaluate`", "the head's", f"{rates.SCORE_PASSES:g} over each logit"),
    ]
    return table(("part", "products", "passes"), rows)


def _factors_of(name: str) -> Sequence[str]:
    work = rates.WORK[name]
    products: list[str] = []
    if work.products:
        products.append(f"{work.products:g} · out · in²")
    if work.cubes:
        products.append(f"{work.cubes:g} · in³")
    text = " and ".join(products)
    if text:
        text += ", in float32"
    if work.again:
        text += f"; a forward of {work.again:,} tokens"
    return f"`{name}`", text, f"{work.passes:g} over each weight"
