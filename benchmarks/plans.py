"""How near plans come to what jobs take: python benchmarks/plans.py [--models smollm2 …] [--methods
wanda …] [--out FILE] [--fit]

Each job is planned and then done, without writing anything, in a process of its own. Models are
those that packages bring, and random Llamas of the widths of models with one to seven billion
numbers, with few blocks. What was planned and what was taken stand side by side: memory at the
peak, seconds of each phase, and of each part of compressing. Seconds are those of a clock, so
nothing else may run.

`--fit` reads FILE and says which factors in calibrant/compress/rates.py would have been nearest: of
each part those whose squared relative error is least over all jobs. `--out FILE` keeps the record
after every job; jobs that it has of the same machine and the same question stay.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from benchmarks.larger import write_model

DATA: Final = "python_docs"
NAMED: Final = ("smollm2", "gemma3-270m", "qwen2.5-coder-1.5b")
RANDOM: Final = {
    "random, 2048 wide": (
        4,
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
        },
    ),
    "random, 4096 wide": (
        2,
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
        },
    ),
    "random, 8192 inner": (
        3,
        {
            "hidden_size": 1024,
            "intermediate_size": 8192,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
        },
    ),
}
"""Blocks and shapes: those of TinyLlama and of Llama 2 7B, and one whose inner width is so much
larger than its outer one that products and cubes can be told apart.
"""
METHODS: Final = {
    "wanda": "0.5",
    "sparsegpt": "0.5",
    "gptq": "w4g64",
    "refined": "0.5",
    "awq": "w4g64",
}
USUAL: Final = ("wanda", "sparsegpt", "gptq")
CHOSEN: Final = ("samples", "length", "dtype", "threads")
"""What makes a record answer another question."""
CHILD: Final = """
import json, sys
import calibrant
from calibrant.compress.planning import Machine
from calibrant.models import outline_of
from calibrant.system.process import own_process
from benchmarks.plans import units
own_process()
model, options = sys.argv[1], json.loads(sys.argv[2])
verb = calibrant.quantize if options["target"].startswith("w") else calibrant.prune
planned = calibrant.plan(verb, model, **options)
outline = outline_of(model, options["dtype"], "cpu")
rates = Machine.here(outline, None).rates
done = verb(model, **options, profile=True)
print(json.dumps({
    "planned": {
        "memory": planned.memory, "seconds": dict(planned.seconds), "parts": dict(planned.parts)
    },
    "taken": {
        "memory": done.record.provenance["peak_memory_bytes"],
        "seconds": dict(done.costs.phases), "parts": dict(done.costs.parts),
    },
    "floor": done.costs.floor,
    "units": units(outline.shape, planned.tokens, options["length"], rates),
}))
"""


def units(shape: Any, tokens: int, length: int, rates: Any) -> dict[str, dict[str, float]]:
    """The seconds of what a factor of each part counts, once: of `forward` also its products, whose
    factor is 1.
    """
    weights = sum(matrix.numbers for matrix in shape.matrices)
    used = sum(matrix.numbers * matrix.used for matrix in shape.matrices)
    squares = sum(matrix.numbers * matrix.inputs for matrix in shape.matrices)
    cubes = sum(width**3 for width in shape.input_widths)
    blocks = len(shape.blocks)
    a_pass = weights / rates.passes
    return {
        "forward": {
            "products": 2.0 * tokens * used / rates.products,
            "attention": 2.0 * tokens * length * shape.hidden * blocks / rates.products,
            "passes": tokens * shape.numbers_per_token * blocks / rates.passes,
        },
        "statistics": {
            "products": tokens * sum(width**2 for width in shape.input_widths) / rates.grams,
            "passes": tokens * sum(shape.input_widths) / rates.passes,
        },
        "method": {
            "passes": a_pass,
            "products": squares / rates.exact,
            "cubes": cubes / rates.exact,
        },
        "record": {"passes": a_pass, "products": squares / rates.exact},
    }


def ran(asked: argparse.Namespace, model: str, method: str) -> dict[str, Any]:
    """What a process says of one job."""
    options = {
        "data": DATA,
        "method": method,
        "target": METHODS[method],
        "samples": asked.samples,
        "length": asked.length,
        "dtype": asked.dtype,
        "device": "cpu",
    }
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment["OMP_NUM_THREADS"] = str(asked.threads)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, model, json.dumps(options)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{model}, {method}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured_rates(asked: argparse.Namespace) -> dict[str, float]:
    """The rates of this machine, as a plan measures them."""
    import torch

    from calibrant.compress.rates import rates_of

    torch.set_num_threads(asked.threads)
    return asdict(rates_of(getattr(torch, asked.dtype), torch.device("cpu")))


def line(case: str, found: Mapping[str, Any]) -> str:
    """What is told of a job: what was planned by what was taken, in all and part by part."""
    planned = found["planned"]
    taken = found["taken"]
    memory = planned["memory"] / taken["memory"]
    seconds = sum(planned["seconds"].values()) / sum(taken["seconds"].values())
    told = [f"{case:<36} planned by taken: memory {memory:.2f}, time {seconds:.2f}"]
    for part, expected in {**planned["seconds"], **planned["parts"]}.items():
        took = {**taken["seconds"], **taken["parts"]}.get(part, 0.0)
        told.append(f"{part} {expected:.1f} / {took:.1f}")
    return "   ".join(told)


def nearest(
    rows: Sequence[Mapping[str, float]], taken: Sequence[float], fixed: str = ""
) -> dict[str, float]:
    """The factors, none below 0, with which the sums of `rows` are relatively nearest to what was
    taken. The factor of the column `fixed` is 1.
    """
    import numpy as np
    from scipy.optimize import nnls

    free = [name for name in rows[0] if name != fixed]
    left = [1 - row.get(fixed, 0.0) / took for row, took in zip(rows, taken, strict=True)]
    shares: list[list[float]] = []
    for row, took in zip(rows, taken, strict=True):
        shares.append([row[name] / took for name in free])
    factors, _ = nnls(np.array(shares), np.array(left))
    return dict(zip(free, map(float, factors), strict=True))


def fitted(cases: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The nearest factors of each part: of the method by its name, of all else by whether Grams are
    summed.
    """
    rows: dict[str, list[Mapping[str, float]]] = {}
    taken: dict[str, list[float]] = {}
    for case, found in cases.items():
        method = case.rpartition(", ")[2].split()[0]
        sums = "squares" if method == "wanda" else "Grams"
        for part, unit in found["units"].items():
            name = {
                "forward": "forward",
                "statistics": f"statistics, {sums}",
                "method": f"method, {method}",
                "record": f"record, {sums}",
            }[part]
            columns = dict(unit)
            if sums == "squares" and part != "forward":
                columns = {"passes": unit["passes"]}
            elif part == "method":
                columns["once"] = 1.0
            # What runs blocks again says nothing of a forward.
            if part == "forward" and method == "awq":
                continue
            rows.setdefault(name, []).append(columns)
            taken.setdefault(name, []).append(found["taken"]["parts"][part])
    result: dict[str, dict[str, float]] = {}
    for name in rows:
        fixed = "products" if name == "forward" else ""
        result[name] = nearest(rows[name], taken[name], fixed)
    return result


