"""What a study would do: how many runs, what they share, what the store has already, and how long the rest may take."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from calibrant.data.hub import offline
from calibrant.durable import UNFINISHED
from calibrant.errors import DataError, ModelError
from calibrant.methods import MatrixMethod, methods
from calibrant.models import located, open_model, open_tokenizer, resolve_dtype
from calibrant.notebook import card, listing
from calibrant.progress import Progress, silent
from calibrant.spec import canonical, identity
from calibrant.store import Record, Store, measurement_id
from calibrant.study.cells import propagation
from calibrant.study.request import DENSE, Labels, RunRequest, digests_of
from calibrant.study.study import Study
from calibrant.study.supply import Supply, budget_of, supply_of
from calibrant.study.timing import Unfinished, duration, kinds, measure_pieces, passes

EXACT: Final = 400_000
"""Tokens in all draws of all sets up to which they are drawn to see whether they are disjoint; beyond, it is estimated from a small draw."""
UPDATES: Final = "it changes the weights it keeps, and fitted to inputs that no longer come they do harm"
AS_IT_IS: Final = "it looks at the model as it is"
SCORES: Final = "it only scores, so one pass over the dense model serves every target"


@dataclass(frozen=True)
class Count:
    """How many of something the study wants (`asked`), how many the store has (`done`), and how many are left."""

    asked: int
    done: int

    @property
    def left(self) -> int:
        """How many the store lacks."""
        return self.asked - self.done


@dataclass(frozen=True)
class ModelPlan:
    """One model of a study: its runs, and what is known of it; `why` says why nothing is.

    `inputs` are its distinct inputs, `statistics` the bytes of what they give for one set and draw, by kind, and `statistics_bytes` for all of
    them. `seconds` are estimated, by phase. `instead` is what a propagation becomes on this machine, `fails` what can't be done.
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
    """What a study would do. `methods` are (method, propagation, why); `shared` counts what is made once; `supplies` say how far the sets last.

    `seconds` is the estimate for one worker, None if no part of it could be measured; `load` is how busy each processor was meanwhile, 1 and more
    where something else was at work too. `unknown` is what can't be known on this machine, `warnings` what should be looked at before the study is
    run.
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
        return Count(sum(m.runs.asked for m in self.models), sum(m.runs.done for m in self.models))

    @property
    def measurements(self) -> Count:
        """Measurements of all models."""
        return Count(sum(m.measurements.asked for m in self.models), sum(m.measurements.done for m in self.models))

    def _repr_html_(self) -> str:
        facts = {"runs": f"{self.runs.asked:,}, of which {self.runs.done:,} are done", "measurements": f"{self.measurements.asked:,}"}
        facts |= {"calibration sets": ", ".join(self.sets), "targets": ", ".join(self.targets), "primary contrasts": self.contrasts}
        facts |= {"one worker takes about": "" if self.seconds is None else f"{self.seconds / 60:.0f} minutes"}
        sentences = [(sentence,) for sentence in (*self.warnings, *self.unknown)]
        return card("Plan of a study", facts, inside=listing(("to know before it begins",), sentences) if sentences else "")

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, with the sums."""
        counted = {name: {**asdict(of), "left": of.left} for name, of in (("runs", self.runs), ("measurements", self.measurements))}
        return {**counted, **asdict(self)}


def plan(study: Study, folder: str | Path, *, probed: bool = True, progress: Progress = silent, groups: Sequence[str] = ()) -> Plan:
    """What `study`, or some of its `groups`, would do with the store in `folder`. Nothing is written, and nothing is downloaded.

    With `probed`, each model that is on this machine is opened and the pieces of the work are timed on it, and the sets are looked at. Raises
    `OutputError` for a folder that isn't ours, and `DataError` if a set holds rows that are measured.
    """
    chosen = study.chosen(groups)
    with offline():
        measured, failed = _in_store(study, Path(folder))
        cells = [cell for at, cell in enumerate(zip(study.requests(), study.labels(), strict=True)) if at in chosen]
        supplies = _supplies(study, cells, progress) if probed else ()
        models = tuple(
            _model(study, model, [cell for cell in cells if cell[1].model == model], measured, supplies, probed, progress)
            for model in dict.fromkeys(of.model for _, of in cells)
        )
        warnings = [*_warned(models, supplies), *(_stopped(study) if probed else ())]
    labels, seconds = [of for _, of in cells], [sum(m.seconds.values()) for m in models if m.seconds]
    return Plan(
        models,
        tuple(dict.fromkeys(of.data for of in labels if of.data)),
        tuple(sorted({of.seed for of in labels if of.data})),
        tuple(sorted({of.target for of in labels if of.method != DENSE})),
        tuple(study.evaluators()),
        tuple(_propagated(study, labels)),
        len(study.for_reading()["primary"]),
        _shared([request for request, _ in cells]),
        failed,
        int(study.statistics_gb * 1e9),
        supplies,
        sum(seconds) if seconds else None,
        os.getloadavg()[0] / (os.cpu_count() or 1) if seconds and os.name == "posix" else None,
        tuple(_unknown(models, supplies, probed)),
        tuple(warnings),
    )


