"""How long a study takes on this machine: each piece of the work is done once, small, and timed, and a plan adds them up.

A block's forward on one micro-batch, the compression of one block by each method to each target, and a few items of each evaluator. The tokens are
random ones: how long a product takes doesn't depend on what is in it. Nothing is written, and the model stays as it was.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import torch

from calibrant.activations import FeatureNorms, InputStatistic, Seen, Statistic
from calibrant.compress import Recipe, fitting
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import CalibrantError
from calibrant.evaluators import Evaluator, Subject, forget_predictions, keep_predictions
from calibrant.methods import MatrixMethod
from calibrant.models import ModelView, Opened, Weight, view
from calibrant.progress import Progress, silent
from calibrant.study.loaded import room
from calibrant.study.request import RunRequest
from calibrant.study.supply import Supply, budget_of
from calibrant.walk import TOKENS_PER_PASS, walk, walk_blocks
from calibrant.walk.statistics import packed_bytes

ITEMS: Final[Mapping[str, tuple[int, int]]] = {"tokens": (512, 1024), "limit": (4, 8)}
"""Two budgets that an evaluator is tried with, by what its budget is called: what doesn't grow with it shows in the difference."""
PATIENCE: Final = 4.0
"""Seconds after which an evaluator isn't tried with more."""

Kinds = tuple[type[Statistic], ...]


@dataclass(frozen=True)
class Timings:
    """How long the pieces take on one model.

    Seconds: `forward` for a token through a block, by the statistics gathered; `block` for the compression of one, by method and target; `measure`
    for a whole measurement. `statistics` are bytes for one set and draw, by kind; `why_not` says what would fail.
    """

    model: str
    note: str
    dtype: str
    blocks: int
    matrices: int
    inputs: int
    opened: float
    forward: Mapping[Kinds, float] = field(default_factory=dict[Kinds, float])
    block: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    measure: Mapping[str, float] = field(default_factory=dict[str, float])
    statistics: Mapping[Kinds, int] = field(default_factory=dict[Kinds, int])
    propagates: Mapping[str, str] = field(default_factory=dict[str, str])
    why_not: tuple[str, ...] = ()


def measure_pieces(
    opened: Opened, seconds: float, requests: Sequence[RunRequest], evaluators: Mapping[str, Evaluator], kinds: Kinds, progress: Progress = silent
) -> Timings:
    """Time the pieces of `requests` on an open model, which took `seconds` to open. `kinds` are gathered together in `dense`."""
    model, pieces = view(opened.model), _Pieces()
    recipes = list(dict.fromkeys(q.recipe for q in requests))
    looking = [recipe for recipe in recipes if recipe.method.observes]
    recipes = list({(str(one.method), str(one.target)): one for one in [*recipes, *map(_judging, recipes)]}.values())
    observed = [recipe.method.observes for recipe in recipes if recipe.method.observes]
    gatherings: dict[Kinds, None] = dict.fromkeys([(FeatureNorms,), *([kinds] if kinds else []), *observed])
    calibration = next((q.calibration for q in requests if q.calibration), None)
    seen, total = dict[Kinds, dict[Weight, Seen]](), len(gatherings) + len(recipes) + len(evaluators)
    steps = iter(range(total))
    if calibration is not None:
        batch = _micro_batch(calibration, opened)
        for gathered in gatherings:
            progress("probe", next(steps), total)
            seen[gathered] = pieces.time_walk(model, batch, gathered)
    for recipe in recipes:
        progress("probe", next(steps), total)
        pieces.time_compression(recipe, model, seen.get(recipe.method.observes, {}))
    for text, evaluator in evaluators.items():
        progress("probe", next(steps), total)
        pieces.time_measurement(text, evaluator, opened)
    progress("probe", total, total)
    first = next(iter(seen.values()), {})
    timings = replace(
        Timings(opened.name, opened.note, str(opened.dtype).removeprefix("torch."), len(model.blocks), len(model.weights), 0, seconds),
        forward=pieces.forward,
        block=pieces.block,
        measure=pieces.measure,
        propagates={} if calibration is None else _fitting(looking, model, calibration, opened),
        why_not=tuple(dict.fromkeys(pieces.why_not)),
    )
    widths = list(_inputs(model, first))
    return replace(timings, inputs=len(widths), statistics={kind: sum(sum(packed_bytes(w, k) for k in kind) for w in widths) for kind in gatherings})


def _judging(recipe: Recipe) -> Recipe:
    """The recipe with the method that its allocation judges by."""
    return replace(recipe, method=recipe.allocation.judges_by(recipe.method, recipe.target)[0])


