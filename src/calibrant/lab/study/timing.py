"""How long a study takes on this machine: each piece of the work is done once, small, and timed,
and a plan adds them up; and how many disjoint draws its calibration sets have.

The pieces are a block's forward on one micro-batch, the compression of one block by each method to
each target, and a few items of each evaluator. The tokens are random ones: how long a product takes
doesn't depend on what is in it. Nothing is written, and the model stays as it was.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from calibrant.activations import FeatureNorms, InputStatistic, Seen, Statistic
from calibrant.compress import Recipe, check_model, fitting
from calibrant.data import CalibrationSet, Many, PerDraw, Row, StoredSource, TokenBatch
from calibrant.data.expression import Term
from calibrant.decoding import TOKENS_PER_BATCH, Decoder
from calibrant.errors import CalibrantError, DataError
from calibrant.evaluators import Evaluator, Subject, forget_predictions, keep_predictions
from calibrant.evaluators._planning import tokens_read
from calibrant.lab.study.loaded import room
from calibrant.lab.study.request import RunRequest
from calibrant.methods import MatrixMethod
from calibrant.models import ModelView, Opened, Weight, view
from calibrant.models.readable import longest_window
from calibrant.numerics import type_name
from calibrant.results.outcomes import Journal
from calibrant.system.clock import seconds_of
from calibrant.system.progress import Progress, silent
from calibrant.walk import TOKENS_PER_PASS, walk, walk_blocks
from calibrant.walk.statistics import packed_bytes

ITEMS: Final[Mapping[str, tuple[int, int]]] = {"tokens": (512, 1024), "limit": (4, 8)}
"""Two budgets that an evaluator is tried with, by what its budget is called. From two, the cost of
an item can be told from what doesn't grow with the budget.
"""
MOST_ROWS: Final = 100_000
"""Rows that are counted at most, where an evaluator's budget is all of them."""
PATIENCE: Final = 4.0
"""Seconds after which an evaluator isn't tried with more."""
PATIENCE_WITH_DENSE: Final = 120.0
"""Seconds up to which a try that also runs the dense model is followed by one that doesn't."""
SEVERAL: Final = 8
"""Answers that are written together to tell what an answer costs from what a step costs."""
STEPS: Final = 8
"""Steps of them that are timed."""
PROMPT: Final = 64
"""Tokens of what they answer."""

ROWS: Final = 64
"""Rows that are tokenized to estimate how long the others are."""

Kinds = tuple[type[Statistic], ...]


@dataclass(frozen=True)
class Supply:
    """How far a set lasts: it has rows for about `held` disjoint draws, of the `draws` of a study.

    `held` is None where that is without end, or not known: see `why`. For a source that isn't
    stored it is at most what the study draws. Where the set can't be drawn at all, it is 0 and
    `why` is the reason. `exact` says whether draws were counted. `tokens` are those of a draw,
    `seconds` what one takes.
    """

    data: str
    draws: int
    held: float | None
    tokens: int
    seconds: float = 0.0
    exact: bool = False
    why: str = ""

    @property
    def lasts(self) -> bool:
        """Whether the draws are disjoint as far as is known."""
        return self.held is None or self.held >= self.draws


def supply_of(calibration: CalibrationSet, draws: int, tokenizer: Any, exact: bool) -> Supply:
    """Return how far a set lasts for its first `draws` draws.

    All of them are drawn if `exact`, else it is estimated from some of its rows.
    """
    if calibration.mixed:
        mixed = [supply_of(part, draws, tokenizer, exact) for part in calibration.mixed]
        all_exact = all(part.exact for part in mixed)
        why = "; ".join(part.why for part in mixed if part.why)
        return replace(_added(str(calibration), draws, mixed), exact=all_exact, why=why)
    try:
        parts = [_estimate(term, calibration, draws, tokenizer) for term in calibration.parts]
        whole = _added(str(calibration), draws, parts)
        if exact and whole.held is not None:
            counted = calibration.disjoint_draws(tokenizer, draws) or 0
            whole = replace(whole, held=float(counted))
        return replace(whole, exact=exact)
    except DataError as error:
        unknown = Supply(str(calibration), draws, None, budget_of(calibration))
        hubs = {term.source.hub.id for term in calibration.parts if term.source.hub is not None}
        if error.subject not in hubs:
            return replace(unknown, held=0.0, why=str(error))
        fetched = f"it isn't in a mirror here and would be fetched from the hub ({error.subject})"
        return replace(unknown, why=f"{fetched}, so it isn't looked at")