def _in_store(study: Study, folder: Path) -> tuple[dict[Labels, tuple[str, ...]], int]:
    """The evaluators that have measured each cell that the store has a record of, by what the records say; and how many failures it holds."""
    if not folder.exists() or (folder.is_dir() and not {p.name for p in folder.iterdir()} - {UNFINISHED}):
        return {}, 0
    store = Store(folder, create=False)
    requests = dict(zip(study.labels(), study.requests(), strict=True))
    texts = {identity(part): str(part) for q in requests.values() for part in (q.recipe.method, q.recipe.allocation)}
    measured: dict[Labels, tuple[str, ...]] = {}
    evaluators, digests = study.evaluators(), digests_of(study.evaluators())
    records = {record.run.id: record for record in store.records(whole=False)}
    # Two draws of a set that is always the same are one run: its record tells one draw, and the index the other too.
    draws = {(cell.run, cell.data, cell.seed) for cell in store.cells() if cell.run in records}
    # Where two runs have a cell's labels, such as of two processors, the index decides: it comes last.
    for run_id, data, seed in [*((i, record.run.data, record.run.seed) for i, record in records.items()), *sorted(draws)]:
        run = records[run_id].run
        way = texts.get(identity(run.method), ""), run.target, run.propagate, texts.get(identity(run.allocation), "")
        of = Labels(run.model_name, data, seed, *way)
        if of in requests and _same(records[run_id], requests[of], study):
            in_store = set(store.measured(run_id))
            measured[of] = tuple(text for text, e in evaluators.items() if measurement_id(run_id, canonical(e), digests.get(text, "")) in in_store)
    return measured, len(store.failures())


def _same(record: Record, request: RunRequest, study: Study) -> bool:
    """Whether a record with a cell's labels answers its request as far as it can be told without the model: type, allocation and budget."""
    run, facts, calibration = record.run, record.data_facts, request.calibration
    if (
        run.allocation != canonical(request.recipe.allocation)
        or list(run.transforms) != list(map(canonical, request.recipe.transforms))
        or run.dtype != str(resolve_dtype(study.dtype, study.device)).removeprefix("torch.")
    ):
        return False
    if calibration is None:
        return True
    sets = len(calibration.mixed) or 1
    budget = (
        facts.get("windows") == calibration.samples * sets
        if calibration.budget is None
        else facts.get("tokens") in (calibration.budget, calibration.budget * sets)
    )
    return budget and facts.get("length") == calibration.length


def _model(
    study: Study,
    model: str,
    cells: Sequence[tuple[RunRequest, Labels]],
    measured: Mapping[Labels, Sequence[str]],
    supplies: Sequence[Supply],
    probed: bool,
    progress: Progress,
) -> ModelPlan:
    """The plan for one model, with what can be measured of it on this machine."""
    done, evaluators = [measured[of] for _, of in cells if of in measured], study.evaluators()
    planned = ModelPlan(model, Count(len(cells), len(done)), Count(len(cells) * len(evaluators), sum(map(len, done))))
    try:
        path, began = located(model), time.perf_counter()
        if not probed:
            return planned
        opened = open_model(str(path), study.dtype, study.device)
    except ModelError as error:
        return replace(planned, why=str(error))
    requests = [request for request, _ in cells]
    timings = measure_pieces(opened, time.perf_counter() - began, requests, evaluators, kinds(requests), progress)
    unfinished = [Unfinished(q, [text for text in evaluators if text not in measured.get(of, ())], of in measured) for q, of in cells]
    each = {kind.__name__: timings.statistics[(kind,)] for kind in kinds(requests)}
    return replace(
        planned,
        note=timings.note,
        dtype=timings.dtype,
        blocks=timings.blocks,
        matrices=timings.matrices,
        inputs=timings.inputs,
        statistics=each,
        statistics_bytes=len(passes(requests)) * sum(each.values()),
        seconds=duration(timings, [one for one in unfinished if one.measures or not one.recorded], {supply.data: supply for supply in supplies}),
        instead=dict(timings.propagates),
        fails=timings.why_not,
    )


