"""How long a report of a large study takes and how much memory it needs: python
benchmarks/reporting.py [--records 10000] [--measures 2]

The study is made up: four models, five methods, five sparsities, five draws, as many sets as it
takes, two primary contrasts, forty documents a measured set. Each format is asked for by the
command line, in a process of its own, with importing and reading in the time. The page and the
plots are made of two others of about five hundred runs, whose records hold all that a page is made
of: sixty sets in four rankings, and eight in twelve.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calibrant
from calibrant.lab.report import FORMATS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.stats.synthetic import Synthetic

COMMAND = (
    "import sys; from calibrant.cli import main; sys.argv = ['calibrant', *sys.argv[1:]]; main()"
)


PAGES = {
    "60 sets": Synthetic(methods=2, targets=2, sets=60, draws=2, measures=3, facts=True),
    "12 rankings": Synthetic(methods=3, targets=4, sets=8, draws=5, measures=4, facts=True),
}


def asked_of(folder: Path, format: str, *words: str) -> dict[str, Any]:
    """One report: seconds by the clock, seconds of the processor, and the most memory, in bytes."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "report", str(folder), "--format", format, *words],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    size = len(child.stdout.read())
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, f"report --format {format} ended with {child.returncode}"
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "format": format,
        "seconds": seconds,
        "processor": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss * scale,
        "bytes": size,
    }


def _page(folder: Path, name: str, study: Synthetic) -> Iterator[dict[str, Any]]:
    """The page of a study, and its plots as files; beside each the CSV, which is soon made."""
    folder.mkdir()
    asked, page, plots = study.write(folder / "study"), folder / "page.html", folder / "plots"
    yield {
        "what": f"page, {name}, {study.records} runs",
        **asked_of(asked, "csv", "--html", str(page)),
        "made": page.stat().st_size,
    }
    yield {
        "what": f"plots, {name}",
        **asked_of(asked, "csv", "--plots", str(plots)),
        "made": sum(p.stat().st_size for p in plots.iterdir()),
    }


def main() -> None:
    """Make the study, ask for every format, and print a line for each, then the same as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--measures", type=int, default=2)
    asked = parser.parse_args()
    study = Synthetic(
        models=4,
        methods=5,
        targets=5,
        sets=max(2, round(asked.records / 500)),
        draws=5,
        measures=asked.measures,
    )
    with tempfile.TemporaryDirectory() as made:
        folder = study.write(Path(made) / "study")
        found = [asked_of(folder, format) for format in FORMATS]
        pages = [
            found
            for name, shape in PAGES.items()
            for found in _page(Path(made) / name, name, shape)
        ]
    print(
        f"{study.records:,} records, {study.records * study.measures:,} measurements, "
        f"{platform.processor() or platform.machine()}"
    )
    for one in found:
        told = (
            f"{one['seconds']:6.1f} s, {one['processor']:5.1f} s of processor, "
            f"{one['memory'] / 1e9:.2f} GB, {one['bytes'] / 1e6:.1f} MB written"
        )
        print(f"{one['format']:<10} {told}")
    for one in pages:
        told = (
            f"{one['seconds']:6.1f} s, {one['processor']:5.1f} s of processor, "
            f"{one['memory'] / 1e9:.2f} GB, {one['made'] / 1e6:.1f} MB made"
        )
        print(f"{one['what']:<30} {told}")
    print(
        json.dumps(
            {
                "found": found,
                "pages": pages,
                "records": study.records,
                "cores": os.cpu_count(),
                "calibrant": calibrant.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
