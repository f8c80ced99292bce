"""What a store holds, in memory: its measurements as arrays, the scores as one flat table, the
draws of one set, and the groups of cells that are compared with one another: those of one model,
method, target and propagation, with what was measured and what is missing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from calibrant.errors import DataError, SpecError
from calibrant.lab.stats.crossed import Draws, Independence, ItemValues, Side, share_of
from calibrant.lab.stats.labels import label_set, labels_of
from calibrant.results import Cell, Measurement, Record, Store, revisions, stored_bits
from calibrant.results.items import ItemNumbers
from calibrant.results.outcomes import item_name
from calibrant.results.records import is_older
from calibrant.spec.grammar import SetLabel, read_target
from calibrant.system.extras import needed_for

if TYPE_CHECKING:
    import polars as pl

UNTOUCHED: Final = "none"
"""The method of the model as it came."""

DENSE: Final = "dense"
"""The label of the model that nothing was pruned from."""

OVERLAP: Final = 0.10
"""The share of its rows that a draw may have in common with earlier ones and still count as
another draw.
"""

ROWS: Final = 500_000
"""Items that are read at once: enough to be quick, few enough for their names to fit into
memory.
"""

Table = tuple[tuple[str, ...], Float[np.ndarray, " items"], Float[np.ndarray, " items"]]
"""The items of one measurement in the order of their names, their values and weights."""

LABELS: Final = tuple(f.name for f in fields(Cell) if f.name not in ("run", "measures"))
"""What a study calls a run: its model, data, method, target, seed and propagation."""

COLUMNS: Final = {
    **dict.fromkeys(("model", "data", "method", "target", "propagate"), str),
    "seed": int,
    **dict.fromkeys(("measured", "metric", "unit"), str),
    **dict.fromkeys(("value", "stderr"), float),
    "n": int,
    "better": str,
    **dict.fromkeys(("chance", "dense", "kept"), float),
    "run": str,
    "stale": bool,
}


@dataclass(frozen=True)
class Results:
    """What a store holds, as far as comparing needs it.

    `records` are without their weights, `scores` without their items; `items` hold the items as
    arrays, of those measurements that the grid names. All by run, the latter two then by
    measurement. `stale` are ids of runs and of measurements, `sets` what the calibration sets are
    called, `bits` how many bits a weight takes as it is stored, by model, method and target, where
    it isn't stored as a dense number.
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

    def label(self, data: str) -> SetLabel:
        """Return what a calibration set is called, in its parts."""
        return self.sets.get(data) or label_set(data)

    def overlap(self, run: str) -> float:
        """Return the share of the run's calibration rows that earlier draws of its set have too."""
        record = self.records.get(run)
        return float(record.data_facts.get("overlap") or 0.0) if record else 0.0


@needed_for("the comparison of results")
def read(store: Store, items: bool = True) -> Results:
    """Read `store`, each file once, with the items of its measurements or without. Raises
    `DataError` for a file that can't be read.
    """
    index = store.index()
    cells = index.cells or store.cells()
    runs = list(dict.fromkeys(cell.run for cell in cells if cell.run))
    scores = {run: store.scores(run) for run in runs}
    records = {
        run: record for run in runs if (record := store.record(run, whole=False)) is not None
    }
    return Results(
        cells=tuple(cells),
        records=records,
        scores=scores,
        items=_items(store, cells, scores) if items else {},
        study=index.study,
        failures=store.failures(),
        stale=frozenset(_stale(store, records, index.revisions)),
        sets=labels_of((cell.data for cell in cells), index.labels(), records.values()),
        bits=_bits(store, [cell for cell in cells if cell.run in records]),
    )


def _bits(store: Store, cells: Iterable[Cell]) -> dict[tuple[str, str, str], float]:
    """How many bits a weight takes; all runs of a method on a grid take as many, so one record
    of each is read whole.
    """
    runs = {
        (cell.model, cell.method, cell.target): cell.run
        for cell in cells
        if cell.method != UNTOUCHED and not read_target(cell.target).removal
    }
    records = {key: store.record(run) for key, run in runs.items()}
    return {
        key: bits
        for key, record in records.items()
        if record is not None and (bits := stored_bits(record.weights)) is not None
    }


