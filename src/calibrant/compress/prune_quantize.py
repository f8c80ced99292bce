"""The whole job: open a model, calibrate, prune or quantize, save.

One that was killed goes on from its last finished block when asked again.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch

from calibrant.activations import Propagation
from calibrant.compress.checkpoint import Checkpoint
from calibrant.compress.compression import Compression
from calibrant.compress.costs import Costs, provenance, shortage_of
from calibrant.compress.exporting import forms_of, write_forms
from calibrant.compress.loop import compress
from calibrant.compress.on_device import (
    device_of,
    left_beside,
    left_on_device,
    room_on_device,
)
from calibrant.compress.planning import (
    CompressionPlanner,
    JobPlan,
    Machine,
    outline_of_options,
)
from calibrant.compress.recipe import Recipe
from calibrant.compress.room import (
    fitting,
    in_bytes,
    left_on_disk,
    offload,
    room_for_activations,
)
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.given import own_behind
from calibrant.data.inspect.leaks import RowFingerprints
from calibrant.data.select import resolved
from calibrant.edits import Edit
from calibrant.errors import NumericsError, OutputError, SpecError, TargetError
from calibrant.exports import CompressedModel, Export
from calibrant.methods import Method, methods
from calibrant.models import (
    ModelView,
    Opened,
    Origin,
    check_finite,
    check_output,
    check_savable,
    evaluating,
    is_object,
    name_of,
    open_model,
    opened_of,
    read_manifest,
    remember,
    take_numbers,
    view,
    will_be_changed,
)
from calibrant.models.opening import ref_of
from calibrant.models.readable import check_windows
from calibrant.models.rounded_inputs import round_alike
from calibrant.options import (
    CompressOptions,
    PruneOptions,
    QuantizeOptions,
    with_fields_of,
)
from calibrant.results import Record, Run
from calibrant.spec import identity
from calibrant.spec.foreign import user_path
from calibrant.system.clock import Clock
from calibrant.system.progress import silent
from calibrant.system.wide_products import wide_products
from calibrant.targets import Target, Verb, accepted, examples, kinds, parse_target
from calibrant.walk.ranks import Ranks, joined

USUAL_SHARE: Final = 0.5
"""What `prune` removes where nothing is said."""
_LOGGER: Final = logging.getLogger("calibrant")


def _planned_pruning(options: PruneOptions) -> JobPlan:
    return _planned("prune", options, _pruning(options))


def _planned_quantizing(options: QuantizeOptions) -> JobPlan:
    return _planned("quantize", options, _quantizing(options))


@with_fields_of(PruneOptions, _planned_pruning)
def prune(options: PruneOptions) -> Compression:
    """Open `model`, prune it with what `data` shows it, and save it to `out`.

    `model` is a name, a path, or a model of transformers with its `tokenizer`. Such a model is
    changed where it is; with `copy` it stays as it is, and a copy is changed. What was changed is
    in evaluation mode afterwards. The run is the same as that of its file.

    `out` becomes an ordinary Hugging Face folder. What is named may be an object too: `data` a
    `CalibrationSet`, whose budget is then its own, or a source, `method` a method of your own
    class.

    `target` is a share of every matrix (`0.5`, the usual one), N kept of every M
    (`"2:4"`), or of a method that drops blocks or experts a share of those. `allocation` shares it
    among the matrices, each `transform` is applied before, in order, and `export` names forms to
    write it in beside the Hugging Face folder. Without `propagate` it is the method's own.
    `starved` says what is done to experts that get fewer tokens than they have inputs: they are
    calibrated `as_seen`, left `dense`, or calibrated on `all_tokens` or on what all experts saw
    (`shared`).

    The same call after an interruption continues from the last finished step (the matrices of a
    block, or one other edit); after it is done, it says so and does nothing. With `profile` the
    result has `costs`: where the time went, and the least it could have taken. Raises an
    `InputError` for anything that can't be used, before any work.

    `memory` is how many GB the process may hold, the model, activations and statistics together.
    Where the model doesn't fit its blocks stay on disk, each is in memory while it is worked on,
    and what is written is the same; `opened` in the result has them on disk too. Where `arrival`
    would hold too many activations (without `memory`: more than 80 % of what is free when the job
    begins), the job goes on with `reference`, and where what passes between blocks is too much as
    well, it is on disk beside `out` meanwhile. The record says all three. Without `out` the result
    is the model in memory, which its `save` writes later. There, and for a model that is in memory
    already, `memory` is room for activations alone: it only decides between `arrival` and
    `reference`, and does nothing for methods without `arrival`.

    `device_memory` is how many GB may be held on a GPU, by default 95 % of what is free there. Of a
    model that is named and doesn't fit, the blocks stay beside the GPU, and each goes there while
    it is worked on; `opened` in the result has them so too. What is written is the same.

    Processes that torchrun started calibrate together, each on its share of the micro-batches, and
    all of them get the model; the first one alone writes, and tells `progress`. One that fails ends
    all: the others raise its error, or `RankError`.

    >>> from calibrant.testing import tiny_model, tiny_tokenizer
    >>> model = tiny_model("llama")
    >>> done = prune(model, tiny_tokenizer(), data="python_docs", samples=4, length=64)
    >>> done.model is model, f"{done.record.sparsity:.0%}"
    (True, '50%')
    """
    with joined() as ranks:
        return _compressed(options, _pruning(options), ranks)


@with_fields_of(QuantizeOptions, _planned_quantizing)
def quantize(options: QuantizeOptions) -> Compression:
    """Open `model`, round the weights of its matrices to the grid `target`, and save it to `out`.

    `out` becomes an ordinary Hugging Face folder. `target` is a grid: `"w4g64"` has 4 bits a weight
    and a scale for each 64 inputs of a row, `"w8"` one for each row, `"w3g64a"` a zero point too;
    `"NVFP4A16"`, `"MXFP4A16"` and `"FP8A16"` are those of formats with floating-point numbers. A
    scheme such as `"W8A8"` rounds inputs of matrices as well; `"FP8"` and `"NVFP4"` need `data` for
    their scales. With `kv` (`"int8"` or `"fp8"`) keys and values of attention are rounded too, as a
    quantized KV cache holds them; their scales need `data`. What is saved are the numbers that the
    codes stand for, so that transformers opens it and gives what was measured, but for inputs and
    cache; the record says how many bits a weight takes as codes. `data` may be left out where
    nothing looks at any. Everything else is as for `prune`.
    """
    with joined() as ranks:
        return _compressed(options, _quantizing(options), ranks)


def _pruning(options: PruneOptions) -> Recipe:
    target = USUAL_SHARE if options.target is None else options.target
    return _recipe("prune", options, target)


def _quantizing(options: QuantizeOptions) -> Recipe:
    target = options.target
    if options.kv is not None:
        target = f"{target}+kv_{options.kv}"
    return _recipe("quantize", options, target)


def _recipe(verb: Verb, options: CompressOptions, target: float | str | Target) -> Recipe:
    """The recipe. Raises `TargetError` if `verb` can't do it, and names the verb that can."""
    aimed = target if isinstance(target, Target) else parse_target(target)
    method: Method = methods.build(options.method)
    _check_verb(verb, method, aimed)
    return Recipe.parse(
        method,
        aimed,
        options.propagate,
        options.allocation,
        options.transform,
        options.starved,
    )


