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
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from benchmarks.larger import write_model

if TYPE_CHECKING:
    from calibrant.compress.rates import Rates
    from calibrant.models import ModelShape

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
PULL: Final = 0.03
"""How much it costs a factor to leave what it is now, as a relative error of one job more."""
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
    "units": units(outline.shape, outline.storage, planned.tokens, options["length"], rates),
}))
"""


def units(
    shape: "ModelShape", storage: str, tokens: int, length: int, rates: "Rates"
) -> dict[str, dict[str, float]]:
    """For each part of a job, what is multiplied with each of its factors: seconds of this machine,
    and of opening the numbers themselves. The products of `forward` have the factor 1.
    """
    from calibrant.compress.rates import forward_seconds, gram_operations

    weights = sum(matrix.numbers for matrix in shape.matrices)
    used = sum(matrix.numbers * matrix.used for matrix in shape.matrices)
    squares = sum(matrix.numbers * matrix.inputs for matrix in shape.matrices)
    cubes = sum(width**3 for width in shape.input_widths)
    grams = sum(gram_operations(width, tokens) for width in shape.input_widths)
    blocks = len(shape.blocks)
    return {
        "forward": {
            "products": 2.0 * tokens * used / rates.products,
            "attention": 4.0 * tokens * length * shape.hidden * blocks / rates.products,
            "passes": tokens * shape.numbers_per_token * blocks / rates.passes,
        },
        "statistics": {
            "grams": grams / rates.grams,
            "passes": tokens * sum(shape.input_widths) / rates.passes,
        },
        "method and record": {
            "passes": weights / rates.passes,
            "products": squares / rates.exact,
            "cubes": cubes / rates.exact,
            "again": forward_seconds(shape, 1, length, rates),
        },
        "open": {
            "starting": 1.0,
            "vocabulary": shape.vocabulary,
            "read": 0 if storage == "gguf" else shape.numbers,
            "dequantized": shape.numbers if storage == "gguf" else 0,
        },
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
        took = joined(taken).get(part, 0.0)
        told.append(f"{part} {expected:.1f} / {took:.1f}")
    return "   ".join(told)


def nearest(
    rows: Sequence[Mapping[str, float]], taken: Sequence[float], now: Mapping[str, float]
) -> dict[str, float]:
    """The factors, none below 0, with which the sums of `rows` are relatively nearest to what was
    taken. What few jobs can't tell apart stays near what the factors are `now`; those that are 0
    stay so.
    """
    import numpy as np
    from scipy.optimize import nnls

    names = [name for name, factor in now.items() if factor]
    left = np.ones(len(rows))
    shares = np.empty((len(rows), len(names)))
    for at, (row, took) in enumerate(zip(rows, taken, strict=True)):
        left[at] -= sum(row[name] for name in row if name not in now) / took
        shares[at] = [row[name] / took for name in names]
    pulls = np.diag([PULL / now[name] for name in names])
    aims = np.full(len(names), PULL)
    factors, _ = nnls(np.vstack([shares, pulls]), np.concatenate([left, aims]))
    return dict(zip(names, map(float, factors), strict=True))


def factors_now() -> dict[str, dict[str, float]]:
    """The factors that plans have, of each part; what a method does, by the method's name. Of
    opening they are seconds: to start, for each entry of the vocabulary, and for each number that
    is read in bfloat16 or dequantized.
    """
    from calibrant.compress import rates

    now = {
        "open": {
            "starting": rates.STARTING,
            "vocabulary": rates.TOKENIZER_SECONDS,
            "read": 2 / rates.DISK,
            "dequantized": rates.DEQUANTIZING,
        },
        "forward": {"attention": 1 / rates.ATTENTION_SHARE, "passes": rates.FORWARD_PASSES},
        "sums of squares": {"passes": rates.SUM_PASSES},
        "Gram": {"grams": rates.GRAM_SHARE, "passes": rates.GRAM_PASSES},
    }
    for method in METHODS:
        work = rates.WORK[method]
        counted = ("passes", "products", "cubes", "again")
        now[method] = {name: getattr(work, name) for name in counted}
    return now


def parts_of(case: str) -> dict[str, str]:
    """What the parts of a job are called among the factors."""
    method = case.rpartition(", ")[2].split()[0]
    sums = "sums of squares" if method == "wanda" else "Gram"
    return {
        "open": "open",
        "forward": "forward",
        "statistics": sums,
        "method and record": method,
    }


def expected(case: str, found: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of each part by today's factors, with the rates that were measured at the job."""
    now = factors_now()
    seconds: dict[str, float] = {}
    for part, name in parts_of(case).items():
        counted = found["units"][part]
        # Products of a forward have no factor of their own.
        seconds[part] = counted["products"] if part == "forward" else 0.0
        for counts, factor in now[name].items():
            seconds[part] += factor * counted[counts]
    return seconds


def fitted(cases: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The nearest factors of each part, called as `factors_now` calls them."""
    now = factors_now()
    rows: dict[str, list[Mapping[str, float]]] = {}
    taken: dict[str, list[float]] = {}
    for case, found in cases.items():
        took = joined(found["taken"])
        parts = parts_of(case)
        for part, name in parts.items():
            # It walks in shorter passes, which take longer.
            if part == "forward" and parts["method and record"] == "awq":
                continue
            counted = dict(found["units"][part])
            if name == "sums of squares":
                counted = {"passes": counted["passes"]}
            rows.setdefault(name, []).append(counted)
            taken.setdefault(name, []).append(took[part])
    return {name: nearest(rows[name], taken[name], now[name]) for name in rows}


def joined(taken: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of phases and parts of a job, called as those of a plan."""
    result = {**taken["seconds"], **taken["parts"]}
    result["method and record"] = result.pop("method", 0.0) + result.pop("record", 0.0)
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
            print(name, ", ".join(f"{key} {factor:.3g}" for key, factor in factors.items()))
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