def _supplies(study: Study, cells: Sequence[tuple[RunRequest, Labels]], progress: Progress) -> tuple[Supply, ...]:
    """How far each set lasts, with the tokenizer of the first model that is on this machine, else that of smollm2; nothing where neither is."""
    tokenizer = None
    for model in dict.fromkeys([*(of.model for _, of in cells), "smollm2"]):
        try:
            tokenizer = tokenizer or open_tokenizer(str(located(model)))[0]
        except ModelError:
            continue
    sets = {str(q.calibration): q.calibration for q, _ in cells if q.calibration}
    draws = {data: max(of.seed for _, of in cells if of.data == data) + 1 for data in sets}
    exact = sum(draws[data] * budget_of(calibration) for data, calibration in sets.items()) <= EXACT
    supplies: list[Supply] = []
    for number, (data, calibration) in enumerate(sets.items()):
        progress("looking at the sets", number, len(sets))
        if tokenizer is not None:
            supplies.append(supply_of(calibration, draws[data], tokenizer, exact))
    progress("looking at the sets", len(sets), len(sets))
    return tuple(supplies)


def _shared(requests: Sequence[RunRequest]) -> dict[str, int]:
    """How often what is made once is used."""
    return {
        "drawn": len({repr(q.calibration) for q in requests if q.calibration}),
        "looking": sum(1 for q in requests if q.calibration),
        "passes": sum(len(passes(q for q in requests if q.model == model)) for model in dict.fromkeys(q.model for q in requests)),
        "from_passes": sum(1 for q in requests if q.shares),
        "baselines": sum(1 for q in requests if not q.calibration),
    }


def _propagated(study: Study, labels: Sequence[Labels]) -> Iterator[tuple[str, str, str]]:
    """The propagation of each method that looks at data, and why it is that one."""
    for method, seen in dict.fromkeys((of.method, of.propagate) for of in labels if of.data):
        built = methods.build(method)
        own = study.propagate is None and seen == propagation(built, None)
        why = (UPDATES if built.updates else SCORES) if isinstance(built, MatrixMethod) else AS_IT_IS
        yield method, seen, why if own else "the study says so"


def _warned(models: Sequence[ModelPlan], supplies: Sequence[Supply]) -> Iterator[str]:
    for model in models:
        yield from (f"{model.model}: {note}" for note in model.instead.values())
        yield from (f"{model.model}: {complaint}" for complaint in model.fails)
    for supply in supplies:
        number = "" if supply.held is None else f"{supply.held:.0f}" if supply.exact else f"about {supply.held:.1f}"
        if supply.why and supply.held is not None:
            yield f"{supply.data}: {supply.why}"
        elif supply.held is not None and supply.held < 1:
            yield f"{supply.data} holds {number} draws of this size, too little for one: its runs will fail; take fewer samples or tokens"
        elif not supply.lasts:
            few = f"{supply.data} holds {number} disjoint draws of this size, and the study has {supply.draws}"
            yield f"{few}: later ones repeat rows of earlier ones"


def _stopped(study: Study) -> Iterator[str]:
    """What would stop the study at once: rows of a user's file that are also measured."""
    try:
        study.workload()
    except DataError as error:
        yield str(error)


def _unknown(models: Sequence[ModelPlan], supplies: Sequence[Supply], probed: bool) -> Iterator[str]:
    for model in models:
        if model.why:
            yield f"{model.model}: {model.why}; so its time, the size of its statistics, and whether the targets fit it aren't known"
    yield from (f"{supply.data}: {supply.why}" for supply in supplies if supply.why and supply.held is None)
    if not probed:
        yield "times, sizes and draws: nothing was measured (--quick)"
    elif not supplies:
        yield "draws: there is no tokenizer on this machine to read the sets with"
