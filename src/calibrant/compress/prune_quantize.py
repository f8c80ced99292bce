"""The whole job: open a model, calibrate, prune or quantize, save. One that was killed goes on from its last finished block when asked again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from calibrant.allocations import Allocation
from calibrant.clock import Clock
from calibrant.compress.checkpoint import Checkpoint
from calibrant.compress.costs import Costs, provenance
from calibrant.compress.exporting import file_bytes
from calibrant.compress.loop import compress
from calibrant.compress.recipe import Recipe
from calibrant.compress.room import fitting, in_bytes, left_on_disk, offloading, room_for_activations
from calibrant.compress.shortage import FEW_TOKENS, shortage_of
from calibrant.data import CalibrationSet, Source, TokenBatch
from calibrant.data.user_file import files_behind
from calibrant.edits import Edit
from calibrant.errors import NumericsError, OutputError, SpecError, TargetError
from calibrant.exports import CARD, CompressedModel, Export, exports
from calibrant.exports import card as card_of
from calibrant.exports.hf import HuggingFace
from calibrant.inspection.leaks import RowFingerprints
from calibrant.methods import Method, methods
from calibrant.models import ModelView, Opened, check_finite, check_output, open_model, read_manifest, saved, view
from calibrant.notebook import card
from calibrant.progress import Progress, silent
from calibrant.select import resolved
from calibrant.spec import identity
from calibrant.store import Record, Run, stored_bits
from calibrant.targets import GgmlKind, GgufRecipe, Grid, Removal, Share, SparseGrid, Target, accepted, parse_target
from calibrant.transforms import Transform
from calibrant.walk.ranks import Ranks, joined
from calibrant.walk.starving import AS_SEEN

Verb = Literal["prune", "quantize"]
TAKES: Final[Mapping[Verb, tuple[type[Target], ...]]] = {"prune": (Removal, Share), "quantize": (Grid, SparseGrid, GgmlKind, GgufRecipe)}
"""The verbs, and the kinds of target that each is for."""


@dataclass(frozen=True)
class Pruned:
    """What `prune` and `quantize` give back: the model in memory, what was done to it, and where it was saved (None if it wasn't)."""

    opened: Opened
    record: Record
    out: Path | None
    continued_from: int = 0
    already_done: bool = False
    costs: Costs | None = None
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes of all files of each form that was written, tokenizer and all."""

    def _repr_html_(self) -> str:
        facts = {"saved in": self.out or "", "continued from step": self.continued_from or ""}
        facts["few tokens"] = self.record.provenance.get(FEW_TOKENS, "")
        done = "pruned" if stored_bits(self.record.weights) is None else "quantized"
        return card(f"{self.record.run.model_name}, {done}", facts, inside=self.record._repr_html_())


# The two spell their parameters out, twice the same nineteen: a shared object of settings would make every call longer, and `**settings` would take
# names, types and defaults out of `help()`, editors and the reference.


def prune(
    model: str,
    data: str | CalibrationSet | Source,
    method: str | Method = "wanda",
    target: float | str | Target | None = None,
    out: str | Path | None = None,
    *,
    sparsity: float | str | Target | None = None,
    samples: int = 128,
    tokens: int | None = None,
    length: int = 2048,
    seed: int = 0,
    propagate: str | None = None,
    allocation: str | Allocation = "uniform",
    transform: Sequence[str | Transform] = (),
    starved: str = AS_SEEN,
    export: Sequence[str | Export] = (),
    dtype: str = "auto",
    device: str = "auto",
    memory: float | None = None,
    profile: bool = False,
    progress: Progress = silent,
) -> Pruned:
    """Open `model`, prune it with what `data` shows it, and save it to `out` as an ordinary Hugging Face folder.

    What is named may be an object too: `data` a `CalibrationSet`, whose budget is then its own, or a source, `method` a method of your own class.

    `target`, or `sparsity`, is a share of every matrix (`0.5`, the usual one), N kept of every M (`"2:4"`), or of a method that drops blocks or
    experts a share of those. `allocation` shares it among the matrices, each `transform` is applied before, in order, and `export` names forms to
    write it in beside the Hugging Face folder. Without `propagate` it is the method's own. `starved` says what is done to experts that get fewer
    tokens than they have inputs: they are calibrated `as_seen`, left `dense`, or calibrated on `all_tokens` or on what all experts saw (`shared`).

    The same call after an interruption continues from the last finished step (the matrices of a block, or one other edit); after it is done, it says
    so and does nothing. With `profile` the result has `costs`: where the time went, and the least it could have taken. Raises an `InputError` for
    anything that can't be used, before any work.

    `memory` is how many GB the process may hold, the model, activations and statistics together. Where the model doesn't fit its blocks stay on
    disk, each is in memory while it is worked on, and what is written is the same; `opened` in the result has them on disk too. Where `arrival` would
    hold too many activations (without `memory`: more than 80 % of what is free), the job goes on with `reference`, and where what passes between
    blocks is too much as well, it is on disk beside `out` meanwhile. The record says all three. Without `out` the result is the model in memory,
    `memory` is room for activations alone, and `evaluate` can't know what the model was calibrated on.

    Processes that torchrun started calibrate together, each on its share of the micro-batches, and all of them get the model; the first one
    alone writes, and tells `progress`. One that fails ends all: the others raise its error, or `RankError`.
    """
    with joined() as ranks:
        if target is not None and sparsity is not None:
            raise TargetError(f"target={target} and sparsity={sparsity} are two words for one thing; give one of them", subject=str(sparsity))
        aim = next((one for one in (target, sparsity) if one is not None), 0.5)
        recipe = _recipe("prune", method, aim, propagate, allocation, transform, starved)
        calibration = _calibration(data, samples, length, tokens, seed)
        return _done(model, calibration, recipe, out, export, dtype, device, memory, profile, progress, ranks)


def quantize(
    model: str,
    data: str | CalibrationSet | Source | None = None,
    method: str | Method = "rtn",
    target: str | Target = "w4g64",
    out: str | Path | None = None,
    *,
    samples: int = 128,
    tokens: int | None = None,
    length: int = 2048,
    seed: int = 0,
    propagate: str | None = None,
    allocation: str | Allocation = "uniform",
    transform: Sequence[str | Transform] = (),
    starved: str = AS_SEEN,
    export: Sequence[str | Export] = (),
    dtype: str = "auto",
    device: str = "auto",
    memory: float | None = None,
    profile: bool = False,
    progress: Progress = silent,
) -> Pruned:
    """Open `model`, round the weights of its matrices to the grid `target`, and save it to `out` as an ordinary Hugging Face folder.

    `target` is a grid: `"w4g64"` has 4 bits a weight and a scale for each 64 inputs of a row, `"w8"` one for each row, `"w3g64a"` a zero point too.
    What is saved are the numbers that the codes stand for, so that transformers opens it and gives what was measured; the record says how many
    bits a weight takes as codes. `data` may be left out where `method` looks at none. Everything else is as for `prune`.
    """
    with joined() as ranks:
        recipe = _recipe("quantize", method, target, propagate, allocation, transform, starved)
        calibration = None if data is None else _calibration(data, samples, length, tokens, seed)
        return _done(model, calibration, recipe, out, export, dtype, device, memory, profile, progress, ranks)


def _calibration(data: str | CalibrationSet | Source, samples: int, length: int, tokens: int | None, seed: int) -> CalibrationSet:
    return data if isinstance(data, CalibrationSet) else CalibrationSet(data, samples=samples, length=length, tokens=tokens, seed=seed)


def _recipe(
    verb: Verb,
    method: str | Method,
    target: float | str | Target,
    propagate: str | None,
    allocation: str | Allocation,
    transform: Sequence[str | Transform],
    starved: str,
) -> Recipe:
    """What is to be done, if it is what `verb` does; an error names the verb that does it."""
    other: Verb = "quantize" if verb == "prune" else "prune"
    parsed, mine, theirs = target if isinstance(target, Target) else parse_target(target), TAKES[verb], TAKES[other]
    built: Method = methods.build(method)
    if not _does(built, mine):
        instead = f"use calibrant {other}" if _does(built, theirs) else f"it accepts {accepted(built.accepts)}"
        names = ", ".join(name for name in methods.names() if (cls := methods.get(name)).prunes and _does(cls, mine))
        raise TargetError(f"{built} is no method for calibrant {verb}, which has {names}; {instead}", subject=str(built))
    if not isinstance(parsed, mine):
        instead = f"use calibrant {other}" if isinstance(parsed, theirs) else "choose one of these"
        raise TargetError(f"{parsed} is no target for calibrant {verb}, which takes {accepted(mine)}; {instead}", subject=str(parsed))
    return Recipe.parse(built, parsed, propagate, allocation, transform, starved)


def _does(method: Method | type[Method], takes: tuple[type[Target], ...]) -> bool:
    """Whether a method accepts targets of one of these kinds, some or all."""
    return any(issubclass(one, kind) or issubclass(kind, one) for one in method.accepts for kind in takes)


def _done(
    model: str,
    calibration: CalibrationSet | None,
    recipe: Recipe,
    out: str | Path | None,
    export: Sequence[str | Export],
    dtype: str,
    device: str,
    memory: float | None,
    profile: bool,
    progress: Progress,
    ranks: Ranks,
) -> Pruned:
    """The whole job."""
    room = in_bytes(memory)
    if calibration is None and recipe.looks:
        raise SpecError(f"{recipe.looking} looks at activations and needs calibration data; give --data", subject=recipe.looking)
    folder, reported = None if out is None else Path(out), progress if ranks.first else silent
    named = (export,) if isinstance(export, str | Export) else export
    forms = tuple({str(form): form for form in (HuggingFace(), *map(exports.build, named))}.values())  # each once, the dense folder first
    job = _Job.open(model, calibration, recipe, folder, forms, dtype, device, room, reported, ranks)
    done = job.into(folder, device) if folder is not None else job.done(job.compress(None))
    return replace(done, costs=job.costs()) if profile and not done.already_done else done


@dataclass(frozen=True)
class _Job:
    """A job whose model is open and whose tokens are drawn."""

    opened: Opened
    seen_by: ModelView
    batch: TokenBatch | None
    recipe: Recipe
    forms: tuple[Export, ...]
    calibration: CalibrationSet | None
    clock: Clock
    note: str
    progress: Progress
    ranks: Ranks

    @classmethod
    def open(
        cls,
        model: str,
        calibration: CalibrationSet | None,
        recipe: Recipe,
        folder: Path | None,
        forms: tuple[Export, ...],
        dtype: str,
        device: str,
        room: int | None,
        progress: Progress,
        ranks: Ranks,
    ) -> "_Job":
        """Open and draw, once it is clear that `folder` can be written. A promise (`room`) is for all of it where the result is in a folder."""
        clock = Clock()
        if folder is not None and read_manifest(folder) is None:
            check_output(folder)
        with clock.phase("open"):
            promised = None if folder is None else room
            absent = "" if promised is None else left_on_disk(model, recipe, calibration, forms, dtype, ranks.device(device), promised, ranks)
            opened = open_model(model, dtype, ranks.device(device), on_disk=bool(absent))
            seen_by = view(opened.model, opened.residence)
            for form in forms:
                form.check(recipe.method, recipe.target, opened, seen_by)
            check_finite(seen_by)
        with clock.phase("tokenize"):
            looking = calibration if recipe.looks else None
            batch = None if looking is None else resolved(looking, opened, progress).tokens(opened.tokenizer)
        ranks.agree("the run that is asked for", recipe.run(opened, batch, **_named(calibration)).id)
        left = room if promised is None else room_for_activations(promised, opened, seen_by, recipe.method, looking)
        fits = ranks.gathered([fitting(recipe.propagate, seen_by, batch, opened.dtype, left, recipe.method.propagations)])
        propagate, short = max(fits, key=lambda fit: bool(fit[1]))  # where memory is short for one, none can go on as asked
        here = opened.model.device.type == "cpu"  # else activations aren't in the memory that was promised
        parted = "" if promised is None or left is None else offloading(left, propagate, recipe.method, seen_by, batch, opened.dtype, here)
        if parted and folder is not None:
            seen_by.offload = folder.absolute().parent
        note = "; ".join(filter(None, (absent, short, parted)))
        return cls(opened, seen_by, batch, replace(recipe, propagate=propagate), forms, calibration, clock, note, progress, ranks)

    def compress(self, checkpoint: Checkpoint | None, keep: Callable[[Edit], None] | None = None) -> Record:
        with self.clock.phase("compress"):
            job = self.opened, self.seen_by, self.batch, self.recipe
            return compress(*job, **_named(self.calibration), progress=self.progress, checkpoint=checkpoint, keep=keep, ranks=self.ranks)

    def costs(self) -> Costs:
        """Return what all of it cost."""
        return Costs.of(self.clock, self.seen_by, 0 if self.batch is None else int(self.batch.mask.sum()))

    def with_provenance(self, record: Record) -> Record:
        """`record` with how it came about so far."""
        shortage = shortage_of(self.seen_by, self.batch)
        about = provenance(self.opened, self.clock, self.note, shortage)
        return replace(record, provenance=about | {"ranks": self.ranks.size})

    def into(self, folder: Path, device: str) -> Pruned:
        """Compress and save, from the last finished block on; or say that it is done."""
        run = self.recipe.run(self.opened, self.batch, **_named(self.calibration))
        if (manifest := read_manifest(folder)) is not None:
            return _already(manifest, run, folder, self.forms, self.ranks.device(device), self.seen_by.residence.on_disk)
        checkpoint = Checkpoint(folder, run.id)
        continued, edits = len(checkpoint.load(numbers=False)), list[Edit]()
        keep = edits.append if self.forms[1:] else None  # codes of a whole model are large
        with self.telling_what_stays(checkpoint):
            record, sizes = self.compress(checkpoint, keep), dict[str, int]()
        if self.ranks.first:
            with self.clock.phase("save"), checkpoint.staying():
                sizes = self.save(CompressedModel(self.opened, self.seen_by, self.with_provenance(record), edits), folder)
            checkpoint.remove()
        return replace(self.done(record, folder), continued_from=continued, sizes=sizes)

    @contextmanager
    def telling_what_stays(self, checkpoint: Checkpoint) -> Iterator[None]:
        """While it lasts, a `NumericsError` says that what was finished stays, and where.

        That is blocks, or what a search tried; else nothing stays. The same command may go on: on
        another device, or with another number of threads, its numbers may be finite.
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
            elif any(found is not None for found in checkpoint.journal().known.values()):
                stay = f"what was tried stays in {place}, and the same command goes on from it"
            else:
                checkpoint.remove()
                raise
            raise NumericsError(f"{error}; {stay}", subject=error.subject) from error

    def done(self, record: Record, folder: Path | None = None) -> Pruned:
        """Return what came of it. The model is another one than was opened, by its digest, and where it is saved by its name too."""
        name, digest = self.opened.name if folder is None else str(folder), identity([self.opened.digest, record.run.id])
        return Pruned(replace(self.opened, name=name, digest=digest), self.with_provenance(record), folder)

    def save(self, compressed: CompressedModel, folder: Path) -> dict[str, int]:
        """Write the model in every form that is asked for, with its manifest and its card, all of it or nothing; return the bytes of each form."""
        parts = () if self.calibration is None else self.calibration.parts
        own = any(True for part in parts for _ in files_behind(part.source))
        rows = RowFingerprints.of(() if self.batch is None else self.batch.rows, own)
        record = compressed.record
        # The rows that it was calibrated on stand there by their hashes, so that nobody measures on them unawares.
        about = {"calibrant": version("calibrant"), "id": record.run.id, "record": record.plain(), **rows.entries}
        sizes = dict[str, int]()
        manifest = {**about, "exports": list(map(str, self.forms)), "sizes": sizes}  # which is written when the sizes are known
        with saved(self.opened, folder, manifest, rows.files) as temporary:
            for form in self.forms:
                form.write(compressed, temporary)
                sizes[str(form)] = file_bytes(temporary, inside=True) - sum(sizes.values())
            (temporary / CARD).write_text(card_of(record, self.opened.note), encoding="utf-8")
        return sizes


def _named(calibration: CalibrationSet | None) -> dict[str, Any]:
    """What a record calls the set and its draw."""
    return {"data": "" if calibration is None else str(calibration), "seed": 0 if calibration is None else calibration.seed}


def _already(manifest: Mapping[str, Any], run: Run, folder: Path, forms: Sequence[Export], device: str, on_disk: bool) -> Pruned:
    """The folder holds what was asked for, or an error that says what it holds instead."""
    if manifest.get("id") != run.id:
        check_output(folder)
    record, written = manifest["record"], manifest.get("exports", ["hf"])
    if missing := [str(form) for form in forms if str(form) not in written]:
        raise OutputError(
            f"{folder} already holds this model, without the export {missing[0]}; name another folder, or delete this one first", subject=str(folder)
        )
    opened = open_model(str(folder), run.dtype, device, on_disk=on_disk)
    return Pruned(opened, Record.read(record), folder, already_done=True, sizes=manifest.get("sizes", {}))