def _check_verb(verb: Verb, method: Method, target: Target) -> None:
    """Raise `TargetError` for a method or a target that another verb is for."""
    other: Verb = "quantize" if verb == "prune" else "prune"
    if not _accepts(method, verb):
        instead = f"it accepts {accepted(method.accepts)}"
        if _accepts(method, other):
            instead = f"use calibrant {other}"
        message = f"{method} is no method for calibrant {verb}, which has {_methods_for(verb)}"
        raise TargetError(f"{message}; {instead}", subject=str(method))
    if target.verb != verb:
        allowed = examples(kind for kind in kinds() if kind.verb == verb)
        message = f"{target} is no target for calibrant {verb}, which takes one such as {allowed}"
        raise TargetError(f"{message}; use calibrant {other}", subject=str(target))


def _methods_for(verb: Verb) -> str:
    """The names of the methods that accept a kind of target that the verb is for."""
    names: list[str] = []
    for name in methods.names():
        method = methods.get(name)
        if method.prunes and _accepts(method, verb):
            names.append(name)
    return ", ".join(names)


def _accepts(method: Method | type[Method], verb: Verb) -> bool:
    """Whether a method accepts a kind of target that the verb is for."""
    return any(kind.verb == verb for kind in (*method.accepts, *kinds(method.accepts)))


