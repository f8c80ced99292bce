"""How much memory a job needs, and what follows from how much it may have: whether blocks stay on disk, and which propagation there is room for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import psutil
import torch

from calibrant.activations import Gram
from calibrant.compress.recipe import PROPAGATIONS, Recipe
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import SpecError
from calibrant.exports import Export
from calibrant.methods import MatrixMethod, Method
from calibrant.models import ModelView, Opened, outlined
from calibrant.select import Selector
from calibrant.walk import TOKENS_PER_PASS, Propagation
from calibrant.walk.ranks import Ranks
from calibrant.walk.starving import AS_SEEN

MOST_GB: Final = 1_000_000
"""Memory at most that can be promised."""
HANDED_ALONG: Final = 16
"""A part of what passes between blocks isn't their input: the angles of positions, masks, and the tokens themselves."""
BLOCKS_HELD: Final = 3
"""Blocks on disk that are in memory at once: the one that is worked on, the finished one that is being kept, and what is converted while reading."""


@final
@dataclass(frozen=True)
class Needs:
    """Bytes that a job takes, estimated from shapes before anything is read.

    `process` is what the process holds already, `model` all parameters, `outside` those outside the blocks, `block` those of the largest block;
    `arrival` and `passed` are activations of all tokens, within a block and between two; `offloaded` is what is left of `passed` in memory where
    blocks' inputs are on disk. `work` is what the method and its statistics take.
    """

    process: int
    model: int
    outside: int
    block: int
    arrival: int
    passed: int
    offloaded: int
    work: int

    @classmethod
    def of(cls, seen_by: ModelView, tokens: int, dtype: torch.dtype, method: Method | None = None, sources: int = 1) -> "Needs":
        """Estimate what a job needs that shows the model `tokens` tokens of so many `sources`; of `seen_by` shapes are enough."""
        whole = {id(p): p.numel() * dtype.itemsize for p in seen_by.model.parameters()}
        blocks = [{id(p): whole[id(p)] for p in block.module.parameters()} for block in seen_by.blocks]
        inside = sum({key: size for block in blocks for key, size in block.items()}.values())
        shapes = [weight.shape for weight in seen_by.weights]
        work = 0
        if isinstance(method, MatrixMethod):
            squares = method.squares(sources) if any(issubclass(kind, Gram) for kind in method.observes) else 0
            work = 4 * (method.copies * max(out * inputs for out, inputs in shapes) + squares * max(inputs for _, inputs in shapes) ** 2)
        width, hidden = _width(seen_by), min(inputs for _, inputs in shapes)
        in_a_pass, between = min(tokens, TOKENS_PER_PASS) * width * dtype.itemsize, tokens * 2 * hidden * dtype.itemsize
        return cls(
            held_now(),
            sum(whole.values()),
            sum(whole.values()) - inside,
            max(sum(block.values()) for block in blocks),
            tokens * width * dtype.itemsize,
            between + in_a_pass,
            between // HANDED_ALONG + in_a_pass,
            work,
        )

    def in_memory(self, propagate: Propagation, offload: bool = False) -> int:
        """With the whole model in memory."""
        return self.process + self.model + self.activations(propagate, offload) + self.work

    def activations(self, propagate: Propagation, offload: bool = False) -> int:
        """Activations that are in memory at once; with `offload`, those between two blocks are on disk where the propagation lets them."""
        return self.arrival if propagate == "arrival" else self.offloaded if offload else self.passed

    def on_disk(self, propagate: Propagation, offload: bool = False) -> int:
        """With its blocks on disk."""
        activations = self.activations(propagate, offload)
        return self.process + self.outside + BLOCKS_HELD * self.block + activations + self.work


def in_bytes(memory: float | None) -> int | None:
    """Return a promise in bytes that is given in GB; None where none is given. Raises `SpecError` for what is no room at all."""
    if memory is not None and not 0 < memory <= MOST_GB:
        raise SpecError(f"memory={memory:g} is no room to work in; give GB above 0 and up to {MOST_GB:,}, or leave it out", subject=str(memory))
    return None if memory is None else int(memory * 1e9)


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
    """Return why the blocks of `model` stay on disk, in a sentence for the record; empty where the job keeps its promise with all of it in memory.

    Raises `SpecError` where it can't be kept: for a recipe or a model that needs the whole model in memory, and for less memory than is needed with
    the blocks on disk.
    """
    seen_by, kind = outlined(model, dtype, device)
    if seen_by is None:
        return ""
    needs = Needs.of(seen_by, _tokens(calibration) if recipe.looks else 0, kind, recipe.method, _sources(calibration))
    ways = (recipe.propagate, *recipe.method.propagations)
    return _why_on_disk(f"{model} and this job", model, needs, ways, needs_all_of_it(recipe, calibration, forms, ranks), promised)


def gathered_on_disk(model: str, calibration: CalibrationSet, dtype: str, device: str, promised: int) -> str:
    """Return why the blocks of `model` stay on disk while an importance matrix is gathered, as `left_on_disk` does, and raise as it does."""
    seen_by, kind = outlined(model, dtype, device)
    if seen_by is None:
        return ""
    needs = Needs.of(seen_by, _tokens(calibration), kind)
    return _why_on_disk(f"{model} and its importance matrix", model, needs, ("dense",), _selects(calibration), promised)


