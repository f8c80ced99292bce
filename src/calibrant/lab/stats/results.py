"""What a store holds, in memory: its measurements as arrays, the scores as one flat table, the
draws of one set, and the groups of cells that are compared with one another: those of one model,
method, target and propagation, with what was measured and what is missing.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from calibrant.errors import DataError, SpecError
from calibrant.lab.stats.crossed import Draws, Independence, ItemValues, Side, share_of
from calibrant.lab.stats.labels import label_set, labels_of
from calibrant.results import Cell, Measurement, Record, Score, Store, revisions, stored_bits
from calibrant.results.items import ItemNumbers
from calibrant.results.outcomes import item_name
from calibrant.results.records import DENSE, MEASURED, UNTOUCHED, differences, is_older
from calibrant.spec.grammar import SetLabel, read_target
from calibrant.system.extras import needed_for

if TYPE_CHECKING:
    import polars as pl

OVERLAP: Final = 0.10
"""The share of its rows that a draw may have in common with earlier ones and still count as
another draw.
"""

ROWS: Final = 500_000
"""Items that are read at once: enough to be quick, few enough for their names to fit into
memory.
"""

LABELS: Final = ("model", "data", "method", "target", "seed", "propagate")
"""What a study calls a run."""

COLUMNS: Final = {
    "model": str,
    "data": str,
    "method": str,
    "target": str,
    "propagate": str,
    "seed": int,
    "measured": str,
    "metric": str,
    "unit": str,
    "value": float,
    "stderr": float,
    "n": int,
    "better": str,
    "chance": float,
    "dense": float,
    "kept": float,
    "run": str,
    "stale": bool,
}
"""The columns of `tidy`."""


class Setting(NamedTuple):
    """What a ranking is for."""

    model: str
    method: str
    target: str
    propagate: str


SetInSetting = tuple[Setting, str]
"""A calibration set in a setting: its cells differ in their draws alone."""


@dataclass(frozen=True)
class UncountedRun:
    """A run of a cell that another run, `counted` (its id), stands for: a draw of a set counts
    once. `differs` names what differs in the two requests.
    """

    cell: Cell
    counted: str
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """What a store holds, as far as comparing needs it.

    `records` are without their weights, `scores` without their items; `items` hold the items as
    arrays, of those measurements that the grid names. All by run, the latter two then by
    measurement. `stale` are ids of runs and of measurements, `sets` what the calibration sets are
    called, `bits` how many bits a weight takes as it is stored, by model, method and target, where
    it isn't stored as a dense number. A draw has one run; `uncounted` are others that the store has
    of it.
    """

    cells: tuple[Cell, ...]
    records: Mapping[str, Record]
    scores: Mapping[str, Mapping[str, Measurement]]
    items: Mapping[str, Mapping[str, ItemValues]]
    study: Mapping[str, Any]
    failures: Mapping[str, Mapping[str, Any]]
    stale: frozenset[str]
    sets: Mapping[str, SetLabel] = field(default_factory=dict[str, SetLabel])
    bits: Mapping[tuple[str, str, str], float] = field(
        default_factory=dict[tuple[str, str, str], float]
    )
    uncounted: tuple[UncountedRun, ...] = ()

    def label(self, data: str) -> SetLabel:
        """Return what a calibration set is called, in its parts."""
        return self.sets.get(data) or label_set(data)

    def overlap(self, run: str) -> float:
        """Return the share of the run's calibration rows that earlier draws of its set have too."""
        record = self.records.get(run)
        if record is None:
            return 0.0
        return float(record.data_facts.get("overlap") or 0.0)


