"""AutoRound: rounding and clipping that signed gradients learn, block by block, from what the block
gave in the dense model (Cheng et al. 2023, arXiv 2309.05516).
"""

from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, final

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from calibrant.activations import Gram, Propagation, Seen, Statistic, wide
from calibrant.edits import Edit, Replace
from calibrant.errors import ModelError, NumericsError
from calibrant.job import Job
from calibrant.methods._base import (
    Compressed,
    StandIn,
    check_choice,
    check_least,
    finite,
)
from calibrant.methods._model_method import (
    ModelMethod,
    check_matrices,
    check_one_process,
    failing_at,
)
from calibrant.methods.quantization._rounding import Scales, absmax, extremes, scales_reaching
from calibrant.methods.quantization.gptq import GPTQ
from calibrant.models import Block, ModelView, Weight
from calibrant.numerics import six_digits
from calibrant.packed import Codes
from calibrant.spec import MOST_STEPS, check_most
from calibrant.spec.foreign import LARGEST
from calibrant.system.clock import spent_on
from calibrant.system.products import full_speed
from calibrant.targets import Grid, Target
from calibrant.walk.attention import BlockCall
from calibrant.walk.statistics import by_block

INPUTS: Final = ("arrival", "dense")
"""What a block may be shown while its rounding is learned."""
MOST_WINDOWS: Final = 100_000
"""Windows at most that a step sees."""
MOST_OFFSET: Final = 0.5
"""How far a weight may be moved before it is rounded, in steps of the grid."""
LOSS_SCALE: Final = 1000.0
"""Losses are multiplied by it, as in the authors' code: float16 would round their gradients to
zero. Of gradients only the sign counts.
"""
LEAST_ERROR: Final = 1e-30
"""Errors are relative to no less: that of rounding to nearest may be zero."""
SAME: Final = 1e-4
"""How large the squared difference of hidden states that are the same may be, as a share."""
WEIGHTS_PER_PART: Final = 2**17
"""How many weights a step works on at a time on a processor, so that what one of its operations
writes is still in the cache for the next.
"""
THREADS_PER_PART: Final = 4
"""How many threads torch has for so many weights. More threads get more weights at a time."""
PASSES_OF_A_STEP: Final = 3
"""What a step costs, in forward passes of its windows: gradients take two."""