def _stale(
    store: Store, records: Mapping[str, Record], current: Mapping[str, int]
) -> Iterator[str]:
    """As `Store.stale`, of what was read already; evaluators are looked at only where some have
    been revised at all.
    """
    revised = any(
        name.startswith("evaluator ") and revision > 1 for name, revision in current.items()
    )
    for run, record in records.items():
        if is_older(
            revisions("method", record.run.method) | revisions("allocation", record.run.allocation),
            current,
        ):
            yield run
        for measure_id, form in store.evaluators(run).items() if revised else ():
            if is_older(revisions("evaluator", form), current):
                yield measure_id


def narrowed(results: Results, measures: Sequence[str]) -> Results:
    """Return the same with those of its evaluators whose text, or what they measured, begins with
    one of `measures`; all without any.

    Raises `SpecError` where nothing begins so.
    """
    names: dict[str, set[str]] = {}
    for cell in results.cells:
        for text, measure_id in cell.measures.items():
            measurement = results.scores.get(cell.run, {}).get(measure_id)
            names.setdefault(text, {text}).update(
                [measurement.score.measured] if measurement else []
            )
    for beginning in measures:
        if not any(name.startswith(beginning) for both in names.values() for name in both):
            measured = ", ".join(names) or "nothing"
            raise SpecError(
                f"nothing that was measured begins with {beginning!r} (measured: {measured}); name one of these, or its beginning",
                subject=beginning,
            )
    chosen = {
        text
        for text, both in names.items()
        if not measures or any(name.startswith(tuple(measures)) for name in both)
    }
    cells = (
        replace(cell, measures={t: i for t, i in cell.measures.items() if t in chosen})
        for cell in results.cells
    )
    return replace(results, cells=tuple(cells))


def tidy(store: Store | Results) -> "pl.DataFrame":
    """Return every score of the store as one flat row, the primary ones and those beside them: the
    run, what was measured, the value.

    `dense` is what the untouched model scored there and `kept` the share of it that is left (see
    `share_kept`); both are empty without one. `stale` says that the run or the measurement is of an
    older revision.
    """
    import polars as pl

    results = store if isinstance(store, Results) else read(store, items=False)
    untouched = {
        (c.model, text): results.scores.get(c.run, {}).get(i)
        for c in results.cells
        if c.method == UNTOUCHED
        for text, i in c.measures.items()
    }
    rows: list[tuple[Any, ...]] = []
    for cell in results.cells:
        for text, measure_id in cell.measures.items():
            measurement, dense = (
                results.scores.get(cell.run, {}).get(measure_id),
                untouched.get((cell.model, text)),
            )
            whole = {s.metric: s.value for s in (dense.score, *dense.beside)} if dense else {}
            for s in (measurement.score, *measurement.beside) if measurement else ():
                share = share_of(s.value, whole[s.metric], s) if s.metric in whole else None
                labels = (
                    cell.model,
                    cell.data,
                    cell.method,
                    cell.target,
                    cell.propagate,
                    cell.seed,
                    s.measured,
                    s.metric,
                    s.unit,
                )
                numbers = (
                    s.value,
                    s.stderr,
                    s.n,
                    s.better,
                    s.chance,
                    whole.get(s.metric),
                    share[0] if share else None,
                )
                rows.append(
                    (*labels, *numbers, cell.run, bool({cell.run, measure_id} & results.stale))
                )
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def draws(store: Store, **labels: str | int) -> dict[str, Draws]:
    """Return the measurements of the cells with these labels, by what was measured, one a draw in
    the order of their seeds: a side of `contrast`.

    `labels` are those of a cell as the study wrote it: `data`, which is empty for the dense model,
    `method`, `target`, `propagate`, `model`, `seed`. What lacks in one of the draws is left out.
    Raises `SpecError` for another label, and `DataError` where the labels fit no cell, cells of
    more than one set, method or sparsity, or two evaluators that say the same of what they
    measured.
    """
    if unknown := labels.keys() - set(LABELS):
        raise SpecError(
            f"a cell has no label {sorted(unknown)[0]!r}; its labels are {', '.join(LABELS)}",
            subject=sorted(unknown)[0],
        )
    cells = sorted(
        (
            c
            for c in store.cells()
            if all(getattr(c, name) == value for name, value in labels.items())
        ),
        key=lambda c: c.seed,
    )
    request = ", ".join(f"{name} {value!r}" for name, value in labels.items()) or "no label"
    several = [
        name for name in LABELS if name != "seed" and len({getattr(c, name) for c in cells}) > 1
    ]
    if not cells or several:
        problem = (
            f"fits cells that differ in {' and '.join(several)}; say which"
            if several
            else "fits no cell of the store"
        )
        raise DataError(f"{request} {problem}", subject=request)
    sides: dict[str, Draws] = {}
    for text in cells[0].measures:
        side = [
            m
            for c in cells
            if text in c.measures and (m := store.measurement(c.run, c.measures[text]))
        ]
        if len(side) == len(cells):
            if side[0].score.measured in sides:
                raise DataError(
                    f"two evaluators call what they measured {side[0].score.measured!r}; compare them one by one",
                    subject=text,
                )
            sides[side[0].score.measured] = side
    return sides


