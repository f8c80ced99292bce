"""lm-evaluation-harness with its own `hf` model and with ours: python benchmarks/evaluation.py
[--items 100] [--rounds 5] [--out FILE]

SmolLM2 in float32 on the CPU, three tasks over the local mirror (CALIBRANT_DATA, or --data):
CommonsenseQA and PIQA with five exemplars, the same ones for all items (benchmarks/harness/*.yaml),
and CommonsenseQA without any. Each way runs in a process of its own, from its start to its end, so
that memory is told apart and the start is paid for; they take turns, the first of a pair by turns
too, so that a slow moment of the machine meets both. The harness's batch size is 8, as in its
examples. What it does beside the requests in a run of its command line (a list of the installed
packages, a bootstrap, the reading of all its 14,000 tasks) is left out. Both give every log
likelihood, which are compared. Processor seconds stand beside those of the clock: with
OMP_NUM_THREADS=1 they say something even while others use the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from benchmarks.ways import peak

HERE: Final = Path(__file__).resolve()
CASES: Final = {
    "5-shot commonsense_qa": ("commonsense_qa", 5),
    "5-shot piqa": ("piqa", 5),
    "0-shot commonsense_qa": ("commonsense_qa", 0),
}
WAYS: Final = ("hf", "calibrant")


def theirs(model: str, task: str, shots: int, items: int, tasks: str) -> list[list[float]]:
    """Log likelihoods of each item's choices from the harness's own model."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded: Any = TaskManager(include_path=tasks, include_defaults=False).load([task])
    loaded["tasks"][task].set_config(key="num_fewshot", value=shots)
    loaded["tasks"][task].set_fewshot_seed(seed=1234)
    opening: Any = HFLM  # the harness wraps its constructor, and a checker sees no parameters
    answering = opening(pretrained=model, dtype="float32", device="cpu", batch_size=8)
    found: Any = lm_eval.evaluate(answering, loaded, limit=items, bootstrap_iters=0)
    return [[float(nats) for ((nats, _),) in sample["resps"]] for sample in found["samples"][task]]


def ours(model: str, task: str, shots: int, items: int, tasks: str) -> list[list[float]]:
    """The same from the evaluator `harness`."""
    from calibrant.evaluators import timed
    from calibrant.evaluators.harness import Harness
    from calibrant.models import open_model

    measured = timed(
        Harness(task=task, num_fewshot=shots, limit=items, include_path=tasks),
        open_model(model, "float32", "cpu"),
    )
    return [[-nats for nats in outcome.facts["nats"]] for outcome in measured.outcomes]


def prepare(folder: Path, data: str) -> None:
    """The model as an ordinary folder that both can open, and the tasks with their data."""
    import datasets

    from calibrant.models import open_model, save

    save(open_model("smollm2", "float32"), folder / "model", {})
    (folder / "tasks").mkdir()
    for name in {task for task, _ in CASES.values()}:
        text = (
            (HERE.parent / "harness" / f"{name}.yaml")
            .read_text()
            .replace("MIRROR", data)
            .replace("CACHE", str(folder / "cache"))
        )
        (folder / "tasks" / f"{name}.yaml").write_text(text)
        files = {split: f"{data}/{name}/{split}.jsonl.gz" for split in ("train", "validation")}
        datasets.load_dataset("json", data_files=files, cache_dir=str(folder / "cache"))


def run(way: str, case: str, items: int, folder: Path) -> dict[str, Any]:
    """One process, from start to end: its seconds, its peak memory and what it found."""
    began = time.perf_counter()
    out = folder / "found.json"
    done = subprocess.run(
        [
            sys.executable,
            HERE,
            "--way",
            way,
            "--case",
            case,
            "--items",
            str(items),
            "--folder",
            folder,
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{way}, {case}:\n{done.stderr}")
    return {"seconds": time.perf_counter() - began, **json.loads(out.read_text())}


def child(way: str, case: str, items: int, folder: Path) -> None:
    """What one process does."""
    task, shots = CASES[case]
    nats = (theirs if way == "hf" else ours)(
        str(folder / "model"), f"mirror_{task}", shots, items, str(folder / "tasks")
    )
    found = {"peak": peak(), "processor": time.process_time(), "nats": nats}
    (folder / "found.json").write_text(json.dumps(found))


def compare(case: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """One line about a task, and what it says as data."""
    ratios = [pair["hf"]["seconds"] / pair["calibrant"]["seconds"] for pair in rounds]
    seconds = {way: [pair[way]["seconds"] for pair in rounds] for way in WAYS}
    processor = {way: [pair[way]["processor"] for pair in rounds] for way in WAYS}
    peaks = {way: max(pair[way]["peak"] for pair in rounds) for way in WAYS}
    pairs = [
        (a, b)
        for pair in rounds
        for one, other in zip(*(pair[way]["nats"] for way in WAYS), strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    apart = max(abs(a - b) for a, b in pairs)
    print(
        f"{case:<22} hf {statistics.median(seconds['hf']):6.1f} s   calibrant "
        f"{statistics.median(seconds['calibrant']):6.1f} s   "
        f"{statistics.median(ratios):5.2f} times faster ({min(ratios):.2f} to {max(ratios):.2f})   "
        f"processor {statistics.median(processor['hf']):.1f} and "
        f"{statistics.median(processor['calibrant']):.1f} s   "
        f"peak {peaks['hf']:,.0f} and {peaks['calibrant']:,.0f} MiB   log likelihoods at most "
        f"{apart:.1e} apart"
    )
    return {
        "seconds": seconds,
        "processor": processor,
        "ratios": ratios,
        "peaks": peaks,
        "apart": apart,
    }


def main() -> None:
    """Run the rounds and print a line for each task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--data", default=os.environ.get("CALIBRANT_DATA"))
    parser.add_argument("--out", type=Path, help="a file that keeps what was measured")
    for hidden in ("--way", "--case", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if asked.way:
        child(asked.way, asked.case, asked.items, Path(asked.folder))
        return
    if not asked.data:
        print(
            "the tasks are read from a local mirror: set CALIBRANT_DATA, or give --data; nothing "
            "was timed"
        )
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, str(Path(asked.data).resolve()))
        about = machine.facts()
        print(
            f"smollm2 (dequantized from Q4_1), float32, {asked.items} items, {asked.rounds} "
            f"rounds; {machine.told(about)}"
        )
        record = {
            "items": asked.items,
            "rounds": asked.rounds,
            "machine": about,
            "versions": {n: version(n) for n in ("calibrant", "lm_eval")},
        }
        facts: dict[str, Any] = {}
        for case in asked.cases:
            rounds = [
                {
                    way: run(way, case, asked.items, folder)
                    for way in (WAYS if at % 2 == 0 else WAYS[::-1])
                }
                for at in range(asked.rounds)
            ]
            facts[case] = compare(case, rounds)
            machine.keep(asked.out, {**record, "cases": facts})


if __name__ == "__main__":
    main()
