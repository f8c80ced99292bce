"""What the pieces of a recommendation cost on this machine, each timed once and small."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from calibrant.activations import Gram, Seen
from calibrant.compress import Recipe, edits_of
from calibrant.compress.rates import kinds_seconds
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.edits import Replace
from calibrant.errors import DataError
from calibrant.job import Job
from calibrant.lab.choose.budget import StepCosts
from calibrant.lab.mixtures import Effort, statistic_of
from calibrant.lab.mixtures.algebra import sampled_rows
from calibrant.lab.mixtures.mixing import FINALISTS
from calibrant.lab.study import Study
from calibrant.lab.study.timing import measure_pieces, writing_seconds
from calibrant.methods import MatrixMethod, Method, ModelMethod, StandIn, TokenUse
from calibrant.models import ModelShape, ModelView, Opened, Weight, view
from calibrant.system.clock import seconds_of
from calibrant.system.progress import Progress, silent
from calibrant.targets import GgufBudget, GgufRecipe
from calibrant.walk import TOKENS_PER_PASS, walk

_ANSWERS: Final = 16
"""Answers that are written together to time one."""
_WRITTEN: Final = 16
"""Tokens of each, and of what they answer."""
_USED: Final = 0.5
"""The share of what is written that is taken to be used: answers that don't end, loops and copies
are dropped.
"""


def measured_costs(
    opened: Opened,
    base_study: Study,
    stand_in: StandIn,
    effort: Effort,
    sources: int,
    seconds: float,
    writes: bool = False,
    progress: Progress = silent,
) -> StepCosts:
    """Time a forward of a block, its compression, its prediction, and a small measurement, and
    return the costs.

    `seconds` opened the model, `stand_in` predicts the method with an `effort`, for so many
    `sources`; with `writes` the model is to write some of them. The model stays as it was. Raises
    `DataError` for what can't be measured on this model.
    """
    statistic = statistic_of(stand_in.method)
    model = view(opened.model)
    requests = [request for request in base_study.requests() if request.calibration is not None]
    recipe = requests[0].recipe
    method = recipe.method
    piece_times = measure_pieces(
        opened, seconds, base_study.requests(), base_study.evaluators(), (Gram,), progress
    )
    unmeasured = [text for text in base_study.evaluators() if text not in piece_times.measure]
    if unmeasured:
        # Each set would fail at it, after all were predicted.
        raise DataError("; ".join(piece_times.why_not), subject=", ".join(unmeasured))
    length = min(base_study.length, TOKENS_PER_PASS)
    data = CalibrationSet("random_tokens", tokens=TOKENS_PER_PASS, length=length)
    batch = data.tokens(opened.tokenizer)
    first_block = _seen_in_first_block(model, batch, stand_in)
    # What the forward of a block costs, a token, with the statistic that the method reads.
    forward = piece_times.forward[(statistic,)]
    compress = sum(piece_times.block.values())
    walking_again = forward
    if recipe.propagate == "dense":
        walking_again = 0.0
    if isinstance(recipe.target, GgufRecipe | GgufBudget):
        compress = _whole_file_seconds(opened, first_block, stand_in) / piece_times.blocks
        if isinstance(recipe.target, GgufBudget):
            compress += kinds_seconds(ModelShape.of(model)) / piece_times.blocks
            compress += forward * method.tried(piece_times.blocks, recipe.target)
    elif _needs_a_walk_of_its_own(method):
        tokens = int(batch.mask.sum())
        whole_seconds = _first_block_seconds(opened, model, batch, recipe)
        extra_seconds = max(0.0, whole_seconds - compress - forward * tokens)
        # Weights of tokens cost by the token, and what is tried in a block costs by the block.
        if isinstance(method, ModelMethod):
            compress += extra_seconds
        else:
            walking_again += extra_seconds / tokens
    writing = 0.0
    if writes:
        writing = _writing_seconds(opened)
    return StepCosts(
        opened=seconds,
        walk=piece_times.blocks * forward,
        judge=piece_times.blocks * piece_times.forward[(Gram,)],
        search=_search_seconds(first_block, stand_in, effort, sources),
        compress=piece_times.blocks * compress,
        measure=sum(piece_times.measure.values()),
        again=piece_times.blocks * walking_again,
        write=writing,
    )


def _needs_a_walk_of_its_own(method: Method) -> bool:
    """Whether a method does more than compress each matrix by what it saw of all tokens alike."""
    if isinstance(method, MatrixMethod) and method.token_use != TokenUse():
        return True
    return isinstance(method, ModelMethod)


def _seen_in_first_block(
    model: ModelView, batch: TokenBatch, stand_in: StandIn
) -> dict[Weight, Seen]:
    """What the first block's matrices see of random tokens."""
    first_block: dict[Weight, Seen] = {}
    with torch.no_grad():
        for weight, seen in walk(model, batch, (statistic_of(stand_in.method),), "dense"):
            if weight.block:
                break
            first_block[weight] = seen
    return first_block


