"""How much memory a job needs, and what follows from how much it may have: whether blocks stay
on disk, and which propagation there is room for.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, final

import psutil
import torch

from calibrant.activations import CHUNK, EXACT_CHUNK, Propagation
from calibrant.compress.recipe import PROPAGATIONS, Recipe
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import Selector
from calibrant.errors import SpecError
from calibrant.exports import Export
from calibrant.methods import MatrixMethod, Method, ModelMethod
from calibrant.models import ModelOutline, ModelShape, ModelView, Opened, outline_of
from calibrant.targets import GgufBudget, GgufRecipe, Target
from calibrant.targets.gguf_budget import MOST_BITS
from calibrant.walk import LONG_PASS, held_between_blocks, tokens_per_pass_of
from calibrant.walk.ranks import Ranks
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.starving import AS_SEEN

CPU: Final = torch.device("cpu")
MOST_GB: Final = 1_000_000
"""Memory at most that can be promised."""
PANEL: Final = 256
"""Columns of a Gram that are factored together."""
PANELS: Final = 4
"""Squares of so many columns that factoring takes beside the Gram: of a narrow one they are as
large as itself.
"""
HANDED_ALONG: Final = 16
"""What passes between blocks beside their inputs, such as the angles of positions, masks and token
ids, takes one part in so many of it. This stays in memory; most models have less.
"""
BLOCKS_HELD: Final = 3
"""Blocks on disk that are in memory at once: the one that is worked on, the finished one that is
being kept, and what is converted while reading.
"""
DEVICE_BLOCKS: Final = 3
"""Blocks that are on a device at once where blocks stay beside it: the one that is worked on, the
finished one whose edits are being kept, and the next one, which is fetched meanwhile.
"""
ACTIVATIONS_SHARE: Final = 0.8
"""The share of the free memory that activations may fill. A fifth is left for what isn't counted,
and for other processes.
"""
PLAIN_BYTES: Final = 4
"""Bytes of a number in the scratch file that llama.cpp reads, which holds float32."""
TOKENIZER_FILE_BYTES: Final = 80
"""Bytes that an entry of the vocabulary takes in a tokenizer's files."""


