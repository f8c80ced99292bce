"""How long a study takes next to the commands that it stands for: python benchmarks/study.py
[--quick]

Twelve runs on smollm2: four calibration sets that need no internet, Wanda at 50 %, 60 % and 2:4, in
`dense`, each measured by the same evaluator. One way they are a `calibrant prune --propagate dense`
and a `calibrant evaluate` each, in processes of their own, from start to end; the other way one
study, which asks the same tokens and evaluator of a fresh store, and measures the dense model too.
Every score of the two ways is compared. Four times as many tokens are calibrated on as are
measured, as with the defaults (128 × 2048 and 65,536): a measurement is what can't be shared.

Then the same four sets with one and two targets, each a study of its own: up to the measurements
the cost must grow with the sets, not with the runs. Processor seconds stand beside those of the
clock: they say something even while others use the machine.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve()
DATA: Final = ("python_docs", "python_code", "arithmetic:icl", "random_tokens")
TARGETS: Final = ("0.5", "0.6", "2:4")
CALIBRANT: Final = (sys.executable, "-c", "from calibrant.cli import main; main()")


def timed(command: list[str]) -> tuple[str, float, float]:
    """What a process wrote, its seconds from start to end, and its processor's."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    return done.stdout, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def evaluator(asked: argparse.Namespace) -> str:
    """What every run is measured with."""
    return f"loss(source='python_docs', tokens={asked.measured}, length={asked.length})"


def study(folder: Path, asked: argparse.Namespace, targets: tuple[str, ...]) -> dict[str, Any]:
    """One study in a process of its own: seconds, where they went, and every score."""
    whole = {
        "data": DATA[: asked.sets],
        "targets": targets,
        "samples": asked.samples,
        "length": asked.length,
        "evaluate": evaluator(asked),
    }
    said, seconds, processor = timed(
        [sys.executable, str(HERE), "--study", json.dumps(whole), "--folder", str(folder)]
    )
    return {"seconds": seconds, "processor": processor, **json.loads(said.splitlines()[-1])}


def child(whole: dict[str, Any], folder: Path) -> None:
    """What the study's process does."""
    from calibrant.lab.study import Study
    from calibrant.results import Store

    finished = Study(
        models="smollm2", methods="wanda", propagate="dense", dtype="float32", **whole
    ).run(folder)
    if finished.failures:
        raise SystemExit(json.dumps(finished.failures))
    with Store(folder, create=False) as store:
        cells = [
            (f"{cell.data} {cell.target}", cell.run, list(cell.measures.values()))
            for cell in store.cells()
            if cell.data
        ]
        scores = {
            name: [store.measurement(run, measure).score.value for measure in measures]
            for name, run, measures in cells
        }
    kept = sum(path.stat().st_size for path in (folder / "statistics").rglob("*.safetensors"))
    print(
        json.dumps(
            {
                "phases": dict(finished.seconds),
                "peak": finished.peak_memory_bytes,
                "statistics": kept,
                "scores": scores,
            }
        )
    )


def commands(folder: Path, asked: argparse.Namespace, targets: tuple[str, ...]) -> dict[str, Any]:
    """A prune and an evaluate for each run: seconds in all, of each command, and every score."""
    found: dict[str, Any] = {
        "seconds": 0.0,
        "processor": 0.0,
        "phases": {"prune": 0.0, "evaluate": 0.0},
        "scores": {},
    }
    budget = ["--samples", str(asked.samples), "--length", str(asked.length), "--dtype", "float32"]
    for data in DATA[: asked.sets]:
        for target in targets:
            out = folder / f"{data}-{target}".replace(":", "_")
            prune = [
                "prune",
                "smollm2",
                "--data",
                data,
                "--method",
                "wanda",
                "--target",
                target,
                "--propagate",
                "dense",
                *budget,
            ]
            measure = [
                "evaluate",
                str(out),
                "--task",
                evaluator(asked),
                "--dtype",
                "float32",
                "--json",
            ]
            for name, command in (("prune", [*prune, "--out", str(out)]), ("evaluate", measure)):
                said, seconds, processor = timed([*CALIBRANT, *command])
                found["seconds"] += seconds
                found["processor"] += processor
                found["phases"][name] += seconds
            found["scores"][f"{data} {target}"] = [
                measured["value"] for measured in json.loads(said)
            ]
            shutil.rmtree(out)
    return found


def told(name: str, found: dict[str, Any]) -> None:
    """One line about one way."""
    phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in found["phases"].items())
    print(
        f"{name:<28} {found['seconds']:7.1f} s   processor {found['processor']:7.1f} s   "
        f"({phases})",
        flush=True,
    )


def main() -> None:
    """Time both ways, then the study with fewer targets, and print a line for each, then the
    same as JSON.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--measured", type=int, default=4096, help="tokens of the loss")
    parser.add_argument("--sets", type=int, default=len(DATA))
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two sets of 8 × 128 tokens, two targets, 256 measured tokens",
    )
    for hidden in ("--study", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.study:
        child(json.loads(asked.study), Path(asked.folder))
        return
    targets = TARGETS
    if asked.quick:
        asked.samples, asked.length, asked.measured, asked.sets, targets = (
            8,
            128,
            256,
            2,
            TARGETS[:2],
        )
    runs = asked.sets * len(targets)
    print(
        f"smollm2 (dequantized from Q4_1), float32, Wanda, dense, {asked.sets} sets of "
        f"{asked.samples} × {asked.length} tokens, {runs} runs"
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in range(1, len(targets) + 1):
            title = f"study of {asked.sets * count} runs"
            found[title] = study(Path(name) / f"study-{count}", asked, targets[:count])
            told(title, found[title])
        apart = f"{runs} prune and {runs} evaluate"
        found[apart] = commands(Path(name), asked, targets)
        told(apart, found[apart])
    one, other = found[f"study of {runs} runs"], found[apart]
    differing = max(
        abs(a - b)
        for run, scores in one["scores"].items()
        for a, b in zip(scores, other["scores"][run], strict=True)
    )
    ratios = {kind: other[kind] / one[kind] for kind in ("seconds", "processor")}
    print(
        f"the study takes {ratios['seconds']:.2f} times less time, {ratios['processor']:.2f} "
        "times less of the processor's; ",
        end="",
    )
    print(f"scores at most {differing:.1e} apart; {one['statistics'] / 1e6:.1f} MB of statistics")
    machine = (
        f"{os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads, "
        f"{platform.processor() or platform.machine()}"
    )
    print(
        json.dumps(
            {
                "found": found,
                "ratios": ratios,
                "asked": vars(asked),
                "cores": os.cpu_count(),
                "machine": machine,
            }
        )
    )


if __name__ == "__main__":
    main()
