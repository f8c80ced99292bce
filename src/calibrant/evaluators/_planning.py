"""What a measurement would take, said before anything is loaded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Final, NamedTuple, final

from calibrant.compress.planning import (
    IN_TURN,
    IN_TURN_FROM_DISK,
    JobPlan,
    free_at,
    held_beside,
    held_by_process,
    in_tenths,
    room_on,
    room_within,
    too_much_beside,
)
from calibrant.compress.rates import forward_seconds, head_seconds, opening_seconds, rates_of
from calibrant.compress.room import CPU, Needs, added_by_pinning, held_now
from calibrant.data import Row
from calibrant.decoding import TOKENS_PER_BATCH
from calibrant.evaluators._base import Evaluator
from calibrant.models import ModelOutline
from calibrant.numerics import gigabytes, type_name

TOKENS: Final = 2048
"""Tokens of the largest batch that a measure runs at once, unless a single window has more."""
SOFTMAX_BYTES: Final = 12
"""Bytes that the log-softmax of a logit takes at the most: three copies in float32. They are made
of one window at a time.
"""
USUAL_SOFTMAX_BYTES: Final = 8
"""What it takes where nothing is compared."""
TIMES_REMEMBERED: Final = 2
"""How many times the keys and values of a batch of answers are held at most: while prompts are
read, once as they were read and once in the columns where they stay.
"""
SAMPLED: Final = 64
"""Rows that are read to know how long the others are."""
MOST_ROWS: Final = 20_000
"""Rows that are counted at most, where a task measures all of them."""
CHARACTERS: Final = 4
"""Characters of a token, about."""


def needs_of(
    outlines: Sequence[ModelOutline],
    tasks: Sequence[Evaluator],
    softmax_bytes: int = SOFTMAX_BYTES,
) -> Needs:
    """Return what it takes to measure the first of these models with `tasks`; the others are what
    it is compared with. A logit's log-softmax takes `softmax_bytes`.
    """
    lengths = [getattr(task, "length", TOKENS) for task in tasks]
    longest = max(lengths, default=TOKENS)
    tokens = max(map(_tokens_at_once, tasks), default=TOKENS)
    needs: list[Needs] = []
    logits = 0
    for outline in outlines:
        shape = outline.shape
        needs.append(Needs.of(shape, tokens, outline.dtype))
        logits += shape.vocabulary * (tokens * outline.dtype.itemsize + longest * softmax_bytes)
    copies = [task.copied_bytes(outlines) for task in tasks]
    # All models are held, and one runs after the other. All that is shown at once is one batch, so
    # none goes on beside others that wait.
    return replace(
        needs[0],
        model=sum(need.model for need in needs),
        outside=sum(need.outside for need in needs),
        block=max(need.block for need in needs),
        arrival=max(need.arrival for need in needs),
        in_a_pass=0,
        work=logits + _work_bytes(outlines, tasks),
        copies=max(copies, default=0),
    )


def _work_bytes(outlines: Sequence[ModelOutline], tasks: Sequence[Evaluator]) -> int:
    """The bytes that tasks hold at most beside models, activations and logits: one task's own, and
    what those before it keep.
    """
    kept = 0
    most = 0
    for task in tasks:
        most = max(most, kept + task.work_bytes(outlines))
        kept += task.kept_bytes(outlines)
    return most


def cache_bytes(outline: ModelOutline, most: int) -> int:
    """Return how many bytes keys and values take at most while a model writes answers of up to
    `most` tokens.

    They are counted for a full batch, or for a single longer answer. The layer that attends has
    them once more, as wide as its queries.
    """
    shape = outline.shape
    if not shape.cached:
        return 0
    by_token = TIMES_REMEMBERED * shape.cached + 2 * shape.hidden
    return max(TOKENS_PER_BATCH, most) * by_token * outline.dtype.itemsize


def _tokens_at_once(task: Evaluator) -> int:
    """The tokens of the largest batch of a task: all that it reads, where they are few."""
    length = getattr(task, "length", TOKENS)
    budget = getattr(task, "tokens", None)
    if budget is None:
        return max(TOKENS, length)
    return max(min(TOKENS, budget), length)


@final
@dataclass(frozen=True)
class MeasuringPlanner:
    """Estimates what it takes to measure the first of these models with `tasks`; the others are
    what it is compared with. `memory` is how many bytes are promised, if any are, and `on_device`
    how many may be held on a device where that computes.
    """

    outlines: Sequence[ModelOutline]
    tasks: Sequence[Evaluator]
    memory: int | None
    on_device: int | None = None

    def plan(self) -> JobPlan:
        """Return all that is known of it beforehand."""
        outline = self.outlines[0]
        course = self._course() if outline.device.type == "cpu" else self._course_beside()
        problems: list[str] = []
        host_room = room_within(self.memory, CPU)
        if course.host > host_room:
            problems.append(too_much_beside(course.host, host_room))
        if course.peak > self._room:
            way = self._way_to_fit(course.peak)
            problems.append(f"{gigabytes(course.peak)} of memory are too much here; {way}")
        seconds = {"open": sum(opening_seconds(each) for each in self.outlines)}
        tokens = 0
        for task in self.tasks:
            read = tokens_read(task)
            tokens += read + tokens_written(task)
            seconds[str(task)] = _measuring_seconds(task, read, self.outlines)
        return JobPlan(
            verb="evaluate",
            model=outline.name,
            numbers=outline.shape.numbers,
            matrices=len(outline.shape.matrices),
            tokens=tokens,
            dtype=type_name(outline.dtype),
            device=str(outline.device),
            memory=course.peak,
            room=self._room,
            disk={},
            free=free_at(None),
            seconds=seconds,
            problems=tuple(problems),
            notes=(*course.notes, *self._notes_on_tasks()),
            host=course.host,
        )

    @cached_property
    def _needs(self) -> Needs:
        compares = any(task.compares for task in self.tasks)
        softmax_bytes = SOFTMAX_BYTES if compares else USUAL_SOFTMAX_BYTES
        needs = needs_of(self.outlines, self.tasks, softmax_bytes)
        added = sum(each.added for each in self.outlines)
        return replace(held_by_process(needs, self.outlines[0]), model=added)

    @cached_property
    def _room(self) -> int:
        """How many bytes may be held where the models compute."""
        device = self.outlines[0].device
        if device.type == "cpu":
            return room_within(self.memory, device)
        return room_on(device) if self.on_device is None else self.on_device

    @property
    def _looks_inside(self) -> bool:
        return any(task.looks_inside for task in self.tasks)

    @property
    def _may_be_on_disk(self) -> bool:
        """Whether blocks may stay on disk, wherever they compute."""
        return all(each.divisible for each in self.outlines) and not self._looks_inside

    def _course(self) -> "_MeasuringCourse":
        """How it would go on the processor: blocks stay on disk where a promise asks for that."""
        peak = self._needs.in_memory("arrival")
        if peak <= self._room or self.memory is None or not self._may_be_on_disk:
            return _MeasuringCourse(peak)
        peak = self._needs.on_disk("arrival")
        notes = ("the blocks of the model stay on disk",) if peak <= self._room else ()
        return _MeasuringCourse(peak, notes)

    def _course_beside(self) -> "_MeasuringCourse":
        """How it would go on a device beside the processor: blocks of what is too large for it stay
        in the machine's own memory, or on disk where a promise asks for that.
        """
        needs = self._needs
        peak = needs.in_memory("arrival")
        host = held_beside(self.outlines, held_now())
        too_large = self.on_device is not None and peak > self._room and not self._looks_inside
        pinned = sum(map(added_by_pinning, self.outlines)) if too_large else 0
        host += pinned
        if self.memory is not None and host > self.memory and self._may_be_on_disk:
            host -= needs.model + pinned - needs.model_on_disk
            return _MeasuringCourse(needs.beside("arrival"), (IN_TURN_FROM_DISK,), host)
        if not too_large:
            return _MeasuringCourse(peak, host=host)
        peak = needs.beside("arrival")
        notes = (IN_TURN,) if peak <= self._room else ()
        return _MeasuringCourse(peak, notes, host)

    def _way_to_fit(self, peak: int) -> str:
        """What would make room for such a peak, in a part of a sentence."""
        device = self.outlines[0].device
        if device.type != "cpu":
            return "allow more with --device-memory, or give --device cpu"
        if peak <= room_on(device):
            return f"it fits with --memory {math.ceil(peak / 1e8) / 10:g}"
        allowed = in_tenths(self._room)
        if self._may_be_on_disk and self._needs.on_disk("arrival") <= allowed * 1e9:
            return f"it fits with --memory {allowed:g}, with blocks on disk"
        return "take a smaller model, or a machine with more memory"

    def _notes_on_tasks(self) -> Iterator[str]:
        """Yield what must be said of tasks: that windows may be too long, and how answers count."""
        outline = self.outlines[0]
        for task in self.tasks:
            length = getattr(task, "length", 0)
            length_note = outline.note_on_length(length)
            if length_note:
                yield f"{task}: {length_note}"
        if any(task.longest_answer for task in self.tasks):
            yield "every answer is counted as if it were as long as it may be"
        if any(task.spec_name() == "harness" for task in self.tasks):
            yield "answers that harness tasks have written aren't counted"


class _MeasuringCourse(NamedTuple):
    """How many bytes are held at the peak where the models compute, what is to be said of that, and
    how many bytes of the machine's own memory are held while another device computes.
    """

    peak: int
    notes: tuple[str, ...] = ()
    host: int = 0


def _measuring_seconds(task: Evaluator, tokens: int, outlines: Sequence[ModelOutline]) -> float:
    """The seconds in which a task runs the model, and where it compares the others too."""
    running = outlines if task.compares else outlines[:1]
    length = getattr(task, "length", TOKENS)
    # Of questions only the answers are scored, which are short.
    scored = getattr(task, "tokens", 0)
    written = tokens_written(task)
    seconds = 0.0
    for outline in running:
        rates = rates_of(outline.dtype, outline.device)
        seconds += forward_seconds(outline.shape, tokens + written, length, rates)
        seconds += head_seconds(outline.shape, scored + written, rates)
    return seconds


def tokens_read(task: Evaluator) -> int:
    """Return about how many tokens a task reads: its budget, or what some of its rows hold for each
    of them. Exemplars are read once.
    """
    budget = getattr(task, "tokens", None)
    if budget is not None:
        return budget
    items = getattr(task, "limit", None)
    if items is None:
        items = sum(1 for _ in islice(task.rows(), MOST_ROWS))
    sample = list(islice(task.rows(), SAMPLED))
    characters = sum(_characters(row) for row in sample) / max(1, len(sample))
    shots = getattr(task, "shots", 0)
    return round((items + shots) * characters / CHARACTERS)


def tokens_written(task: Evaluator) -> int:
    """Return how many tokens the answers to a task may have together."""
    if not task.longest_answer:
        return 0
    return getattr(task, "limit", 0) * task.longest_answer


def _characters(row: Row) -> int:
    texts = [row.text, row.question, row.answer, row.rationale, *row.choices]
    texts += row.said
    return sum(len(text) for text in texts if text)
