"""How the cost of pruning grows: python benchmarks/growth.py [--rounds 5] [--parts tokens …] [--out
FILE] [--quick]

`tokens`, `sizes` and `cores`: a `prune` in memory for each point, in a process of its own, Wanda at
50 %: the seconds from the open model to the pruned one. `sizes` are SmolLM2 and three widths of the
same architecture with twelve blocks of random weights. `sets` is a study in `dense` with one, two
and four calibration sets. `methods` is a study in `dense` with six methods × targets on one set,
next to one with a single one of them; the two take turns in one process, the first by turns, and
what is told is the ratio of each pair. Studies measure nothing here; their time is that of all
their phases but opening the model. Every point but those of `methods` is the least of `--repeats`,
which go round in turn.

`--out FILE` keeps the record after every part; parts that it has of the same machine and the same
question stay.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine

HERE: Final = Path(__file__).resolve()
DATA: Final = ("python_docs", "python_code", "arithmetic:icl", "random_tokens")
TARGETS: Final = (0.5, 0.6, "2:4")
SIX: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "sparsegpt": (
        {"methods": "sparsegpt", "targets": 0.5},
        {"methods": ("wanda", "sparsegpt"), "targets": TARGETS},
    ),
    "wanda": (
        {"methods": "wanda", "targets": 0.5},
        {"methods": ("wanda", "magnitude"), "targets": TARGETS},
    ),
}
"""One compression and six, by the method of the one."""
WIDTHS: Final = {
    "random, 576 wide": (576, 9),
    "random, 768 wide": (768, 12),
    "random, 1152 wide": (1152, 18),
}
"""Features of a random model, and its attention heads."""
BLOCKS: Final = 12
CHOSEN: Final = ("length", "samples", "shared", "counts", "rounds", "repeats", "dtype")


def pruned(
    asked: argparse.Namespace, model: str, samples: int, threads: int | None = None
) -> dict[str, Any]:
    """A process that prunes `model` with Wanda: its seconds and its most memory."""
    budget = {
        "data": DATA[0],
        "samples": samples,
        "length": asked.length,
        "seed": 0,
        "dtype": asked.dtype,
        "propagate": "arrival",
    }
    told = {
        "way": "calibrant",
        "model": model,
        "method": "wanda",
        "target": "0.5",
        "out": "",
        **budget,
    }
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    found = process([str(HERE.with_name("ways.py")), json.dumps(told)], environment)
    return {"seconds": found["seconds"], "peak": found["peak"]}


def least(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Of every point the round with the fewest seconds, and those of all rounds as `taken`."""
    points = zip(*rounds, strict=True)
    return [
        {**min(point, key=lambda one: one["seconds"]), "taken": [one["seconds"] for one in point]}
        for point in points
    ]