@final
@dataclass(frozen=True)
class Needs:
    """Bytes of memory that a job needs, estimated from shapes before anything is read.

    `process` is what the process holds already. `model` are all parameters, `outside` those outside
    the blocks, `block` those of the largest block. `arrival` are the activations of all tokens
    within a block, `between` those between two blocks, and `in_a_pass` those of one micro-batch
    within a block. `work` is what the method and its statistics take. `copies` of a model, or what
    is added by pinning it, are there only where all of it is in memory.
    """

    process: int
    model: int
    outside: int
    block: int
    arrival: int
    between: int
    in_a_pass: int
    work: int
    copies: int = 0

    @classmethod
    def of(
        cls,
        model: ModelView | ModelShape,
        tokens: int,
        dtype: torch.dtype,
        method: Method | None = None,
        sources: int = 1,
        length: int = 0,
        device: torch.device = CPU,
    ) -> "Needs":
        """Estimate what a job needs: `tokens` of so many sources are shown, in windows of `length`.
        Of the model only shapes are looked at. `dtype` is what its numbers will have, and `device`
        what computes.
        """
        shape = ModelShape.of(model) if isinstance(model, ModelView) else model
        # A window isn't divided, however long it is.
        in_a_pass = max(min(tokens, LONG_PASS), length)
        work = 0
        if isinstance(method, MatrixMethod):
            widest = max(matrix.inputs for matrix in shape.matrices)
            # What statistics are summed from is made float32 so many rows at a time.
            rows = min(in_a_pass, CHUNK)
            squares = 0
            panels = 0
            if looks_at_grams(method):
                rows = min(in_a_pass, EXACT_CHUNK)
                squares = method.squares(sources)
                panels = PANELS * min(widest, PANEL) ** 2
            copies = method.copies_on(device) * max(matrix.numbers for matrix in shape.matrices)
            # All of it is in float32, four bytes a number.
            work = 4 * (copies + squares * widest**2 + panels + rows * widest)
        if method is not None:
            state_bytes = tokens * shape.hidden * dtype.itemsize
            work += method.work_bytes(shape.largest_block, state_bytes)
        per_token = shape.numbers_per_token * dtype.itemsize
        return cls(
            process=held_now(),
            model=shape.numbers * dtype.itemsize,
            outside=shape.outside * dtype.itemsize,
            block=shape.largest_block * dtype.itemsize,
            arrival=tokens * per_token,
            # The input of the block, and that of the next one.
            between=tokens * 2 * shape.hidden * dtype.itemsize,
            in_a_pass=in_a_pass * per_token,
            work=work,
        )

    def in_memory(self, propagate: Propagation, offload: bool = False) -> int:
        """Return what is needed with the whole model in memory; with `offload` activations are on
        disk as far as they can be.
        """
        model = self.model + self.copies
        return self.process + model + self.activations(propagate, offload) + self.work

    def activations(self, propagate: Propagation, offload: bool = False) -> int:
        """Return the activations that are in memory at once. With `offload` the inputs of blocks
        are on disk, except in `arrival`, which can't.
        """
        if propagate == "arrival":
            # All micro-batches wait within a block, while one goes on to where they are.
            return self.arrival + self.in_a_pass
        between = self.between // HANDED_ALONG if offload else self.between
        return self.in_a_pass + between

    def on_disk(self, propagate: Propagation, offload: bool = False) -> int:
        """Return what is needed with blocks on disk, and with `offload` activations too."""
        activations = self.activations(propagate, offload)
        return self.process + self.model_on_disk + activations + self.work

    @property
    def model_on_disk(self) -> int:
        """How much of the model is in memory at once with its blocks on disk."""
        return self.outside + BLOCKS_HELD * self.block

    def beside(self, propagate: Propagation, offload: bool = False) -> int:
        """Return what is needed on a device with blocks beside it, and with `offload` activations
        too.
        """
        activations = self.activations(propagate, offload)
        return self.model_beside + activations + self.work

    @property
    def model_beside(self) -> int:
        """How much of the model is on a device at once with its blocks beside it."""
        return self.outside + DEVICE_BLOCKS * self.block

    def beside_a_device(self, outlines: Sequence[ModelOutline], stay: bool) -> "Needs":
        """Return what is needed in the machine's memory where another device computes: the models,
        which come from there. Where blocks `stay` beside it, they are pinned.
        """
        pinned = 0
        if stay:
            pinned = sum(map(added_by_pinning, outlines))
        return replace(self, arrival=0, between=0, in_a_pass=0, work=0, copies=pinned)


def added_by_pinning(outline: ModelOutline) -> int:
    """Return how many bytes more blocks take that stay beside a GPU, in pinned memory: torch rounds
    each parameter up to a power of two there.
    """
    if outline.device.type != "cuda":
        return 0
    parameters: Counter[tuple[object, ...]] = Counter()
    for number, block in enumerate(outline.shape.blocks):
        for place, matrix in enumerate(block.matrices):
            part, stacked, _ = matrix.part.partition("[")
            parameter = (number, place)
            if stacked:
                # Matrices of all experts are one parameter.
                parameter = (number, part, matrix.outputs, matrix.inputs)
            parameters[parameter] += matrix.numbers * outline.dtype.itemsize
    added = 0
    for size in parameters.values():
        added += 2 ** (size - 1).bit_length() - size
    return added


def scratch_bytes(model: ModelShape, target: Target) -> int:
    """Return how many bytes the files take at most that llama.cpp reads and writes for a target of
    whole files: the model as float32, and quantized.
    """
    if not isinstance(target, GgufRecipe | GgufBudget):
        return 0
    tokenizer = TOKENIZER_FILE_BYTES * model.vocabulary
    quantized = math.ceil(model.numbers * MOST_BITS / 8)
    return PLAIN_BYTES * model.numbers + quantized + 2 * tokenizer


def mapped_bytes(model: ModelShape, target: Target) -> int:
    """Return how many bytes of scratch files are in memory, 0 without such files. The one of
    float32 counts twice, since llama.cpp maps it too.
    """
    scratch = scratch_bytes(model, target)
    if not scratch:
        return 0
    return scratch + PLAIN_BYTES * model.numbers


