"""What the pieces of a recommendation cost on this machine, each timed once and small."""

from typing import Final

from calibrant.activations import Gram
from calibrant.advice.budget import StepCosts
from calibrant.methods import Method
from calibrant.mixtures.statistics import statistic_of
from calibrant.models import Opened, view
from calibrant.progress import Progress, silent
from calibrant.study import Study
from calibrant.study.timing import measure_pieces

_SEARCH: Final = 8e-8
"""Seconds of a search for each weight of the model, as a first guess: half a minute for 400 million."""
_PIECES: Final = 1.5
"""How much longer a walk takes that keeps its statistics in pieces too, and writes them."""


def measured_costs(opened: Opened, template: Study, method: Method, seconds: float, progress: Progress = silent) -> StepCosts:
    """Time a forward of a block, the compression of one by `method`, and a small measurement, and return the costs; `seconds` opened the model."""
    requests, kind = template.requests(), statistic_of(method)
    timings = measure_pieces(opened, seconds, requests, template.evaluators(), (Gram,), progress)
    seen = view(opened.model)
    return StepCosts(
        opened=seconds,
        walk=_PIECES * timings.blocks * timings.forward[(kind,)],
        judge=timings.blocks * timings.forward[(Gram,)],
        search=_SEARCH * sum(weight.shape[0] * weight.shape[1] for weight in seen.weights),
        compress=timings.blocks * sum(timings.block.values()),
        measure=sum(timings.measure.values()),
    )