def process(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a process of this project says in its last line."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def tokens(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds by the number of tokens, and the straight line through them."""
    rounds = [
        [{"tokens": n, **pruned(asked, "smollm2", n // asked.length)} for n in asked.counts]
        for _ in range(asked.repeats)
    ]
    points = least(rounds)
    return {
        "points": points,
        "line": straight([p["tokens"] for p in points], [p["seconds"] for p in points]),
    }


def straight(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The line of least squares, and how far the worst point lies from it, as a share of its
    value.
    """
    slope, start = statistics.linear_regression(x, y)
    worst = max(abs(start + slope * a - b) / b for a, b in zip(x, y, strict=True))
    return {"start": start, "slope": slope, "worst": worst}


def sizes(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds by the numbers in the blocks' matrices."""
    rounds: list[list[dict[str, Any]]] = [[] for _ in range(asked.repeats)]
    with tempfile.TemporaryDirectory() as folder:
        random(Path(folder))
        models = {"smollm2": "smollm2", **{name: str(Path(folder) / name) for name in WIDTHS}}
        for points, (name, model) in itertools.product(rounds, models.items()):
            config = json.loads(
                (
                    Path(folder) / ("dense" if name == "smollm2" else name) / "config.json"
                ).read_text()
            )
            shapes = machine.shapes_of(config)
            numbers = sum(count * out * inside for (out, inside), count in shapes.items())
            points.append(
                {
                    "model": name,
                    "numbers": numbers,
                    "blocks": config["num_hidden_layers"],
                    **pruned(asked, model, asked.samples),
                }
            )
    return {"points": least(rounds), "tokens": asked.samples * asked.length}


def random(folder: Path) -> None:
    """Save SmolLM2 and the random models of its architecture, with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import calibrant
    from calibrant.models import save
    from calibrant.models.quiet import quiet

    opened = calibrant.open_model("smollm2", "float32")
    save(opened, folder / "dense", {})
    for name, (width, heads) in WIDTHS.items():
        shape = {
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3,
            "head_dim": width // heads,
        }
        config = AutoConfig.from_pretrained(
            folder / "dense", **shape, intermediate_size=width * 8 // 3, num_hidden_layers=BLOCKS
        )
        torch.manual_seed(0)
        with quiet():
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        opened.tokenizer.save_pretrained(folder / name)


def cores(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds by threads: one, and twice as many until there is one a core."""
    most = os.cpu_count() or 1
    counts = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    rounds = [
        [{"threads": n, **pruned(asked, "smollm2", asked.samples, n)} for n in counts]
        for _ in range(asked.repeats)
    ]
    return {"points": least(rounds), "tokens": asked.samples * asked.length}


def sets(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of studies with more and more sets."""
    grids = [{"data": DATA[:count], "methods": "wanda", "targets": 0.5} for count in (1, 2, 4)]
    first = {**grids[0], "samples": 1}  # imports what is then there for all
    found = iter(studies(asked, [first, *grids * asked.repeats])[1:])
    rounds = [
        [{"sets": len(grid["data"]), **next(found)} for grid in grids] for _ in range(asked.repeats)
    ]
    return {"points": least(rounds), "tokens": asked.samples * asked.length}


def methods(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one and of six compressions on one set, pair by pair."""
    found: dict[str, Any] = {}
    for name, grids in SIX.items():
        told = [{"data": DATA[0], **grid} for grid in grids]
        order = [at if turn % 2 == 0 else 1 - at for turn in range(asked.rounds) for at in (0, 1)]
        first = {**told[1], "samples": 1}  # imports and compiles what is then there for both
        ran = studies(asked, [first, *({**told[at], "samples": asked.shared} for at in order)])[1:]
        one, six = (
            [study["seconds"] for at, study in zip(order, ran, strict=True) if at == which]
            for which in (0, 1)
        )
        found[name] = {
            "one": one,
            "six": six,
            "ratios": [b / a for a, b in zip(one, six, strict=True)],
            "phases": [study["phases"] for study in ran],
        }
    return {"pairs": found, "tokens": asked.shared * asked.length}


def studies(asked: argparse.Namespace, grids: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What these studies took, one after the other in one process."""
    budget = {
        "models": "smollm2",
        "samples": asked.samples,
        "length": asked.length,
        "dtype": asked.dtype,
        "propagate": "dense",
        "evaluate": (),
    }
    return process([str(HERE), "--studies", json.dumps([{**budget, **grid} for grid in grids])])[
        "studies"
    ]


def child(grids: Sequence[Mapping[str, Any]]) -> None:
    """What the studies' process does."""
    from calibrant.lab.study import Study

    found = []
    for grid in grids:
        with tempfile.TemporaryDirectory() as folder:
            finished = Study(**grid).run(Path(folder) / "study")
        if finished.failures:
            raise SystemExit(json.dumps(dict(finished.failures)))
        phases = dict(finished.seconds)
        found.append(
            {
                "phases": phases,
                "seconds": sum(seconds for phase, seconds in phases.items() if phase != "open"),
            }
        )
    print(json.dumps({"studies": found}))


PARTS: Final[dict[str, Callable[[argparse.Namespace], dict[str, Any]]]] = {
    "tokens": tokens,
    "sizes": sizes,
    "cores": cores,
    "sets": sets,
    "methods": methods,
}


def told(part: str, found: Mapping[str, Any]) -> str:
    """What is said of a part."""
    if part == "methods":
        lines = []
        for name, pair in found["pairs"].items():
            one, six, ratio = (statistics.median(pair[key]) for key in ("one", "six", "ratios"))
            spread = f"{min(pair['ratios']):.2f} to {max(pair['ratios']):.2f}"
            lines.append(
                f"six methods × targets {six:.1f} s, one {name} {one:.1f} s: {ratio:.2f} times "
                f"({spread})"
            )
        return "\n".join(lines)
    key = next(iter(found["points"][0]))
    points = ", ".join(f"{point[key]} {point['seconds']:.1f} s" for point in found["points"])
    if line := found.get("line"):
        points += f"; {line['slope'] * 1000:.2f} s per 1,000 tokens and {line['start']:.1f} s"
        points += f", worst point {line['worst']:.1%} off"
    return f"{part}: {points}"


def main() -> None:
    """Measure every part and print what it says, then the record as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--samples", type=int, default=8, help="windows of a set in `sizes`, `cores` and `sets`"
    )
    parser.add_argument(
        "--shared", type=int, default=16, help="windows of the set that `methods` shares"
    )
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--counts", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of `methods`")
    parser.add_argument("--repeats", type=int, default=2, help="of every other point")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="the file of the record")
    parser.add_argument(
        "--quick", action="store_true", help="4 × 128 tokens, one round: does everything work?"
    )
    parser.add_argument("--studies", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.studies:
        child(json.loads(asked.studies))
        return
    if asked.quick:
        asked.samples, asked.shared, asked.length, asked.rounds, asked.repeats, asked.counts = (
            4,
            4,
            128,
            1,
            1,
            [512, 1024],
        )
    question = {**machine.question_of(asked, CHOSEN), "version": version("calibrant")}
    record = machine.started(asked.out, question, "parts")
    print(f"smollm2 (dequantized from Q4_1), {machine.told(record['machine'])}", flush=True)
    for part in asked.parts:
        record["parts"][part] = PARTS[part](asked)
        print(told(part, record["parts"][part]), flush=True)
        machine.keep(asked.out, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
