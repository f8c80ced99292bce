"""A store's numbers in memory: each file is opened once, and only what comparing needs is kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from calibrant.compare.crossed import Sample
from calibrant.compare.families import label_set, labels_of
from calibrant.errors import SpecError
from calibrant.extras import needed_for
from calibrant.grammar import SetLabel
from calibrant.outcomes import MOST, called, read_items
from calibrant.store import Cell, Measurement, Record, Store, revisions
from calibrant.store.records import is_older

ROWS: Final = 500_000
"""Items that are read at once: enough to be quick, few enough for their names to fit into memory."""

Table = tuple[tuple[str, ...], Float[np.ndarray, " items"], Float[np.ndarray, " items"]]
"""The items of one measurement in the order of their names, their values and weights."""


@dataclass(frozen=True)
class Results:
    """What a store holds, as far as comparing needs it.

    `records` are without their weights, `scores` without their items; `samples` hold the items as arrays, of those measurements that the grid
    asks for. All by run, the latter two then by measurement. `stale` are ids of runs and of measurements, `sets` what the calibration sets are
    called.
    """

    cells: tuple[Cell, ...]
    records: Mapping[str, Record]
    scores: Mapping[str, Mapping[str, Measurement]]
    samples: Mapping[str, Mapping[str, Sample]]
    study: Mapping[str, Any]
    failures: Mapping[str, Mapping[str, Any]]
    stale: frozenset[str]
    sets: Mapping[str, SetLabel] = field(default_factory=dict[str, SetLabel])

    def label(self, data: str) -> SetLabel:
        """What a calibration set is called, in its parts."""
        return self.sets.get(data) or label_set(data)

    def overlap(self, run: str) -> float:
        """The share of the run's calibration rows that earlier draws of its set have too."""
        found = self.records.get(run)
        return float(found.data_facts.get("overlap") or 0.0) if found else 0.0


@needed_for("the comparison of results")
def read(store: Store, items: bool = True) -> Results:
    """Read `store`, with the items of its measurements or without. Raises `DataError` for a file that can't be read."""
    cells = store.cells()
    runs = list(dict.fromkeys(cell.run for cell in cells if cell.run))
    scores = {run: store.scores(run) for run in runs}
    records = {run: record for run in runs if (record := store.record(run, whole=False)) is not None}
    return Results(
        cells=tuple(cells),
        records=records,
        scores=scores,
        samples=_samples(store, cells, scores) if items else {},
        study=store.study(),
        failures=store.failures(),
        stale=frozenset(_stale(store, records)),
        sets=labels_of((cell.data for cell in cells), store.sets(), records.values()),
    )


def _stale(store: Store, records: Mapping[str, Record]) -> Iterator[str]:
    """As `Store.stale`, of what was read already; evaluators are looked at only where some have been revised at all."""
    wanted = store.revisions()
    revised = any(name.startswith("evaluator ") and revision > 1 for name, revision in wanted.items())
    for run, record in records.items():
        if is_older(revisions("method", record.run.method) | revisions("allocation", record.run.allocation), wanted):
            yield run
        for measure_id, form in store.evaluators(run).items() if revised else ():
            if is_older(revisions("evaluator", form), wanted):
                yield measure_id


def narrowed(reading: Results, measures: Sequence[str]) -> Results:
    """The same with those of its evaluators whose text, or what they measured, begins with one of `measures`; all of them if there are none.

    Raises `SpecError` where nothing begins so.
    """
    names: dict[str, set[str]] = {}
    for cell in reading.cells:
        for text, measure_id in cell.measures.items():
            found = reading.scores.get(cell.run, {}).get(measure_id)
            names.setdefault(text, {text}).update([found.score.measured] if found else [])
    for wanted in measures:
        if not any(name.startswith(wanted) for both in names.values() for name in both):
            listed = ", ".join(names) or "nothing"
            raise SpecError(
                f"nothing that was measured begins with {wanted!r} (measured: {listed}); name one of these, or its beginning", subject=wanted
            )
    chosen = {text for text, both in names.items() if not measures or any(name.startswith(tuple(measures)) for name in both)}
    cells = (replace(cell, measures={t: i for t, i in cell.measures.items() if t in chosen}) for cell in reading.cells)
    return replace(reading, cells=tuple(cells))


def _samples(store: Store, cells: Sequence[Cell], scores: Mapping[str, Mapping[str, Measurement]]) -> dict[str, dict[str, Sample]]:
    asked = {(text, cell.run, i): None for cell in cells for text, i in cell.measures.items() if i in scores.get(cell.run, {})}
    found: dict[str, dict[str, Sample]] = {}
    # By evaluator, so that those with the same items come one after the other.
    keys = sorted(asked, key=lambda key: key[0])
    for batch in _batches([(run, i) for _, run, i in keys], [scores[run][i].score.n for _, run, i in keys]):
        paths = [store.measure_folder(run, i) / "items.parquet" for run, i in batch]
        for (run, i), (names, values, weights) in zip(batch, _tables(paths), strict=True):
            found.setdefault(run, {})[i] = Sample(scores[run][i].score, names, values, weights, scores[run][i].beside)
    return found


def _batches(keys: Sequence[tuple[str, str]], sizes: Sequence[int]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    rows = 0
    for key, size in zip(keys, sizes, strict=True):
        if batch and rows + size > ROWS:
            yield batch
            batch, rows = [], 0
        batch.append(key)
        rows += size
    if batch:
        yield batch


def _tables(paths: Sequence[Path]) -> Iterator[Table]:
    """The items of every file, in one pass over all."""
    import polars as pl

    schema = {"item": pl.String, "value": pl.Float64, "weight": pl.Float64}
    try:
        if not all(path.is_file() for path in paths):
            raise OSError  # a pipe would be waited for
        scan = pl.scan_parquet(list(paths), schema=schema, extra_columns="ignore", include_file_paths="path")
        if scan.select(pl.len()).collect().item() > MOST:
            raise OSError
        frame = scan.collect()
        if frame.select(pl.all().null_count()).sum_horizontal().item():
            raise OSError
    except (pl.exceptions.PolarsError, OSError):
        yield from map(_table, paths)  # one at a time, which names the one that can't be read
        return
    runs = frame["path"].rle().struct.unnest()
    counts = dict(zip(runs["value"].to_list(), runs["len"].to_list(), strict=True))
    values, weights = frame["value"].to_numpy(), frame["weight"].to_numpy()
    start, raw, order, names, tokens = 0, pl.Series([], dtype=pl.String), np.array([], dtype=np.intp), (), np.array([])
    for path in map(str, paths):
        end = start + counts.get(path, 0)
        if not (given := frame["item"][start:end]).equals(raw):
            # Most files hold the items of the one before. They share names and weights, which makes it quick to see that they are the same.
            raw, listed = given, [called(name) for name in given]
            order = np.array(sorted(range(len(listed)), key=listed.__getitem__), dtype=np.intp)
            names = tuple(listed[i] for i in order)
        if not np.array_equal(weights[start:end][order], tokens):
            tokens = weights[start:end][order]
        yield names, values[start:end][order], tokens
        start = end


def _table(path: Path) -> Table:
    rows = sorted((called(o.item), o.value, o.weight) for o in read_items(path))
    return tuple(row[0] for row in rows), np.array([row[1] for row in rows], dtype=float), np.array([row[2] for row in rows], dtype=float)
