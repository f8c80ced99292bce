"""Where walk, method, allocation and calibration meet.

`compress` works on a model in memory; `prune` is the whole job: open, calibrate, compress, save. A `prune` that was killed continues from its
last finished block when it is asked again.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from calibrant.activations import InputStatistic, Seen, Statistic
from calibrant.allocations import Allocation, allocations
from calibrant.allocator import freed_memory_kept
from calibrant.changes import input_sizes, mask_bits, output_error
from calibrant.checkpoint import Checkpoint
from calibrant.clock import Clock, spent_on
from calibrant.costs import Costs, provenance
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.shown import Shown
from calibrant.data.user_file import files_behind
from calibrant.errors import CalibrantError, SpecError
from calibrant.methods import BlockMethod, Method, methods
from calibrant.models import ModelView, Opened, Weight, check_finite, check_output, open_model, read_manifest, save, view
from calibrant.notebook import card
from calibrant.progress import Progress, silent
from calibrant.ranks import ALONE, Ranks, joined
from calibrant.rehearsal import rehearse
from calibrant.select import resolved
from calibrant.spec import canonical
from calibrant.statistics import KINDS, Dense, Statistics, by_block, mixed, statistics_ids
from calibrant.store import Record, Run
from calibrant.targets import Target, parse_target
from calibrant.walk import Propagation, walk, walk_blocks

PROPAGATIONS = ("arrival", "reference", "dense")
MOST_GB: Final = 1_000_000
"""Room for activations at most that can be asked for."""


@dataclass(frozen=True)
class Asked:
    """What is to be done to a model, resolved but not yet done."""

    method: Method
    target: Target
    allocation: Allocation
    propagate: Propagation

    @classmethod
    def parse(
        cls, method: str | Method, sparsity: float | str | Target, propagate: str = "arrival", allocation: str | Allocation = "uniform"
    ) -> "Asked":
        """Read the texts a user gives; each that can't be read is an `InputError` with what is allowed."""
        if propagate not in PROPAGATIONS:
            raise SpecError(f"propagate={propagate!r} is not known; choose one of {', '.join(PROPAGATIONS)}", subject=propagate)
        target = sparsity if isinstance(sparsity, Target) else parse_target(sparsity)
        return cls(methods.build(method), target, allocations.build(allocation), propagate)

    def run(self, opened: Opened, batch: TokenBatch | None, data: str = "", seed: int = 0) -> Run:
        """The identity-bearing description of doing this to `opened`, calibrated on `batch`."""
        looks = bool(self.method.observes)
        return Run(
            model=opened.digest,
            model_name=opened.name,
            data=data if looks else "",
            tokens=batch.fingerprint if looks and batch is not None else "",
            method=canonical(self.method),
            target=str(self.target),
            allocation=canonical(self.allocation),
            propagate=self.propagate if looks else "",
            dtype=str(opened.dtype).removeprefix("torch."),
            seed=seed if looks else 0,
        )


@dataclass(frozen=True)
class Pruned:
    """What `prune` gives back: the model in memory, what was done to it, and where it was saved (None if it wasn't)."""

    opened: Opened
    record: Record
    out: Path | None
    continued_from: int = 0
    already_done: bool = False
    costs: Costs | None = None

    def _repr_html_(self) -> str:
        told = {"saved in": self.out or "", "continued from block": self.continued_from or ""}
        return card(f"{self.opened.name}, pruned", told, inside=self.record._repr_html_())


