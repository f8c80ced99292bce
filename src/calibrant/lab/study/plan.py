"""What a study would do: how many runs, what they share, what the store has already, and how long
the rest may take."""

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from calibrant.data import CalibrationSet
from calibrant.data.hub import offline
from calibrant.errors import DataError, ModelError
from calibrant.evaluators import Evaluator
from calibrant.lab.study.request import DENSE, USUAL, Labels, RunRequest, digests_of, propagation
from calibrant.lab.study.study import Study
from calibrant.lab.study.timing import (
    Supply,
    Unfinished,
    budget_of,
    duration,
    kinds,
    measure_pieces,
    passes,
    supply_of,
)
from calibrant.methods import MatrixMethod, Method
from calibrant.models import located, open_model, open_tokenizer, resolve_dtype
from calibrant.numerics import type_name
from calibrant.results import EDITS, MASK, Store, measurement_id
from calibrant.spec import canonical, identity
from calibrant.system.notebook import card, listing
from calibrant.system.progress import Progress, silent
from calibrant.system.wide_products import wide_products

EXACT: Final = 400_000
"""Tokens in all draws of all sets up to which they are drawn to see whether they are disjoint.

Beyond, it is estimated from a small draw."""
_FITTED: Final = "and fitted to inputs that no longer come they do harm"
UPDATES: Final = f"it changes the weights it keeps, {_FITTED}"
AS_IT_IS: Final = "it looks at the model as it is"
AFTERWARDS: Final = "it looks at no data, and scales of inputs are found once weights are rounded"
SCORES: Final = "it only scores, so one pass over the dense model serves every target"


@dataclass(frozen=True)
class Count:
    """How many of something the study wants (`asked`), and how many the store has (`done`)."""

    asked: int
    done: int

    @property
    def left(self) -> int:
        """How many the store lacks."""
        return self.asked - self.done


@dataclass(frozen=True)
class ModelPlan:
    """One model of a study: its runs, and what is known of it; `why` says why nothing is.

    `inputs` are its distinct inputs, `statistics` the bytes of what they give for one set and draw,
    by kind, and `statistics_bytes` for all of them. `seconds` are estimated, by phase. `instead` is
    what a propagation becomes on this machine, `fails` what can't be done.
    """

    model: str
    runs: Count
    measurements: Count
    why: str = ""
    note: str = ""
    dtype: str = ""
    blocks: int = 0
    matrices: int = 0
    inputs: int = 0
    statistics: Mapping[str, int] = field(default_factory=dict[str, int])
    statistics_bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    instead: Mapping[str, str] = field(default_factory=dict[str, str])
    fails: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a study would do.

    `methods` are (method, propagation, why); `shared` counts what is made once; `supplies` say how
    far the sets last. `seconds` is the estimate for one worker, None if no part of it could be
    measured. `load` is how busy each processor was meanwhile, 1 and more where something else was
    at work too. `unknown` is what can't be known on this machine, `warnings` what should be looked
    at before the study is run.
    """

    models: tuple[ModelPlan, ...]
    sets: tuple[str, ...]
    draws: tuple[int, ...]
    targets: tuple[str, ...]
    evaluators: tuple[str, ...]
    methods: tuple[tuple[str, str, str], ...]
    contrasts: int
    shared: Mapping[str, int]
    failed: int
    limit_bytes: int
    supplies: tuple[Supply, ...] = ()
    seconds: float | None = None
    load: float | None = None
    unknown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def runs(self) -> Count:
        """Runs of all models."""
        return _total(model.runs for model in self.models)

    @property
    def measurements(self) -> Count:
        """Measurements of all models."""
        return _total(model.measurements for model in self.models)

    def _repr_html_(self) -> str:
        minutes = ""
        if self.seconds is not None:
            minutes = f"{self.seconds / 60:.0f} minutes"
        facts = {
            "runs": f"{self.runs.asked:,}, of which {self.runs.done:,} are done",
            "measurements": f"{self.measurements.asked:,}",
            "calibration sets": ", ".join(self.sets),
            "targets": ", ".join(self.targets),
            "primary contrasts": self.contrasts,
            "one worker takes about": minutes,
        }
        sentences = [(sentence,) for sentence in (*self.warnings, *self.unknown)]
        if not sentences:
            return card("Plan of a study", facts)
        inside = listing(("to know before it begins",), sentences)
        return card("Plan of a study", facts, inside=inside)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data, with the sums."""
        sums: dict[str, Any] = {}
        for name, count in (("runs", self.runs), ("measurements", self.measurements)):
            sums[name] = {**asdict(count), "left": count.left}
        return {**sums, **asdict(self)}