def main() -> None:
    """Plan and do every job, and print a line for each; or fit what FILE has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*NAMED, *RANDOM])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(USUAL))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="a file that keeps what was measured")
    parser.add_argument("--again", action="store_true", help="measure what FILE has as well")
    parser.add_argument("--fit", action="store_true", help="only fit the factors to FILE")
    asked = parser.parse_args()
    question = {
        "asked": {name: getattr(asked, name) for name in CHOSEN},
        "machine": {**machine.facts(), "threads": asked.threads},
    }
    if asked.fit:
        kept = json.loads(asked.out.read_text("utf-8"))
        for name, factors in fitted(kept["cases"]).items():
            print(name, ", ".join(f"{key} {factor:.2f}" for key, factor in factors.items()))
        return
    record = machine.started(asked.out, question, "cases")
    if "rates" not in record:
        record["rates"] = measured_rates(asked)
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            path = model
            if model in RANDOM:
                blocks, shape = RANDOM[model]
                path = str(Path(folder) / "model")
                write_model(Path(path), blocks, shape)
            for method in asked.methods:
                case = f"{model}, {method} {METHODS[method]}"
                if case not in record["cases"] or asked.again:
                    record["cases"][case] = ran(asked, path, method)
                    machine.keep(asked.out, record)
                print(line(case, record["cases"][case]), flush=True)


if __name__ == "__main__":
    main()