@freed_memory_kept()
def compress(
    opened: Opened,
    seen_by: ModelView,
    batch: TokenBatch | None,
    asked: Asked,
    *,
    data: str = "",
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
    statistics: Path | None = None,
    kinds: tuple[type[Statistic], ...] = (),
    ranks: Ranks = ALONE,
) -> Record:
    """Compress the model behind `seen_by` in place, and say what was done to every matrix.

    In `dense`, what the matrices saw is kept in the folder `statistics`, if one is given: what is there is read, what is lacking is gathered in
    one pass, and with it the `kinds` that others will want. The result is the same to the bit. The model must be untouched.

    With other `ranks`, each calibrates on a part of the batch and all compress every matrix; the first one alone keeps finished blocks.

    Raises `TargetError` before anything is touched if a matrix doesn't fit the target, and `NumericsError` or `WalkError` naming the matrix.
    """
    if asked.method.observes and batch is None:
        raise SpecError(f"{asked.method} looks at activations and needs calibration data; give --data", subject=str(asked.method))
    targets = asked.allocation.share(len(seen_by.blocks), asked.target)
    for weight in seen_by.weights:
        targets[weight.block].check(weight.shape, weight.name)
    done = checkpoint.load() if checkpoint else {}
    ranks.agree("what the folder of finished blocks holds", list(done))
    if asked.propagate != "dense":
        _put(seen_by, done)
    reports = [report for block in done.values() for report in block.reports]
    if asked.propagate == "dense" and batch is not None and asked.method.observes and (statistics or batch.mixed):
        arrivals = _dense(opened, seen_by, batch, asked.method, len(done), statistics, kinds, progress, ranks)
    else:
        arrivals = walk(seen_by, batch, asked.method.observes, asked.propagate, start=len(done), ranks=ranks)
    with torch.no_grad():
        for index, block in itertools.groupby(arrivals, key=lambda arrival: arrival[0].block):
            new = [_compress_one(asked.method, weight, seen, targets[index]) for weight, seen in block]
            ranks.agree(f"what became of block {index}", repr(new))
            if checkpoint and ranks.first:
                with spent_on("keeping finished blocks"):
                    checkpoint.add(index, seen_by.blocks[index], new)
            reports += new
            progress(f"{asked.method.spec_name()} {asked.target}", index + 1, len(seen_by.blocks))
    if asked.propagate == "dense":
        _put(seen_by, done)
    return _record(asked.run(opened, batch, data, seed), seen_by, batch, reports)


def _dense(
    opened: Opened,
    seen_by: ModelView,
    batch: TokenBatch,
    method: Method,
    start: int,
    root: Path | None,
    kinds: tuple[type[Statistic], ...],
    progress: Progress,
    ranks: Ranks,
) -> Iterator[tuple[Weight, Seen]]:
    """What the untouched model's matrices see: from the disk where it is kept there, and of a mix the sum of its parts."""
    blocks, observes = seen_by.blocks[start:], tuple(kind for kind in method.observes if issubclass(kind, InputStatistic))
    parts = batch.mixed or ((1.0, batch),)
    seen: list[Iterator[Dense]] = []
    for name, (_, part) in zip(statistics_ids(opened, batch), parts, strict=True):
        if root is not None and set(observes) <= set(KINDS):
            kept = Statistics(root, name)
            gather(seen_by, part, [kind for kind in KINDS if kind in (*observes, *kinds)], kept, progress)
            seen.append(map(partial(kept.read, observes), blocks))
        else:
            seen.append(by_block(blocks, walk(seen_by, part, observes, "dense", start=start, ranks=ranks)))
    for _, there in mixed(seen, [factor for factor, _ in parts]) if batch.mixed else seen[0]:
        yield from there.items()


def gather(seen_by: ModelView, batch: TokenBatch, kinds: Iterable[type[InputStatistic]], kept: Statistics, progress: Progress = silent) -> None:
    """Walk through the untouched model once, and keep what is lacking of these `kinds`, block by block."""
    blocks = seen_by.blocks
    here = {kind: kept.held(kind, blocks) for kind in kinds}
    lacking = {kind: count for kind, count in here.items() if count < len(blocks)}
    if not lacking:
        return
    start = min(lacking.values())
    with torch.no_grad():
        for block, seen in by_block(blocks[start:], walk(seen_by, batch, tuple(lacking), "dense", start=start)):
            for kind, count in lacking.items():
                if block.index >= count:
                    kept.add(kind, block, seen)
            progress("statistics", block.index + 1, len(blocks))


def drop_blocks(seen_by: ModelView, batch: TokenBatch, method: BlockMethod, target: Target) -> list[int]:
    """Remove the blocks that `method` names, having seen what each does in the untouched model; the indices, in order."""
    seen = [change for _, change in walk_blocks(seen_by, batch, method.observes)]
    chosen = sorted(set(method.choose(seen, target)))
    seen_by.drop_blocks(chosen)
    return chosen


def _compress_one(method: Method, weight: Weight, seen: Seen, target: Target) -> dict[str, Any]:
    """The line at which a matrix becomes another, and what the record says about it."""
    try:
        with spent_on("method"):
            compressed = method.compress(weight.get(), seen, target)
    except CalibrantError as error:
        raise type(error)(f"{method.spec_name()} failed at {weight.name}: {error}", subject=weight.name) from error
    with spent_on("record"):
        error = output_error(weight.get(), compressed.weight, seen)
        weight.set(compressed.weight)
        zeros = weight.shape[0] * weight.shape[1] - int(compressed.weight.count_nonzero())
        return {
            "name": weight.name,
            "shape": list(weight.shape),
            "zeros": zeros,
            "sparsity": zeros / compressed.weight.numel(),
            **error,
            "bits": mask_bits(weight.name, compressed.weight),
            **input_sizes(weight.name, seen),
            "notes": dict(compressed.notes),
        }


