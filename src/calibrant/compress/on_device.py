"""How much of a model is at once on the device that computes, where that isn't the processor."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import torch

from calibrant.activations import Propagation
from calibrant.compress.recipe import Recipe
from calibrant.compress.room import (
    Needs,
    budget_of,
    in_bytes,
    needs_of_job,
    needs_of_open,
)
from calibrant.data import CalibrationSet
from calibrant.errors import SpecError
from calibrant.methods import Method
from calibrant.models import ModelView, Opened, model_in, outline_of, resolve_device
from calibrant.models.devices import free_on
from calibrant.numerics import gigabytes

FREE_SHARE: Final = 0.95
"""How much of what is free on a device a job may plan with: kernels take something for themselves,
and pieces of memory remain that are too small.
"""


def device_of(model: object, device: str) -> torch.device:
    """Return where a model computes, or would once it is opened. An object is where it is."""
    given = model_in(model)
    return resolve_device(device) if given is None else given.device


def room_on_device(
    device_memory: float | None, device: torch.device, model: object = None
) -> int | None:
    """Return how many bytes may be held on `device`: the GB that are given, else most of what is
    free there and what a `model` that is open already has there. None on the processor, and where
    what is free isn't known.

    Raises `SpecError` for `device_memory` on the processor, and as `in_bytes` does.
    """
    allowed = in_bytes(device_memory, "device_memory")
    if allowed is not None and device.type == "cpu":
        raise SpecError(
            f"device_memory={device_memory:g} is room on a device, and the processor computes; "
            "give memory instead, or a device such as cuda",
            subject=str(device_memory),
        )
    if allowed is None and device.type == "cuda":
        allowed = int(free_on(device) * FREE_SHARE) + _held_on(device, model)
    return allowed


def _held_on(device: torch.device, model: object) -> int:
    """How many bytes on `device` are parameters of a model that is open; 0 for a name."""
    opened = model_in(model)
    if opened is None:
        return 0
    there = [parameter for parameter in opened.parameters() if parameter.device == device]
    return sum(parameter.nbytes for parameter in there)


def left_beside(
    model: str,
    recipe: Recipe,
    calibration: CalibrationSet | None,
    dtype: str,
    device: str,
    allowed: int,
) -> str:
    """Return why the blocks of `model` stay beside the device, in a sentence for the record; empty
    where the job takes no more than the `allowed` bytes there with the whole model.

    Raises `SpecError` where there is no room even so.
    """
    outline = outline_of(model, dtype, device)
    if outline is None:
        return ""
    job = needs_of_job(outline, recipe, calibration)
    return why_beside(f"{model} and this job", model, job.needs, job.estimated, job.ways, allowed)


def gathered_beside(
    model: str, calibration: CalibrationSet, dtype: str, device: str, allowed: int
) -> str:
    """Return why the blocks of `model` stay beside the device while an importance matrix is
    gathered, as `left_beside` does, and raise as it does.
    """
    outline = outline_of(model, dtype, device)
    if outline is None:
        return ""
    tokens = budget_of(calibration)
    needs = Needs.of(outline.shape, tokens, outline.dtype, length=calibration.length)
    job = f"{model} and its importance matrix"
    return why_beside(job, model, needs, "dense", ("dense",), allowed)


def why_beside(
    job: str,
    model: str,
    needs: Needs,
    estimated: Propagation,
    ways: Iterable[Propagation],
    allowed: int,
) -> str:
    """Return why blocks stay beside the device; empty where all fits there with the propagation
    `estimated`. With blocks beside it the job may go another of its `ways`.

    Raises `SpecError` where there is no room even so.
    """
    most = with_all_blocks(needs, estimated)
    if most <= allowed:
        return ""
    estimate = (
        f"{job} take about {gigabytes(most)} on the device, and {gigabytes(allowed)} may be held "
        "there"
    )
    least = min(needs.beside(way, offload=True) for way in ways)
    if least > allowed:
        raise SpecError(
            f"{estimate}; with one block there after the other it is about {gigabytes(least)}; "
            "allow so much (device_memory), show fewer tokens, or give device=cpu",
            subject=model,
        )
    # Beside it is the machine's memory, or the disk.
    return f"{estimate}: its blocks stayed beside it, and each went there in turn"


def with_all_blocks(needs: Needs, propagation: Propagation) -> int:
    """Return how many bytes of the device a job takes that has the whole model there."""
    return replace(needs, process=0).in_memory(propagation)


def left_on_device(
    allowed: int,
    opened: Opened,
    view: ModelView,
    method: Method | None = None,
    calibration: CalibrationSet | None = None,
) -> int:
    """Return how many of the `allowed` bytes are left for activations, now that the model is
    open.
    """
    needs = needs_of_open(opened, view, method, calibration)
    held = needs.model
    if view.residence.elsewhere:
        held = needs.model_beside
    return max(0, allowed - held - needs.work)
