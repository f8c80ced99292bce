"""How long a report of a large study takes and how much memory it needs: python benchmarks/reporting.py [--records 10000] [--measures 2]

The study is made up: four models, five methods, five sparsities, five draws, as many sets as it takes, two primary contrasts, forty documents a
measured set. Each format is asked for by the command line, in a process of its own, with importing and reading in the time.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import calibrant
from calibrant.report import FORMATS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.compare.synthetic import Synthetic

COMMAND = "import sys; from calibrant.cli import main; sys.argv = ['calibrant', *sys.argv[1:]]; main()"


def asked_of(folder: Path, format: str) -> dict[str, Any]:
    """One report: seconds by the clock, seconds of the processor, and the most memory, in bytes."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", COMMAND, "report", str(folder), "--format", format], stdout=subprocess.PIPE)
    assert child.stdout is not None
    size = len(child.stdout.read())
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, f"report --format {format} ended with {child.returncode}"
    scale = 1 if sys.platform == "darwin" else 1024
    return {"format": format, "seconds": seconds, "processor": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * scale, "bytes": size}


def main() -> None:
    """Make the study, ask for every format, and print a line for each, then the same as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--measures", type=int, default=2)
    asked = parser.parse_args()
    study = Synthetic(models=4, methods=5, targets=5, sets=max(2, round(asked.records / 500)), draws=5, measures=asked.measures)
    with tempfile.TemporaryDirectory() as made:
        folder = study.write(Path(made) / "study")
        found = [asked_of(folder, format) for format in FORMATS]
    print(f"{study.records:,} records, {study.records * study.measures:,} measurements, {platform.processor() or platform.machine()}")
    for one in found:
        told = f"{one['seconds']:6.1f} s, {one['processor']:5.1f} s of processor, {one['memory'] / 1e9:.2f} GB, {one['bytes'] / 1e6:.1f} MB written"
        print(f"{one['format']:<10} {told}")
    print(json.dumps({"found": found, "records": study.records, "cores": os.cpu_count(), "calibrant": calibrant.__version__}))


if __name__ == "__main__":
    main()