def _planned(verb: Verb, options: CompressOptions, recipe: Recipe) -> JobPlan:
    """What the whole job would take, for both verbs."""
    calibration = _calibration(options, recipe)
    out = None
    if options.out is not None:
        out = user_path(options.out, OutputError)
    outline = outline_of_options(options)
    memory = in_bytes(options.memory)
    forms = forms_of(options.export)
    machine = Machine.here(outline, out, options.device_memory)
    planner = CompressionPlanner(outline, recipe, calibration, forms, memory, out, machine)
    return planner.plan(verb)


def _calibration(options: CompressOptions, recipe: Recipe) -> CalibrationSet | None:
    """The calibration set, if one is given; a line says so where nothing looks at it. Raises
    `SpecError` where there is none and the recipe looks at one.
    """
    if options.data is not None:
        if not recipe.looks:
            _LOGGER.warning(
                "%s at %s looks at no data, so --data (in Python data=) changes nothing; leave it "
                "out, or choose another method ('calibrant list methods')",
                recipe.method,
                recipe.target,
            )
        return options.drawn_from(options.data)
    if recipe.looks:
        message = f"{recipe.looking} looks at activations and needs calibration data"
        raise SpecError(f"{message}; give --data (in Python data=)", subject=recipe.looking)
    return None


@wide_products()
def _compressed(options: CompressOptions, recipe: Recipe, ranks: Ranks) -> Compression:
    """The whole job, for both verbs."""
    if options.out is not None:
        options = replace(options, out=user_path(options.out, OutputError))
    calibration = _calibration(options, recipe)
    # The first of several processes alone reports progress.
    if not ranks.first:
        options = replace(options, progress=silent)
    # Methods may need gradients, and what is changed in place must be noticed.
    with torch.inference_mode(False), evaluating(options.model):
        job = _Job.open(options, recipe, calibration, ranks)
        result = job.result()
    result.opened.model.eval()
    if options.profile and not result.already_done:
        return replace(result, costs=job.costs())
    return result


@dataclass(frozen=True)
class _Limits:
    """How many bytes a job may take, None where nothing limits it.

    `memory` is as it was asked for. `promised` is the same where all of the job keeps to it.
    `on_device` is what it may take of the device.
    """

    memory: int | None
    promised: int | None
    on_device: int | None

    @classmethod
    def of(cls, options: CompressOptions, device: str) -> "_Limits":
        """Return the limits of a job on the `device`."""
        memory = in_bytes(options.memory)
        # Where the result goes to a folder, `memory` is for all of the job. Else the model stays in
        # memory in any case, and it is for activations alone; so does one that is there already.
        promised = None
        if options.out is not None and not is_object(options.model):
            promised = memory
        # A copy is held beside the model that it is of.
        already_there = None if options.copy else options.model
        model_device = device_of(options.model, device)
        on_device = room_on_device(options.device_memory, model_device, already_there)
        return cls(memory, promised, on_device)


class _Elsewhere(NamedTuple):
    """Why the model's blocks are on disk, and why they are beside the device; empty where they
    aren't.
    """

    on_disk: str = ""
    beside: str = ""


def _left_elsewhere(
    options: CompressOptions,
    recipe: Recipe,
    calibration: CalibrationSet | None,
    forms: Sequence[Export],
    limits: _Limits,
    device: str,
    ranks: Ranks,
) -> _Elsewhere:
    """Why blocks of the model stay on disk or beside the device, so that the job keeps the limits.

    Raises `SpecError` where it can't keep them even so.
    """
    if is_object(options.model):
        return _Elsewhere()
    name = name_of(options.model)
    dtype = options.dtype
    beside = ""
    if limits.on_device is not None:
        beside = left_beside(name, recipe, calibration, dtype, device, limits.on_device)
    on_disk = ""
    if limits.promised is not None:
        on_disk = left_on_disk(
            name,
            recipe,
            calibration,
            forms,
            dtype,
            device,
            limits.promised,
            ranks,
            bool(beside),
        )
    return _Elsewhere(on_disk, beside)


def _checked_view(
    opened: Opened, options: CompressOptions, recipe: Recipe, forms: Sequence[Export]
) -> ModelView:
    """The view of an open model that can be compressed and written as asked.

    Raises an `InputError` where it can't.
    """
    if opened.residence.on_disk and options.out is None:
        raise SpecError(
            f"the blocks of {opened.name} are on disk, and what becomes of them has to be "
            "kept there too; give out, or open it whole",
            subject=opened.name,
        )
    model_view = view(opened.model, opened.residence)
    for form in forms:
        form.check(recipe.method, recipe.target, opened, model_view)
    if options.out is not None:
        check_savable(opened)
    check_finite(model_view)
    return model_view


