"""What a study would do, before it does it: how many runs, what they share, what is there already, and how long the rest may take."""

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
from calibrant.study.duration import Lacking, duration, kinds, passes
from calibrant.study.grid import Study
from calibrant.study.labels import DENSE, Labels, propagation
from calibrant.study.probe import probe
from calibrant.study.question import Question, digests_of
from calibrant.study.stock import Stock, budget_of, look

EXACT: Final = 400_000
"""Tokens in all draws of all sets up to which they are drawn to see whether they are disjoint; beyond, their number is told from a small draw."""
UPDATES: Final = "it changes the weights it keeps, and fitted to inputs that no longer come they do harm"
AS_IT_IS: Final = "it looks at the model as it is"
SCORES: Final = "it only scores, so one pass over the untouched model serves every target"


@dataclass(frozen=True)
class Count:
    """How many of something are asked for, how many the store has, and how many are left to do."""

    asked: int
    done: int

    @property
    def left(self) -> int:
        """What is lacking."""
        return self.asked - self.done


@dataclass(frozen=True)
class ModelPlan:
    """One model of a study: what is asked of it, and what is known of it; `why` says why nothing is.

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
    """What a study would do. `methods` are (method, propagation, why); `shared` counts what is made once; `stock` is what the sets hold.

    `seconds` is the estimate for one worker, None if no part of it could be measured; `load` is how busy each processor was meanwhile, 1 and more
    where something else was at work too. `unknown` is what can't be known here, `warnings` what
    should be looked at before it is begun.
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
    stock: tuple[Stock, ...] = ()
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
        said = [(sentence,) for sentence in (*self.warnings, *self.unknown)]
        return card("Plan of a study", facts, inside=listing(("to know before it begins",), said) if said else "")

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
        measured, failed = _held(study, Path(folder))
        cells = [cell for at, cell in enumerate(zip(study.questions(), study.labels(), strict=True)) if at in chosen]
        drawn = _stock(study, cells, progress) if probed else ()
        models = tuple(
            _model(study, model, [cell for cell in cells if cell[1].model == model], measured, drawn, probed, progress)
            for model in dict.fromkeys(of.model for _, of in cells)
        )
        warnings = [*_warned(models, drawn), *(_stopped(study) if probed else ())]
    labels, seconds = [of for _, of in cells], [sum(m.seconds.values()) for m in models if m.seconds]
    return Plan(
        models,
        tuple(dict.fromkeys(of.data for of in labels if of.data)),
        tuple(sorted({of.seed for of in labels if of.data})),
        tuple(sorted({of.target for of in labels if of.method != DENSE})),
        tuple(study.evaluators()),
        tuple(_propagated(study, labels)),
        len(study.for_reading()["primary"]),
        _shared([question for question, _ in cells]),
        failed,
        int(study.statistics_gb * 1e9),
        drawn,
        sum(seconds) if seconds else None,
        _load() if seconds else None,
        tuple(_unknown(models, drawn, probed)),
        tuple(warnings),
    )


def _held(study: Study, folder: Path) -> tuple[dict[Labels, tuple[str, ...]], int]:
    """The evaluators that have measured each cell that the store has a record of, by what the records say; and how many failures it holds."""
    if not folder.exists() or (folder.is_dir() and not {p.name for p in folder.iterdir()} - {UNFINISHED}):
        return {}, 0
    store = Store(folder, create=False)
    asked = dict(zip(study.labels(), study.questions(), strict=True))
    texts = {identity(q.recipe.method): str(q.recipe.method) for q in asked.values()}
    found: dict[Labels, tuple[str, ...]] = {}
    evaluators, digests = study.evaluators(), digests_of(study.evaluators())
    records = {record.run.id: record for record in store.records(whole=False)}
    # Two draws of a set that is always the same are one run: its record tells one draw, and the index the other too.
    draws = {(cell.run, cell.data, cell.seed) for cell in store.cells() if cell.run in records}
    for run_id, data, seed in {*draws, *((i, record.run.data, record.run.seed) for i, record in records.items())}:
        run = records[run_id].run
        of = Labels(run.model_name, data, seed, texts.get(identity(run.method), ""), run.target, run.propagate)
        if of in asked and _same(records[run_id], asked[of], study):
            here = set(store.measured(run_id))
            found[of] = tuple(text for text, e in evaluators.items() if measurement_id(run_id, canonical(e), digests.get(text, "")) in here)
    return found, len(store.failures())


def _same(record: Record, question: Question, study: Study) -> bool:
    """Whether a record with a cell's labels answers its question as far as it can be told without the model: type, allocation and budget."""
    run, facts, asked = record.run, record.data_facts, question.calibration
    if (
        run.allocation != canonical(question.recipe.allocation)
        or list(run.transforms) != list(map(canonical, question.recipe.transforms))
        or run.dtype != str(resolve_dtype(study.dtype, study.device)).removeprefix("torch.")
    ):
        return False
    if asked is None:
        return True
    sets = len(asked.mixed) or 1
    budget = facts.get("windows") == asked.samples * sets if asked.budget is None else facts.get("tokens") in (asked.budget, asked.budget * sets)
    return budget and facts.get("length") == asked.length


