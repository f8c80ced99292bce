"""What a model of 1.5 billion numbers takes: python benchmarks/real_sizes.py --out FILE [--peer
PYTHON] [--rounds 2] [--cases …]

One record for one model, by default Qwen2.5-Coder-1.5B with C4, case by case; cases that FILE has
of the same machine and the same question stay, so it can be stopped and go on:

- `wanda 0.5`, `sparsegpt 0.5`, `gptq w4g128`: next to llm-compressor, as `peers.py` does it, in
  the type in which llm-compressor is faster;
- `refined`: next to our own SparseGPT, in turns;
- `wanda job`, `sparsegpt job`: twice the tokens, with checkpoint and saved folder, next to the
  floor of the products that the same process measures;
- `opening`: the GGUF file with an empty cache; the folder for the first time, and again.

Each is in a process of its own. Nothing else may run.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine, peers

Found = dict[str, Any]

PEERS: Final = ("wanda 0.5", "sparsegpt 0.5", "gptq w4g128")
CHOSEN: Final = ("model", "data", "samples", "length", "rounds", "dtype")
"""What makes a record answer another question."""


def against_peer(case: str, setting: peers.Setting, record: Found) -> Found:
    """One case next to llm-compressor."""
    peers.choose_peer_type(setting, record)
    ways = ("llmcompressor", "calibrant")
    rounds = peers.timed(setting, case, ways)
    versions = rounds[0]["llmcompressor"]["versions"]
    theirs = {"llmcompressor": versions["llmcompressor"], "peer torch": versions["torch"]}
    record["versions"] = {**rounds[0]["calibrant"]["versions"], **theirs}
    return {**peers.summary(rounds, ways), **peers.examined(setting, case, ways)}


def refining(setting: peers.Setting, record: Found) -> Found:
    """`refined` next to our SparseGPT, in turns: seconds of compressing in memory."""
    seconds: dict[str, list[float]] = {"sparsegpt": [], "refined": []}
    peaks: dict[str, float] = {}
    for at in range(setting.asked.rounds):
        methods = list(seconds)
        if at % 2:
            methods.reverse()
        for method in methods:
            found = peers.child(
                setting,
                "calibrant",
                method=method,
                target="0.5",
                seed=0,
                dtype=setting.asked.dtype,
                propagate="arrival",
                out="",
            )
            seconds[method].append(found["seconds"])
            peaks[method] = max(peaks.get(method, 0.0), found["peak"])
            told(f"{method} {found['seconds']:.1f} s")
    pairs = zip(seconds["sparsegpt"], seconds["refined"], strict=True)
    return {"seconds": seconds, "peaks": peaks, "ratios": [ours / one for one, ours in pairs]}


def whole_job(method: str, setting: peers.Setting, record: Found) -> Found:
    """A job of twice the tokens from the saved folder, and what it took of its own floor."""
    jobs: list[Found] = []
    out = setting.folder / "job"
    for _ in range(setting.asked.rounds):
        job = peers.child(
            setting,
            "job",
            method=method,
            target="0.5",
            samples=2 * setting.asked.samples,
            dtype=setting.asked.dtype,
            out=str(out),
        )
        shutil.rmtree(out)
        jobs.append(job)
        told(f"{method} {job['seconds']:.1f} s, floor {job['floor']:.1f} s")
    return {"jobs": jobs, "of_floor": [job["seconds"] / job["floor"] for job in jobs]}


def opening(setting: peers.Setting, record: Found) -> Found:
    """Seconds of opening the model by name, with an empty cache, and its folder twice."""
    dtype = setting.asked.saved_dtype
    folder = str(setting.folder / "model")
    seconds: dict[str, list[float]] = {"file": [], "folder": [], "folder again": []}
    numbers = 0
    for _ in range(setting.asked.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name, model in zip(seconds, (setting.asked.model, folder, folder), strict=True):
                found = peers.child(setting, "opening", cache=cache, model=model, dtype=dtype)
                seconds[name].append(found["seconds"])
                numbers = found["numbers"]
                told(f"opening the {name} {found['seconds']:.1f} s")
    return {"seconds": seconds, "numbers": numbers}


def told(text: str) -> None:
    """Say how far it is."""
    print(f"  {text}", file=sys.stderr, flush=True)


CASES: Final[dict[str, Callable[[peers.Setting, Found], Found]]] = {
    **{case: partial(against_peer, case) for case in PEERS},
    "refined": refining,
    "wanda job": partial(whole_job, "wanda"),
    "sparsegpt job": partial(whole_job, "sparsegpt"),
    "opening": opening,
}


def parsed() -> argparse.Namespace:
    """The command line, with all that `peers.py` is asked beside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--data", default="c4")
    parser.add_argument("--samples", default="8")
    parser.add_argument("--length", default="512")
    parser.add_argument("--rounds", default="2")
    parser.add_argument("--peer-dtype", default=peers.FASTER)
    parser.add_argument("--peer", help="the Python of an environment with llmcompressor")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="the file of the record")
    mine = parser.parse_args()
    same = ("model", "data", "samples", "length", "rounds", "peer_dtype")
    arguments = ["--saved-dtype", "bfloat16", "--loss-dtype", "bfloat16", "--measured", "4096"]
    arguments += ["--without-reference"]
    for name in same:
        arguments += [f"--{name.replace('_', '-')}", getattr(mine, name)]
    asked = peers.parsed(arguments)
    asked.peer, asked.cases, asked.out = mine.peer, mine.cases, mine.out
    return asked


def main() -> None:
    """Measure every case that the record lacks."""
    asked = parsed()
    record = machine.started(asked.out, machine.question_of(asked, CHOSEN), "cases")
    lacking = [case for case in asked.cases if case not in record["cases"]]
    with tempfile.TemporaryDirectory() as name:
        setting = peers.prepare(Path(name), asked, peers.interpreter(asked.peer))
        record["dense"] = setting.loss
        for case in lacking:
            told(case)
            record["cases"][case] = CASES[case](setting, record)
            machine.keep(asked.out, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