@dataclass(frozen=True, repr=False)
class AutoRound(ModelMethod):
    """Learns how weights are rounded and how far grids reach, by `steps` of signed gradients, so
    that each block gives what it gave in the dense model.

    A weight w of a group with scale s gets the code round(w/s + v), v within ±0.5. The grid of a
    group reaches from its least weight times a to its largest weight times b, both at most 1. The
    gradient is that of the block's squared error, with rounding taken as the identity. Step t moves
    v, a and b by (1 - t/`steps`)/`steps` against its sign. A step sees `batch` windows, or some
    more, since micro-batches of the walk stay whole; `seed` draws their order. Tokens count by
    their weights. The step is kept that errs least, relative to `rtn` on the same windows. Where it
    doesn't err less than `rtn` over all windows, the block is rounded as `rtn` does it. Notes: the
    block's mean squared error `before` (by `rtn`) and `after`, and the `step` that was kept, null
    for `rtn`'s rounding.

    The aim is what the dense model's block gives of the dense model's inputs. With `inputs=arrival`
    the block is shown what arrives when all blocks before it are quantized, and so makes up for
    their errors. With `inputs=dense` it is shown the dense model's inputs. The walk is through the
    dense model in both cases, so `dense` is the only propagation. A symmetric grid has its lowest
    code where the weight farthest from zero is, so scales may be negative. Memory holds a block's
    hidden states six times, and about 20 bytes for each of its weights.

    Differs from the authors' code in: scales have the weights' type; windows that go through the
    model together stay together; steps are compared by relative errors; what `rtn` does better
    stays as `rtn` does it.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    propagate: ClassVar[Propagation] = "dense"
    propagations: ClassVar[tuple[Propagation, ...]] = ("dense",)
    by_block: ClassVar[bool] = True

    steps: int = 200
    batch: int = 8
    inputs: str = "arrival"
    seed: int = 0

    def __post_init__(self) -> None:
        check_most(self, steps=MOST_STEPS, batch=MOST_WINDOWS, seed=LARGEST)
        check_least(self, steps=1, batch=1, seed=0)
        check_choice(self, inputs=INPUTS)

    def tokens_again(self, tokens: int, length: int) -> int:
        shown = min(self.batch * length, tokens)
        # What the block gives, before and after, and what comes of it for the next one.
        return PASSES_OF_A_STEP * self.steps * shown + 4 * tokens

    def work_bytes(self, block_numbers: int, state_bytes: int) -> int:
        # Weights, offsets and gradients in float32, codes three times, and Grams. Hidden states are
        # held four times: at the block's door, at the next one's, as the block gave them in the
        # dense model, and as they arrive.
        return 20 * block_numbers + 4 * state_bytes

    def stand_in(self, target: Target) -> StandIn:
        differs = "gptq corrects rounding by the outputs of each matrix alone"
        return StandIn(GPTQ(), target, differs)

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        check_matrices(view, targets)

    def edits(self, job: Job) -> Iterator[Edit]:
        check_one_process(self, job)
        factors = _factors_of_windows(job)
        kept_by_block: dict[int, list[_KeptMicroBatch]] = defaultdict(list)

        def keep(call: BlockCall) -> None:
            micro_batches = kept_by_block[call.block.index]
            first_window = sum(micro_batch.windows for micro_batch in micro_batches)
            micro_batches.append(_KeptMicroBatch(call, factors[first_window]))

        # From the first block on, after an interruption too: what arrives at a block has come
        # through all before it.
        walk = replace(job, done=()).walk(self.observes, keep)
        passage = _Passage()
        for block, seen in by_block(job.view.blocks, walk):
            micro_batches = kept_by_block.pop(block.index, [])
            # The walk is past this block already.
            with job.view.held(block):
                if self.inputs == "arrival":
                    passage.enter(block, micro_batches)
                if block.index < job.start:
                    numbers = _finished(job, block)
                else:
                    numbers = yield from self._edits_of_block(job, block, seen, micro_batches)
                if self.inputs == "arrival":
                    with spent_on("method"), full_speed():
                        passage.leave(micro_batches, numbers)

    def _edits_of_block(
        self,
        job: Job,
        block: Block,
        seen: Mapping[Weight, Seen],
        micro_batches: Sequence["_KeptMicroBatch"],
    ) -> Generator[Replace, None, dict[Weight, Tensor]]:
        """Yield the matrices of a block, rounded, and return their numbers."""
        numbers: dict[Weight, Tensor] = {}
        if not seen:
            return numbers
        # One that no token reached isn't among those that were seen.
        grids: dict[Weight, Grid] = {}
        for weight in seen:
            target = job.targets[weight.name]
            assert isinstance(target, Grid)  # all that it accepts
            grids[weight] = target
        # A seed of its own for each block. Torch takes seeds of 64 bits.
        seed = (self.seed * 1_000_003 + block.index) % 2**64
        generator = torch.Generator().manual_seed(seed)
        with failing_at(self, block.name), spent_on("method"), full_speed():
            codes, notes = learned_codes(
                grids,
                micro_batches,
                self.steps,
                self.batch,
                generator,
                keep_outputs=self.inputs == "arrival",
            )
        for weight, packed in codes.items():
            compressed = Compressed(packed.dense(), notes, packed)
            yield Replace(weight, compressed, seen[weight])
            numbers[weight] = compressed.weight
        return numbers


def _finished(job: Job, block: Block) -> dict[Weight, Tensor]:
    """Return the numbers of a block's matrices that were rounded before an interruption."""
    numbers: dict[Weight, Tensor] = {}
    for edit in job.finished(block):
        if isinstance(edit, Replace):
            numbers[edit.weight] = edit.compressed.weight
    return numbers


def _factors_of_windows(job: Job) -> list[float]:
    """Return what the error of each window of a job is multiplied with, in the order in which a
    walk shows them: of a mix, the factor of the set that the window is from, else 1.
    """
    batch = job.tokens()
    factors: list[float] = []
    for factor, part in batch.mixed or ((1.0, batch),):
        # A walk leaves out windows without a token.
        windows = int(part.mask.any(1).sum())
        factors += [factor] * windows
    return factors