@needed_for("the comparison of results")
def read(store: Store, items: bool = True) -> Results:
    """Read `store`, each file once, with the items of its measurements or without. Raises
    `DataError` for a file that can't be read.
    """
    index = store.index()
    every = store.cells(index)
    scores: dict[str, dict[str, Measurement]] = {}
    records: dict[str, Record] = {}
    for run in dict.fromkeys(cell.run for cell in every if cell.run):
        scores[run] = store.scores(run)
        record = store.record(run, whole=False)
        if record is not None:
            records[run] = record
    cells, uncounted = _one_run_a_draw(every, records, scores)
    counted = {cell.run for cell in cells}
    for run in scores.keys() - counted:
        del scores[run]
        records.pop(run, None)
    item_values: Mapping[str, Mapping[str, ItemValues]] = {}
    if items:
        item_values = _items(store, cells, scores)
    computed = [cell for cell in cells if cell.run in records]
    return Results(
        cells=tuple(cells),
        records=records,
        scores=scores,
        items=item_values,
        study=index.study,
        failures=_failures_of(cells, every, store.failures()),
        stale=frozenset(_stale(store, records, index.revisions)),
        sets=_set_labels(cells, index.labels(), records),
        bits=_bits(store, computed),
        uncounted=tuple(uncounted),
    )


def _one_run_a_draw(
    cells: Sequence[Cell],
    records: Mapping[str, Record],
    scores: Mapping[str, Mapping[str, Measurement]],
) -> tuple[list[Cell], list[UncountedRun]]:
    """Return the cells that count, and the runs that others stand for, as far as they are there."""
    measured = {run for run, found in scores.items() if found}
    stands_for = _standing_runs(cells, measured)
    counted: list[Cell] = []
    uncounted: list[UncountedRun] = []
    for cell in cells:
        standing = stands_for.get((_set_of(cell), cell.run))
        if standing is None:
            counted.append(cell)
        elif cell.run in records and standing in records:
            differs = differences(records[cell.run].run, records[standing].run)
            uncounted.append(UncountedRun(cell, standing, differs))
    return counted, uncounted


def _standing_runs(
    cells: Iterable[Cell], measured: Collection[str]
) -> dict[tuple[SetInSetting, str], str]:
    """Return the run that stands for another one, by the set in its setting and that other run.

    A store that was merged may have two runs of a cell: of two types, or of two machines' texts.
    They are no two draws. The first that is `measured` counts, else the first. A run that answers
    several cells is one draw, so it counts in all of them or in none.
    """
    seeds_by_set: dict[SetInSetting, dict[str, list[int]]] = {}
    for cell in cells:
        if cell.run:
            seeds_by_run = seeds_by_set.setdefault(_set_of(cell), {})
            seeds_by_run.setdefault(cell.run, []).append(cell.seed)
    stands_for: dict[tuple[SetInSetting, str], str] = {}
    for set_in_setting, seeds_by_run in seeds_by_set.items():
        measured_first = [run for run in seeds_by_run if run in measured]
        measured_first += [run for run in seeds_by_run if run not in measured]
        run_of_seed: dict[int, str] = {}
        for run in measured_first:
            seeds = seeds_by_run[run]
            taken_by = [run_of_seed[seed] for seed in seeds if seed in run_of_seed]
            if taken_by:
                stands_for[set_in_setting, run] = taken_by[0]
            else:
                run_of_seed |= dict.fromkeys(seeds, run)
    return stands_for


def _set_of(cell: Cell) -> SetInSetting:
    return Setting(cell.model, cell.method, cell.target, cell.propagate), cell.data


def _set_labels(
    cells: Sequence[Cell], index: Mapping[str, SetLabel], records: Mapping[str, Record]
) -> dict[str, SetLabel]:
    """Return what the sets of the cells are called, and their finished models."""
    labels = labels_of((cell.data for cell in cells), index, records.values())
    of_sets = {cell.data for cell in cells if cell.method != MEASURED}
    for cell in cells:
        if cell.method == MEASURED and cell.data not in of_sets:
            # A label is no expression, whatever it looks like.
            labels[cell.data] = SetLabel(cell.data, cell.data)
    return labels


