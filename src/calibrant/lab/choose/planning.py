"""What a recommendation would take, said before anything is loaded."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from calibrant.activations import Gram
from calibrant.compress.planning import (
    JobPlan,
    ModelOutline,
    free_at,
    held_beside,
    held_by_process,
    outline_of_options,
    room_on,
    too_little,
)
from calibrant.compress.room import Needs, held_now
from calibrant.errors import OutputError, SpecError
from calibrant.handover import tool_named
from calibrant.lab.choose.asking import FIRST, TOKENS
from calibrant.lab.choose.fitting import LEAST
from calibrant.lab.choose.goal import check_any, conversations_in
from calibrant.lab.choose.instruct import instruct_candidates
from calibrant.lab.mixtures.aims import aim_of, fitted_to, stand_in_of
from calibrant.methods import Method, StandIn
from calibrant.models import is_object, name_of, open_tokenizer, opened_of
from calibrant.numerics import gigabytes, type_name
from calibrant.options import RecommendCommand
from calibrant.spec.foreign import user_path
from calibrant.targets import GgufBudget
from calibrant.walk.statistics import packed_bytes


def check_settings(options: RecommendCommand) -> None:
    """Raise an `InputError` for a goal that is missing, for a single set to choose from, and for a
    time, a budget, a folder or a tool that can't be used, before a model is read or written.
    """
    check_any(options.goal)
    if not options.minutes > 0:
        message = f"a budget of {options.minutes:g} minutes leaves no time; give some above 0"
        raise SpecError(message, subject="budget")
    if math.isinf(60 * options.minutes):
        message = f"a budget of {options.minutes:g} minutes has no end; give a number that has one"
        raise SpecError(message, subject="budget")
    if options.tokens is not None and options.tokens < LEAST:
        message = f"sets of {options.tokens} tokens are too small; give {LEAST} tokens at least"
        raise SpecError(message, subject="tokens")
    folder = Path(options.folder)
    if folder.exists() and not folder.is_dir():
        message = f"{str(folder)!r} is no folder; name one that is there, or a new one"
        raise OutputError(message, subject=str(folder))
    if len(options.sources) == 1 and not options.baseline:
        message = "one set can't be compared; give another of the sources, or a baseline"
        raise SpecError(message, subject="sources")
    if options.tool is None:
        return
    tool = tool_named(options.tool)
    if not is_object(options.model):
        tool.check_model(str(options.model))


def planned_recommendation(options: RecommendCommand) -> JobPlan:
    """Return what a recommendation would take: memory and disk, from the shapes of the model, and
    the minutes that it may have.
    """
    check_settings(options)
    method, target = aim_of(options.method, options.target)
    stand_in = stand_in_of(method, target)
    outline = outline_of_options(options)
    shape = outline.shape
    # It refuses a budget that leaves nothing to choose.
    fitted_to(stand_in, shape.numbers)
    tokens = options.tokens or TOKENS
    memory = _memory_of_run(outline, method, stand_in, tokens, options.length)
    host = 0
    if outline.device.type != "cpu":
        host = held_beside([outline], held_now())
    room = room_on(outline.device)
    notes = ["the first call says what its minutes will buy, once the model is open"]
    sources = len(options.sources) or len(FIRST)
    conversations = _conversations(options)
    if conversations:
        # It is compared with the dense model, a copy of which is held.
        memory += outline.dtype.itemsize * shape.numbers
        notes.append(f"measured in the model's chat template: {', '.join(conversations)}")
    if conversations and not options.sources:
        added = instruct_candidates(conversations)
        sources += len(added)
        notes.append(f"candidates for its chat template: {', '.join(added)}")
    bytes_of_set = sum(packed_bytes(width, Gram) for width in shape.input_widths)
    # Statistics of what the model is for are there too.
    statistics = (sources + 1) * bytes_of_set
    folder = user_path(options.folder, OutputError)
    free = free_at(folder)
    problems: list[str] = []
    if memory > room:
        fewer = f"fewer tokens (--tokens, now {tokens:,}) or a smaller model take less"
        problems.append(f"{gigabytes(memory)} of memory are too much here; {fewer}")
    if isinstance(target, GgufBudget):
        problems += too_little(target, shape)
    if statistics > free:
        problems.append(f"{gigabytes(statistics)} don't fit on this disk; name another --out")
    return JobPlan(
        verb="recommend",
        model=outline.name,
        numbers=shape.numbers,
        matrices=len(shape.matrices),
        tokens=sources * tokens,
        dtype=type_name(outline.dtype),
        device=str(outline.device),
        memory=memory,
        room=room,
        disk={"statistics": statistics},
        free=free,
        seconds={"at most": 60 * options.minutes},
        problems=tuple(problems),
        host=host,
        notes=tuple(notes),
    )


def _memory_of_run(
    outline: ModelOutline, method: Method, stand_in: StandIn, tokens: int, length: int
) -> int:
    """Return how many bytes of memory a prediction, or a run of the race, needs."""
    needs = Needs.of(
        outline.shape,
        tokens,
        outline.dtype,
        stand_in.method,
        length=length,
        device=outline.device,
    )
    needs = held_by_process(needs, outline)
    # Each run begins with the matrices as they were, which are kept beside the model.
    weights = sum(matrix.numbers for matrix in outline.shape.matrices)
    return needs.in_memory(method.propagate) + outline.dtype.itemsize * weights


def _conversations(options: RecommendCommand) -> list[str]:
    """Return the goals that an instruct model is measured on in its chat template; none of a base
    model. Of goals that are objects nothing is said, since nothing is written yet.
    """
    goals = options.goal
    if isinstance(goals, str):
        goals = [goals]
    if not isinstance(goals, list | tuple) or not all(isinstance(text, str) for text in goals):
        return []
    if is_object(options.model):
        opened = opened_of(options.model, options.tokenizer, options.dtype, options.device)
        tokenizer = opened.tokenizer
    elif options.tokenizer is not None:
        tokenizer = options.tokenizer
    else:
        tokenizer, _ = open_tokenizer(name_of(options.model))
    if not tokenizer.chat_template:
        return []
    return conversations_in(cast("Sequence[str]", goals))