@final
class _KeptMicroBatch:
    """A micro-batch that a block reads. It has so many `windows`, and counts by its `mass`. Its
    errors are multiplied with `factor`.

    `arriving` are the hidden states that the block is shown; None for those of the dense model.
    `quantized` are those that the quantized block gives, where they were kept. `by_nearest` is the
    error of the block with the nearest values.
    """

    def __init__(self, call: BlockCall, factor: float) -> None:
        self.windows = len(call.real)
        self.arriving: Tensor | None = None
        self.quantized: Tensor | None = None
        self.by_nearest = 0.0
        self.dense = call.kept()
        self._rows = call.rows
        self._factor = factor
        self._weights = call.weights
        self._aim: Tensor | None = None
        count = float(call.real.sum()) if call.weights is None else float(call.weights.sum())
        self.mass = factor * count * self.dense.hidden.shape[-1]

    def aim(self) -> None:
        """Keep what the block gives of the dense model's inputs, which `error` compares with."""
        self._aim = self._rows(self.dense(torch.no_grad()))

    def output(self, mode: AbstractContextManager[Any]) -> Tensor:
        """Return the hidden states that the block gives of what it is shown."""
        return self.dense(mode, self.arriving)

    def error(self, mode: AbstractContextManager[Any]) -> Float[Tensor, ""]:
        """Return the squared error of what the block gives now."""
        return self.error_of(self.output(mode))

    def error_of(self, output: Tensor) -> Float[Tensor, ""]:
        """Return the squared error of hidden states, each token by its weight."""
        assert self._aim is not None
        rows = self._rows(output)
        dtype = wide(rows.dtype)
        squares = (rows.to(dtype) - self._aim.to(dtype)).square().sum(1)
        if self._weights is not None:
            squares = squares * self._weights
        return squares.sum() * self._factor


@final
class _Passage:
    """Hidden states on their way from block to block, through the quantized ones.

    `_given` are those that the last quantized block gave, by micro-batch. `_dense` are those that
    the same block gave in the dense model, for the first micro-batch.
    """

    def __init__(self) -> None:
        self._given: list[Tensor] = []
        self._dense: Tensor | None = None

    def enter(self, block: Block, micro_batches: Sequence[_KeptMicroBatch]) -> None:
        """Show the block what the one before it gave. Raises `ModelError` where it reads something
        else in the dense model.
        """
        if self._dense is not None:
            follows = len(micro_batches) == len(self._given)
            if not follows or not _same(micro_batches[0].dense.hidden, self._dense):
                raise ModelError(
                    f"{block.name} reads something else than the block before it gives, so what "
                    "arrives at it can't be followed; write autoround(inputs=dense)",
                    subject=block.name,
                )
            for micro_batch, hidden in zip(micro_batches, self._given, strict=True):
                micro_batch.arriving = hidden
        if micro_batches:
            self._dense = micro_batches[0].dense(torch.no_grad())

    def leave(
        self, micro_batches: Sequence[_KeptMicroBatch], numbers: Mapping[Weight, Tensor]
    ) -> None:
        """Keep what the block gives with these numbers."""
        self._given = []
        with _put_back(numbers):
            for weight, matrix in numbers.items():
                weight.set(matrix)
            for micro_batch in micro_batches:
                output = micro_batch.quantized
                if output is None:
                    output = micro_batch.output(torch.no_grad())
                self._given.append(output)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    difference = one.float() - other.float()
    return bool(difference.square().sum() <= SAME * one.float().square().sum())


@contextmanager
def _put_back(weights: Iterable[Weight]) -> Iterator[None]:
    """Let the matrices have any numbers, and give them back their own at the end."""
    before = {weight: weight.get().clone() for weight in weights}
    try:
        yield
    finally:
        for weight, matrix in before.items():
            weight.set(matrix)