def _put(seen_by: ModelView, done: Mapping[int, Any]) -> None:
    """Set the matrices that were compressed before an interruption."""
    by_name = {weight.name: weight for weight in seen_by.weights}
    for block in done.values():
        for name, tensor in block.weights.items():
            by_name[name].set(tensor)


def _record(run: Run, seen_by: ModelView, batch: TokenBatch | None, reports: list[dict[str, Any]]) -> Record:
    reached = {report["name"] for report in reports}
    dense = [{"name": d.name, "shape": list(d.shape), "reason": d.reason} for d in seen_by.dense]
    unreached = [weight for weight in seen_by.weights if weight.name not in reached]
    left = rehearse(seen_by).left(run.propagate) if unreached and run.tokens else {}
    for weight in unreached:
        routed = "no calibration token was routed to this expert" if weight.expert is not None else "no product with it was seen in the forward"
        dense.append({"name": weight.name, "shape": list(weight.shape), "reason": left.get(weight.name, routed)})
    total = sum(w["shape"][0] * w["shape"][1] for w in reports)
    achieved = sum(w["zeros"] for w in reports) / total if total else 0.0
    facts = dict(batch.facts) if batch is not None and run.tokens else {}
    return Record(run, achieved, tuple(reports), tuple(dense), facts)


def fitting(
    propagate: Propagation, seen_by: ModelView, batch: TokenBatch | None, dtype: torch.dtype, limit: int | None = None
) -> tuple[Propagation, str]:
    """`propagate`, or `reference` and a sentence where `arrival` would need more memory than there is.

    Arrival suspends the forwards of all micro-batches inside a block, so the activations of *all* tokens live at once: input, residual and
    the two widest intermediate results. `limit` is in bytes; by default 80 % of what the machine has free.
    """
    if propagate != "arrival" or batch is None:
        return propagate, ""
    inputs = [weight.shape[1] for weight in seen_by.blocks[0].weights]
    outputs = [weight.shape[0] for weight in seen_by.blocks[0].weights]
    width = 3 * min(inputs) + max(inputs) + max(outputs)
    needed = int(batch.mask.sum()) * width * dtype.itemsize
    allowed = int(psutil.virtual_memory().available * 0.8) if limit is None else limit
    if needed <= allowed:
        return propagate, ""
    return "reference", f"arrival would hold about {needed / 1e9:.1f} GB of activations and may hold {allowed / 1e9:.1f} GB; went on with reference"


def prune(
    model: str,
    data: str | CalibrationSet,
    method: str | Method = "wanda",
    sparsity: float | str | Target = 0.5,
    out: str | Path | None = None,
    *,
    samples: int = 128,
    tokens: int | None = None,
    length: int = 2048,
    seed: int = 0,
    propagate: str = "arrival",
    allocation: str | Allocation = "uniform",
    dtype: str = "auto",
    device: str = "auto",
    memory: float | None = None,
    profile: bool = False,
    progress: Progress = silent,
) -> Pruned:
    """Open `model`, compress it with what `data` shows it, and save it to `out` as an ordinary Hugging Face folder.

    `sparsity` is a share of every matrix (`0.5`) or N kept of every M (`"2:4"`). The same call after an interruption continues from the last
    finished block; after it is done, it says so and does nothing. With `profile` the result has `costs`: where the time went, and the least it
    could have taken. Where `arrival` would hold more than `memory` GB of activations (by default 80 % of what is free), the job goes on with
    `reference`, and the record says so. Raises an `InputError` for anything that can't be used, before any work.

    Processes that torchrun started calibrate together, each on its share of the micro-batches, and all of them get the model; the first one
    alone writes, and tells `progress`. One that fails ends all: the others raise its error, or `RankError`.
    """
    with joined() as ranks:
        asked, room = Asked.parse(method, sparsity, propagate, allocation), _bytes(memory)
        calibration = data if isinstance(data, CalibrationSet) else CalibrationSet(data, samples=samples, length=length, tokens=tokens, seed=seed)
        folder, told = None if out is None else Path(out), progress if ranks.first else silent
        job = _Job.open(model, calibration, asked, folder, dtype, device, room, told, ranks)
        done = job.into(folder, device) if folder is not None else Pruned(job.opened, job.told(job.compress(None)), None)
        return replace(done, costs=job.costs()) if profile and not done.already_done else done


