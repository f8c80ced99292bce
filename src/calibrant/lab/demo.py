"""A small study on real input that needs no internet: which of six calibration sets keeps
SmolLM2-135M-Instruct best?

The sets are prose (Python's own help topics), code (its standard library) and generated arithmetic
problems, once as problem and answer, once with the worked solution. Beside them are two controls
without content. The models are measured on held-out parts of the same three sources.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report import Report, report
from calibrant.lab.report.facts import PHASES
from calibrant.lab.study import Study, StudyResult
from calibrant.system.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import RenderableType

FOLDER: Final = "calibrant-demo"
SOURCES: Final = ("python_docs", "python_code", "arithmetic")
STUDY: Final = Study(
    models=["smollm2"],
    data=[
        "python_docs",
        "python_code@crop",
        "arithmetic:icl",
        "arithmetic:cot",
        "random_tokens",
        "full_stops",
    ],
    methods=["wanda", "magnitude"],
    targets=[0.6],
    evaluate=[f"loss(source={source}, tokens=2000, length=256)" for source in SOURCES],
    samples=16,
    length=256,
    masks=False,
)
"""Sized for a few minutes on two cores."""


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo, where its page is, and how long it took; `seconds` are wall-clock,
    of this call alone.
    """

    study: Study
    finished: StudyResult
    report: Report
    page: Path
    seconds: float

    def lines(self, width: int = 120) -> "Iterator[RenderableType]":
        """Yield what a terminal shows: the ranking with its errors, the finding, where the time
        went (rich).
        """
        from rich.text import Text

        yield from self.report.lines(width)
        for failure in self.finished.failures.values():
            yield Text(f"Failed: {failure['what']}: {failure['error']}", style="bold red")
        yield ""
        yield Text(self.spent())
        yield Text(f"The same with its uncertainty drawn: {self.page}")

    def spent(self) -> str:
        """Return where the time went, in one line."""
        finished = self.finished
        phases: list[str] = []
        longest_first = sorted(finished.seconds.items(), key=lambda phase: -phase[1])
        for name, seconds in longest_first:
            if seconds >= 0.05:  # else it would be written as 0.0 s
                phases.append(f"{PHASES.get(name, name)} {seconds:.1f} s")
        propagations: dict[str, None] = {}
        for cell in finished.cells:
            if cell.data:
                propagations[f"{cell.method}: {cell.propagate}"] = None
        time_spent = f"Took {self.seconds:.0f} s ({', '.join(phases)})"
        counts = f"{finished.computed} runs and measurements computed, {finished.found} found"
        memory = f"peak memory {finished.peak_memory_bytes / 1e9:.1f} GB"
        return (
            f"{time_spent}; {counts} in the store; {memory}; propagation {', '.join(propagations)}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "rankings": self.report.to_json()["rankings"],
            "models": dict(self.report.notes),
            "failures": {name: dict(why) for name, why in self.finished.failures.items()},
            "computed": self.finished.computed,
            "found": self.finished.found,
            "seconds": self.seconds,
            "seconds_by_phase": dict(self.finished.seconds),
            "peak_memory_bytes": self.finished.peak_memory_bytes,
            "page": str(self.page),
        }


def demo(
    out: str | Path | None = None,
    progress: Progress = silent,
    *,
    model: str | None = None,
    data: Sequence[str] | None = None,
    evaluate: Sequence[str] | None = None,
    samples: int | None = None,
    length: int | None = None,
) -> DemoResult:
    """Run the study, and write `report.html` into the folder `out` (`calibrant-demo` here).

    What the folder has of it already isn't run again. The other arguments replace parts of `STUDY`.
    Raises an `InputError` if the model isn't there (it says which pip line brings it) or the folder
    holds something else.
    """
    began = time.perf_counter()
    given: dict[str, Any] = {
        "models": model,
        "data": data,
        "evaluate": evaluate,
        "samples": samples,
        "length": length,
    }
    replaced = {name: value for name, value in given.items() if value is not None}
    study = replace(STUDY, **replaced)
    finished = study.run(FOLDER if out is None else out, progress)
    compared = report(finished)
    page = compared.write_html()
    return DemoResult(study, finished, compared, page, time.perf_counter() - began)