def _total(counts: Iterable[Count]) -> Count:
    asked = 0
    done = 0
    for count in counts:
        asked += count.asked
        done += count.done
    return Count(asked, done)


@wide_products()
def plan(
    study: Study,
    folder: str | Path,
    *,
    probed: bool = True,
    progress: Progress = silent,
    groups: str | Sequence[str] = (),
) -> Plan:
    """Return what `study`, or some of its `groups`, would do with the store in `folder`.

    Nothing is written, and nothing is downloaded. With `probed`, each model that is on this machine
    is opened and the pieces of the work are timed on it, and the sets are looked at: rows of them
    that are measured are a warning. Raises `OutputError` for a folder that isn't ours, and
    `SpecError` for a group that the study doesn't have.
    """
    chosen = study.chosen(groups)
    # A plan downloads nothing: what isn't here it says.
    with offline():
        recorded, failed = _in_store(study, Path(folder))
        numbered = enumerate(study.requests())
        requests = [request for number, request in numbered if number in chosen]
        supplies: tuple[Supply, ...] = ()
        if probed:
            supplies = _supplies(requests, progress)
        models: list[ModelPlan] = []
        for of_model in _by_model(requests):
            models.append(_model_plan(study, of_model, recorded, supplies, probed, progress))
        warnings = list(_warned(models, supplies))
        if probed:
            try:
                study.workload()
            except DataError as error:  # rows of a user's file that are also measured
                warnings.append(str(error))
    labels = [request.labels for request in requests]
    looking = [cell for cell in labels if cell.data]
    sets = dict.fromkeys(cell.data for cell in looking)
    draws = {cell.seed for cell in looking}
    targets = {cell.target for cell in labels if cell.method != DENSE}
    seconds: float | None = None
    load: float | None = None
    timed = [sum(model.seconds.values()) for model in models if model.seconds]
    if timed:
        seconds = sum(timed)
        load = _load()
    return Plan(
        models=tuple(models),
        sets=tuple(sets),
        draws=tuple(sorted(draws)),
        targets=tuple(sorted(targets)),
        evaluators=tuple(study.evaluators()),
        methods=tuple(_propagated(study, requests)),
        contrasts=len(study.for_reading()["primary"]),
        shared=_shared(requests),
        failed=failed,
        limit_bytes=int(study.statistics_gb * 1e9),
        supplies=supplies,
        seconds=seconds,
        load=load,
        unknown=tuple(_unknown(models, supplies, bool(looking), probed)),
        warnings=tuple(warnings),
    )


def _by_model(requests: Iterable[RunRequest]) -> list[list[RunRequest]]:
    """The requests of each model together."""
    of_models: dict[str, list[RunRequest]] = {}
    for request in requests:
        of_models.setdefault(request.model, []).append(request)
    return list(of_models.values())


def _load() -> float | None:
    """How busy each processor is, where the system says it."""
    try:
        load, *_ = os.getloadavg()
    except (AttributeError, OSError):
        return None
    return load / (os.cpu_count() or 1)


class Recorded(NamedTuple):
    """What the store has of a cell beside its record: the evaluators that have measured it, and
    whether what brings its model back is `kept`.
    """

    measures: tuple[str, ...]
    kept: bool


def _in_store(study: Study, folder: Path) -> tuple[dict[Labels, Recorded], int]:
    """What the store has of each cell that it has a record of, by what the records say; and how
    many of the study's runs and measurements failed."""
    if not folder.exists():
        return {}, 0
    if folder.is_dir() and not any(folder.iterdir()):
        return {}, 0
    with Store(folder, create=False) as store:
        return _recorded(study, store), _failed(study, store)