def in_bytes(memory: float | None, option: str = "memory") -> int | None:
    """Return in bytes the `memory` that an `option` gives in GB; None where none is given. Raises
    `SpecError` for what isn't above 0 or is more than any machine has.
    """
    if memory is None:
        return None
    if not 0 < memory <= MOST_GB:
        advice = f"give GB above 0 and up to {MOST_GB:,}, or leave it out"
        message = f"{option}={memory:g} is no room to work in; {advice}"
        raise SpecError(message, subject=str(memory))
    return int(memory * 1e9)


def held_now() -> int:
    """Return how many bytes of memory this process holds."""
    return psutil.Process().memory_info().rss


def left_on_disk(
    model: str,
    recipe: Recipe,
    calibration: CalibrationSet | None,
    forms: Sequence[Export],
    dtype: str,
    device: str,
    promised: int,
    ranks: Ranks,
    beside: bool = False,
) -> str:
    """Return why the blocks of `model` stay on disk, in a sentence for the record; empty where the
    job takes no more than the `promised` bytes with the whole model in memory, or `beside` a device
    that is smaller.

    Raises `SpecError` where the promise can't be kept: for a job that needs the whole model in
    memory, and for less memory than is needed with the blocks on disk.
    """
    outline = outline_of(model, dtype, device)
    if outline is None or not outline.divisible:
        return ""
    job = needs_of_job(outline, recipe, calibration)
    needs = job.needs
    if outline.device.type != "cpu":
        needs = needs.beside_a_device([outline], beside)
    # Wherever the model computes, the processor reads and writes these files.
    needs = replace(needs, work=needs.work + mapped_bytes(outline.shape, recipe.target.weights))
    return _why_on_disk(
        f"{model} and this job",
        model,
        needs,
        job.estimated,
        job.ways,
        needs_whole_model(recipe, calibration, forms, ranks),
        promised,
    )


@final
@dataclass(frozen=True)
class JobNeeds:
    """What a job needs, the propagation by which it is `estimated`, and those that it may go on
    with.
    """

    needs: Needs
    estimated: Propagation
    ways: frozenset[Propagation]


def needs_of_job(
    outline: ModelOutline, recipe: Recipe, calibration: CalibrationSet | None
) -> JobNeeds:
    """Estimate what a job needs, before its model is opened."""
    tokens = budget_of(calibration) if recipe.looks else 0
    length = calibration.length if calibration else 0
    needs = Needs.of(
        outline.shape,
        tokens,
        outline.dtype,
        recipe.method,
        source_count(calibration),
        length,
        outline.device,
    )
    ways: frozenset[Propagation] = frozenset({recipe.propagate, *recipe.method.propagations})
    return JobNeeds(needs, estimated_by(recipe), ways)


def estimated_by(recipe: Recipe) -> Propagation:
    """Return the propagation by whose activations it is decided where blocks stay."""
    # A method that yields edits of its own may hold more of a block than its propagation says, so
    # the most is assumed.
    return recipe.propagate if goes_by_matrix(recipe.method) else "arrival"


def needs_of_open(
    opened: Opened, view: ModelView, method: Method | None, calibration: CalibrationSet | None
) -> Needs:
    """Estimate what a job needs whose model is open; without a `method`, one that only shows it
    the calibration set.
    """
    length = 0
    if calibration is not None:
        length = calibration.length
    return Needs.of(
        view,
        budget_of(calibration),
        opened.dtype,
        method,
        source_count(calibration),
        length,
        opened.model.device,
    )


def looks_at_grams(method: Method) -> bool:
    """Return whether a method observes Grams, which are as wide as a matrix has inputs."""
    return any(kind.square for kind in method.observes)


def goes_by_matrix(method: Method) -> bool:
    """Return whether a method does nothing but compress one matrix after the other."""
    return not isinstance(method, ModelMethod)


