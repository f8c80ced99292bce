"""What `autoround` takes and loses next to auto-round: python benchmarks/autoround.py --peer PYTHON
[--steps 200] [--seeds 3] [--target w4g64]

Both get the same saved folder of SmolLM2 and the same tokens. They take turns, and each seed has a
process of its own (`ways.py`). A seed decides only which windows a step sees, so the losses of
several seeds say how far apart two runs of one tool are. Timed is what lies between an open model
and the rounded one. One evaluator measures held-out loss in float32, also of `gptq` and `rtn`.
`--peer` is the Python of an environment with auto-round. Runs that `--out` holds already aren't
repeated.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine, peers

ASKED: Final = ("model", "data", "target", "steps", "samples", "length", "measured", "dtype")
"""Options that a record has. With other options, or on another machine, it is begun anew."""


def parsed() -> argparse.Namespace:
    """Return the command line, with what `peers.prepare` asks for besides."""
    parser = peers.usual_options(__doc__)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--target", default="w4g64")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=machine.DTYPES)
    parser.add_argument("--without-others", action="store_true", help="leave out gptq and rtn")
    parser.set_defaults(draws=1, loss_dtype="float32", peer_batch=8, keep_freed=False)
    asked = parser.parse_args()
    asked.saved_dtype = asked.dtype
    return asked


def rounded(setting: peers.Setting, way: str, method: str, seed: int) -> dict[str, Any]:
    """Return what one process took, and the loss of what it made."""
    asked = setting.asked
    out = setting.folder / "rounded"
    shutil.rmtree(out, ignore_errors=True)
    # Ours draws the saved tokens itself, and `--seeds` are the method's.
    told = {
        "method": method,
        "target": asked.target,
        "steps": asked.steps,
        "dtype": asked.dtype,
        "propagate": None,
        "tokens": str(setting.folder / "tokens-0.json"),
        "out": str(out),
        "seed": seed if way == "auto_round" else 0,
    }
    found = peers.child(setting, way, **told)
    # Rounding to nearest reads no tokens, and auto-round doesn't say which it got.
    if method not in ("rtn", ""):
        assert found["tokens"] == setting.fingerprints[0]
    found["loss"] = peers.loss(out, asked)
    name = method or way
    print(f"  {name}: {found['seconds']:.1f} s, loss {found['loss']:.4f}", file=sys.stderr)
    return found


def line(name_in_record: str, runs: list[dict[str, Any]], dense: float) -> str:
    """Return a line about a tool or method: its median seconds, and by how much the loss rises."""
    rises = [run["loss"] - dense for run in runs]
    spread = f" ± {statistics.stdev(rises):.4f} (a seed)" if len(rises) > 1 else ""
    seconds = statistics.median(run["seconds"] for run in runs)
    rise = statistics.mean(rises)
    return f"{name_in_record:<12} {seconds:.1f} s, loss {rise:+.4f}{spread}"


def runs_in_order(asked: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Yield each run: its name in the record, its function in `ways.py`, its method, its seed."""
    for seed in range(asked.seeds):
        yield "auto_round", "auto_round", "", seed
        yield "autoround", "calibrant", f"autoround(steps={asked.steps}, seed={seed})", seed
    if not asked.without_others:
        yield "gptq", "calibrant", "gptq", 0
        yield "rtn", "calibrant", "rtn", 0


def main() -> None:
    """Run what the record lacks, and print a line for each way."""
    asked = parsed()
    record = machine.started(asked.out, machine.question_of(asked, ASKED), "runs")
    with tempfile.TemporaryDirectory() as folder:
        setting = peers.prepare(Path(folder), asked, Path(asked.peer).absolute())
        record["dense"] = setting.loss
        for name_in_record, way, method, seed in runs_in_order(asked):
            runs = record["runs"].setdefault(name_in_record, [])
            # Seeds are run in their order.
            if len(runs) <= seed:
                runs.append(rounded(setting, way, method, seed))
                machine.keep(asked.out, record)
    print(f"{asked.model} {asked.target}, {asked.samples} × {asked.length}, {asked.steps} steps")
    for name_in_record, runs in record["runs"].items():
        print(line(name_in_record, runs, record["dense"]), flush=True)


if __name__ == "__main__":
    main()