def _bits(store: Store, cells: Iterable[Cell]) -> dict[tuple[str, str, str], float]:
    """Return how many bits a weight takes, by model, method and target.

    All runs of these three take as many, so one record of each is read whole.
    """
    runs: dict[tuple[str, str, str], str] = {}
    for cell in cells:
        if cell.method != UNTOUCHED and not read_target(cell.target).removal:
            runs[cell.model, cell.method, cell.target] = cell.run
    found: dict[tuple[str, str, str], float] = {}
    for key, run in runs.items():
        record = store.record(run)
        if record is None:
            continue
        bits = stored_bits(record.weights)
        if bits is not None:
            found[key] = bits
    return found


def _stale(
    store: Store, records: Mapping[str, Record], current: Mapping[str, int]
) -> Iterator[str]:
    """Yield the ids of runs and of measurements that are of an older revision than the `current`
    one.
    """
    # The first revision is 1. Without a later one no measurement can be stale, and none is read.
    of_evaluators = [current[name] for name in current if name.startswith("evaluator ")]
    revised = any(revision > 1 for revision in of_evaluators)
    for run, record in records.items():
        if is_older(record.run.revisions, current):
            yield run
        if revised:
            for measure_id, form in store.evaluators(run).items():
                if is_older(revisions("evaluator", form), current):
                    yield measure_id


def narrowed(results: Results, measures: str | Sequence[str]) -> Results:
    """Return the same with those of its evaluators whose text, or what they measured, begins with
    one of `measures`; all without any.

    Raises `SpecError` where nothing begins so.
    """
    if isinstance(measures, str):
        measures = [measures]
    if not measures:
        return results
    names = _names_by_text(results)
    chosen: set[str] = set()
    for beginning in measures:
        found: set[str] = set()
        for text, known in names.items():
            if any(name.startswith(beginning) for name in known):
                found.add(text)
        if not found:
            raise SpecError(
                f"nothing that was measured begins with {beginning!r} "
                f"(measured: {', '.join(names) or 'nothing'}); "
                "name one of these, or its beginning",
                subject=beginning,
            )
        chosen |= found
    cells: list[Cell] = []
    for cell in results.cells:
        measured = {text: name for text, name in cell.measures.items() if text in chosen}
        cells.append(replace(cell, measures=measured))
    failures = _failures_of(cells, results.cells, results.failures)
    return replace(results, cells=tuple(cells), failures=failures)


