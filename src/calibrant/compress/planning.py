"""What a job would take, said before anything is loaded: numbers, memory, disk and time."""

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final, ParamSpec, final

import torch

from calibrant.activations import Propagation
from calibrant.compress.on_device import room_on_device
from calibrant.compress.rates import (
    TOKENIZING,
    WORK,
    WRITTEN,
    Rates,
    file_seconds,
    forward_seconds,
    head_seconds,
    kinds_seconds,
    method_seconds,
    opening_seconds,
    rates_of,
    statistics_seconds,
)
from calibrant.compress.recipe import Recipe
from calibrant.compress.room import (
    ACTIVATIONS_SHARE,
    CPU,
    TOKENIZER_FILE_BYTES,
    Needs,
    added_by_pinning,
    budget_of,
    estimated_by,
    goes_by_matrix,
    held_now,
    mapped_bytes,
    needs_whole_model,
    scratch_bytes,
    source_count,
)
from calibrant.data import CalibrationSet
from calibrant.data.given import own_behind
from calibrant.data.user_file import UserFile
from calibrant.errors import ModelError, SpecError
from calibrant.exports import Export
from calibrant.methods import MatrixMethod
from calibrant.models import (
    ModelOutline,
    ModelShape,
    Storage,
    evaluating,
    is_object,
    name_of,
    opened_of,
    outline_of,
    view,
)
from calibrant.models.devices import free_on
from calibrant.models.readable import longest_window, positions_of
from calibrant.numerics import duration, gigabytes, type_name
from calibrant.system.notebook import card
from calibrant.targets import (
    FloatGrid,
    GgmlKind,
    GgufBudget,
    GgufRecipe,
    Grid,
    NofM,
    Removal,
    SparseGrid,
    Sparsity,
    Target,
)
from calibrant.targets.gguf_budget import MOST_BITS
from calibrant.walk.ranks import ALONE

P = ParamSpec("P")

TOKENIZER_BYTES: Final = 500
"""Bytes of memory that an entry of the vocabulary takes in a tokenizer."""
KERNEL_BYTES: Final = 60_000_000
"""What a compiled kernel and its compiler take, for methods that look at activations."""
GGUF_BLOCK: Final = 32
"""Inputs that share a scale in the blocks of GGUF into which codes of grids go."""
CHECKPOINT: Final = "checkpoint, removed at the end"
"""What a plan calls the finished blocks that are kept until the model is saved."""
SCRATCH: Final = "scratch files of llama.cpp, removed again"
"""What a plan calls the files that a model is written to so that llama.cpp quantizes it."""
CODE_BITS: Final = 8
"""Bits of a code in a checkpoint, whatever its grid."""
SCALE_BITS: Final = 8
"""Bits of a scale of NVFP4 and MXFP4."""
NORM_BITS: Final = 64
"""Bits of the norm of an input, which a checkpoint keeps beside its matrix."""
FEWEST_TOKENS: Final = 1024
"""Fewer tokens than these are no advice."""
IN_TURN: Final = "blocks stay in the machine's own memory, each goes to the device in turn"
"""The note of a plan whose model is larger than the device."""
IN_TURN_FROM_DISK: Final = "blocks stay on disk, and each goes to the device in turn"
"""The same where memory is too little for the model as well."""
LINK: Final = 12e9
"""Bytes a second between the machine's own memory and a device beside it. This isn't measured:
half of what a common slot (PCIe 4, 16 lanes) could do.
"""