def _items(
    store: Store, cells: Sequence[Cell], scores: Mapping[str, Mapping[str, Measurement]]
) -> dict[str, dict[str, ItemValues]]:
    """Read the items of all measurements, at most `ROWS` at once; by evaluator, so that those
    with the same items come one after the other.
    """
    measurements = {
        (text, cell.run, i): None
        for cell in cells
        for text, i in cell.measures.items()
        if i in scores.get(cell.run, {})
    }
    batches: list[list[tuple[str, str]]] = []
    rows = ROWS  # so that the first measurement begins a batch
    for _, run, measure_id in sorted(measurements, key=lambda key: key[0]):
        size = scores[run][measure_id].score.n
        if rows + size > ROWS:
            batches.append([])
            rows = 0
        batches[-1].append((run, measure_id))
        rows += size
    items: dict[str, dict[str, ItemValues]] = {}
    for batch in batches:
        for (run, i), (names, values, weights) in zip(
            batch, _tables(store.numbers(batch)), strict=True
        ):
            items.setdefault(run, {})[i] = ItemValues(
                scores[run][i].score, names, values, weights, scores[run][i].beside
            )
    return items


def _tables(measurements: Iterable[ItemNumbers]) -> Iterator[Table]:
    """Yield the items of each measurement in the order of their names."""
    raw, order, names, tokens = None, np.array([], dtype=np.intp), (), np.array([])
    for of in measurements:
        if raw is None or not of.names.equals(raw):
            # Most measurements have the items of the one before. They share names and weights,
            # which makes it quick to see that they are the same.
            raw, readable = of.names, [item_name(name) for name in of.names]
            order = np.array(sorted(range(len(readable)), key=readable.__getitem__), dtype=np.intp)
            names = tuple(readable[i] for i in order)
        if not np.array_equal(of.weights[order], tokens):
            tokens = of.weights[order]
        yield names, of.values[order], tokens


class Setting(NamedTuple):
    """What a ranking is for."""

    model: str
    method: str
    target: str
    propagate: str


def grouped(cells: Sequence[Cell]) -> dict[Setting, list[Cell]]:
    """Return the cells of each setting, in their order: those of its sets, the dense model, and
    the baselines of its target.
    """
    places = {id(cell): place for place, cell in enumerate(cells)}
    groups: dict[Setting, list[Cell]] = {}
    for cell in cells:
        if cell.data:
            groups.setdefault(
                Setting(cell.model, cell.method, cell.target, cell.propagate), []
            ).append(cell)
    baselines = [cell for cell in cells if not cell.data]
    for setting, group in groups.items():
        group += [
            c
            for c in baselines
            if c.model == setting.model and (c.method == UNTOUCHED or c.target == setting.target)
        ]
        group.sort(key=lambda cell: places[id(cell)])
    return dict(sorted(groups.items()))


def unranked(cells: Sequence[Cell]) -> dict[Setting, list[Cell]]:
    """Return the cells of each method that looks at no data, with the dense model, where no set has
    its target: it stands in no ranking.

    A model that is only measured stands alone.
    """
    ranked = {(setting.model, setting.target) for setting in grouped(cells)}
    groups: dict[Setting, list[Cell]] = {}
    for cell in cells:
        if not cell.data and cell.method != UNTOUCHED and (cell.model, cell.target) not in ranked:
            groups.setdefault(Setting(cell.model, cell.method, cell.target, ""), []).append(cell)
    compressed = {cell.model for cell in cells if cell.method != UNTOUCHED}
    groups |= {
        Setting(cell.model, UNTOUCHED, cell.target, ""): []
        for cell in cells
        if cell.model not in compressed
    }
    return {
        setting: [*(c for c in cells if c.method == UNTOUCHED and c.model == setting.model), *group]
        for setting, group in groups.items()
    }


def label_of(cell: Cell) -> str:
    """Return a set's expression, "dense", or the name of a method that looks at no data."""
    return cell.data or (DENSE if cell.method == UNTOUCHED else cell.method)


