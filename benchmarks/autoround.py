"""What `autoround` takes and loses next to auto-round: python benchmarks/autoround.py --peer PYTHON
[--steps 200] [--seeds 3] [--target w4g64]

Both get the same saved folder of SmolLM2 and the same tokens. They take turns, and each seed has a
process of its own (`ways.py`). A seed decides only which windows a step sees, so the losses of
several seeds say how far apart two runs of one tool are. Timed is what lies between an open model
and the rounded one. One evaluator measures held-out loss in float32, also of `gptq` and `rtn`.
`--peer` is the Python of an environment with auto-round.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine, peers


def parsed() -> argparse.Namespace:
    """Return the command line, with what `peers.prepare` asks for besides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="python_docs")
    parser.add_argument("--target", default="w4g64")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--measured", type=int, default=8192, help="tokens of the loss")
    parser.add_argument("--dtype", default="bfloat16", choices=machine.DTYPES)
    parser.add_argument("--without-others", action="store_true", help="leave out gptq and rtn")
    parser.add_argument("--out", type=Path, help="the file of the record")
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
    assert found.get("tokens", setting.fingerprints[0]) == setting.fingerprints[0]
    found["loss"] = peers.loss(out, asked)
    name = method or way
    print(f"  {name}: {found['seconds']:.1f} s, loss {found['loss']:.4f}", file=sys.stderr)
    return found


def line(way: str, runs: list[dict[str, Any]], dense: float) -> str:
    """Return a line about a way: its median seconds, and by how much the loss rises."""
    rises = [run["loss"] - dense for run in runs]
    spread = f" ± {statistics.stdev(rises):.4f} (a seed)" if len(rises) > 1 else ""
    seconds = statistics.median(run["seconds"] for run in runs)
    peak = max(run["peak"] for run in runs)
    rise = statistics.mean(rises)
    return f"{way:<12} {seconds:.1f} s, {peak:,.0f} MiB, loss {rise:+.4f}{spread}"


def main() -> None:
    """Run every seed of both, print a line for each way, and keep the record."""
    asked = parsed()
    with tempfile.TemporaryDirectory() as name:
        setting = peers.prepare(Path(name), asked, Path(asked.peer).absolute())
        runs: dict[str, list[dict[str, Any]]] = {"auto_round": [], "autoround": []}
        for seed in range(asked.seeds):
            method = f"autoround(steps={asked.steps}, seed={seed})"
            runs["auto_round"].append(rounded(setting, "auto_round", "", seed))
            runs["autoround"].append(rounded(setting, "calibrant", method, seed))
        if not asked.without_others:
            for method in ("gptq", "rtn"):
                runs[method] = [rounded(setting, "calibrant", method, 0)]
    print(f"{asked.model} {asked.target}, {asked.samples} × {asked.length}, {asked.steps} steps")
    for way, found in runs.items():
        print(line(way, found, setting.loss), flush=True)
    record = {
        "asked": {key: str(value) for key, value in vars(asked).items() if key != "out"},
        "machine": machine.facts(),
        "dense": setting.loss,
        "runs": runs,
    }
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