class _Pieces:
    """The pieces as they are timed."""

    def __init__(self) -> None:
        self.forward: dict[Kinds, float] = {}
        self.block: dict[tuple[str, str], float] = {}
        self.measure: dict[str, float] = {}
        self.why_not: list[str] = []

    def time_walk(self, model: ModelView, batch: TokenBatch, kinds: Kinds) -> dict[Weight, Seen]:
        """Time a walk, and return the statistics of the first block's matrices. The first try warms caches; of the others the shorter counts."""
        tries = [_first_block(model, batch, kinds) for _ in range(3)]
        seen, _ = tries[-1]
        self.forward[kinds] = min(seconds for _, seconds in tries) / int(batch.mask.sum())
        return seen

    def time_compression(self, recipe: Recipe, model: ModelView, seen: Mapping[Weight, Seen]) -> None:
        """Time one block's compression, on copies of its statistics, so that no factorisation is cached already."""
        key, weights = (str(recipe.method), str(recipe.target)), model.blocks[0].weights
        with self._noting_errors(f"{key[0]} {key[1]}"):
            recipe.method.check_model(model, recipe.target, {weight.name: recipe.target for weight in model.weights})
            if not isinstance(recipe.method, MatrixMethod):
                return
            tries: list[float] = []
            for some in (weights[:1], weights, weights):
                fresh = {id(of): Seen({kind: statistic * 1.0 for kind, statistic in of.items()}) for of in seen.values()}
                began = time.perf_counter()
                for weight in (w for w in some if w in seen or not recipe.method.observes):
                    recipe.method.compress(weight.get(), fresh[id(seen[weight])] if weight in seen else Seen({}), recipe.target)
                tries.append(time.perf_counter() - began)
            self.block[key] = min(tries[1:])

    def time_measurement(self, text: str, evaluator: Evaluator, opened: Opened) -> None:
        """Time a whole measurement, from two small ones."""

        def measure(small: Evaluator) -> None:
            small.measure(Subject(opened.model, opened.tokenizer, opened.model))

        def timed(small: Evaluator) -> float:
            seconds = _timed(lambda: measure(small))
            # What has to be known of the dense model, such as the noise floor, a study finds out once: the second time it is known.
            return _timed(lambda: measure(small)) if small.compares and seconds <= PATIENCE else seconds

        keep_predictions(opened.model)
        with self._noting_errors(text):
            self.measure[text] = _whole(evaluator, timed)
        forget_predictions(opened.model)

    @contextmanager
    def _noting_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except CalibrantError as error:
            self.why_not.append(f"{what}: {error}")