@dataclass(frozen=True)
class _Job:
    """A job whose model is open and whose tokens are drawn."""

    options: CompressOptions
    recipe: Recipe
    calibration: CalibrationSet | None
    forms: tuple[Export, ...]
    opened: Opened
    model_view: ModelView
    batch: TokenBatch | None
    clock: Clock
    notes: Sequence[str]
    ranks: Ranks

    @classmethod
    def open(
        cls,
        options: CompressOptions,
        recipe: Recipe,
        calibration: CalibrationSet | None,
        ranks: Ranks,
    ) -> "_Job":
        """Open the model and draw the tokens, once it is clear that the folder can be written.

        Raises an `InputError` for what can't be done, before any work; may choose another
        propagation where memory is short.
        """
        forms = forms_of(options.export)
        clock = Clock()
        device = ranks.device(options.device)
        limits = _Limits.of(options, device)
        # A folder that holds a model already is looked at later: it may be this very one.
        if options.out is not None and read_manifest(Path(options.out)) is None:
            check_output(Path(options.out))
        with clock.phase("open"):
            elsewhere = _left_elsewhere(options, recipe, calibration, forms, limits, device, ranks)
            opened = opened_of(
                options.model,
                options.tokenizer,
                options.dtype,
                device,
                options.copy,
                on_disk=bool(elsewhere.on_disk),
                beside=bool(elsewhere.beside),
            )
            model_view = _checked_view(opened, options, recipe, forms)
        batch = None
        with clock.phase("tokenize"):
            if calibration is not None and recipe.looks:
                drawn = resolved(calibration, opened, options.progress)
                batch = drawn.tokens(opened.tokenizer)
                check_windows(opened.model, batch.ids, batch.mask)
        job = cls(
            options=options,
            recipe=recipe,
            calibration=calibration,
            forms=forms,
            # Of the untouched numbers, however they change from now on.
            opened=replace(opened, hashed=opened.digest),
            model_view=model_view,
            batch=batch,
            clock=clock,
            notes=(elsewhere.on_disk, elsewhere.beside),
            ranks=ranks,
        )
        ranks.agree("the run that is asked for", job.run.id)
        return job.fitted(limits)

    @property
    def run(self) -> Run:
        """The run, as the job goes on now."""
        return self.recipe.run(self.opened, self.batch, **_data_and_seed(self.calibration))

    def fitted(self, limits: "_Limits") -> "_Job":
        """Return the job as it goes on where memory is short: perhaps with another propagation.
        Where activations are to be elsewhere between two blocks, it has the model's view do that.
        """
        method = self.recipe.method
        dtype = self.opened.dtype
        left = self._left_for_activations(limits)
        fit = self.as_begun()
        if fit is None:
            asked = self.recipe.propagate
            ways = method.propagations
            fit = fitting(asked, self.model_view, self.batch, dtype, left, ways)
        # All ranks must go on in the same way, so the one with the least memory decides.
        propagate, reason = _fit_of_all(self.ranks.gathered([fit]))
        place = self._place_between_blocks(limits)
        offloaded = ""
        if place is not None and left is not None:
            option = "memory" if limits.on_device is None else "device_memory"
            offloaded = offload(
                left, propagate, method, self.model_view, self.batch, dtype, place, option
            )
        recipe = replace(self.recipe, propagate=propagate)
        return replace(self, recipe=recipe, notes=(*self.notes, reason, offloaded))

    def _left_for_activations(self, limits: "_Limits") -> int | None:
        """The bytes that activations may take where the model computes; None without a limit.

        Raises `SpecError` where the job takes more than was promised even without them.
        """
        looking = self.calibration if self.recipe.looks else None
        left = limits.memory
        if limits.promised is not None:
            left = room_for_activations(
                limits.promised, self.opened, self.model_view, self.recipe, looking
            )
        if limits.on_device is not None:
            # Activations are where the model computes.
            method = self.recipe.method
            left = left_on_device(limits.on_device, self.opened, self.model_view, method, looking)
        return left

    def _place_between_blocks(self, limits: "_Limits") -> Path | Literal["memory"] | None:
        """Where activations may go between two blocks: to memory or a folder, None for nowhere."""
        residence = self.opened.residence
        # Nobody promised to hold no more than what is free on a device. For a whole model there,
        # the job then just tries.
        limited = self.options.device_memory is not None or residence.elsewhere
        if limits.on_device is not None and limited and not residence.on_disk:
            return "memory"
        if self.options.out is not None and limits.promised is not None:
            return Path(self.options.out).absolute().parent
        return None

    def as_begun(self) -> tuple[Propagation, str] | None:
        """Return what the memory that was free decided when the job was begun, which may be
        finished by now: the propagation, and why it isn't the one asked for. None where nothing is
        begun, or something else decides.

        Were it decided anew, the same command could ask for another run.
        """
        options = self.options
        promised = options.memory is not None or options.device_memory is not None
        if options.out is None or promised or self.recipe.propagate != "arrival":
            return None
        folder = Path(options.out)
        manifest = read_manifest(folder)
        fits: list[tuple[Propagation, str]] = [
            ("arrival", ""),
            ("reference", "went on with reference, as it was begun"),
        ]
        for propagate, reason in fits:
            run = replace(self, recipe=replace(self.recipe, propagate=propagate)).run
            if manifest is None:
                found = Checkpoint(folder, run.id).begun()
            else:
                found = manifest.get("id") == run.id
            if found:
                return propagate, reason
        return None

    def result(self) -> Compression:
        """Compress the model, and save it if a folder is given."""
        if self.options.out is None:
            edits: list[Edit] = []
            record = self.compress(keep=edits.append)
            return replace(self.finished(record), edits=edits)
        return self.saved_into(Path(self.options.out))

    def compress(
        self,
        checkpoint: Checkpoint | None = None,
        keep: Callable[[Edit], None] | None = None,
    ) -> Record:
        """Compress the open model, and return the record."""
        if not self.options.copy:
            will_be_changed(self.options.model)
        with self.clock.phase("compress"):
            return compress(
                self.opened,
                self.model_view,
                self.batch,
                self.recipe,
                **_data_and_seed(self.calibration),
                progress=self.options.progress,
                checkpoint=checkpoint,
                keep=keep,
                ranks=self.ranks,
            )

    def costs(self) -> Costs:
        """Return what all of it cost."""
        tokens = 0
        if self.batch is not None:
            tokens = int(self.batch.mask.sum())
        return Costs.of(self.clock, self.model_view, tokens)

    def with_provenance(self, record: Record) -> Record:
        """Return `record` with how it came about, as far as that is known now."""
        shortage = ""
        if self.recipe.weights_look:
            shortage = shortage_of(self.model_view, self.batch)
        note = "; ".join(filter(None, self.notes))
        entries = provenance(self.opened, self.clock, note, shortage)
        return replace(record, provenance=entries | {"ranks": self.ranks.size})

    def saved_into(self, folder: Path) -> Compression:
        """Compress and save into `folder`, from the last finished block on; if it holds this model
        already, return that.
        """
        manifest = read_manifest(folder)
        if manifest is not None:
            return self.already_there(manifest, self.run, folder)
        checkpoint = Checkpoint(folder, self.run.id)
        with checkpoint.locked() if self.ranks.first else nullcontext():
            return self.made_in(folder, checkpoint)

    def made_in(self, folder: Path, checkpoint: Checkpoint) -> Compression:
        """Compress and save into `folder`, which holds nothing yet."""
        edits: list[Edit] = []
        keep = None
        # Edits are kept only where other forms are written: the codes of a whole model are large.
        if self.ranks.first and self.forms[1:]:
            keep = edits.append
        with self.telling_what_stays(checkpoint):
            record = self.compress(checkpoint, keep)
        sizes: dict[str, int] = {}
        if self.ranks.first:
            with self.clock.phase("save"), checkpoint.staying():
                finished = self.with_provenance(record)
                compressed = CompressedModel(self.opened, self.model_view, finished, edits)
                sizes = write_forms(compressed, self.forms, self.rows, folder)
            checkpoint.remove()
        result = self.finished(record, folder)
        return replace(result, continued_from=checkpoint.loaded, sizes=sizes)

    def already_there(self, manifest: Mapping[str, Any], run: Run, folder: Path) -> Compression:
        """Return the model that the folder holds already. Raises `OutputError` if it isn't the one
        that was asked for.
        """
        if manifest.get("id") != run.id:
            # This raises the error, unless the folder was emptied in this very moment.
            check_output(folder)
            message = f"{folder} held another model, and is gone"
            raise OutputError(f"{message}; run the same command again", subject=str(folder))
        try:
            record = Record.read(manifest["record"])
        except (KeyError, ValueError) as error:
            message = f"{folder} already holds this model, with a record that can't be read"
            advice = "name another folder, or delete this one first"
            raise OutputError(f"{message}; {advice}", subject=str(folder)) from error
        written = manifest.get("exports", ["hf"])
        for form in self.forms:
            if str(form) not in written:
                message = f"{folder} already holds this model, without the export {form}"
                advice = "name another folder, or delete this one first"
                raise OutputError(f"{message}; {advice}", subject=str(folder))
        device = self.ranks.device(self.options.device)
        residence = self.model_view.residence
        opened = open_model(
            ref_of(folder),
            run.dtype,
            device,
            on_disk=residence.on_disk,
            beside=residence.elsewhere and not residence.on_disk,
        )
        if is_object(self.options.model):
            opened = self.as_in_folder(opened, record)
        if self.ranks.first:
            # Still there if the last call was killed between saving and removing it.
            Checkpoint(folder, run.id).remove()
        return Compression(
            opened,
            record,
            self.recipe,
            self.rows,
            folder,
            already_done=True,
            sizes=manifest.get("sizes", {}),
        )

    def as_in_folder(self, opened: Opened, record: Record) -> Opened:
        """Give the model object the numbers of the `opened` folder, and return it. Raises
        `OutputError` where the model in the folder has other parts.
        """
        if not self.options.copy:
            will_be_changed(self.options.model)
        if not take_numbers(self.opened.model, opened.model):
            message = f"{opened.name} already holds this model, and its parts are others by now"
            advice = "give that folder as the model, or name another one"
            raise OutputError(f"{message}; {advice}", subject=opened.name)
        round_alike(self.opened.model, opened.model)
        self.remember(opened.name, record)
        return replace(opened, model=self.opened.model, tokenizer=self.opened.tokenizer)

    @contextmanager
    def telling_what_stays(self, checkpoint: Checkpoint) -> Iterator[None]:
        """While it lasts, let a `NumericsError` say where the finished blocks stay, or what a
        search tried; if there is neither, nothing stays.

        The same command may go on from them: on another device, or with another number of threads,
        its numbers may be finite.
        """
        try:
            yield
        except NumericsError as error:
            if not self.ranks.first:
                raise
            place = checkpoint.folder
            if checkpoint.load(numbers=False):
                goes_on = "and the same command goes on from them"
                stay = f"the finished blocks stay in {place}, {goes_on}"
            # None in a journal stands for a loss that wasn't finite.
            elif any(loss is not None for loss in checkpoint.journal().known.values()):
                stay = f"what was tried stays in {place}, and the same command goes on from it"
            else:
                checkpoint.remove()
                raise
            raise NumericsError(f"{error}; {stay}", subject=error.subject) from error

    def finished(self, record: Record, folder: Path | None = None) -> Compression:
        """Return the compressed model with its record.

        It has a digest of its own, since it is another model than the one that was opened; its name
        is the folder, if there is one.
        """
        name = self.opened.name if folder is None else str(folder)
        digest = identity([self.opened.digest, record.run.id])
        compressed = replace(self.opened, name=name, hashed=digest)
        self.remember(name, record)
        finished = self.with_provenance(record)
        return Compression(compressed, finished, self.recipe, self.rows, folder)

    def remember(self, name: str, record: Record) -> None:
        """Remember what the model was made from and calibrated on, for whoever measures it."""
        manifest = {"id": record.run.id, "record": record.plain()}
        origin = Origin(name, self.opened.note, manifest, self.rows, self.opened.residence)
        remember(self.opened.model, origin)

    @cached_property
    def rows(self) -> RowFingerprints:
        """The hashes of the rows it was calibrated on, so that nobody measures on them
        unawares.
        """
        parts = () if self.calibration is None else self.calibration.parts
        from_user = any(any(own_behind(part.source)) for part in parts)
        rows = () if self.batch is None else self.batch.rows
        return RowFingerprints.of(rows, from_user)


def _fit_of_all(fits: Sequence[tuple[Propagation, str]]) -> tuple[Propagation, str]:
    """What all ranks go on with: the first fit with a reason not to go on as asked, if there is
    one. Without one all fits are the same.
    """
    for propagate, reason in fits:
        if reason:
            return propagate, reason
    return fits[0]


def _data_and_seed(calibration: CalibrationSet | None) -> dict[str, Any]:
    """How a record names the calibration set, and its draw; as arguments."""
    if calibration is None:
        return {"data": "", "seed": 0}
    return {"data": str(calibration), "seed": calibration.seed}