def _model(
    study: Study,
    model: str,
    cells: Sequence[tuple[Question, Labels]],
    measured: Mapping[Labels, Sequence[str]],
    drawn: Sequence[Stock],
    probed: bool,
    progress: Progress,
) -> ModelPlan:
    """What is asked of a model, and what can be told of it here."""
    done, evaluators = [measured[of] for _, of in cells if of in measured], study.evaluators()
    told = ModelPlan(model, Count(len(cells), len(done)), Count(len(cells) * len(evaluators), sum(map(len, done))))
    try:
        path, began = located(model), time.perf_counter()
        if not probed:
            return told
        opened = open_model(str(path), study.dtype, study.device)
    except ModelError as error:
        return replace(told, why=str(error))
    asked = [question for question, _ in cells]
    found = probe(opened, time.perf_counter() - began, asked, evaluators, kinds(asked), progress)
    lacking = [Lacking(q, [text for text in evaluators if text not in measured.get(of, ())], of in measured) for q, of in cells]
    each = {kind.__name__: found.statistics[(kind,)] for kind in kinds(asked)}
    return replace(
        told,
        note=found.note,
        dtype=found.dtype,
        blocks=found.blocks,
        matrices=found.matrices,
        inputs=found.inputs,
        statistics=each,
        statistics_bytes=len(passes(asked)) * sum(each.values()),
        seconds=duration(found, [one for one in lacking if one.measures or not one.recorded], {stock.data: stock for stock in drawn}),
        instead=dict(found.propagates),
        fails=found.why_not,
    )


def _stock(study: Study, cells: Sequence[tuple[Question, Labels]], progress: Progress) -> tuple[Stock, ...]:
    """How far each set lasts, read by the tokenizer of the first model that is here, else by that of smollm2; nothing where neither is."""
    tokenizer = None
    for model in dict.fromkeys([*(of.model for _, of in cells), "smollm2"]):
        try:
            tokenizer = tokenizer or open_tokenizer(str(located(model)))[0]
        except ModelError:
            continue
    sets = {str(q.calibration): q.calibration for q, _ in cells if q.calibration}
    draws = {data: max(of.seed for _, of in cells if of.data == data) + 1 for data in sets}
    exact = sum(draws[data] * budget_of(asked) for data, asked in sets.items()) <= EXACT
    found: list[Stock] = []
    for number, (data, asked) in enumerate(sets.items()):
        progress("looking at the sets", number, len(sets))
        if tokenizer is not None:
            found.append(look(asked, draws[data], tokenizer, exact))
    progress("looking at the sets", len(sets), len(sets))
    return tuple(found)


def _shared(questions: Sequence[Question]) -> dict[str, int]:
    """How often what is made once is used."""
    return {
        "drawn": len({repr(q.calibration) for q in questions if q.calibration}),
        "looking": sum(1 for q in questions if q.calibration),
        "passes": sum(len(passes(q for q in questions if q.model == model)) for model in dict.fromkeys(q.model for q in questions)),
        "from_passes": sum(1 for q in questions if q.shares),
        "baselines": sum(1 for q in questions if not q.calibration),
    }


def _propagated(study: Study, labels: Sequence[Labels]) -> Iterator[tuple[str, str, str]]:
    """What each method that looks at data sees, and why."""
    for method, seen in dict.fromkeys((of.method, of.propagate) for of in labels if of.data):
        built = methods.build(method)
        own = study.propagate is None and seen == propagation(built, None)
        why = (UPDATES if built.updates else SCORES) if isinstance(built, MatrixMethod) else AS_IT_IS
        yield method, seen, why if own else "the study asks for it"


def _warned(models: Sequence[ModelPlan], drawn: Sequence[Stock]) -> Iterator[str]:
    for model in models:
        yield from (f"{model.model}: {note}" for note in model.instead.values())
        yield from (f"{model.model}: {complaint}" for complaint in model.fails)
    for stock in drawn:
        held = "" if stock.held is None else f"{stock.held:.0f}" if stock.exact else f"about {stock.held:.1f}"
        if stock.why and stock.held is not None:
            yield f"{stock.data}: {stock.why}"
        elif stock.held is not None and stock.held < 1:
            yield f"{stock.data} holds {held} draws of this size, too little for one: its runs will fail; ask for fewer samples or tokens"
        elif not stock.lasts:
            yield f"{stock.data} holds {held} disjoint draws of this size, and {stock.draws} are asked for: later ones repeat rows of earlier ones"


def _load() -> float | None:
    """How many programs each processor had to do in the last minute; None where the system doesn't tell."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if os.name == "posix" else None


def _stopped(study: Study) -> Iterator[str]:
    """What would stop the study at once: rows of a user's file that are also measured."""
    try:
        study.job()
    except DataError as error:
        yield str(error)


def _unknown(models: Sequence[ModelPlan], drawn: Sequence[Stock], probed: bool) -> Iterator[str]:
    for model in models:
        if model.why:
            yield f"{model.model}: {model.why}; so its time, the size of its statistics, and whether the targets fit it can't be told"
    yield from (f"{stock.data}: {stock.why}" for stock in drawn if stock.why and stock.held is None)
    if not probed:
        yield "times, sizes and draws: nothing was measured (--quick)"
    elif not drawn:
        yield "draws: no tokenizer is here to read the sets with"