def _whole(evaluator: Evaluator, timed: Callable[[Evaluator], float]) -> float:
    """Return the seconds of a whole measurement. A budget of None is that of all rows."""
    name = next((name for name in ITEMS if getattr(evaluator.limited(ITEMS[name][0]), name, None) == ITEMS[name][0]), None)
    if name is None:
        return timed(evaluator)
    (few, more), budget = ITEMS[name], getattr(evaluator, name)
    whole = budget if budget is not None else _count(evaluator.rows(), 100_000)
    if whole <= more:
        return timed(evaluator)
    warm = timed(evaluator.limited(1 if name == "limit" else few // 2))
    if warm > PATIENCE:
        return warm * whole / (1 if name == "limit" else few // 2)
    first = timed(evaluator.limited(few))
    if first > PATIENCE:
        return first * whole / few
    second = timed(evaluator.limited(more))
    # What the second took in all, spread over its budget, is the most that an item can cost, and a fifth of it about the least.
    each = min(max((second - first) / (more - few), second / more / 5), second / more)
    return second + each * (whole - more)


def _first_block(model: ModelView, batch: TokenBatch, kinds: Kinds) -> tuple[dict[Weight, Seen], float]:
    """Return the statistics of the first block's matrices, and the seconds that its forward took. What is of a whole block has none of these."""
    first: dict[Weight, Seen] = {}
    if not all(issubclass(kind, InputStatistic) for kind in kinds):
        return first, _timed(lambda: next(walk_blocks(model, batch, kinds)))
    arrivals = walk(model, batch, kinds, "dense")
    began = time.perf_counter()
    seconds = 0.0
    for weight, seen in arrivals:
        seconds = seconds or time.perf_counter() - began
        if weight.block:
            break
        first[weight] = seen
    return first, seconds


def _micro_batch(calibration: CalibrationSet, opened: Opened) -> TokenBatch:
    """Return random tokens in windows of the study's length, about as many as go through a block at once."""
    length = min(calibration.length, opened.model.config.get_text_config().max_position_embeddings or calibration.length)
    budget = calibration.samples * calibration.length if calibration.budget is None else calibration.budget
    return CalibrationSet("random_tokens", tokens=min(budget, max(TOKENS_PER_PASS, length)), length=length).tokens(opened.tokenizer)


def _inputs(model: ModelView, seen: Mapping[Weight, Seen]) -> Iterator[int]:
    """Yield the width of every distinct input: matrices that share one in the first block do so in the others."""
    place = {_relative(weight, model): id(of) for weight, of in seen.items()}
    for block in model.blocks:
        widths = {place.get(name := _relative(weight, model), name): weight.shape[1] for weight in block.weights}
        yield from widths.values()


def _relative(weight: Weight, model: ModelView) -> str:
    return weight.name.removeprefix(f"{model.blocks[weight.block].name}.")


def _fitting(recipes: Iterable[Recipe], model: ModelView, calibration: CalibrationSet, opened: Opened) -> dict[str, str]:
    """Return the reason for each propagation that becomes another on this machine."""
    length = calibration.length
    tokens = calibration.samples * length if calibration.budget is None else calibration.budget
    mask = torch.ones(max(1, tokens // length), length, dtype=torch.bool)
    like = TokenBatch(mask.long(), mask, mask.float(), "", {})
    becomes = {recipe.propagate: fitting(recipe.propagate, model, like, opened.dtype, room()) for recipe in recipes}
    return {before: note for before, (after, note) in becomes.items() if after != before}


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _count(rows: Iterable[Any], most: int) -> int:
    return sum(1 for _, _ in zip(rows, range(most), strict=False))


class Unfinished(NamedTuple):
    """A request with what the store lacks: its measurements by these evaluators and, unless it is `recorded`, its record."""

    request: RunRequest
    measures: Sequence[str]
    recorded: bool


def kinds(requests: Iterable[RunRequest]) -> Kinds:
    """Return the statistics of the dense model that these requests share."""
    return tuple(dict.fromkeys(kind for q in requests if q.shares for kind in q.recipe.shared))


def passes(requests: Iterable[RunRequest]) -> list[CalibrationSet]:
    """Return the sets, draw by draw, of which the dense model's statistics are gathered, each once; those of a mix are its parts'."""
    parts = (part for q in requests if q.shares and q.calibration for part in q.calibration.mixed or (q.calibration,))
    return list({repr(part): part for part in parts}.values())


def duration(timings: Timings, unfinished: Sequence[Unfinished], supplies: Mapping[str, Supply]) -> dict[str, float]:
    """Return the seconds by phase that one worker needs. A set whose supply isn't known is taken to fill its budget."""
    compressed = [one.request for one in unfinished if not one.recorded or one.request.recipe.method.updates]
    sets = {repr(q.calibration): q.calibration for q, _, _ in unfinished if q.calibration}.values()

    def tokens(calibration: CalibrationSet) -> int:
        return supplies[str(calibration)].tokens if str(calibration) in supplies else budget_of(calibration) * (len(calibration.mixed) or 1)

    forward = sum(timings.forward.get(kinds(compressed), 0) * tokens(calibration) for calibration in passes(compressed))
    for request in compressed:
        if request.calibration and request.recipe.propagate != "dense":
            again = timings.forward.get((FeatureNorms,), 0) if request.recipe.propagate == "reference" else 0
            forward += (timings.forward.get(request.recipe.method.observes, 0) + again) * tokens(request.calibration)
    judged = 0.0
    for request in compressed:
        recipe, allocation = request.recipe, request.recipe.allocation
        tried = recipe.method.tried(timings.blocks, recipe.target) + allocation.tried(timings.blocks, recipe.target)
        forward += timings.forward.get((FeatureNorms,), 0) * tried
        by, times = allocation.judges_by(recipe.method, recipe.target)
        judged += times * timings.block.get((str(by), str(recipe.target)), 0)
        if allocation.tries and request.calibration:  # it walks once through the untouched model for itself
            forward += timings.forward.get(recipe.method.observes, 0) * tokens(request.calibration)
    return {
        "open": timings.opened if unfinished else 0.0,
        "tokenize": sum(supplies[str(calibration)].seconds * (calibration.seed + 1) for calibration in sets if str(calibration) in supplies),
        "forward": forward * timings.blocks,
        "compress": (judged + sum(timings.block.get((str(q.recipe.method), str(q.recipe.target)), 0) for q in compressed)) * timings.blocks,
        "measure": sum(timings.measure.get(text, 0) for one in unfinished for text in one.measures),
    }