def _why_on_disk(job: str, model: str, needs: Needs, ways: Sequence[Propagation], all_of_it: str, promised: int) -> str:
    """Why blocks stay on disk; the first of `ways` is the one that is asked for, and `all_of_it` says what needs the whole model."""
    if needs.in_memory(ways[0]) <= promised:
        return ""
    about = f"{job} take about {needs.in_memory(ways[0]) / 1e9:.1f} GB, and memory is {promised / 1e9:.1f}"
    if all_of_it and min(needs.in_memory(way, offload=True) for way in ways) <= promised:
        return ""
    if all_of_it:
        raise SpecError(f"{about}; its blocks can't be left on disk, since {all_of_it}; allow more memory", subject=model)
    least = min(needs.on_disk(way, offload=True) for way in ways)
    if least > promised:
        raise SpecError(
            f"{about}; with its blocks on disk it needs about {least / 1e9:.1f} GB; allow so much, or calibrate on fewer tokens", subject=model
        )
    return f"{about}: its blocks stayed on disk"


def needs_all_of_it(recipe: Recipe, calibration: CalibrationSet | None, forms: Sequence[Export], ranks: Ranks) -> str:
    """Return what in a job needs the whole model in memory, as a part of a sentence; empty if nothing does."""
    selects = _selects(calibration) if calibration and recipe.looks else ""
    reasons = {
        "transforms change the whole model": bool(recipe.transforms),
        f"{recipe.looking} measures the whole model": recipe.tries,
        f"the allocation {recipe.allocation} compares all matrices": bool(recipe.allocation.observes),
        f"{recipe.method} does more than compress matrix by matrix": type(recipe.method).edits is not MatrixMethod.edits,
        f"starved={recipe.starved} looks at all experts first": recipe.starved != AS_SEEN,
        selects: bool(selects),
        f"the export {forms[-1]} is made of the whole model": len(forms) > 1,
        "several processes share the work": ranks.size > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def fitting(
    propagate: Propagation,
    seen_by: ModelView,
    batch: TokenBatch | None,
    dtype: torch.dtype,
    limit: int | None = None,
    possible: Sequence[Propagation] = PROPAGATIONS,
) -> tuple[Propagation, str]:
    """`propagate`, or `reference` and a sentence where `arrival` would need more memory than there is and `reference` is `possible`.

    Arrival suspends the forwards of all micro-batches inside a block, so the activations of *all* tokens live at once: input, residual and
    the two widest intermediate results. `limit` is in bytes; by default 80 % of what the machine has free.
    """
    if propagate != "arrival" or "reference" not in possible or batch is None:
        return propagate, ""
    needed = int(batch.mask.sum()) * _width(seen_by) * dtype.itemsize
    allowed = int(psutil.virtual_memory().available * 0.8) if limit is None else limit
    if needed <= allowed:
        return propagate, ""
    return "reference", f"arrival would hold about {needed / 1e9:.1f} GB of activations and may hold {allowed / 1e9:.1f} GB; went on with reference"


def offloading(left: int, propagate: Propagation, job: str, seen_by: ModelView, batch: TokenBatch | None, dtype: torch.dtype) -> str:
    """Return why activations go to disk between two blocks, in a sentence for the record; empty where what is left of a promise has room for them.

    Raises `SpecError` where it has no room for what is in memory even so.
    """
    needs = Needs.of(seen_by, 0 if batch is None else int(batch.mask.sum()), dtype)
    taken, least = (needs.activations(propagate, offload) for offload in (False, True))
    if batch is None or taken <= left:
        return ""
    if least > left:
        message = f"{job} with {propagate} holds about {least / 1e9:.1f} GB of activations, and {left / 1e9:.1f} GB are left for them"
        raise SpecError(f"{message}; allow more memory, or calibrate on fewer tokens", subject=job)
    return f"activations of about {taken / 1e9:.1f} GB may take {left / 1e9:.1f} GB: they were on disk between two blocks"


def room_for_activations(
    promised: int, opened: Opened, seen_by: ModelView, method: Method | None = None, calibration: CalibrationSet | None = None
) -> int:
    """Return how many bytes of a promise are left for activations, now that the model is open. `SpecError` where it is broken already."""
    check_kept(promised, opened)
    needs = Needs.of(seen_by, 0, opened.dtype, method, _sources(calibration))
    held = BLOCKS_HELD * needs.block if seen_by.residence.on_disk else 0
    return max(0, promised - needs.process - needs.work - held)


def check_kept(promised: int, opened: Opened) -> None:
    """Raise `SpecError` where the open model holds more than was promised: it was opened whole, since its blocks can't be left on disk."""
    held = held_now()
    if held > promised and opened.model.device.type == "cpu":
        message = f"with {opened.name} open {held / 1e9:.1f} GB are held, and memory is {promised / 1e9:.1f}"
        raise SpecError(f"{message}; only blocks of a folder of safetensors can be left on disk, so allow more memory", subject=opened.name)


def _selects(calibration: CalibrationSet) -> str:
    """What in a calibration set needs the whole model, as a part of a sentence; empty if nothing does."""
    return next((f"{part.source} may run the whole model" for part in calibration.parts if isinstance(part.source, Selector)), "")


def _width(seen_by: ModelView) -> int:
    """Numbers that a token takes within a block."""
    inputs = [weight.shape[1] for weight in seen_by.blocks[0].weights]
    outputs = [weight.shape[0] for weight in seen_by.blocks[0].weights]
    return 3 * min(inputs) + max(inputs) + max(outputs)


def _sources(calibration: CalibrationSet | None) -> int:
    return 1 if calibration is None else len(calibration.parts)


def _tokens(calibration: CalibrationSet | None) -> int:
    """The tokens of a budget, of all sets of a mix."""
    if calibration is None:
        return 0
    return max(1, len(calibration.mixed)) * (calibration.samples * calibration.length if calibration.budget is None else calibration.budget)