@dataclass(frozen=True)
class GroupResults:
    """By label ("dense", "magnitude", or a set), whatever has all that was measured (`sides`), and
    the rest (`partial`) with what it has.

    `names` maps an evaluator's text to the name of what it measured; `runs` are one a draw;
    `overlapping` maps the sets whose draws share rows to the largest share.
    """

    names: Mapping[str, str]
    sides: Mapping[str, Mapping[str, Side]]
    partial: Mapping[str, Mapping[str, Side]]
    runs: Mapping[str, tuple[str, ...]]
    sets: frozenset[str]
    overlapping: Mapping[str, float]

    def draws(self, label: str) -> int:
        """Return how many draws a set has; 0 for what takes none."""
        return len(self.runs[label]) if label in self.sets else 0

    @staticmethod
    def of(cells: Sequence[Cell], results: Results, texts: Sequence[str] = ()) -> "GroupResults":
        """Return what a group's cells have of the evaluators `texts` (all, without). Raises
        `DataError` for draws that can't be paired.
        """
        names: dict[str, str] = {}
        for cell in cells:
            for text, measure_id in cell.measures.items():
                if (items := results.items.get(cell.run, {}).get(measure_id)) is not None:
                    names.setdefault(text, items.score.measured)
        measured = list(names.values())
        # Two evaluators that measured the same thing differently are named by their texts too.
        names = {
            text: name if measured.count(name) == 1 else f"{name} [{text}]"
            for text, name in names.items()
        }
        names = {text: name for text, name in names.items() if not texts or text in texts}
        complete: dict[str, dict[str, list[ItemValues]]] = {}
        incomplete: dict[str, dict[str, list[ItemValues]]] = {}
        runs: dict[str, list[str]] = {}
        for cell in cells:
            items, label = results.items.get(cell.run, {}), label_of(cell)
            # One run that answers several cells (a source that gives the same tokens for every
            # seed) is one draw, not several.
            if cell.run in runs.get(label, ()):
                continue
            known = {
                name: items[i]
                for text, name in names.items()
                if (i := cell.measures.get(text, "")) in items
            }
            if whole := bool(names) and len(known) == len(names):
                runs.setdefault(label, []).append(cell.run)
            for name, values in known.items():
                (complete if whole else incomplete).setdefault(label, {}).setdefault(
                    name, []
                ).append(values)
        labels = dict.fromkeys(map(label_of, cells))
        sets = frozenset(cell.data for cell in cells if cell.data)
        overlaps = {label: max(map(results.overlap, each)) for label, each in runs.items()}
        overlapping = {label: share for label, share in overlaps.items() if share > OVERLAP}
        independence: dict[str, Independence] = {
            label: "overlapping"
            if label in overlapping
            else "independent"
            if label in sets
            else "no draws"
            for label in labels
        }
        return GroupResults(
            names=names,
            sides={
                k: {name: Side.of(draws, independence[k]) for name, draws in each.items()}
                for k, each in complete.items()
            },
            partial={
                k: {
                    name: Side.of(draws, independence[k])
                    for name, draws in incomplete.get(k, {}).items()
                }
                for k in labels
                if k not in complete
            },
            runs={k: tuple(runs.get(k, ())) for k in labels},
            sets=sets,
            overlapping=overlapping,
        )


def missing(cells: Sequence[Cell], results: Results, texts: Sequence[str] = ()) -> Iterator[str]:
    """Yield what the cells lack of the evaluators `texts` (all that any of them names, without),
    a sentence each, with the reason.
    """
    by_cell = {tuple(f["cell"]): f for f in results.failures.values() if "cell" in f}
    texts = texts or tuple(dict.fromkeys(text for cell in cells for text in cell.measures))
    for cell in cells:
        for text in texts:
            measure_id = cell.measures.get(text, "")
            if measure_id not in results.items.get(cell.run, {}):
                labels = (
                    cell.model,
                    cell.data,
                    cell.method,
                    cell.target,
                    cell.seed,
                    cell.propagate,
                )
                failures = (
                    results.failures.get(measure_id),
                    results.failures.get(cell.run),
                    by_cell.get(labels),
                    by_cell.get(labels[:5]),
                )
                reason = next(
                    (failure for failure in failures if failure), {"error": "not computed yet"}
                )
                yield f"{label_of(cell)} (draw {cell.seed}) on {text}: {reason.get('error')}"
