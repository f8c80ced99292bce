"""`evaluate`: a model, some evaluators, their measurements."""

import time
from collections.abc import Sequence
from dataclasses import replace

from calibrant.evaluators._base import Evaluator
from calibrant.evaluators._guard import calibrated_on, refuse
from calibrant.models import Opened, open_model, read_manifest
from calibrant.progress import Progress, silent
from calibrant.registry import Registry
from calibrant.store import Measurement

evaluators = Registry("calibrant.evaluators", "task")


def evaluate(
    model: str | Opened,
    tasks: Sequence[str | Evaluator] | str | Evaluator,
    *,
    dtype: str = "auto",
    device: str = "auto",
    limit: int | None = None,
    allow_leak: bool = False,
    progress: Progress = silent,
) -> list[Measurement]:
    """Measure `model` with each of `tasks`, for example `loss(source=wikitext, tokens=65536)`.

    `limit` replaces the budget of every task, for a quick look. Raises an `InputError` for a model, a task or a source that isn't there, and for
    a model that was compressed on rows which a task measures, unless `allow_leak`; their number is then kept in the provenance as `leaked`.
    """
    asked: list[Evaluator] = [evaluators.build(task) for task in ([tasks] if isinstance(tasks, str | Evaluator) else tasks)]
    if limit is not None:
        asked = [task.limited(limit) for task in asked]
    manifest = read_manifest(model.name if isinstance(model, Opened) else model)
    leaked = [calibrated_on(manifest, task) for task in asked]
    if any(leaked) and not allow_leak:
        refuse({str(model): {str(task): count for task, count in zip(asked, leaked, strict=True) if count}})
    opened = model if isinstance(model, Opened) else open_model(model, dtype, device)
    measured = [timed(task, opened, progress) for task in asked]
    return [replace(m, provenance={**m.provenance, **({"leaked": n} if n else {})}) for m, n in zip(measured, leaked, strict=True)]


def timed(task: Evaluator, opened: Opened, progress: Progress = silent) -> Measurement:
    """One measurement, with the seconds it took as its provenance."""
    began = time.perf_counter()
    measured = task.measure(opened.model, opened.tokenizer, progress=progress)
    return replace(
        measured,
        provenance={
            "seconds": time.perf_counter() - began,
            "model": opened.name,
            "note": opened.note,
            "dtype": str(opened.dtype).removeprefix("torch."),
        },
    )
