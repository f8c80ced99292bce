"""What the pieces of a recommendation cost on this machine, each timed once and small."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from calibrant.activations import Gram, Seen
from calibrant.compress import edits_of
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.edits import Replace
from calibrant.job import Job
from calibrant.lab.choose.budget import StepCosts
from calibrant.lab.mixtures import Effort, statistic_of
from calibrant.lab.mixtures.mixing import FINALISTS
from calibrant.lab.study import Study
from calibrant.lab.study.timing import measure_pieces
from calibrant.methods import MatrixMethod, ModelMethod, StandIn, TokenUse
from calibrant.models import ModelView, Opened, Weight, view
from calibrant.system.progress import Progress, silent
from calibrant.targets import Removal
from calibrant.walk import TOKENS_PER_PASS, walk

_PIECES: Final = 1.5
"""How much longer a walk takes that keeps its statistics in pieces too, and writes them."""
_HALVES: Final = 6
"""Sets of pieces that the meter of tokens compresses for each source, of one Gram: two halves,
of one, two and four pieces each.
"""


def measured_costs(
    opened: Opened,
    template: Study,
    standing: StandIn,
    effort: Effort,
    sources: int,
    seconds: float,
    progress: Progress = silent,
) -> StepCosts:
    """Time a forward of a block, its compression, its prediction, and a small measurement, and
    return the costs.

    `seconds` opened the model, `standing` predicts the method with an `effort`, for so many
    `sources`. The model stays as it was.
    """
    kind, seen_by = statistic_of(standing.method), view(opened.model)
    recipe = next(
        request.recipe for request in template.requests() if request.calibration is not None
    )
    method, propagate = recipe.method, recipe.propagate
    timings = measure_pieces(
        opened, seconds, template.requests(), template.evaluators(), (Gram,), progress
    )
    batch = CalibrationSet(
        "random_tokens", tokens=TOKENS_PER_PASS, length=min(template.length, TOKENS_PER_PASS)
    ).tokens(opened.tokenizer)
    first = _first_seen(seen_by, batch, standing)
    # What the forward of a block costs, a token, with the statistic that the method reads.
    forward = timings.forward[(kind,)]
    compress, again = sum(timings.block.values()), forward if propagate != "dense" else 0.0
    if not isinstance(method, MatrixMethod):
        compress = _whole_file(opened, seen_by, first, standing) / timings.blocks
    elif _walks_its_own_way(method):
        # Weights of tokens cost by the token, and what is tried in a block costs by the block.
        job = Job(
            opened,
            seen_by,
            batch,
            recipe.target,
            dict.fromkeys(seen_by.named, recipe.target),
            propagate,
        )
        whole = _first_block(job, method)
        beyond = max(0.0, whole - compress - forward * int(batch.mask.sum()))
        by_token = not isinstance(method, ModelMethod)
        compress, again = (
            compress + (0.0 if by_token else beyond),
            again + (beyond / int(batch.mask.sum()) if by_token else 0.0),
        )
    return StepCosts(
        opened=seconds,
        walk=_PIECES * timings.blocks * forward,
        judge=timings.blocks * timings.forward[(Gram,)],
        search=_search(first, standing, effort, sources),
        compress=timings.blocks * compress,
        measure=sum(timings.measure.values()),
        again=timings.blocks * again,
    )


def _walks_its_own_way(method: MatrixMethod) -> bool:
    return isinstance(method, ModelMethod) or method.token_use != TokenUse()


def _first_seen(seen_by: ModelView, batch: TokenBatch, standing: StandIn) -> dict[Weight, Seen]:
    """What the first block's matrices see of random tokens."""
    first: dict[Weight, Seen] = {}
    with torch.no_grad():
        for weight, seen in walk(seen_by, batch, (statistic_of(standing.method),), "dense"):
            if weight.block:
                break
            first[weight] = seen
    return first


def _search(first: Mapping[Weight, Seen], standing: StandIn, effort: Effort, sources: int) -> float:
    """Return the seconds of a search of mixtures, from one mixture's compression of the first
    block's sampled rows.
    """
    sampled = {
        weight: weight.get()[
            torch.tensor(effort.final.of_rows(weight.shape[0]), device=weight.stored.device)
        ]
        for weight in first
    }
    tries = [
        _timed(lambda: _compressed(sampled, first, standing)) for _ in range(2)
    ]  # the first warms caches
    searched = effort.search.blocks * (effort.evaluations + sources + 1)
    judged = effort.final.blocks * (sources + 1 + FINALISTS)
    metered = (
        effort.meter.blocks * (sources + 1) * _HALVES if isinstance(standing.target, Removal) else 0
    )
    return tries[-1] * (searched + judged + metered)


def _whole_file(
    opened: Opened, seen_by: ModelView, first: Mapping[Weight, Seen], standing: StandIn
) -> float:
    """Return the seconds that a whole file takes: its numbers are written, read, and rounded,
    embedding and head too.
    """
    rows = {weight: weight.get() for weight in first}
    block, whole = (
        sum(part.numel() for part in rows.values()),
        sum(parameter.numel() for parameter in opened.model.parameters()),
    )
    rounding = _timed(lambda: _compressed(rows, first, standing))
    with TemporaryDirectory() as folder:
        writing = _timed(
            lambda: [
                part.detach().float().cpu().numpy().tofile(Path(folder) / "block")
                for part in rows.values()
            ]
        )
    return whole / max(1, block) * (rounding + 2 * writing)


@torch.no_grad()
def _compressed(
    rows: Mapping[Weight, torch.Tensor], first: Mapping[Weight, Seen], standing: StandIn
) -> None:
    """Compress these rows on copies of the statistics, so that no factorisation is cached
    already; those that share an input share the copy.
    """
    fresh = {
        id(seen): Seen({kind: statistic * 1.0 for kind, statistic in seen.items()})
        for seen in first.values()
    }
    for weight, part in rows.items():
        standing.method.compress(part, fresh[id(first[weight])], standing.target)


def _first_block(job: Job, method: MatrixMethod) -> float:
    """Return the seconds until the first block's matrices are compressed, walk and all;
    afterwards the model is what it was.
    """
    waiting, undone = (
        {weight.name for weight in job.view.blocks[0].weights},
        list[Callable[[], None]](),
    )

    def work() -> None:
        for edit in edits_of(method, job):
            if edit.block:
                return
            undone.append(edit.undo(job.view))
            edit.apply(job.view)
            waiting.discard(edit.weight.name if isinstance(edit, Replace) else "")
            if not waiting:
                return

    try:
        with torch.no_grad():
            return _timed(work)
    finally:
        for undo in reversed(undone):
            undo()


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