def _bytes(memory: float | None) -> int | None:
    if memory is not None and not 0 < memory <= MOST_GB:
        raise SpecError(f"memory={memory:g} is no room for activations; give GB above 0 and up to {MOST_GB:,}, or leave it out", subject=str(memory))
    return None if memory is None else int(memory * 1e9)


@dataclass(frozen=True)
class _Job:
    """A `prune` whose model is open and whose tokens are drawn."""

    opened: Opened
    seen_by: ModelView
    batch: TokenBatch | None
    asked: Asked
    calibration: CalibrationSet
    clock: Clock
    note: str
    progress: Progress
    ranks: Ranks

    @classmethod
    def open(
        cls,
        model: str,
        calibration: CalibrationSet,
        asked: Asked,
        folder: Path | None,
        dtype: str,
        device: str,
        room: int | None,
        progress: Progress,
        ranks: Ranks,
    ) -> "_Job":
        """Open and draw, once it is clear that `folder` can be written."""
        clock = Clock()
        if folder is not None and read_manifest(folder) is None:
            check_output(folder)
        with clock.phase("open"):
            opened = open_model(model, dtype, ranks.device(device))
            seen_by = view(opened.model)
            check_finite(seen_by)
        with clock.phase("tokenize"):
            batch = resolved(calibration, opened, progress).tokens(opened.tokenizer) if asked.method.observes else None
        ranks.agree("the run that is asked for", asked.run(opened, batch, str(calibration), calibration.seed).id)
        fits = ranks.gathered([fitting(asked.propagate, seen_by, batch, opened.dtype, room)])
        propagate, note = max(fits, key=lambda fit: bool(fit[1]))  # where memory is short for one, none can go on as asked
        return cls(opened, seen_by, batch, replace(asked, propagate=propagate), calibration, clock, note, progress, ranks)

    def compress(self, checkpoint: Checkpoint | None) -> Record:
        told = {"data": str(self.calibration), "seed": self.calibration.seed}
        with self.clock.phase("compress"):
            job = self.opened, self.seen_by, self.batch, self.asked
            return compress(*job, **told, progress=self.progress, checkpoint=checkpoint, ranks=self.ranks)

    def costs(self) -> Costs:
        """What all of it cost."""
        return Costs.of(self.clock, self.seen_by, 0 if self.batch is None else int(self.batch.mask.sum()))

    def told(self, record: Record) -> Record:
        """`record` with how it came about so far."""
        return replace(record, provenance=provenance(self.opened, self.clock, self.note) | {"ranks": self.ranks.size})

    def into(self, folder: Path, device: str) -> Pruned:
        """Compress and save, from the last finished block on; or say that it is done."""
        run = self.asked.run(self.opened, self.batch, str(self.calibration), self.calibration.seed)
        if (manifest := read_manifest(folder)) is not None:
            return _already(manifest, run, folder, self.ranks.device(device))
        checkpoint = Checkpoint(folder, run.id)
        continued = len(checkpoint.load())
        record = self.compress(checkpoint)
        if self.ranks.first:
            with self.clock.phase("save"), checkpoint.staying():
                own = any(True for part in self.calibration.parts for _ in files_behind(part.source))
                shown = Shown.of(() if self.batch is None else self.batch.rows, own)
                save(self.opened, folder, manifest_of(self.told(record), shown), shown.files)
            checkpoint.remove()
        return Pruned(self.opened, self.told(record), folder, continued)


def _already(manifest: Mapping[str, Any], run: Run, folder: Path, device: str) -> Pruned:
    """The folder holds what was asked for, or an error that says what it holds instead."""
    if manifest.get("id") != run.id:
        check_output(folder)
    kept = manifest["record"]
    record = Record(Run(**kept["run"]), kept["sparsity"], tuple(kept["weights"]), tuple(kept["dense"]), kept["data_facts"], kept["provenance"])
    return Pruned(open_model(str(folder), run.dtype, device), record, folder, already_done=True)


def manifest_of(record: Record, shown: Shown) -> dict[str, Any]:
    """What `calibrant.json` beside a saved model says: what was asked, the calibration's fingerprint, every matrix and why some are dense.

    The rows that it was calibrated on stand there by their hashes, so that nobody measures on them unawares.
    """
    return {"calibrant": version("calibrant"), "id": record.run.id, "record": asdict(record), **shown.entries}