def _failures_of(
    cells: Iterable[Cell], every: Iterable[Cell], failures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Return the failures without those whose id `every` cell together have and `cells` don't.

    They name their cell too, and would be taken for the reason of what it lacks.
    """
    others = _ids(every) - _ids(cells)
    return {failed_id: why for failed_id, why in failures.items() if failed_id not in others}


def _ids(cells: Iterable[Cell]) -> set[str]:
    """Return the ids of the cells' runs and of all that is measured on them."""
    ids: set[str] = set()
    for cell in cells:
        ids.update((cell.run, *cell.measures.values()))
    return ids


def _names_by_text(results: Results) -> dict[str, set[str]]:
    """Return what each evaluator may be called: its text, and what it measured."""
    names: dict[str, set[str]] = {}
    for cell in results.cells:
        for text, measure_id in cell.measures.items():
            names.setdefault(text, {text})
            measurement = results.scores.get(cell.run, {}).get(measure_id)
            if measurement:
                names[text].add(measurement.score.measured)
    return names


def tidy(store: Store | Results) -> "pl.DataFrame":
    """Return every score of the store as one flat row, the primary ones and those beside them: the
    run, what was measured, the value. Of several runs of one cell the one that counts has rows.

    `dense` is what the untouched model scored there and `kept` the share of it that is left (see
    `share_kept`); both are empty without one. `stale` says that the run or the measurement is of an
    older revision.
    """
    import polars as pl

    results = store if isinstance(store, Results) else read(store, items=False)
    # What the dense model scored, by model and evaluator, then by metric.
    dense_scores: dict[tuple[str, str], dict[str, float]] = {}
    for cell, text, scores in _scores(results):
        if cell.method == UNTOUCHED:
            dense_scores[cell.model, text] = {score.metric: score.value for score in scores}
    rows: list[dict[str, Any]] = []
    for cell, text, scores in _scores(results):
        dense_values = dense_scores.get((cell.model, text), {})
        stale = cell.run in results.stale or cell.measures[text] in results.stale
        for score in scores:
            rows.append(_row(cell, score, dense_values.get(score.metric), stale))
    return pl.DataFrame(rows, schema=COLUMNS)


def _row(cell: Cell, score: Score, dense: float | None, stale: bool) -> dict[str, Any]:
    """Return one score of a cell as a row of `tidy`; `dense` is what the dense model scored."""
    kept: float | None = None
    if dense is not None:
        share = share_of(score.value, dense, score)
        if share is not None:
            kept = share.value
    row: dict[str, Any] = {name: getattr(cell, name) for name in LABELS}
    row |= {
        "measured": score.measured,
        "metric": score.metric,
        "unit": score.unit,
        "value": score.value,
        "stderr": score.stderr,
        "n": score.n,
        "better": score.better,
        "chance": score.chance,
        "dense": dense,
        "kept": kept,
        "run": cell.run,
        "stale": stale,
    }
    return row


def _scores(results: Results) -> Iterator[tuple[Cell, str, tuple[Score, ...]]]:
    """Yield every cell with each text of its measures and the scores of that, where they are
    there: the primary one first.
    """
    for cell in results.cells:
        for text, measure_id in cell.measures.items():
            measurement = results.scores.get(cell.run, {}).get(measure_id)
            if measurement is not None:
                yield cell, text, (measurement.score, *measurement.beside)


def draws(store: Store, **labels: str | int) -> dict[str, Draws]:
    """Return the measurements of the cells with these labels, by what was measured, one a draw in
    the order of their seeds: a side of `contrast`.

    `labels` are those of a cell as the study wrote it: `data`, which is empty for the dense model,
    `method`, `target`, `propagate`, `model`, `seed`. One run that answers several cells is one
    draw, and so are several runs of one cell, of which the first that was measured counts. What
    lacks in one of the draws is left out. Whether draws share rows isn't looked at: then they don't
    count as draws, and `compare` says so.
    Raises `SpecError` for another label, and `DataError` where the labels fit no cell, cells of
    more than one set, method or sparsity, or two evaluators that say the same of what they
    measured.
    """
    cells = _cells_with(store, labels)
    sides: dict[str, Draws] = {}
    for text in cells[0].measures:
        side: list[Measurement] = []
        for cell in cells:
            measurement = None
            if text in cell.measures:
                measurement = store.measurement(cell.run, cell.measures[text])
            if measurement is not None:
                side.append(measurement)
        if len(side) < len(cells):
            continue
        name = side[0].score.measured
        if name in sides:
            raise DataError(
                f"two evaluators call what they measured {name!r}; compare them one by one",
                subject=text,
            )
        sides[name] = side
    return sides


def _cells_with(store: Store, labels: Mapping[str, str | int]) -> list[Cell]:
    """Return the cells with these labels, one a run, in the order of their seeds; they differ in
    nothing else.
    """
    unknown = sorted(labels.keys() - set(LABELS))
    if unknown:
        raise SpecError(
            f"a cell has no label {unknown[0]!r}; its labels are {', '.join(LABELS)}",
            subject=unknown[0],
        )
    cells: list[Cell] = []
    for cell in store.cells():
        if all(getattr(cell, name) == value for name, value in labels.items()):
            cells.append(cell)
    cells.sort(key=lambda cell: cell.seed)
    wanted = [f"{name} {value!r}" for name, value in labels.items()]
    request = ", ".join(wanted) or "no label"
    if not cells:
        raise DataError(f"{request} fits no cell of the store", subject=request)
    for name in LABELS:
        distinct = {getattr(cell, name) for cell in cells}
        if name != "seed" and len(distinct) > 1:
            raise DataError(
                f"{request} fits cells that differ in {name}; say which", subject=request
            )
    measured = {cell.run for cell in cells if store.measured(cell.run)}
    stands_for = _standing_runs(cells, measured)
    by_run: dict[str, Cell] = {}
    for cell in cells:
        if (_set_of(cell), cell.run) not in stands_for:
            by_run.setdefault(cell.run, cell)
    return list(by_run.values())


def _items(
    store: Store, cells: Sequence[Cell], scores: Mapping[str, Mapping[str, Measurement]]
) -> dict[str, dict[str, ItemValues]]:
    """Read the items of all measurements, at most `ROWS` at once; by evaluator, so that those
    with the same items come one after the other.
    """
    by_text: dict[str, dict[tuple[str, str], None]] = {}
    for cell in cells:
        for text, measure_id in cell.measures.items():
            if measure_id in scores.get(cell.run, {}):
                measured_by = by_text.setdefault(text, {})
                measured_by[cell.run, measure_id] = None
    batches: list[list[tuple[str, str]]] = []
    rows = ROWS  # as if a batch were full, so that the first measurement begins one
    for text in sorted(by_text):
        for run, measure_id in by_text[text]:
            size = scores[run][measure_id].score.n
            if rows + size > ROWS:
                batches.append([])
                rows = 0
            batches[-1].append((run, measure_id))
            rows += size
    items: dict[str, dict[str, ItemValues]] = {}
    for batch in batches:
        measured = [scores[run][measure_id] for run, measure_id in batch]
        values = _item_values(measured, store.numbers(batch))
        for (run, measure_id), found in zip(batch, values, strict=True):
            items.setdefault(run, {})[measure_id] = found
    return items


def _item_values(
    measurements: Iterable[Measurement], numbers: Iterable[ItemNumbers]
) -> Iterator[ItemValues]:
    """Yield the items of each measurement in the order of their names."""
    stored = None
    order = np.array([], dtype=np.intp)
    names: tuple[str, ...] = ()
    weights = np.array([])
    for measurement, stored_items in zip(measurements, numbers, strict=True):
        if stored is None or not stored_items.names.equals(stored):
            # Most measurements have the items of the one before. Then they are given the same
            # names and weights as objects, and to compare two of them takes no time.
            stored = stored_items.names
            readable = [item_name(name) for name in stored]
            places = sorted(range(len(readable)), key=readable.__getitem__)
            order = np.array(places, dtype=np.intp)
            names = tuple(readable[place] for place in places)
        if not np.array_equal(stored_items.weights[order], weights):
            weights = stored_items.weights[order]
        yield ItemValues(
            measurement.score, names, stored_items.values[order], weights, measurement.beside
        )


def grouped(cells: Sequence[Cell]) -> dict[Setting, list[Cell]]:
    """Return the cells of each setting, in their order: those of its sets, the dense model, and
    the baselines of its target.

    The dense model has there only what something else was measured on.
    """
    groups: dict[Setting, list[Cell]] = {}
    for cell in cells:
        if cell.data:
            setting = Setting(cell.model, cell.method, cell.target, cell.propagate)
            groups.setdefault(setting, []).append(cell)
    baselines = [cell for cell in cells if not cell.data]
    # By identity: two cells may say the same of themselves.
    places = {id(cell): place for place, cell in enumerate(cells)}
    for setting, group in groups.items():
        for cell in baselines:
            compared = cell.method == UNTOUCHED or cell.target == setting.target
            if compared and cell.model == setting.model:
                group.append(cell)
        group.sort(key=lambda cell: places[id(cell)])
    # Finished models, which no study made, come behind what studies compare.
    ordered = sorted(groups, key=_finished_last)
    return {setting: _as_asked(groups[setting]) for setting in ordered}


def _finished_last(setting: Setting) -> tuple[bool, Setting]:
    return setting.method == MEASURED, setting


def _as_asked(group: Sequence[Cell]) -> list[Cell]:
    """Return the cells with the dense model's measures as far as another cell has them too; a
    dense model alone has all of its own.
    """
    asked: set[str] = set()
    for cell in group:
        if cell.method != UNTOUCHED:
            asked.update(cell.measures)
    if not asked:
        return list(group)
    cells: list[Cell] = []
    for cell in group:
        if cell.method == UNTOUCHED:
            measures = {text: name for text, name in cell.measures.items() if text in asked}
            cell = replace(cell, measures=measures)
        cells.append(cell)
    return cells


def unranked(cells: Sequence[Cell]) -> dict[Setting, list[Cell]]:
    """Return the cells of each method that looks at no data, with the dense model, where no set has
    its target: it stands in no ranking.

    A model that is only measured stands alone.
    """
    ranked = {(setting.model, setting.target) for setting in grouped(cells)}
    untouched = [cell for cell in cells if cell.method == UNTOUCHED]
    compressed = {cell.model for cell in cells if cell.method != UNTOUCHED}
    groups: dict[Setting, list[Cell]] = {}
    for cell in cells:
        without_data = not cell.data and cell.method != UNTOUCHED
        if without_data and (cell.model, cell.target) not in ranked:
            setting = Setting(cell.model, cell.method, cell.target, "")
            groups.setdefault(setting, []).append(cell)
    for cell in cells:
        if cell.model not in compressed:
            groups[Setting(cell.model, UNTOUCHED, cell.target, "")] = []
    with_dense: dict[Setting, list[Cell]] = {}
    for setting, group in groups.items():
        dense = [cell for cell in untouched if cell.model == setting.model]
        with_dense[setting] = _as_asked([*dense, *group])
    return with_dense


def label_of(cell: Cell) -> str:
    """Return a set's expression, "dense", or the name of a method that looks at no data."""
    if cell.data:
        return cell.data
    return DENSE if cell.method == UNTOUCHED else cell.method


@dataclass(frozen=True)
class GroupResults:
    """What the cells of one group have, by label: "dense", "magnitude", or a set.

    `sides` are those of labels that have all that was measured. The other labels are `partial`,
    with what they have. `names` maps an evaluator's text to the name of what it measured; `runs`
    are one a draw; `overlapping` maps the sets whose draws share rows to the largest share.
    """

    names: Mapping[str, str]
    sides: Mapping[str, Mapping[str, Side]]
    partial: Mapping[str, Mapping[str, Side]]
    runs: Mapping[str, tuple[str, ...]]
    sets: frozenset[str]
    overlapping: Mapping[str, float]

    def draws(self, label: str) -> int:
        """Return how many draws a set has; 0 for what takes none."""
        if label not in self.sets:
            return 0
        return len(self.runs[label])

    @staticmethod
    def of(cells: Sequence[Cell], results: Results, texts: Sequence[str] = ()) -> "GroupResults":
        """Return what a group's cells have of the evaluators `texts` (all, without). Raises
        `DataError` for draws that can't be paired.
        """
        names = _names(cells, results)
        if texts:
            names = {text: name for text, name in names.items() if text in texts}
        sets = frozenset(cell.data for cell in cells if cell.data)
        runs: dict[str, tuple[str, ...]] = {}
        overlapping: dict[str, float] = {}
        sides: dict[str, dict[str, Side]] = {}
        partial: dict[str, dict[str, Side]] = {}
        for label, by_run in _measured(cells, results, names).items():
            some_measured = [run for run, by_name in by_run.items() if by_name]
            complete = [run for run in some_measured if len(by_run[run]) == len(names)]
            runs[label] = tuple(complete)
            if complete:
                counted = complete
                found = sides
            else:
                counted = some_measured
                found = partial
            independence: Independence = "no draws"
            source = ""
            if label in sets:
                independence = "independent"
                source = results.label(label).source
            share = max(map(results.overlap, counted), default=0.0)
            if share > OVERLAP:
                overlapping[label] = share
                independence = "overlapping"
            draws = [by_run[run] for run in counted]
            found[label] = _sides(draws, independence, source)
        return GroupResults(names, sides, partial, runs, sets, overlapping)


def _sides(
    draws: Sequence[Mapping[str, ItemValues]], independence: Independence, source: str
) -> dict[str, Side]:
    """Return what was measured on draws, by the names of the evaluators, as sides of contrasts."""
    values_by_name: dict[str, list[ItemValues]] = {}
    for by_name in draws:
        for name, values in by_name.items():
            values_by_name.setdefault(name, []).append(values)
    return {name: Side.of(values, independence, source) for name, values in values_by_name.items()}


def _measured(
    cells: Sequence[Cell], results: Results, names: Mapping[str, str]
) -> dict[str, dict[str, dict[str, ItemValues]]]:
    """Return what was measured, by label and run, and there by the names of the evaluators.

    One run that answers several cells (a source that gives the same tokens for every seed) is one
    draw, not several.
    """
    by_label: dict[str, dict[str, dict[str, ItemValues]]] = {}
    for cell in cells:
        by_run = by_label.setdefault(label_of(cell), {})
        by_name = by_run.setdefault(cell.run, {})
        items = results.items.get(cell.run, {})
        for text, name in names.items():
            measure_id = cell.measures.get(text, "")
            if measure_id in items:
                by_name.setdefault(name, items[measure_id])
    return by_label


def _names(cells: Sequence[Cell], results: Results) -> dict[str, str]:
    """Return what each evaluator measured, by its text; two that measured the same thing
    differently are named by their texts too.
    """
    names: dict[str, str] = {}
    for cell in cells:
        for text, measure_id in cell.measures.items():
            items = results.items.get(cell.run, {}).get(measure_id)
            if items is not None:
                names.setdefault(text, items.score.measured)
    measured = list(names.values())
    for text, name in names.items():
        if measured.count(name) > 1:
            names[text] = f"{name} [{text}]"
    return names


def missing(cells: Sequence[Cell], results: Results, texts: Sequence[str] = ()) -> Iterator[str]:
    """Yield what the cells lack of the evaluators `texts` (all that any of them names, without),
    a sentence each, with the reason.
    """
    by_cell = _failures_by_cell(results)
    if not texts:
        named: dict[str, None] = {}
        for cell in cells:
            named |= dict.fromkeys(cell.measures)
        texts = tuple(named)
    for cell in cells:
        for text in texts:
            measure_id = cell.measures.get(text, "")
            if measure_id in results.items.get(cell.run, {}):
                continue
            if cell.method == MEASURED:
                name = label_of(cell)
            else:
                name = f"{_way(cell)}: {label_of(cell)} (draw {cell.seed})"
            failures = (
                results.failures.get(measure_id),
                results.failures.get(cell.run),
                by_cell.get(cell.labels),
                # Older failures name their cell without the propagation.
                by_cell.get(cell.labels[:-1]),
            )
            yield f"{name} on {text}: {_first_error(failures)}"


def _first_error(failures: Iterable[Mapping[str, Any] | None]) -> Any:
    """Return the error of the first failure that there is, and else that nothing was computed."""
    for failure in failures:
        if failure:
            return failure.get("error")
    return "not computed yet"


def _failures_by_cell(results: Results) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Return the failures that name a cell and are of no id of the grid, by the cell's labels."""
    ids_of_grid = _ids(results.cells)
    by_cell: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for failed_id, failure in results.failures.items():
        # What failed of one measurement says nothing of the cell's others, and what failed of one
        # run nothing of cells that have another.
        if "cell" in failure and failed_id not in ids_of_grid:
            by_cell[tuple(failure["cell"])] = failure
    return by_cell


def _way(cell: Cell) -> str:
    """What tells a cell from others of its set and draw."""
    if cell.method == UNTOUCHED:
        return cell.model
    way = f"{cell.model}, {cell.method} {cell.target}"
    return f"{way}, {cell.propagate}" if cell.propagate else way