def _search_seconds(
    first_block: Mapping[Weight, Seen], stand_in: StandIn, effort: Effort, sources: int
) -> float:
    """Return the seconds of a search of mixtures, from one mixture's compression of the first
    block's sampled rows.
    """
    sampled = {weight: sampled_rows(weight, effort.final) for weight in first_block}
    compress_sampled = partial(_compress, sampled, first_block, stand_in)
    seconds_of(compress_sampled)  # the first time warms caches
    seconds = seconds_of(compress_sampled)
    search_blocks = effort.search.blocks * (effort.evaluations + sources + 1)
    judged_blocks = effort.final.blocks * (sources + 1 + FINALISTS)
    return seconds * (search_blocks + judged_blocks)


def _writing_seconds(opened: Opened) -> float:
    """Return the seconds of a token that the model writes and that is used, from short answers."""
    seconds = writing_seconds(opened, _ANSWERS, _WRITTEN, _WRITTEN)
    return seconds / (_ANSWERS * _WRITTEN * _USED)


def _whole_file_seconds(
    opened: Opened, first_block: Mapping[Weight, Seen], stand_in: StandIn
) -> float:
    """Return the seconds that a whole file takes: its numbers are written, read, and rounded,
    embedding and head too.
    """
    rows = {weight: weight.get() for weight in first_block}
    block_numbers = sum(part.numel() for part in rows.values())
    all_numbers = sum(parameter.numel() for parameter in opened.model.parameters())
    rounding = seconds_of(partial(_compress, rows, first_block, stand_in))

    def write() -> None:
        with TemporaryDirectory() as folder:
            for part in rows.values():
                part.detach().float().cpu().numpy().tofile(Path(folder) / "block")

    # What is written is read too, which takes about as long.
    writing_and_reading = 2 * seconds_of(write)
    blocks = all_numbers / max(1, block_numbers)
    return blocks * (rounding + writing_and_reading)


@torch.no_grad()
def _compress(
    rows: Mapping[Weight, torch.Tensor], first_block: Mapping[Weight, Seen], stand_in: StandIn
) -> None:
    """Compress these rows on copies of the statistics, so that no factorisation is cached
    already; those that share an input share the copy.
    """
    copies: dict[int, Seen] = {}
    for seen in first_block.values():
        # A product with 1 is a new object of the same numbers.
        copied = {kind: statistic * 1.0 for kind, statistic in seen.items()}
        copies[id(seen)] = Seen(copied)
    for weight, part in rows.items():
        stand_in.method.compress(part, copies[id(first_block[weight])], stand_in.target)


def _first_block_seconds(
    opened: Opened, model: ModelView, batch: TokenBatch, recipe: Recipe
) -> float:
    """Return the seconds until the first block's matrices are compressed, walk and all;
    afterwards the model is what it was.
    """
    target = recipe.target.weights
    targets = dict.fromkeys(model.named, target)
    job = Job(opened, model, batch, target, targets, recipe.propagate)
    waiting = {weight.name for weight in model.blocks[0].weights}
    undos: list[Callable[[], None]] = []

    def work() -> None:
        for edit in edits_of(recipe.method, job):
            if edit.block:
                return
            undos.append(edit.undo(model))
            edit.apply(model)
            if isinstance(edit, Replace):
                waiting.discard(edit.weight.name)
            if not waiting:
                return

    try:
        with torch.no_grad():
            return seconds_of(work)
    finally:
        for undo in reversed(undos):
            undo()
