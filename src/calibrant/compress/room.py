"""How much memory a job needs, and what follows from how much it may have: whether blocks stay
on disk, and which propagation there is room for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import psutil
import torch

from calibrant.activations import CHUNK, EXACT_CHUNK, Gram
from calibrant.compress.recipe import PROPAGATIONS, Recipe
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import Selector
from calibrant.errors import SpecError
from calibrant.exports import Export
from calibrant.methods import MatrixMethod, Method, ModelMethod
from calibrant.models import ModelView, Opened, outlined
from calibrant.walk import LONG_PASS, Propagation, held_between_blocks, tokens_per_pass_of
from calibrant.walk.ranks import Ranks
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.starving import AS_SEEN

MOST_GB: Final = 1_000_000
"""Memory at most that can be promised."""
HANDED_ALONG: Final = 16
"""A part of what passes between blocks isn't their input: the angles of positions, masks, and
the tokens themselves. Most models keep less.
"""
BLOCKS_HELD: Final = 3
"""Blocks on disk that are in memory at once: the one that is worked on, the finished one that is
being kept, and what is converted while reading.
"""


@final
@dataclass(frozen=True)
class Needs:
    """Bytes that a job takes, estimated from shapes before anything is read.

    `process` is what the process holds already, `model` all parameters, `outside` those outside the
    blocks, `block` those of the largest block; `arrival` and `between` are activations of all
    tokens, within a block and between two, and `in_a_pass` those of one micro-batch within a block.
    `work` is what the method and its statistics take.
    """

    process: int
    model: int
    outside: int
    block: int
    arrival: int
    between: int
    in_a_pass: int
    work: int

    @classmethod
    def of(
        cls,
        view: ModelView,
        tokens: int,
        dtype: torch.dtype,
        method: Method | None = None,
        sources: int = 1,
        length: int = 0,
    ) -> "Needs":
        """Estimate what a job needs that shows the model so many tokens of so many sources, in
        windows of a length; shapes are enough.
        """
        sizes: dict[int, int] = {}
        for parameter in view.model.parameters():
            sizes[id(parameter)] = parameter.numel() * dtype.itemsize
        inside: dict[int, int] = {}
        largest = 0
        for block in view.blocks:
            # By their identity: blocks may share parameters.
            held = {id(p): sizes[id(p)] for p in block.module.parameters()}
            largest = max(largest, sum(held.values()))
            inside |= held
        shapes = [weight.shape for weight in view.weights]
        in_a_pass = max(min(tokens, LONG_PASS), length)
        work = 0
        if isinstance(method, MatrixMethod):
            widest = max(inputs for _, inputs in shapes)
            # What statistics are summed from is made float32 so many rows at a time.
            rows = min(in_a_pass, CHUNK)
            squares = 0
            if any(issubclass(kind, Gram) for kind in method.observes):
                rows = min(in_a_pass, EXACT_CHUNK)
                squares = method.squares(sources)
            copies = method.copies * max(outputs * inputs for outputs, inputs in shapes)
            work = 4 * (copies + squares * widest**2 + rows * widest)
        within = _width(view) * dtype.itemsize
        hidden = view.model.config.get_text_config(decoder=True).hidden_size
        model = sum(sizes.values())
        return cls(
            process=held_now(),
            model=model,
            outside=model - sum(inside.values()),
            block=largest,
            arrival=tokens * within,
            # The input of the block, and that of the next one.
            between=tokens * 2 * hidden * dtype.itemsize,
            in_a_pass=in_a_pass * within,
            work=work,
        )

    def in_memory(self, propagate: Propagation) -> int:
        """With the whole model in memory."""
        return self.process + self.model + self.activations(propagate) + self.work

    def activations(self, propagate: Propagation, offload: bool = False) -> int:
        """Activations that are in memory at once; with `offload`, blocks' inputs are on disk
        where the propagation lets them.
        """
        if propagate == "arrival":
            # All tokens wait within a block, while one micro-batch goes on to where the others are.
            return self.arrival + self.in_a_pass
        between = self.between // HANDED_ALONG if offload else self.between
        return self.in_a_pass + between

    def on_disk(self, propagate: Propagation, offload: bool = False) -> int:
        """With its blocks on disk."""
        activations = self.activations(propagate, offload)
        return self.process + self.outside + BLOCKS_HELD * self.block + activations + self.work


def in_bytes(memory: float | None) -> int | None:
    """Return a promise in bytes that is given in GB; None where none is given. Raises
    `SpecError` for what is no room at all.
    """
    if memory is None:
        return None
    if not 0 < memory <= MOST_GB:
        advice = f"give GB above 0 and up to {MOST_GB:,}, or leave it out"
        message = f"memory={memory:g} is no room to work in; {advice}"
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
) -> str:
    """Return why the blocks of `model` stay on disk, in a sentence for the record; empty where the
    job keeps its promise with all of it in memory.

    Raises `SpecError` where it can't be kept: for a recipe or a model that needs the whole model in
    memory, and for less memory than is needed with the blocks on disk.
    """
    view, kind = outlined(model, dtype, device)
    if view is None:
        return ""
    tokens = _tokens(calibration) if recipe.looks else 0
    length = calibration.length if calibration else 0
    needs = Needs.of(view, tokens, kind, recipe.method, _sources(calibration), length)
    ways: set[Propagation] = {recipe.propagate, *recipe.method.propagations}
    # One that goes its own way may hold more of a block at once than its propagation says.
    asked: Propagation = recipe.propagate if goes_by_matrix(recipe.method) else "arrival"
    return _why_on_disk(
        f"{model} and this job",
        model,
        needs,
        asked,
        ways,
        needs_all_of_it(recipe, calibration, forms, ranks),
        promised,
    )


def goes_by_matrix(method: Method) -> bool:
    """Whether a method does nothing but compress one matrix after the other."""
    return not isinstance(method, ModelMethod)


def gathered_on_disk(
    model: str, calibration: CalibrationSet, dtype: str, device: str, promised: int
) -> str:
    """Return why the blocks of `model` stay on disk while an importance matrix is gathered, as
    `left_on_disk` does, and raise as it does.
    """
    view, kind = outlined(model, dtype, device)
    if view is None:
        return ""
    needs = Needs.of(view, _tokens(calibration), kind, length=calibration.length)
    # Eight bytes of a sum in float64, and eight as it is written.
    sums = 16 * sum(weight.shape[1] for weight in view.weights)
    return _why_on_disk(
        f"{model} and its importance matrix",
        model,
        replace(needs, work=sums),
        "dense",
        ("dense",),
        _selects(calibration),
        promised,
    )


def _why_on_disk(
    job: str,
    model: str,
    needs: Needs,
    asked: Propagation,
    ways: Iterable[Propagation],
    all_of_it: str,
    promised: int,
) -> str:
    """Why blocks stay on disk where the job goes as is `asked`, or in another of its `ways`;
    `all_of_it` says what needs the whole model.
    """
    most = needs.in_memory(asked)
    if most <= promised:
        return ""
    about = f"{job} take about {most / 1e9:.1f} GB, and memory is {promised / 1e9:.1f}"
    if all_of_it:
        problem = f"its blocks can't be left on disk, since {all_of_it}"
        raise SpecError(f"{about}; {problem}; allow more memory", subject=model)
    least = min(needs.on_disk(way, offload=True) for way in ways)
    if least > promised:
        problem = f"with its blocks on disk it needs about {least / 1e9:.1f} GB"
        advice = "allow so much, or calibrate on fewer tokens"
        raise SpecError(f"{about}; {problem}; {advice}", subject=model)
    return f"{about}: its blocks stayed on disk"


def needs_all_of_it(
    recipe: Recipe, calibration: CalibrationSet | None, forms: Sequence[Export], ranks: Ranks
) -> str:
    """Return what in a job needs the whole model in memory, as a part of a sentence; empty if
    nothing does.
    """
    if recipe.transforms:
        return "transforms change the whole model"
    if recipe.tries:
        return f"{recipe.looking} measures the whole model"
    if recipe.allocation.observes:
        return f"the allocation {recipe.allocation} compares all matrices"
    if not goes_by_matrix(recipe.method):
        return f"{recipe.method} does more than compress matrix by matrix"
    if recipe.starved != AS_SEEN:
        return f"starved={recipe.starved} looks at all experts first"
    selects = _selects(calibration) if calibration and recipe.looks else ""
    if selects:
        return selects
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
    """`propagate`, or `reference` and a sentence where `arrival` would need more memory than there
    is and `reference` is `possible`.

    Arrival suspends the forwards of all micro-batches inside a block, so the activations of *all*
    tokens live at once: input, residual and the two widest intermediate results; and those of one
    micro-batch that goes on. `limit` is in bytes; by default 80 % of what the machine has free.
    """
    if propagate != "arrival" or "reference" not in possible or batch is None:
        return propagate, ""
    needs = Needs.of(view, int(batch.mask.sum()), dtype, length=batch.ids.shape[1])
    needed = needs.activations("arrival")
    if limit is None:
        # A fifth is left for what isn't counted, and for other processes.
        limit = int(psutil.virtual_memory().available * 0.8)
    if needed <= limit:
        return propagate, ""
    would = f"arrival would hold about {needed / 1e9:.1f} GB of activations"
    may = f"may hold {limit / 1e9:.1f} GB"
    return "reference", f"{would} and {may}; went on with reference"


def offloading(
    left: int,
    propagate: Propagation,
    method: Method | None,
    view: ModelView,
    batch: TokenBatch | None,
    dtype: torch.dtype,
    possible: bool = True,
) -> str:
    """Return why activations go to disk between two blocks, in a sentence for the record; empty
    where what is left of a promise has room for them.

    Raises `SpecError` where it has no room for what is in memory even so, or where it isn't
    `possible`. What a model keeps beside the inputs of its blocks is measured.
    """
    if batch is None:
        return ""
    needs = Needs.of(view, int(batch.mask.sum()), dtype, length=batch.ids.shape[1])
    taken = needs.activations(propagate)
    if taken <= left:
        return ""
    least = taken
    by_block = propagate != "arrival" and (method is None or goes_by_matrix(method))
    if possible and by_block and not rehearse(view).changes_input:
        tokens = tokens_per_pass_of(propagate)
        least = needs.in_a_pass + held_between_blocks(view, batch, tokens_per_pass=tokens)
    if least > left:
        job = "imatrix" if method is None else str(method)
        holds = f"{job} with {propagate} holds about {least / 1e9:.1f} GB of activations"
        message = f"{holds}, and {left / 1e9:.1f} GB are left for them"
        raise SpecError(f"{message}; allow more memory, or calibrate on fewer tokens", subject=job)
    may = f"activations of about {taken / 1e9:.1f} GB may take {left / 1e9:.1f} GB"
    return f"{may}: they were on disk between two blocks"


def room_for_activations(
    promised: int,
    opened: Opened,
    view: ModelView,
    method: Method | None = None,
    calibration: CalibrationSet | None = None,
) -> int:
    """Return how many bytes of a promise are left for activations, now that the model is open.
    `SpecError` where it is broken already.
    """
    check_kept(promised, opened)
    length = 0 if calibration is None else calibration.length
    needs = Needs.of(
        view, _tokens(calibration), opened.dtype, method, _sources(calibration), length
    )
    held = BLOCKS_HELD * needs.block if view.residence.on_disk else 0
    return max(0, promised - needs.process - needs.work - held)


def check_kept(promised: int, opened: Opened) -> None:
    """Raise `SpecError` where the open model holds more than was promised: it was opened whole,
    since its blocks can't be left on disk.
    """
    held = held_now()
    if held > promised and opened.model.device.type == "cpu":
        holds = f"with {opened.name} open {held / 1e9:.1f} GB are held"
        message = f"{holds}, and memory is {promised / 1e9:.1f}"
        advice = "only blocks of a folder of safetensors can be left on disk, so allow more memory"
        raise SpecError(f"{message}; {advice}", subject=opened.name)


def _selects(calibration: CalibrationSet) -> str:
    """What in a calibration set needs the whole model, as a part of a sentence; empty if nothing
    does.
    """
    for part in calibration.parts:
        if isinstance(part.source, Selector):
            return f"{part.source} may run the whole model"
    return ""


def _width(view: ModelView) -> int:
    """Numbers that a token takes within a block."""
    inputs = [weight.shape[1] for weight in view.blocks[0].weights]
    outputs = [weight.shape[0] for weight in view.blocks[0].weights]
    return 3 * min(inputs) + max(inputs) + max(outputs)


def _sources(calibration: CalibrationSet | None) -> int:
    return 1 if calibration is None else len(calibration.parts)


def _tokens(calibration: CalibrationSet | None) -> int:
    """The tokens of a budget, of all sets of a mix."""
    if calibration is None:
        return 0
    budget = calibration.budget
    if budget is None:
        budget = calibration.samples * calibration.length
    return max(1, len(calibration.mixed)) * budget