def gathered_on_disk(
    model: str,
    calibration: CalibrationSet,
    dtype: str,
    device: str,
    promised: int,
    beside: bool,
) -> str:
    """Return why the blocks of `model` stay on disk while an importance matrix is gathered, as
    `left_on_disk` does, and raise as it does.
    """
    outline = outline_of(model, dtype, device)
    if outline is None or not outline.divisible:
        return ""
    needs = Needs.of(
        outline.shape, budget_of(calibration), outline.dtype, length=calibration.length
    )
    # Eight bytes of a sum in float64, and eight as it is written.
    sums = 16 * sum(matrix.inputs for matrix in outline.shape.matrices)
    if outline.device.type != "cpu":
        needs = needs.beside_a_device([outline], beside)
    return _why_on_disk(
        f"{model} and its importance matrix",
        model,
        replace(needs, work=sums),
        "dense",
        ("dense",),
        _running_selector(calibration),
        promised,
    )


def _why_on_disk(
    job: str,
    model: str,
    needs: Needs,
    estimated: Propagation,
    ways: Iterable[Propagation],
    whole_model_for: str,
    promised: int,
) -> str:
    """Why blocks stay on disk; empty where all fits into memory with the propagation `estimated`.

    With blocks on disk the job may go another of its `ways`. `whole_model_for` says what in it
    needs the whole model in memory, if anything does: then there is an error instead.
    """
    most = needs.in_memory(estimated)
    if most <= promised:
        return ""
    estimate = f"{job} take about {most / 1e9:.1f} GB, and memory is {promised / 1e9:.1f}"
    if whole_model_for:
        problem = f"its blocks can't be left on disk, since {whole_model_for}"
        raise SpecError(f"{estimate}; {problem}; allow more memory", subject=model)
    least = min(needs.on_disk(way, offload=True) for way in ways)
    if least > promised:
        problem = f"with its blocks on disk it needs about {least / 1e9:.1f} GB"
        advice = "allow so much, or calibrate on fewer tokens"
        raise SpecError(f"{estimate}; {problem}; {advice}", subject=model)
    return f"{estimate}: its blocks stayed on disk"


def needs_whole_model(
    recipe: Recipe, calibration: CalibrationSet | None, forms: Sequence[Export], ranks: Ranks
) -> str:
    """Return what in a job needs the whole model in memory, as a part of a sentence; empty if
    nothing does.
    """
    for transform in recipe.transforms:
        if not transform.by_block:
            return f"{transform} changes the whole model"
    if recipe.tries:
        return f"{recipe.looking} measures the whole model"
    if recipe.allocation.observes:
        return f"the allocation {recipe.allocation} compares all matrices"
    if not goes_by_matrix(recipe.method) and not recipe.method.by_block:
        return f"{recipe.method} does more than compress matrix by matrix"
    if recipe.starved != AS_SEEN:
        return f"starved={recipe.starved} looks at all experts first"
    selector = _running_selector(calibration) if calibration and recipe.looks else ""
    if selector:
        return selector
    if len(forms) > 1:
        return f"the export {forms[-1]} is made of the whole model"
    return "several processes share the work" if ranks.size > 1 else ""


def fitting(
    propagate: Propagation,
    view: ModelView,
    batch: TokenBatch | None,
    dtype: torch.dtype,
    limit: int | None = None,
    possible: Sequence[Propagation] = PROPAGATIONS,
) -> tuple[Propagation, str]:
    """Return the propagation that memory has room for, and why it isn't the one asked for: that is
    `reference` where `arrival` is asked for and would need too much, if `reference` is `possible`.

    Arrival suspends the forwards of all micro-batches inside a block. So the activations of *all*
    tokens are held at once: input, residual and the two widest intermediate results. `limit` is in
    bytes; by default it is 80 % of what the machine has free.
    """
    if propagate != "arrival" or "reference" not in possible or batch is None:
        return propagate, ""
    needs = Needs.of(view, int(batch.mask.sum()), dtype, length=batch.ids.shape[1])
    needed = needs.activations("arrival")
    if limit is None:
        limit = int(psutil.virtual_memory().available * ACTIVATIONS_SHARE)
    if needed <= limit:
        return propagate, ""
    holds = f"arrival would hold about {needed / 1e9:.1f} GB of activations"
    allowed = f"may hold {limit / 1e9:.1f} GB"
    return "reference", f"{holds} and {allowed}; went on with reference"