@final
@dataclass(frozen=True)
class Machine:
    """The machine that a job is planned for. Its `rates` are those of what computes: the processor,
    or a device beside it.

    The rest are bytes. The process may hold `memory` of the machine's own, of which it has
    `process` before it opens anything. On what computes it may hold `room`, which on the processor
    is the same memory. `disk` are free. A second takes `link` bytes to a device beside the
    processor, or back. Where scratch files go to another disk, `scratch` are free there.
    """

    rates: Rates
    process: int
    memory: int
    room: int
    disk: int
    link: float = LINK
    scratch: int | None = None

    @classmethod
    def here(
        cls, outline: ModelOutline, out: Path | None, device_memory: float | None = None
    ) -> "Machine":
        """Return this machine as it is now, with `device_memory` GB on a device where so many are
        given.
        """
        room = room_on_device(device_memory, outline.device)
        if room is None:
            room = room_on(outline.device)
        # Measuring rates takes some memory too, which the job doesn't need.
        process = held_now()
        return cls(
            rates=rates_of(outline.dtype, outline.device),
            process=process,
            memory=room_on(CPU),
            room=room,
            disk=free_at(out),
            scratch=free_for_scratch(out),
        )


@dataclass(frozen=True)
class JobPlan:
    """What a job would take.

    `memory` is in bytes at the peak, where the model computes, and the process may hold `room` of
    them: what this machine has left, and no more than was promised. `host` is what it holds of the
    machine's own memory while another device computes, and else 0. `disk` says how many bytes each
    thing that is written takes, and `free` how many there are. `seconds` are those of this machine,
    by phase, and `parts` those of the phase in which the model is compressed. `problems` say what
    wouldn't fit, and which option makes it fit; `notes` how the job would go on where memory is
    short, and what isn't counted.
    """

    verb: str
    model: str
    numbers: int
    matrices: int
    tokens: int
    dtype: str
    device: str
    memory: int
    room: int
    disk: Mapping[str, int]
    free: int
    seconds: Mapping[str, float]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    host: int = 0
    parts: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def fits(self) -> bool:
        """Whether there is room for it, in memory and on disk."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return all of it as dicts, lists and numbers."""
        return {**asdict(self), "fits": self.fits}

    def facts(self) -> dict[str, str]:
        """Return it in words, by what each is about."""
        parts = [f"{phase} {duration(taken)}" for phase, taken in self.seconds.items()]
        time = " · ".join(parts)
        if len(parts) > 1:
            time = f"about {duration(sum(self.seconds.values()))}: {time}"
        written = [f"{name} {gigabytes(size)}" for name, size in self.disk.items()]
        disk = "nothing is written"
        if written:
            disk = f"{', '.join(written)}; {gigabytes(self.free)} free"
        memory = f"{gigabytes(self.memory)} at the peak; {gigabytes(self.room)} may be held"
        if self.host:
            memory = f"on {self.device} {memory}; {gigabytes(self.host)} of the machine's own"
        return {
            "model": f"{self.model}, {self.numbers:,} numbers, {self.matrices:,} matrices",
            "computes": f"in {self.dtype} on {self.device}",
            "tokens": f"{self.tokens:,}" if self.tokens else "",
            "memory": memory,
            "disk": disk,
            "time": time,
        }

    def _repr_html_(self) -> str:
        note = "; ".join([*self.problems, *self.notes])
        return card(f"{self.verb}: what it would take", self.facts(), note)