def _recorded(study: Study, store: Store) -> dict[Labels, Recorded]:
    """What the store has of each cell that it has a record of."""
    requests = {request.labels: request for request in study.requests()}
    of_cells = {request.cell.labels: labels for labels, request in requests.items()}
    # Records know methods and allocations by their canonical forms, labels by their texts.
    texts: dict[str, str] = {}
    for request in requests.values():
        for part in (request.recipe.method, request.recipe.allocation):
            texts[identity(part)] = str(part)
    forms = _measurement_forms(study.evaluators())
    records = {record.run.id: record for record in store.records(whole=False)}
    labelled: list[tuple[str, Labels]] = []
    for run_id, record in records.items():
        run = record.run
        labels = Labels(
            model=run.model_name,
            data=run.data,
            seed=run.seed,
            method=texts.get(identity(run.method), ""),
            target=run.target,
            propagate=run.propagate,
            allocation=texts.get(identity(run.allocation), ""),
        )
        if labels in requests:
            labelled.append((run_id, labels))
    # Two runs may have a cell's labels, such as those of two processors. Then the index decides,
    # so it comes last. Only it knows both draws of a set that is always the same, which are one
    # run, and what was asked where the run has another propagation, since memory had no room.
    for cell in store.cells():
        if cell.run in records and cell.labels in of_cells:
            labelled.append((cell.run, of_cells[cell.labels]))
    # Where this machine lacks the device, `auto` is no type, and no record is of it.
    dtype = ""
    with suppress(ModelError):
        dtype = type_name(resolve_dtype(study.dtype, study.device))
    recorded: dict[Labels, Recorded] = {}
    for run_id, labels in labelled:
        record = records[run_id]
        request = requests[labels]
        if not request.is_answered_by(record, dtype):
            continue
        measured = store.measured(run_id)
        measures: list[str] = []
        for text, form in forms.items():
            if measurement_id(run_id, *form) in measured:
                measures.append(text)
        recorded[labels] = Recorded(tuple(measures), _is_kept(store, run_id))
    return recorded


def _is_kept(store: Store, run_id: str) -> bool:
    """Whether a file brings a run's model back. One that was written may have been deleted since,
    to save room.
    """
    digests = store.results(run_id).digests(run_id)
    for name in (MASK, EDITS):
        if name in digests and store.blobs.path(digests[name]).is_file():
            return True
    return False


def _failed(study: Study, store: Store) -> int:
    """How many failures the store knows that are of this study."""
    requests = study.requests()
    asked = {request.provisional(study.dtype, study.device) for request in requests}
    labels = {request.cell.labels for request in requests}
    forms = _measurement_forms(study.evaluators())
    for cell in store.cells():
        if cell.labels in labels:
            asked.add(cell.run)
            asked.update(measurement_id(cell.run, *form) for form in forms.values())
    return len(asked & store.failures().keys())


def _measurement_forms(
    evaluators: Mapping[str, Evaluator],
) -> dict[str, tuple[Mapping[str, Any], str]]:
    """What identifies the measurements of each evaluator beside their runs."""
    digests = digests_of(evaluators)
    forms: dict[str, tuple[Mapping[str, Any], str]] = {}
    for text, evaluator in evaluators.items():
        forms[text] = canonical(evaluator), digests.get(text, "")
    return forms


def _model_plan(
    study: Study,
    requests: Sequence[RunRequest],
    recorded: Mapping[Labels, Recorded],
    supplies: Sequence[Supply],
    probed: bool,
    progress: Progress,
) -> ModelPlan:
    """The plan for the model of these requests, with what can be measured of it here."""
    evaluators = study.evaluators()
    done = [recorded[request.labels] for request in requests if request.labels in recorded]
    measurements = sum(len(stored.measures) for stored in done)
    planned = ModelPlan(
        model=requests[0].model,
        runs=Count(len(requests), len(done)),
        measurements=Count(len(requests) * len(evaluators), measurements),
    )
    try:
        path = located(planned.model)
        if not probed:
            return planned
        # Opening is a piece of the work like the others.
        began = time.perf_counter()
        opened = open_model(str(path), study.dtype, study.device)
        opening = time.perf_counter() - began
    except ModelError as error:
        return replace(planned, why=str(error))
    gathered = kinds(requests)
    timings = measure_pieces(opened, opening, requests, evaluators, gathered, progress)
    unfinished = _unfinished(requests, recorded, evaluators)
    sizes = {kind.__name__: timings.statistics[kind] for kind in gathered}
    supplied = {supply.data: supply for supply in supplies}
    return replace(
        planned,
        note=timings.note,
        dtype=timings.dtype,
        blocks=timings.blocks,
        matrices=timings.matrices,
        inputs=timings.inputs,
        statistics=sizes,
        statistics_bytes=len(passes(requests)) * sum(sizes.values()),
        seconds=duration(timings, gathered, unfinished, supplied),
        instead=dict(timings.propagates),
        fails=tuple(timings.why_not),
    )


def _unfinished(
    requests: Sequence[RunRequest], recorded: Mapping[Labels, Recorded], evaluators: Collection[str]
) -> list[Unfinished]:
    """The requests that have no record yet, or whose run lacks measurements."""
    unfinished: list[Unfinished] = []
    for request in requests:
        stored = recorded.get(request.labels, Recorded((), kept=False))
        lacking = [text for text in evaluators if text not in stored.measures]
        if lacking or request.labels not in recorded:
            unfinished.append(Unfinished(request, lacking, stored.kept))
    return unfinished