def _added(name: str, draws: int, parts: list[Supply]) -> Supply:
    """The supply of all parts together, which last as long as the part that lasts shortest."""
    held = [part.held for part in parts if part.held is not None]
    return Supply(
        data=name,
        draws=draws,
        held=min(held, default=None),
        tokens=sum(part.tokens for part in parts),
        seconds=sum(part.seconds for part in parts),
    )


def budget_of(calibration: CalibrationSet) -> int:
    """Return the most real tokens that a draw can have."""
    if calibration.budget is None:
        return calibration.samples * calibration.length
    return calibration.budget


def _estimate(term: Term, calibration: CalibrationSet, draws: int, tokenizer: Any) -> Supply:
    """Return the supply of one part of a set, estimated from the lengths of some of its rows.

    Rows of a source that isn't stored are read no further than `draws` draws need them.
    """
    budget = round(budget_of(calibration) * term.share)
    endless = Supply(str(term), 0, None, budget)
    if term.source.kind == "control":
        return endless
    if isinstance(term.source, PerDraw):
        disjoint = term.source.disjoint()
        if disjoint is None:
            return endless
        return replace(endless, held=float(disjoint))
    fitting_rows = filter(term.format.takes, term.source.rows("calibrate"))
    stored = isinstance(term.source, StoredSource)
    if stored:
        rows = list(fitting_rows)
    else:
        rows = list(islice(fitting_rows, ROWS))
    sample = rows[:: max(1, len(rows) // ROWS)]
    began = time.perf_counter()
    lengths = _lengths(term, sample, tokenizer)
    row_seconds = (time.perf_counter() - began) / max(1, len(sample))
    needed, tokens = _rows_and_tokens(term, calibration, budget, lengths)
    held = len(rows) / needed
    if not stored:
        # Rounded up, so that enough rows aren't taken for too few.
        most = int(needed * draws) + 1
        further_rows = islice(fitting_rows, max(0, most - len(rows)))
        rows_held = len(rows) + sum(1 for _ in further_rows)
        held = min(rows_held / needed, float(draws))
    return Supply(str(term), 0, held, tokens, needed * row_seconds)


def _lengths(term: Term, rows: Sequence[Row], tokenizer: Any) -> list[int]:
    """Return how many tokens each of these rows becomes."""
    lengths: list[int] = []
    for row in rows:
        text = term.format.render(row, tokenizer)
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return lengths


def _rows_and_tokens(
    term: Term, calibration: CalibrationSet, budget: int, lengths: Sequence[int]
) -> tuple[float, int]:
    """Return about how many rows of a part one draw takes, and how many tokens these are; `lengths`
    are those of sample rows.
    """
    # `many` puts texts one after another and uses all of each. In other packings a window takes
    # one text, and of it no more than fits.
    used = np.array(lengths, dtype=float)
    if not isinstance(term.packing, Many):
        used = np.minimum(used, calibration.length)
    mean = 1.0
    mean_square = 0.0
    if lengths:
        mean = max(1.0, used.mean())
        mean_square = float(np.square(used).mean())
    if calibration.budget is None and not term.packing.fills:
        needed = max(1.0, float(calibration.samples * term.share))
        return needed, round(needed * mean)
    # The rest of a draw's last text is left. On average that is half of the text that holds a
    # given token, and a long text is likelier to hold it: E[x²] / 2 E[x] tokens.
    return budget / mean + mean_square / (2 * mean**2), budget


@dataclass
class Timings:
    """How long the pieces take on one model.

    Seconds: `opened` for opening it; `forward` for a token through a block, by the statistics
    gathered; `block` for the compression of one, by method and target; `measure` for a whole
    measurement. `statistics` are bytes for one set and draw, by kind; `propagates` has the reason
    for each propagation that becomes another; `why_not` says what would fail. `answers` is what
    writing costs, once an evaluator that writes was timed.
    """

    model: str
    note: str
    dtype: str
    blocks: int
    matrices: int
    inputs: int
    opened: float
    forward: dict[Kinds, float] = field(default_factory=dict[Kinds, float])
    block: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    measure: dict[str, float] = field(default_factory=dict[str, float])
    statistics: dict[type[Statistic], int] = field(default_factory=dict[type[Statistic], int])
    propagates: dict[str, str] = field(default_factory=dict[str, str])
    why_not: list[str] = field(default_factory=list[str])
    answers: "AnswerCosts | None" = None

    def time_walk(self, model: ModelView, batch: TokenBatch, kinds: Kinds) -> dict[Weight, Seen]:
        """Time a walk, and return the statistics of the first block's matrices."""
        # The first try warms caches; of the others the shorter counts.
        tries = [_first_block(model, batch, kinds) for _ in range(3)]
        seen, _ = tries[-1]
        shortest = min(seconds for _, seconds in tries)
        self.forward[kinds] = shortest / int(batch.mask.sum())
        return seen

    def time_compression(
        self, recipe: Recipe, model: ModelView, seen: Mapping[Weight, Seen]
    ) -> None:
        """Time one block's compression."""
        method = recipe.method
        target = recipe.target.weights
        weights = model.blocks[0].weights
        with self._noting_errors(f"{method} {target}"):
            check_model(method, model, target, dict.fromkeys(model.named, target))
            if isinstance(method, MatrixMethod):
                # The first try, of one matrix, warms caches.
                _seconds_of_compression(method, recipe, weights[:1], seen)
                first = _seconds_of_compression(method, recipe, weights, seen)
                second = _seconds_of_compression(method, recipe, weights, seen)
                self.block[_piece(recipe)] = min(first, second)

    def time_measurement(self, text: str, evaluator: Evaluator, opened: Opened) -> None:
        """Time a whole measurement, from small ones."""

        def timed(small: Evaluator) -> float:
            # Each try has a journal of its own, so that none finds what another has written.
            subject = Subject(opened.model, opened.tokenizer, opened.model)
            seconds = seconds_of(partial(small.measure, subject))
            if small.compares and seconds <= PATIENCE_WITH_DENSE:
                # What has to be known of the dense model, such as the noise floor, a study finds
                # out once: the second time it is known.
                subject = replace(subject, journal=Journal())
                return seconds_of(partial(small.measure, subject))
            return seconds

        keep_predictions(opened.model)
        with self._noting_errors(text):
            if evaluator.longest_answer:
                # Where it can't be measured at all, this says why.
                timed(_shortest(evaluator))
                if self.answers is None:
                    self.answers = answer_costs(opened)
                self.measure[text] = self.answers.of_measurement(evaluator)
            else:
                self.measure[text] = _seconds_of_measurement(evaluator, timed)
        forget_predictions(opened.model)

    @contextmanager
    def _noting_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except CalibrantError as error:
            why = f"{name}: {error}"
            if why not in self.why_not:
                self.why_not.append(why)


def measure_pieces(
    opened: Opened,
    seconds: float,
    requests: Sequence[RunRequest],
    evaluators: Mapping[str, Evaluator],
    kinds: Kinds,
    progress: Progress = silent,
) -> Timings:
    """Time the pieces of `requests` on an open model, which took `seconds` to open.

    `kinds` are gathered together in `dense`.
    """
    model = view(opened.model)
    timings = Timings(
        model=opened.name,
        note=opened.note,
        dtype=type_name(opened.dtype),
        blocks=len(model.blocks),
        matrices=len(model.weights),
        inputs=0,
        opened=seconds,
    )
    asked = list(dict.fromkeys(request.recipe for request in requests))
    judging = [_judging(recipe) for recipe in asked]
    recipes = {_piece(recipe): recipe for recipe in (*asked, *judging)}
    observed = [recipe.method.observes for recipe in recipes.values()]
    # Norms are always among them: they tell which matrices share an input.
    distinct = dict.fromkeys([(FeatureNorms,), kinds, *observed])
    gatherings = [gathering for gathering in distinct if gathering]
    total = len(gatherings) + len(recipes) + len(evaluators)
    done = 0
    seen: dict[Kinds, dict[Weight, Seen]] = {}
    sets = [request.calibration for request in requests if request.calibration is not None]
    if sets:
        batch = _micro_batch(sets[0], opened)
        for gathering in gatherings:
            progress("probe", done, total)
            seen[gathering] = timings.time_walk(model, batch, gathering)
            done += 1
        looking = [recipe for recipe in asked if recipe.method.observes]
        timings.propagates = _fitting(looking, model, sets[0], opened)
    for recipe in recipes.values():
        progress("probe", done, total)
        timings.time_compression(recipe, model, seen.get(recipe.method.observes, {}))
        done += 1
    for text, evaluator in evaluators.items():
        progress("probe", done, total)
        timings.time_measurement(text, evaluator, opened)
        done += 1
    progress("probe", total, total)
    widths = _input_widths(model, seen.get((FeatureNorms,), {}))
    timings.inputs = len(widths)
    for kind in kinds:
        timings.statistics[kind] = sum(packed_bytes(width, kind) for width in widths)
    return timings


def _judging(recipe: Recipe) -> Recipe:
    """The recipe with the method that its allocation judges by."""
    method, _ = recipe.allocation.judges_by(recipe.method, recipe.target.weights)
    return replace(recipe, method=method)


def _piece(recipe: Recipe) -> tuple[str, str]:
    """What a block's compression is called."""
    return str(recipe.method), str(recipe.target)


def _seconds_of_compression(
    method: MatrixMethod,
    recipe: Recipe,
    weights: Sequence[Weight],
    seen: Mapping[Weight, Seen],
) -> float:
    """The seconds that some matrices take."""
    # Copies of the statistics, so that no factorisation is cached already. By identity, so that
    # matrices which share statistics share the copies too.
    copies: dict[int, Seen] = {}
    for statistics in seen.values():
        copied = {kind: statistic * 1.0 for kind, statistic in statistics.items()}
        copies[id(statistics)] = Seen(copied)
    began = time.perf_counter()
    for weight in weights:
        if weight in seen:
            method.compress(weight.get(), copies[id(seen[weight])], recipe.target.weights)
        elif not method.observes:
            method.compress(weight.get(), Seen({}), recipe.target.weights)
    return time.perf_counter() - began


def _seconds_of_measurement(evaluator: Evaluator, timed: Callable[[Evaluator], float]) -> float:
    """Return the seconds of a whole measurement. A budget of None is that of all rows."""
    name = _budget_name(evaluator)
    if name is None:
        return timed(evaluator)
    few, more = ITEMS[name]
    budget = getattr(evaluator, name)
    if budget is None:
        budget = sum(1 for _ in islice(evaluator.rows(), MOST_ROWS))
    if budget <= more:
        return timed(evaluator)
    least = 1 if name == "limit" else few // 2
    # The first try warms caches, and ends this where even it takes long.
    for items in (least, few):
        first = timed(evaluator.limited(items))
        if first > PATIENCE:
            return first * budget / items
    second = timed(evaluator.limited(more))
    # What the second took in all, spread over its budget, is the most that an item can cost, and a
    # fifth of it about the least.
    most = second / more
    slope = (second - first) / (more - few)
    item_seconds = min(max(slope, most / 5), most)
    return second + item_seconds * (budget - more)


@dataclass(frozen=True)
class AnswerCosts:
    """What it takes to write many answers at once, a token of each in a step, in seconds: `read`
    for a token of a prompt, `step` for a step, and `answer` for each answer in it.
    """

    read: float
    step: float
    answer: float

    def of_measurement(self, evaluator: Any) -> float:
        """The seconds of a measurement whose answers are all as long as they may be."""
        items = evaluator.limit
        longest = evaluator.longest_answer
        read = tokens_read(evaluator)
        # Exemplars are read once, and are remembered with each prompt.
        shots = getattr(evaluator, "shots", 0)
        remembered = read / (items + shots) * (1 + shots) + longest
        batches = math.ceil(items * remembered / TOKENS_PER_BATCH)
        steps = batches * longest
        return read * self.read + steps * self.step + items * longest * self.answer


def answer_costs(opened: Opened) -> AnswerCosts:
    """Time a single answer and several, of one token and of more."""
    # The first try warms caches.
    writing_seconds(opened, 1, PROMPT, 1)
    single = writing_seconds(opened, 1, PROMPT, 1)
    count = SEVERAL if single <= PATIENCE else 2
    several = writing_seconds(opened, count, PROMPT, 1)
    longer_single = writing_seconds(opened, 1, PROMPT, 1 + STEPS)
    longer_several = writing_seconds(opened, count, PROMPT, 1 + STEPS)
    step_of_single = max(0.0, longer_single - single) / STEPS
    step_of_several = max(0.0, longer_several - several) / STEPS
    answer = max(0.0, step_of_several - step_of_single) / (count - 1)
    return AnswerCosts(
        read=several / (count * PROMPT), step=max(0.0, step_of_single - answer), answer=answer
    )


def writing_seconds(opened: Opened, count: int, length: int, written: int) -> float:
    """Return the seconds in which the model reads `count` prompts of `length` random tokens, and
    writes so many after each.
    """
    data = CalibrationSet("random_tokens", tokens=count * length, length=length)
    prompts = data.tokens(opened.tokenizer).ids.tolist()
    decoder = Decoder(opened.model, prompts, written, _never, "the time that answers take")
    seconds = 0.0
    for batch in decoder.batches():
        seconds += seconds_of(partial(decoder.run, batch))
    return seconds


def _never(ids: Sequence[int]) -> bool:
    """Answers that are timed end at their limit."""
    del ids
    return False


def _shortest(evaluator: Evaluator) -> Evaluator:
    """The same with one answer of one token."""
    single: Any = evaluator.limited(1)
    if hasattr(single, "max_tokens"):
        single = replace(single, max_tokens=1)
    return single


def _budget_name(evaluator: Evaluator) -> str | None:
    """What an evaluator's budget is called, if it has one."""
    for name, (few, _) in ITEMS.items():
        if getattr(evaluator.limited(few), name, None) == few:
            return name
    return None


def _first_block(
    model: ModelView,
    batch: TokenBatch,
    kinds: Kinds,
) -> tuple[dict[Weight, Seen], float]:
    """Return the statistics of the first block's matrices, and the seconds that its forward took.

    Where statistics are of whole blocks, there are none of matrices.
    """
    if not all(issubclass(kind, InputStatistic) for kind in kinds):
        blocks = walk_blocks(model, batch, kinds)
        return {}, seconds_of(partial(next, blocks))
    first: dict[Weight, Seen] = {}
    arrivals = walk(model, batch, kinds, "dense")
    began = time.perf_counter()
    seconds = 0.0
    for weight, seen in arrivals:
        if not first:
            # A block's forward is over when its first matrix comes.
            seconds = time.perf_counter() - began
        if weight.block:
            break
        first[weight] = seen
    return first, seconds


def _micro_batch(calibration: CalibrationSet, opened: Opened) -> TokenBatch:
    """Return random tokens in windows of the study's length, about as many as go through a block at
    once."""
    length = min(calibration.length, longest_window(opened.model) or calibration.length)
    tokens = min(budget_of(calibration), max(TOKENS_PER_PASS, length))
    random_tokens = CalibrationSet("random_tokens", tokens=tokens, length=length)
    return random_tokens.tokens(opened.tokenizer)


def _input_widths(model: ModelView, seen: Mapping[Weight, Seen]) -> list[int]:
    """Return the width of every distinct input.

    Matrices that share one in the first block do so in the others.
    """
    # Matrices with one input have the same statistics. One that was not seen has its own input.
    inputs: dict[str, int] = {}
    for weight, statistics in seen.items():
        inputs[_relative(weight, model)] = id(statistics)
    widths: list[int] = []
    for block in model.blocks:
        distinct: dict[object, int] = {}
        for weight in block.weights:
            name = _relative(weight, model)
            distinct[inputs.get(name, name)] = weight.shape[1]
        widths += distinct.values()
    return widths


def _relative(weight: Weight, model: ModelView) -> str:
    """The name of a matrix within its block."""
    block = model.blocks[weight.block]
    return weight.name.removeprefix(f"{block.name}.")


def _fitting(
    recipes: Iterable[Recipe],
    model: ModelView,
    calibration: CalibrationSet,
    opened: Opened,
) -> dict[str, str]:
    """Return the reason for each propagation that becomes another on this machine."""
    # Only the shape of the tokens decides what fits.
    windows = max(1, budget_of(calibration) // calibration.length)
    mask = torch.ones(windows, calibration.length, dtype=torch.bool)
    shaped = TokenBatch(mask.long(), mask, mask.float(), "", {})
    reasons: dict[str, str] = {}
    limit = room(opened.model)
    for recipe in recipes:
        allowed = recipe.method.propagations
        propagate, note = fitting(recipe.propagate, model, shaped, opened.dtype, limit, allowed)
        if propagate != recipe.propagate:
            reasons[recipe.propagate] = note
    return reasons


class Unfinished(NamedTuple):
    """A request that lacks measurements by these evaluators, or its record.

    Its model is compressed for them, unless what brings it back is `kept`.
    """

    request: RunRequest
    measures: Sequence[str]
    kept: bool


def kinds(requests: Iterable[RunRequest]) -> Kinds:
    """Return the statistics of the dense model that these requests share."""
    shared: dict[type[Statistic], None] = {}
    for request in requests:
        if request.shares:
            shared |= dict.fromkeys(request.recipe.shared)
    return tuple(shared)


def passes(requests: Iterable[RunRequest]) -> list[CalibrationSet]:
    """Return the sets, draw by draw, of which the dense model's statistics are gathered.

    Each is there once; those of a mix are its parts'.
    """
    gathered: dict[str, CalibrationSet] = {}
    for request in requests:
        calibration = request.calibration
        if calibration is not None and request.shares:
            for part in calibration.mixed or (calibration,):
                gathered[repr(part)] = part
    return list(gathered.values())


def duration(
    timings: Timings,
    gathered: Kinds,
    unfinished: Sequence[Unfinished],
    supplies: Mapping[str, Supply],
) -> dict[str, float]:
    """Return the seconds by phase that one worker needs.

    `gathered` are the statistics that were timed together. A study gathers all of them in a pass,
    also where only some of its requests are left. A set whose supply isn't known is taken to fill
    its budget.
    """
    compressed: list[RunRequest] = []
    sets: dict[str, CalibrationSet] = {}
    measure = 0.0
    for request, measures, kept in unfinished:
        if not kept:
            compressed.append(request)
        if request.calibration is not None:
            sets[repr(request.calibration)] = request.calibration
        measure += sum(timings.measure.get(text, 0) for text in measures)
    tokenize = 0.0
    for calibration in sets.values():
        supply = supplies.get(str(calibration))
        if supply is not None:
            # To deal a draw, those before it are dealt again.
            tokenize += supply.seconds * (calibration.seed + 1)
    forward = 0.0
    for part in passes(compressed):
        forward += timings.forward[gathered] * _tokens(part, supplies)
    forward += sum(_own_forward(timings, request, supplies) for request in compressed)
    compress = sum(_own_compression(timings, request.recipe) for request in compressed)
    opening = 0.0
    if unfinished:
        opening = timings.opened
    return {
        "open": opening,
        "tokenize": tokenize,
        "forward": forward * timings.blocks,
        "compress": compress * timings.blocks,
        "measure": measure,
    }


def _tokens(calibration: CalibrationSet, supplies: Mapping[str, Supply]) -> int:
    supply = supplies.get(str(calibration))
    if supply is not None:
        return supply.tokens
    return budget_of(calibration) * (len(calibration.mixed) or 1)


def _own_forward(timings: Timings, request: RunRequest, supplies: Mapping[str, Supply]) -> float:
    """The seconds that a request's own forwards of a block take, beside those that are shared."""
    recipe = request.recipe
    method = recipe.method
    allocation = recipe.allocation
    plain = timings.forward.get((FeatureNorms,), 0.0)
    observing = timings.forward.get(method.observes, 0.0)
    seconds = plain * method.tried(timings.blocks, recipe.target.weights)
    seconds += plain * allocation.tried(timings.blocks, recipe.target.weights)
    if request.calibration is None:
        return seconds
    tokens = _tokens(request.calibration, supplies)
    if recipe.propagate == "reference":
        seconds += (observing + plain) * tokens
    elif recipe.propagate != "dense":
        seconds += observing * tokens
    seconds += recipe.forwards_for_scales(recipe.propagate) * plain * tokens
    if allocation.tries:  # it walks once through the untouched model for itself
        seconds += observing * tokens
    return seconds


def _own_compression(timings: Timings, recipe: Recipe) -> float:
    """The seconds that a block's compression takes, and what its allocation tries before."""
    judge, times = recipe.allocation.judges_by(recipe.method, recipe.target.weights)
    judging = timings.block.get((str(judge), str(recipe.target)), 0.0)
    compressing = timings.block.get(_piece(recipe), 0.0)
    return times * judging + compressing