def plan(verb: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> JobPlan:
    """Say what `verb` would take with these arguments: memory, disk and time. No weights are read,
    and nothing is written.

    `verb` is `prune`, `quantize`, `evaluate` or `recommend`, and the arguments are its own. Of a
    model that is named, the configuration and the headers of its files are read; of one on the hub
    that isn't here, the configuration is downloaded. For the methods that were timed (`rates.WORK`)
    memory is right within a quarter, and time within a factor of two on a machine that does nothing
    else; the notes of a plan say what it leaves out. Raises an `InputError` for what can't be
    planned.

    >>> import calibrant
    >>> from calibrant.testing import tiny_folder
    >>> import tempfile
    >>> folder = str(tiny_folder(tempfile.mkdtemp()))
    >>> calibrant.plan(calibrant.prune, folder, data="python_docs", tokens=4096).fits
    True
    """
    planned = getattr(verb, "planned", None)
    if planned is None:
        name = getattr(verb, "__name__", str(verb))
        message = f"{name} can't be planned; give prune, quantize, evaluate or recommend"
        raise SpecError(message, subject=name)
    return planned(*args, **kwargs)


def outline_of_options(options: Any) -> ModelOutline:
    """Return what is known of the model that a verb's options name or hold. One that is open
    already stays as it is. Raises `ModelError` as opening it would.
    """
    if not is_object(options.model):
        name = name_of(options.model)
        outline = outline_of(name, options.dtype, options.device)
        if outline is None:
            raise ModelError(
                f"{name} is made by code of its own, so its shapes aren't known before it is open; "
                "open it, and plan with the object",
                subject=name,
            )
        return outline
    opened = opened_of(options.model, options.tokenizer, options.dtype, options.device)
    with evaluating(opened):
        shape = ModelShape.of(view(opened.model))
    # Some verbs only look at a model, and have no such option.
    storage: Storage = "copied" if getattr(options, "copy", False) else "memory"
    device = opened.model.device
    return ModelOutline(
        opened.name,
        shape,
        opened.dtype,
        device,
        storage,
        0,
        divisible=False,
        longest_window=longest_window(opened.model),
        positions=positions_of(opened.model),
    )


@final
@dataclass(frozen=True)
class CompressionPlanner:
    """Estimates a job of `prune` or `quantize`, on this machine or on another. `memory` is how many
    bytes are given; for what, `_promised` says.
    """

    outline: ModelOutline
    recipe: Recipe
    calibration: CalibrationSet | None
    forms: Sequence[Export]
    memory: int | None
    out: Path | None
    machine: Machine

    def plan(self, verb: str) -> JobPlan:
        """Return all that is known of the job beforehand."""
        outline = self.outline
        target = self.recipe.target
        needs = self._needs(self._tokens, outline.dtype)
        course = self._course(needs)
        notes = course.notes(self.recipe.propagate)
        length_note = outline.note_on_length(self._length)
        if self.recipe.looks and length_note:
            notes.append(length_note)
        disk = self._written()
        kept = sum(disk.values()) - disk.get(CHECKPOINT, 0)
        scratch = scratch_bytes(outline.shape, target)
        if scratch:
            disk[SCRATCH] = scratch
            notes.append(f"scratch files are in {gettempdir()}; TMPDIR names another folder")
        host = self._host(needs, course)
        problems: list[str] = []
        if course.memory > self._room:
            ways = self._ways_to_fit(course.propagate)
            problems.append(f"{gigabytes(course.memory)} of memory are too much here; {ways}")
        if host > self._host_room:
            problems.append(too_much_beside(host, self._host_room))
        if isinstance(target, GgufBudget):
            problems += too_little(target, outline.shape)
        problems += self._too_large(disk)
        parts = self._parts(needs, course)
        return JobPlan(
            verb=verb,
            model=outline.name,
            numbers=outline.shape.numbers,
            matrices=len(outline.shape.matrices),
            tokens=self._tokens,
            dtype=type_name(outline.dtype),
            device=str(outline.device),
            memory=course.memory,
            room=self._room,
            disk=disk,
            free=self.machine.disk,
            seconds=self._seconds(sum(parts.values()), kept),
            problems=tuple(problems),
            notes=(*notes, *self._uncounted_files(), *self._uncounted()),
            host=host,
            parts=parts,
        )

    @property
    def _tokens(self) -> int:
        return budget_of(self.calibration) if self.recipe.looks else 0

    @property
    def _length(self) -> int:
        return self.calibration.length if self.calibration else 0

    def _needs(self, tokens: int, dtype: torch.dtype) -> Needs:
        method = self.recipe.method
        sources = source_count(self.calibration)
        outline = self.outline
        length = self._length
        needs = Needs.of(outline.shape, tokens, dtype, method, sources, length, outline.device)
        needs = replace(needs, process=self.machine.process)
        kernel = KERNEL_BYTES if method.observes else 0
        mapped = mapped_bytes(outline.shape, self.recipe.target.weights)
        return held_by_process(needs, outline, kernel + mapped)

    def _course(self, needs: Needs) -> "_Course":
        """How the job would go, as `prune` and `quantize` decide it."""
        if self._beside:
            return self._course_beside(needs)
        promised = self._promised
        if promised is None:
            propagate = self._fitting(needs, self.memory or self._usually_left)
            return _Course(propagate, needs.in_memory(propagate))
        asked = self.recipe.propagate
        in_memory = needs.in_memory(asked)
        blocks_on_disk = in_memory > promised and self._may_be_on_disk
        taken = needs.on_disk(asked) if blocks_on_disk else in_memory
        left = promised - (taken - needs.activations(asked))
        propagate = self._fitting(needs, left)
        offload = needs.activations(propagate) > left and self._may_offload(propagate)
        if blocks_on_disk:
            memory = needs.on_disk(propagate, offload)
        else:
            memory = needs.in_memory(propagate, offload)
        return _Course(propagate, memory, blocks_on_disk, offload)

    def _course_beside(self, needs: Needs) -> "_Course":
        """How the job would go on a device beside the processor."""
        asked = self.recipe.propagate
        promised = self._promised
        most = needs.in_memory(estimated_by(self.recipe))
        too_large = most > self.machine.room and self._may_be_beside
        host = self._host_whole
        if too_large:
            host += added_by_pinning(self.outline)
        on_disk = promised is not None and host > promised and self._may_stay_on_disk
        in_turn = on_disk or too_large
        taken = needs.beside(asked) if in_turn else needs.in_memory(asked)
        left = self.machine.room - (taken - needs.activations(asked))
        propagate = self._fitting(needs, left)
        offload = in_turn and needs.activations(propagate) > left and self._may_offload(propagate)
        if in_turn:
            memory = needs.beside(propagate, offload)
        else:
            memory = needs.in_memory(propagate)
        return _Course(propagate, memory, on_disk, offload, in_turn)

    def _host(self, needs: Needs, course: "_Course") -> int:
        """How many bytes of the machine's own memory are held while another device computes."""
        if not self._beside:
            return 0
        host = self._host_whole
        if course.blocks_on_disk:
            return host - needs.model + needs.model_on_disk
        if course.blocks_in_turn:
            host += added_by_pinning(self.outline)
        if course.offloads:
            host += needs.between
        return host

    @property
    def _host_whole(self) -> int:
        """The same with the whole model, and no activations."""
        mapped = mapped_bytes(self.outline.shape, self.recipe.target.weights)
        return held_beside([self.outline], self.machine.process) + mapped

    @property
    def _host_room(self) -> int:
        """How many bytes of the machine's own memory may be held."""
        if self._promised is None:
            return self.machine.memory
        return min(self._promised, self.machine.memory)

    @property
    def _promised(self) -> int | None:
        """The bytes that all of the job may take. Where the result stays in memory, or the model is
        there already, what was given is for activations alone.
        """
        if self.out is None or self.outline.storage in ("memory", "copied"):
            return None
        return self.memory

    @property
    def _room(self) -> int:
        """How many bytes may be held where the model computes."""
        if self._promised is None or self._beside:
            return self.machine.room
        return min(self._promised, self.machine.room)

    @property
    def _beside(self) -> bool:
        """Whether a device beside the processor computes."""
        return self.outline.device.type != "cpu"

    def _may_offload(self, propagate: Propagation) -> bool:
        """Whether activations may be elsewhere between two blocks."""
        return propagate != "arrival" and goes_by_matrix(self.recipe.method)

    @property
    def _may_be_beside(self) -> bool:
        """Whether blocks may stay beside the device. A model that is open already is there."""
        return self._beside and self.outline.storage not in ("memory", "copied")

    @property
    def _usually_left(self) -> int:
        return int((self.machine.room - self.machine.process) * ACTIVATIONS_SHARE)

    def _fitting(self, needs: Needs, left: int) -> Propagation:
        """The propagation that so many bytes for activations have room for."""
        asked = self.recipe.propagate
        if asked != "arrival" or "reference" not in self.recipe.method.propagations:
            return asked
        return asked if needs.activations("arrival") <= left else "reference"

    @property
    def _may_be_on_disk(self) -> bool:
        """Whether a promise lets blocks stay on disk while the processor computes."""
        return not self._beside and self._may_stay_on_disk

    @property
    def _may_stay_on_disk(self) -> bool:
        """Whether blocks may stay on disk, wherever they compute: nothing needs the whole model."""
        if not self.outline.divisible or self.out is None:
            return False
        return not needs_whole_model(self.recipe, self.calibration, self.forms, ALONE)

    def _ways_to_fit(self, propagate: Propagation) -> str:
        """Which options would make the job fit, each alone, in a part of a sentence."""
        room = self._room
        dtype = self.outline.dtype
        needs = self._needs(self._tokens, dtype)
        ways: list[str] = []
        least = needs.in_memory(propagate)
        if room < least <= self.machine.room:
            ways.append(f"--memory {math.ceil(least / 1e8) / 10:g}")
        if "reference" in self.recipe.method.propagations and propagate == "arrival":
            least = self._least(needs, "reference")
            if least <= room:
                ways.append(f"--propagate reference ({gigabytes(least)})")
        on_disk = needs.on_disk(propagate, offload=True)
        if self._may_be_on_disk and on_disk <= in_tenths(room) * 1e9:
            ways.append(f"--memory {in_tenths(room):g}, with blocks on disk")
        if self._may_be_beside:
            least = needs.beside(propagate, self._may_offload(propagate))
            allowed = math.ceil(least / 1e8) / 10
            ways.append(f"--device-memory {allowed:g} where the device has so much")
        tokens = self._tokens // 2
        while tokens >= FEWEST_TOKENS:
            least = self._least(self._needs(tokens, dtype), propagate)
            if least <= room:
                ways.append(f"--tokens {tokens} ({gigabytes(least)})")
                break
            tokens //= 2
        if dtype.itemsize > torch.bfloat16.itemsize:
            least = self._least(self._needs(self._tokens, torch.bfloat16), propagate)
            if least <= room:
                ways.append(f"--dtype bfloat16 ({gigabytes(least)})")
        if not ways:
            return "no option makes it fit: take a smaller model, or a machine with more memory"
        return f"it fits with {' or '.join(ways)}"

    def _least(self, needs: Needs, propagate: Propagation) -> int:
        """How many bytes are held at the peak, with blocks beside the device where they may be."""
        if self._may_be_beside:
            return needs.beside(propagate)
        return needs.in_memory(propagate)

    def _written(self) -> dict[str, int]:
        """How many bytes each thing that is written takes."""
        if self.out is None:
            return {}
        shape = self.outline.shape
        number = self.outline.dtype.itemsize
        weights = sum(matrix.numbers for matrix in shape.matrices)
        tokenizer = TOKENIZER_FILE_BYTES * shape.vocabulary
        sizes = {"hf": number * shape.numbers + tokenizer}
        target = self.recipe.target.weights
        for form in self.forms[1:]:
            if isinstance(target, GgufBudget) and form.spec_name() == "gguf":
                largest = math.ceil(shape.numbers * MOST_BITS / 8)
                sizes[str(form)] = min(target.bytes, largest) + tokenizer
                continue
            bits = 0.0
            for matrix in shape.matrices:
                a_weight = bits_a_weight(form, target, matrix.inputs, 8.0 * number)
                bits += a_weight * matrix.numbers
            sizes[str(form)] = math.ceil(bits / 8) + number * (shape.numbers - weights) + tokenizer
        sizes[CHECKPOINT] = self._checkpoint_bytes()
        return sizes

    def _too_large(self, disk: Mapping[str, int]) -> list[str]:
        """What doesn't fit where it is written, in sentences: on the disk of the result, or on
        another one that scratch files go to.
        """
        problems: list[str] = []
        in_all = sum(disk.values())
        if self.machine.scratch is not None:
            scratch = disk.get(SCRATCH, 0)
            in_all -= scratch
            if scratch > self.machine.scratch:
                place = f"{gettempdir()}, where {gigabytes(self.machine.scratch)} are free"
                message = f"{gigabytes(scratch)} of scratch files don't fit into {place}"
                problems.append(f"{message}; let TMPDIR name a folder with more")
        if in_all > self.machine.disk:
            problems.append(f"{gigabytes(in_all)} don't fit on this disk; write to another (--out)")
        return problems

    def _checkpoint_bytes(self) -> int:
        """How many bytes the finished blocks take that a checkpoint keeps."""
        norms = NORM_BITS if self.recipe.method.observes else 0
        bits = 0.0
        for matrix in self.outline.shape.matrices:
            dense = 8.0 * self.outline.dtype.itemsize
            bits += kept_bits(self.recipe, matrix.inputs, dense) * matrix.numbers
            bits += norms * matrix.inputs
        return math.ceil(bits / 8)

    def _seconds(self, compress: float, saved: int) -> dict[str, float]:
        seconds = {"open": opening_seconds(self.outline)}
        if self._tokens:
            seconds["tokenize"] = TOKENIZING * self._tokens
        seconds["compress"] = compress
        # A checkpoint is written while the next block is worked on.
        if saved:
            seconds["save"] = saved / WRITTEN
        return seconds

    def _parts(self, needs: Needs, course: "_Course") -> dict[str, float]:
        """The seconds of each part of compressing, called as a profile calls it."""
        shape = self.outline.shape
        method = self.recipe.method
        rates = self.machine.rates
        tokens = self._tokens
        length = self._length
        walks = self._walks(course.propagate)
        parts = {
            "forward": walks * forward_seconds(shape, tokens, length, rates),
            "statistics": statistics_seconds(shape, tokens, method, rates),
            "method and record": method_seconds(shape, tokens, length, method, rates),
        }
        tried = method.tried(len(shape.blocks), self.recipe.target.weights)
        if tried:
            parts["forward"] += forward_seconds(shape, tried, length, rates)
            parts["forward"] += head_seconds(shape, tried, rates)
        target = self.recipe.target.weights
        parts["method and record"] += file_seconds(shape, target, method.tries)
        parts["method and record"] += scratch_bytes(shape, target) / WRITTEN
        if isinstance(target, GgufBudget):
            parts["costs of kinds"] = kinds_seconds(shape)
        moved = self._moved(needs, course, walks)
        if moved:
            parts["to the device and back"] = moved / self.machine.link
        return parts

    def _moved(self, needs: Needs, course: "_Course", walks: int) -> int:
        """How many bytes go to a device or come back from it, beside the one way at the opening."""
        moved = 0
        if course.blocks_in_turn:
            moved += 2 * (needs.model - needs.outside)
        if course.offloads and self._beside:
            # In each walk, and at the end of a block: half of what lies between two blocks.
            moved += (walks + 1) * len(self.outline.shape.blocks) * needs.between // 2
        return moved

    def _walks(self, propagate: Propagation) -> int:
        """How often all tokens go through the model."""
        walks = 0
        if self.recipe.method.observes:
            walks = 2 if propagate == "reference" else 1
        for part in (self.recipe.allocation, *self.recipe.transforms):
            if part.observes:
                walks += 1
        return walks + self.recipe.forwards_for_scales(propagate)

    def _uncounted_files(self) -> list[str]:
        """Return that the tokens of the user's files aren't counted, in sentences."""
        calibration = self.calibration
        if calibration is None or calibration.at_most or not self.recipe.looks:
            return []
        files: dict[str, None] = {}
        for term in calibration.parts:
            for source in own_behind(term.source):
                if isinstance(source, UserFile):
                    files[str(source)] = None
        fewer = f"it may hold fewer than {self._tokens:,} tokens"
        return [f"the tokens of {file} weren't counted: {fewer}" for file in files]

    def _uncounted(self) -> list[str]:
        """What the estimate of the time leaves out, in sentences."""
        method = self.recipe.method
        left_out: list[str] = []
        if method.spec_name() not in WORK:
            left_out.append(f"{method} wasn't timed: it counts as a method that observes the same")
        if self.recipe.allocation.tries:
            left_out.append(f"what the search of {self.recipe.allocation} takes isn't counted")
        if self.outline.storage == "hub":
            left_out.append("the model isn't here yet, and its download isn't counted")
        return left_out


@final
@dataclass(frozen=True)
class _Course:
    """How a job would go: with which propagation, and how many bytes of `memory` at the peak. The
    blocks may be on disk, or beside the device that computes, and activations with them.
    """

    propagate: Propagation
    memory: int
    blocks_on_disk: bool = False
    offloads: bool = False
    blocks_in_turn: bool = False

    def notes(self, asked: Propagation) -> list[str]:
        """Return in sentences what goes otherwise than with the propagation `asked` and the whole
        model in memory.
        """
        notes: list[str] = []
        if self.blocks_on_disk and self.blocks_in_turn:
            notes.append(IN_TURN_FROM_DISK)
        elif self.blocks_on_disk:
            notes.append("the blocks of the model stay on disk")
        elif self.blocks_in_turn:
            notes.append(IN_TURN)
        if self.propagate != asked:
            notes.append("arrival would hold too many activations, so it goes on with reference")
        if self.offloads:
            place = "on disk"
            if self.blocks_in_turn and not self.blocks_on_disk:
                place = "in the machine's own memory"
            notes.append(f"activations are {place} between two blocks")
        return notes


def held_by_process(needs: Needs, outline: ModelOutline, more: int = 0) -> Needs:
    """Return `needs` with all that the process holds beside the model: on the processor also the
    tokenizer and `more` bytes, such as a kernel, on another device nothing. A model that is open is
    held already.
    """
    process = 0
    if outline.device.type == "cpu":
        process = needs.process + tokenizer_bytes(outline) + more
    return replace(needs, process=process, model=outline.added)


def held_beside(outlines: Sequence[ModelOutline], process: int) -> int:
    """Return how many bytes of the machine's own memory are held while another device computes:
    those that the `process` has already, and the models, which are opened there and go to the
    device from there.
    """
    held = process
    for outline in outlines:
        held += tokenizer_bytes(outline) + outline.added
    return held


def too_much_beside(held: int, room: int) -> str:
    """Return in a sentence that what is held beside a device is more than the `room` there."""
    return (
        f"{gigabytes(held)} of the machine's own memory are too much: {gigabytes(room)} may be "
        "held; allow more with --memory, or take a machine with more"
    )


def tokenizer_bytes(outline: ModelOutline) -> int:
    """Return how many bytes of memory the tokenizer takes, once it is open."""
    return TOKENIZER_BYTES * outline.shape.vocabulary


def too_little(budget: GgufBudget, shape: ModelShape) -> list[str]:
    """Return in a sentence that a budget is too little for a model of this shape, if it is."""
    problem = budget.too_little_for((matrix.outputs, matrix.inputs) for matrix in shape.matrices)
    return [problem] if problem else []


def bits_a_weight(form: Export, target: Target, inputs: int, dense: float) -> float:
    """Return how many bits a weight of a matrix takes in this form, with scales; `dense` are those
    of a plain number.
    """
    removal = target
    grid: Target | None = target
    if isinstance(target, SparseGrid):
        removal = target.removal
        grid = target.grid
    name = form.spec_name()
    if isinstance(target, GgufRecipe):
        grid = target.kind
    if name == "gguf" and isinstance(grid, GgmlKind):
        return grid.amount
    if isinstance(grid, Grid):
        if name == "gguf":
            return gguf_bits(grid, inputs, dense)
        return grid.bits + scale_bits(grid, inputs, dense)
    if isinstance(grid, FloatGrid) and name in ("compressed_tensors", "sparse"):
        return grid.bits + scale_bits(grid, inputs, dense)
    if name == "sparse" and isinstance(removal, Sparsity | NofM):
        # A bit for each number says whether it is left.
        return min(dense, dense * kept_share(removal) + 1)
    return dense


def kept_bits(recipe: Recipe, inputs: int, dense: float) -> float:
    """Return how many bits a weight of a matrix takes in a checkpoint; `dense` are those of a plain
    number.
    """
    method = recipe.method
    target = recipe.target.weights
    if isinstance(target, SparseGrid):
        target = target.grid
    if isinstance(target, Grid):
        return CODE_BITS + scale_bits(target, inputs, dense)
    if isinstance(target, FloatGrid):
        return target.bits + scale_bits(target, inputs, dense)
    by_matrix = isinstance(method, MatrixMethod) and goes_by_matrix(method)
    only_removes = by_matrix and method.prunes and not method.updates
    # The numbers that stay are those of the model, unless a transform changes them first.
    if only_removes and isinstance(target, Removal) and not recipe.transforms:
        return 1.0
    return dense


def scale_bits(grid: Grid | FloatGrid, inputs: int, dense: float) -> float:
    """Return how many bits a weight takes for the scales of its grid, and their zero points. Scales
    that rows share are counted as if each row had its own.
    """
    if isinstance(grid, FloatGrid):
        bits = dense if grid.scale == "plain" else SCALE_BITS
        return bits / grid.width(inputs)
    scales = dense / grid.width(inputs)
    if grid.symmetric:
        return scales
    # A zero point is about half as wide as a scale.
    return 1.5 * scales


def gguf_bits(grid: Grid, inputs: int, dense: float) -> float:
    """Return how many bits a weight takes in a GGUF file: its blocks have 4 or 8, and a scale of
    float16; what doesn't fit them stays dense.
    """
    if not grid.symmetric or grid.width(inputs) % GGUF_BLOCK:
        return dense
    codes = 4 if grid.bits <= 4 else 8
    return codes + 16 / GGUF_BLOCK


def kept_share(removal: Sparsity | NofM) -> float:
    """Return which share of the weights a removal keeps."""
    if isinstance(removal, NofM):
        return removal.n / removal.m
    return 1 - removal.fraction


def room_on(device: torch.device) -> int:
    """Return how many bytes this process may hold on a device, with what it holds already."""
    if device.type == "cuda":
        return free_on(device)
    return held_now() + free_on(device)


def room_within(promised: int | None, device: torch.device) -> int:
    """Return how many bytes this process may hold on a device: `promised` ones, where it has so
    many, else all that it has.
    """
    here = room_on(device)
    return here if promised is None else min(promised, here)


def in_tenths(count: int) -> float:
    """Return a number of bytes in gigabytes, as `--memory` takes them, rounded down to a tenth."""
    return math.floor(count / 1e8) / 10


def free_at(out: Path | None) -> int:
    """Return how many bytes are free where a folder is to be written."""
    return shutil.disk_usage(_existing(out)).free


def free_for_scratch(out: Path | None) -> int | None:
    """Return how many bytes are free for scratch files, None where they are on the same disk as a
    folder that is to be written.
    """
    place = Path(gettempdir())
    if os.stat(place).st_dev == os.stat(_existing(out)).st_dev:
        return None
    return free_at(place)


def _existing(out: Path | None) -> Path:
    """The folder that is to be written, or the nearest one above it that is there."""
    place = (out or Path()).absolute()
    while not place.exists():
        place = place.parent
    return place