def _supplies(requests: Sequence[RunRequest], progress: Progress) -> tuple[Supply, ...]:
    """How far each set lasts; nothing where there is no tokenizer on this machine.

    It is that of the first model that is here, else that of smollm2.
    """
    models = [request.model for request in requests]
    tokenizer = _any_tokenizer([*models, "smollm2"])
    sets: dict[str, CalibrationSet] = {}
    draws: dict[str, int] = {}
    for request in requests:
        labels = request.labels
        if request.calibration is not None:
            sets[labels.data] = request.calibration
            draws[labels.data] = max(draws.get(labels.data, 0), labels.seed + 1)
    # All draws together decide whether counting them is quick enough.
    tokens = 0
    for data, calibration in sets.items():
        tokens += draws[data] * budget_of(calibration)
    exact = tokens <= EXACT
    supplies: list[Supply] = []
    for number, (data, calibration) in enumerate(sets.items()):
        progress("looking at the sets", number, len(sets))
        if tokenizer is not None:
            supplies.append(supply_of(calibration, draws[data], tokenizer, exact))
    progress("looking at the sets", len(sets), len(sets))
    return tuple(supplies)


def _any_tokenizer(models: Iterable[str]) -> Any:
    """The tokenizer of the first model that is on this machine, or None."""
    for model in dict.fromkeys(models):
        with suppress(ModelError):
            tokenizer, _ = open_tokenizer(str(located(model)))
            return tokenizer
    return None


def _shared(requests: Sequence[RunRequest]) -> dict[str, int]:
    """How often what is made once is used."""
    looking = [request for request in requests if request.calibration is not None]
    distinct_sets = {repr(request.calibration) for request in looking}
    walked = sum(len(passes(of_model)) for of_model in _by_model(requests))
    from_passes = sum(request.shares for request in requests)
    return {
        "drawn": len(distinct_sets),
        "looking": len(looking),
        "passes": walked,
        "from_passes": from_passes,
        "baselines": len(requests) - len(looking),
    }


def _propagated(study: Study, requests: Sequence[RunRequest]) -> Iterator[tuple[str, str, str]]:
    """The propagation of each method of a run with data, and why it is that one."""
    chosen: dict[tuple[str, str], Method] = {}
    for request in requests:
        labels = request.labels
        # A method that looks at no data has none, also where its allocation does.
        if labels.propagate:
            chosen.setdefault((labels.method, labels.propagate), request.recipe.method)
    for (text, propagate), method in chosen.items():
        usual = propagation(method, None) or USUAL
        if study.propagate is not None or propagate != usual:
            yield text, propagate, "the study says so"
        elif not method.looks:
            yield text, propagate, AFTERWARDS
        elif not isinstance(method, MatrixMethod):
            yield text, propagate, AS_IT_IS
        elif method.updates:
            yield text, propagate, UPDATES
        else:
            yield text, propagate, SCORES


def _warned(models: Sequence[ModelPlan], supplies: Sequence[Supply]) -> Iterator[str]:
    for model in models:
        for sentence in (*model.instead.values(), *model.fails):
            yield f"{model.model}: {sentence}"
    for supply in supplies:
        if supply.held is None:
            continue
        number = f"about {supply.held:.1f}"
        if supply.exact:
            number = f"{supply.held:.0f}"
        if supply.why:
            yield f"{supply.data}: {supply.why}"
        elif supply.held < 1:
            yield (
                f"{supply.data} holds {number} draws of this size, too little for one: "
                "its runs will fail; take fewer samples or tokens"
            )
        elif not supply.lasts:
            yield (
                f"{supply.data} holds {number} disjoint draws of this size, and the study has "
                f"{supply.draws}: later ones repeat rows of earlier ones"
            )


def _unknown(
    models: Sequence[ModelPlan],
    supplies: Sequence[Supply],
    looking: bool,
    probed: bool,
) -> Iterator[str]:
    """What can't be known on this machine; of draws where something is `looking` at data."""
    for model in models:
        if model.why:
            lost = "its time, the size of its statistics, and whether the targets fit it"
            yield f"{model.model}: {model.why}; so {lost} aren't known"
    for supply in supplies:
        if supply.why and supply.held is None:
            yield f"{supply.data}: {supply.why}"
    if not probed:
        yield "times, sizes and draws: nothing was measured (--quick)"
    elif looking and not supplies:
        yield "draws: there is no tokenizer on this machine to read the sets with"
