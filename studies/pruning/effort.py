"""What pruning methods take, in turns and each in a process of its own: python -m
studies.pruning.effort [--rounds 3] [--threads 2]

SmolLM2 at 60 %, with the study's tokens of C4 and in its type. Seconds are of compressing the whole
model, its walk included; the peak is the most memory that the process held until it was done. Run
it where nothing else runs; the record, effort.json, keeps every round that is done. Needs a mirror
of the data sets (CALIBRANT_DATA).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml
from benchmarks import machine

HERE: Final = Path(__file__).parent
RECORD: Final = HERE / "effort.json"
METHODS: Final = ("wanda", "sparsegpt", "refined(swaps=25)", "refined", "alps")
TARGET, DATA = "0.6", "c4"

ONE: Final = """
import json, sys
import torch
from calibrant.compress import prune
from calibrant.system.process import own_process
own_process()
told = json.loads(sys.argv[1])
torch.set_num_threads(told.pop("threads"))
done = prune(**told)
how = done.record.provenance
facts = {
    "seconds": how["seconds"]["compress"],
    "peak": how["peak_memory_bytes"],
    "threads": how["threads"],
    "versions": how["versions"],
}
print(json.dumps(facts))
"""
"""The process that is measured."""


def measured(method: str, threads: int) -> dict[str, Any]:
    """Seconds and bytes of one method."""
    study = yaml.safe_load((HERE / "smollm2.yaml").read_text("utf-8"))
    told = {name: study[name] for name in ("model", "dtype", "tokens", "length", "propagate")}
    told |= {"data": DATA, "method": method, "target": TARGET, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        told["out"] = str(Path(folder, "out"))
        done = subprocess.run(
            [sys.executable, "-c", ONE, json.dumps(told)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure the rounds that the record lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    record = machine.started(
        RECORD,
        {
            "asked": {"target": TARGET, "data": DATA, "threads": asked.threads},
            "machine": machine.facts(),
        },
        "rounds",
    )
    for number in map(str, range(asked.rounds)):
        if number not in record["rounds"]:
            record["rounds"][number] = {
                method: measured(method, asked.threads) for method in METHODS
            }
            machine.keep(RECORD, record)
            print(json.dumps(record["rounds"][number], indent=1), flush=True)


if __name__ == "__main__":
    main()