def offload(
    left: int,
    propagate: Propagation,
    method: Method | None,
    view: ModelView,
    batch: TokenBatch | None,
    dtype: torch.dtype,
    place: Path | Literal["memory"] | None,
    option: str = "memory",
) -> str:
    """Let activations go to `place` between two blocks, where the bytes that are `left` of what
    `option` allows have no room for them. Return why, in a sentence for the record; empty where
    they stay.

    Raises `SpecError` where there is no room for what stays even so, or where they can't go
    elsewhere: without a `place`, in `arrival`, and for models that change their blocks' inputs.
    """
    if batch is None:
        return ""
    needs = Needs.of(view, int(batch.mask.sum()), dtype, length=batch.ids.shape[1])
    taken = needs.activations(propagate)
    if taken <= left:
        return ""
    least = taken
    by_block = propagate != "arrival" and (method is None or goes_by_matrix(method))
    if place is not None and by_block and not rehearse(view).changes_input:
        tokens = tokens_per_pass_of(propagate)
        # Not estimated but measured: models differ in what they keep beside the inputs of blocks.
        least = needs.in_a_pass + held_between_blocks(view, batch, tokens_per_pass=tokens)
    if least > left:
        job = "imatrix" if method is None else str(method)
        holds = f"{job} with {propagate} holds about {least / 1e9:.1f} GB of activations"
        message = f"{holds}, and {left / 1e9:.1f} GB are left for them"
        advice = f"allow more {option}, or calibrate on fewer tokens"
        raise SpecError(f"{message}; {advice}", subject=job)
    allowed = f"activations of about {taken / 1e9:.1f} GB may take {left / 1e9:.1f} GB"
    view.offload = place
    where = "in the machine's memory" if place == "memory" else "on disk"
    return f"{allowed}: they were {where} between two blocks"


def room_for_activations(
    promised: int,
    opened: Opened,
    view: ModelView,
    recipe: Recipe | None = None,
    calibration: CalibrationSet | None = None,
) -> int:
    """Return how many of the `promised` bytes are left for activations, now that the model is open.
    Without a `recipe` the model is only shown the calibration set. Raises `SpecError` where the
    job takes more than was promised even without activations.
    """
    check_kept(promised, opened)
    method = None if recipe is None else recipe.method
    needs = needs_of_open(opened, view, method, calibration)
    taken = needs.process + needs.work
    if view.residence.on_disk:
        taken += BLOCKS_HELD * needs.block
    if recipe is not None:
        taken += mapped_bytes(ModelShape.of(view), recipe.target.weights)
    if taken > promised:
        job = "imatrix" if method is None else str(method)
        holds = f"{job} holds about {taken / 1e9:.1f} GB beside activations"
        message = f"{holds}, and memory is {promised / 1e9:.1f}; allow more memory"
        raise SpecError(message, subject=job)
    return promised - taken


def check_kept(promised: int, opened: Opened) -> None:
    """Raise `SpecError` where the process holds more than was promised, now that the model is open:
    its blocks couldn't be left on disk.
    """
    held = held_now()
    here = opened.model.device.type == "cpu" or opened.residence.elsewhere
    if here and held > promised:
        holds = f"with {opened.name} open {held / 1e9:.1f} GB are held"
        message = f"{holds}, and memory is {promised / 1e9:.1f}"
        advice = "only blocks of a folder of safetensors can be left on disk, so allow more memory"
        raise SpecError(f"{message}; {advice}", subject=opened.name)


def _running_selector(calibration: CalibrationSet) -> str:
    """The selector of a calibration set, which needs the whole model, in a part of a sentence;
    empty if there is none.
    """
    for part in calibration.parts:
        if isinstance(part.source, Selector):
            return f"{part.source} may run the whole model"
    return ""


def source_count(calibration: CalibrationSet | None) -> int:
    """Return how many sources are shown together."""
    return 1 if calibration is None else len(calibration.parts)


def budget_of(calibration: CalibrationSet | None) -> int:
    """Return how many tokens are shown at most: the budget, for each set of a mix."""
    if calibration is None:
        return 0
    budget = calibration.budget
    # The budget is in tokens; else it is windows of a length.
    if budget is None:
        budget = calibration.samples * calibration.length
    return max(1, len(calibration.mixed)) * budget