@contextmanager
def _with_gradients(weights: Iterable[Weight]) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters that the matrices are in, each once. While it lasts they get gradients,
    and the matrices may have any numbers.
    """
    parameters: dict[int, nn.Parameter] = {}
    for weight in weights:
        parameter = getattr(weight.owner, weight.key)
        parameters[id(parameter)] = parameter
    required = {key: parameter.requires_grad for key, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with _put_back(weights):
            yield list(parameters.values())
    finally:
        for key, parameter in parameters.items():
            parameter.requires_grad_(required[key])


def learned_codes(
    grids: Mapping[Weight, Grid],
    micro_batches: Sequence[_KeptMicroBatch],
    steps: int,
    batch: int,
    generator: torch.Generator,
    *,
    keep_outputs: bool,
) -> tuple[dict[Weight, Codes], dict[str, Any]]:
    """Return the codes of a block's matrices, and notes: the block's mean squared error `before`,
    with the nearest values, and `after`, and the `step` that was kept, None for the nearest values.

    Each step sees micro-batches of at least `batch` windows together, if there are so many. With
    `keep_outputs` micro-batches keep what the block gives with these codes, unless they are the
    nearest values. The matrices must have the dense model's numbers, and have them again in the
    end. Raises `NumericsError` for numbers that aren't finite.
    """
    for micro_batch in micro_batches:
        micro_batch.aim()
    matrices = [_LearnedMatrix(weight, its_grid) for weight, its_grid in grids.items()]
    nearest = {matrix.weight: matrix.nearest() for matrix in matrices}
    lots = _lots(micro_batches, batch, generator)
    with _with_gradients(grids) as parameters:
        _set_matrices(nearest)
        errors = _errors(micro_batches)
        for micro_batch, error in zip(micro_batches, errors, strict=True):
            micro_batch.by_nearest = error
        best, step = _best_of_steps(matrices, parameters, lots, steps)
        _set_matrices(best)
        after = sum(_errors(micro_batches, keep_outputs=keep_outputs))
    before = sum(errors)
    kept_step: int | None = step
    if not after < before:
        best = nearest
        after = before
        kept_step = None
        for micro_batch in micro_batches:
            micro_batch.quantized = None
    mass = max(sum(micro_batch.mass for micro_batch in micro_batches), LEAST_ERROR)
    notes = {
        "before": six_digits(before / mass),
        "after": six_digits(after / mass),
        "step": kept_step,
    }
    return best, notes


def _lots(
    micro_batches: Sequence[_KeptMicroBatch], batch: int, generator: torch.Generator
) -> Iterator[list[_KeptMicroBatch]]:
    """Yield, without end, micro-batches that have at least `batch` windows together; all of them
    where there are fewer. Each round is in another order. Those that are too few at its end are
    left out.
    """
    while True:
        lot: list[_KeptMicroBatch] = []
        windows = 0
        for number in torch.randperm(len(micro_batches), generator=generator).tolist():
            lot.append(micro_batches[number])
            windows += micro_batches[number].windows
            if windows >= batch:
                yield lot
                lot = []
                windows = 0
        if len(lot) == len(micro_batches):
            yield lot


def _best_of_steps(
    matrices: Sequence["_LearnedMatrix"],
    parameters: Sequence[nn.Parameter],
    lots: Iterator[list[_KeptMicroBatch]],
    steps: int,
) -> tuple[dict[Weight, Codes], int]:
    """Take so many steps, each on a lot of micro-batches. Return the codes of the one that erred
    least, relative to the nearest values on the same lot, and its number.
    """
    best: dict[Weight, Codes] = {}
    best_step = 0
    least = torch.inf
    for step in range(steps):
        lot = next(lots)
        _set_matrices({matrix.weight: matrix.round() for matrix in matrices})
        by_nearest = sum(micro_batch.by_nearest for micro_batch in lot)
        by_nearest = max(by_nearest, LEAST_ERROR)
        error, gradients = _gradients(lot, parameters, LOSS_SCALE / by_nearest)
        if error / by_nearest < least or not best:
            least = error / by_nearest
            best = {matrix.weight: matrix.codes for matrix in matrices}
            best_step = step
        rate = (1 - step / steps) / steps
        for matrix in matrices:
            matrix.step(gradients, rate)
    return best, best_step


def _set_matrices(codes: Mapping[Weight, Codes]) -> None:
    for weight, packed in codes.items():
        weight.set(packed.dense())


def _errors(micro_batches: Sequence[_KeptMicroBatch], *, keep_outputs: bool = False) -> list[float]:
    """Return the squared errors of what the block gives now. With `keep_outputs` the micro-batches
    keep that as `quantized`. Raises `NumericsError` for an error that isn't finite.
    """
    errors: list[float] = []
    for micro_batch in micro_batches:
        output = micro_batch.output(torch.no_grad())
        errors.append(float(micro_batch.error_of(output)))
        if keep_outputs:
            micro_batch.quantized = output
    if not all(error < torch.inf for error in errors):
        problem = "what the block gives with rounded weights holds NaN or infinity"
        raise NumericsError(f"{problem}; look at the model's dtype")
    return errors


def _gradients(
    micro_batches: Sequence[_KeptMicroBatch], parameters: Sequence[nn.Parameter], scale: float
) -> tuple[float, dict[int, Tensor]]:
    """Return the squared error of what the block gives for some micro-batches, and the gradient of
    `scale` times it for each parameter, by its `id`, in float32 or better.
    """
    total = 0.0
    gradients: dict[int, Tensor] = {}
    for micro_batch in micro_batches:
        with torch.enable_grad():
            error = micro_batch.error(torch.enable_grad())
            # Not `backward`, which would give the model's other parameters gradients too.
            found = torch.autograd.grad(error * scale, parameters, allow_unused=True)
        total += float(error.detach())
        for parameter, gradient in zip(parameters, found, strict=True):
            # None for an expert that got no token of this micro-batch.
            if gradient is None:
                continue
            gradient = gradient.to(wide(gradient.dtype))
            if id(parameter) in gradients:
                gradients[id(parameter)] += gradient
            else:
                gradients[id(parameter)] = gradient
    return total, gradients


@final
class _LearnedMatrix:
    """A matrix whose rounding is learned; `codes` follow from what is learned so far."""

    def __init__(self, weight: Weight, its_grid: Grid) -> None:
        matrix = finite(weight.get(), "the weight")
        self.weight = weight
        self._grid = its_grid
        self._dtype = matrix.dtype
        # A copy: the model has the rounded numbers meanwhile.
        self._dense = matrix.to(wide(matrix.dtype), copy=True).contiguous()
        self._rows_per_part = _rows_per_part(weight, self._dense)
        self._parts = [
            _LearnedRows(rows, its_grid, self._dtype)
            for rows in self._dense.split(self._rows_per_part)
        ]
        self.codes = self.round()

    def nearest(self) -> Codes:
        """Return the codes that `rtn` gives."""
        matrix = self._dense.to(self._dtype)
        return absmax(matrix, self._grid).nearest(matrix)

    def round(self) -> Codes:
        """Return the codes that follow from what is learned so far, which become `codes`."""
        codes = torch.cat([part.round() for part in self._parts])
        scales = torch.cat([part.scales.scales for part in self._parts])
        zeros = [part.scales.zeros for part in self._parts if part.scales.zeros is not None]
        zero_points = torch.cat(zeros) if zeros else None
        self.codes = Codes(self._grid, codes, scales, zero_points)
        return self.codes

    def step(self, gradients: Mapping[int, Tensor], rate: float) -> None:
        """Move what is learned by `rate` against the sign of its gradient, given the `gradients` of
        parameters.
        """
        parameter = getattr(self.weight.owner, self.weight.key)
        if id(parameter) not in gradients:
            return
        gradient = gradients[id(parameter)]
        if self.weight.expert is not None:
            gradient = gradient[self.weight.expert]
        if self.weight.transposed:
            gradient = gradient.T
        gradients_of_parts = gradient.split(self._rows_per_part)
        for part, gradient_of_part in zip(self._parts, gradients_of_parts, strict=True):
            part.step(gradient_of_part, rate)


def _rows_per_part(weight: Weight, matrix: Float[Tensor, "out in"]) -> int:
    """Return how many rows of a matrix a step works on at a time: all on a GPU, where parts would
    take longer, and of a transposed one, since the order in which torch sums its gradients changes
    with the rows.
    """
    rows, columns = matrix.shape
    if weight.transposed or matrix.device.type != "cpu":
        return rows
    parts_at_a_time = max(1, torch.get_num_threads() // THREADS_PER_PART)
    return max(1, parts_at_a_time * WEIGHTS_PER_PART // columns)


@final
class _LearnedRows:
    """Some rows of a `_LearnedMatrix`. `scales` follow from what was learned when they were last
    rounded.

    Of each weight `_offsets` say by how much it is moved before it is rounded, in steps of the
    grid. Of each group `_low` and `_high` say how much of its least and its largest weight the
    grid reaches.
    """

    def __init__(self, rows: Float[Tensor, "out in"], its_grid: Grid, dtype: torch.dtype) -> None:
        self._grid = its_grid
        self._dtype = dtype
        self._smallest, self._largest = extremes(rows, its_grid)
        self._dense = rows.unflatten(1, (self._smallest.shape[1], -1))
        self._low = torch.ones_like(self._smallest)
        self._high = torch.ones_like(self._largest)
        self._offsets = torch.zeros_like(self._dense)
        self.scales = self._scales()

    def round(self) -> Int8[Tensor, "out in"]:
        """Make `scales` anew, and return the codes that follow from what is learned so far."""
        self.scales = self._scales()
        places = self._places()
        codes = places.clamp_(self._grid.lowest, self._grid.highest).to(torch.int8)
        return codes.flatten(1)

    def step(self, rows_gradient: Float[Tensor, "out in"], rate: float) -> None:
        """Move what is learned by `rate` against the sign of its gradient.

        With p = round(w/s + v) + z and c = clamp(p), a weight becomes s·(c - z), where rounding
        counts as the identity. So its derivative by v is s where p wasn't clamped; by s it is
        c - z, less w/s where p wasn't clamped; and by z it is -s where p was.
        """
        gradient = rows_gradient.unflatten(1, (self._smallest.shape[1], -1))
        scales = self.scales
        places = self._places()
        codes = places.clamp(self._grid.lowest, self._grid.highest)
        inside = places == codes
        if scales.zeros is not None:
            codes -= scales.zeros[:, :, None]
        by_group = scales.scales.to(gradient.dtype)
        scale = by_group[:, :, None]
        by_scale = (gradient * (codes - self._dense / scale * inside)).sum(2)
        bottom = self._smallest * self._low
        top = self._largest * self._high
        if self._grid.symmetric:
            # The scale is ±reach / 2^(bits - 1), and the reach the larger of both ends.
            by_reach = by_scale * by_group.sign()
            by_low = -by_reach * self._smallest * (-bottom >= top)
            by_high = by_reach * self._largest * (top >= -bottom)
        else:
            # The scale is (top - bottom) / span, and z = lowest - bottom / scale.
            span = self._grid.highest - self._grid.lowest
            by_zero = -(gradient * scale * ~inside).sum(2)
            through_scale = (by_scale + by_zero * bottom / by_group.square()) / span
            by_low = (-through_scale - by_zero / by_group) * self._smallest
            by_high = through_scale * self._largest
        self._low.sub_(by_low.sign(), alpha=rate).clamp_(0, 1)
        self._high.sub_(by_high.sign(), alpha=rate).clamp_(0, 1)
        by_offset = gradient.sign() * scale.sign() * inside
        self._offsets.sub_(by_offset, alpha=rate).clamp_(-MOST_OFFSET, MOST_OFFSET)

    def _scales(self) -> Scales:
        """Return the scales of grids that reach as far as is learned."""
        bottom = self._smallest * self._low
        top = self._largest * self._high
        if not self._grid.symmetric:
            return scales_reaching(bottom, top, self._grid, self._dtype)
        farthest = top.where(top >= -bottom, bottom)
        scales = finite((farthest / self._grid.lowest).to(self._dtype), "the scale of a group")
        # A group of zeros has no scale of its own, and stays zero with any.
        scales = scales.where(scales != 0, torch.finfo(self._dtype).eps)
        return Scales(self._grid, scales, None)

    def _places(self) -> Float[Tensor, "out group width"]:
        """Return where each weight comes to lie among the codes, before what lies outside is
        clamped.
        """
        places = self._dense / self.scales.scales.to(self._dense.dtype)[:, :, None]
        places.add_(self._offsets).round_()
        if self.scales.zeros is not None:
            places.add_(self.scales.zeros[:, :, None])
        return places
