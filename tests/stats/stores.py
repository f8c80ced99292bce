"""Measurements and stores that tests of comparisons are made from: known losses, documents that
differ a little.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from calibrant.lab.stats import Results
from calibrant.lab.stats.crossed import ItemValues
from calibrant.lab.stats.labels import labels_of
from calibrant.results import PROFILE, Cell, Measurement, Outcome, Record, Run, Score, Store

RNG = np.random.default_rng(0)


def measured(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
    name: str = "wikitext:text",
    documents: str = "item",
    **score: object,
) -> Measurement:
    outcomes = tuple(
        Outcome(f"{documents} {i:03}", float(v), float(w))
        for i, (v, w) in enumerate(zip(values, weights, strict=True))
    )
    facts = {"length": 512}
    plain = Score(
        name,
        "loss",
        float(sum(values) / (sum(weights) or 1)),
        None,
        len(outcomes),
        "nats/token",
        "lower",
        facts=facts,
    )
    return Measurement(replace(plain, **score), outcomes)  # pyright: ignore[reportArgumentType]


def values(values: np.ndarray, weights: np.ndarray) -> ItemValues:
    """One measurement as arrays, as `measured` makes it, without an object for each item."""
    names = tuple(f"item {i:03}" for i in range(len(values)))
    score = Score(
        "wikitext:text",
        "loss",
        float(values.sum() / weights.sum()),
        None,
        len(values),
        "nats/token",
        "lower",
        facts={"length": 512},
    )
    return ItemValues(score, names, values, weights)


def documents(n: int, rng: np.random.Generator = RNG) -> tuple[np.ndarray, np.ndarray]:
    """Document lengths, and losses per token that depend on the length: what makes a ratio
    differ from a mean of ratios.
    """
    lengths = rng.integers(50, 500, n).astype(float)
    return lengths, 2.5 + 0.001 * lengths + rng.normal(0, 0.4, n)


def rarely(*values: object) -> list[ParameterSet]:
    """Parameters that are slow: further points of a sweep of which some are always taken."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


LOSSES = {
    "dense": [[3.0, 2.0]],
    "magnitude": [[5.0, 4.0]],
    "c4": [[3.5, 2.6]],
    "gsm8k:cot": [[3.9, 2.1]],
    "full_stops": [[6.0, 6.0]],
}
DRAWN = {
    "dense": [[3.0, 2.0]],
    "c4": [[3.50, 2.60], [3.51, 2.59], [3.49, 2.61]],
    "gsm8k:icl": [[3.90, 2.90], [3.91, 2.91], [3.89, 2.92]],
    "svamp:icl": [[3.80, 2.90], [3.81, 2.91], [3.79, 2.92]],
}
"""Three draws of three sets, of which c4 is surely the best."""


Made = tuple[Cell, Record, Mapping[str, bytes], Mapping[str, Measurement]]
"""A cell, what its record and its files are, and what was measured on it by the text of the
evaluator.
"""


def made(
    losses: Mapping[str, Sequence[Sequence[float]]],
    measures: Sequence[str] = ("docs", "code"),
    missing: Sequence[str] = (),
    overlap: Mapping[str, float] | None = None,
    noise: float = 0.01,
    weights: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    profiles: Mapping[str, Mapping[str, Any]] | None = None,
    processors: Mapping[str, str] | None = None,
    items: int = 12,
) -> Iterator[Made]:
    """Runs whose labels ("dense", "magnitude" or a set) have, a draw each, one loss per measured
    set.

    `missing` are measurements (`c4/docs`) that aren't there; `overlap` what the later draws of a
    set share with earlier ones. `weights` are what the records of a label, or of one of its draws
    (`c4/1`), say of their matrices, `profiles` what is kept beside them. `processors` are what the
    runs of a label were computed on, `items` how many documents each measured set has.
    """
    rng = np.random.default_rng(5)
    lengths = {m: rng.integers(100, 300, items).astype(float) for m in measures}
    hard = {m: rng.normal(0, 0.5, items) for m in measures}
    for label, draws in losses.items():
        for seed, values in enumerate(draws):
            baseline = {"dense": "none", "magnitude": "magnitude"}.get(label)
            data, method, target = (
                "" if baseline else label,
                baseline or "wanda",
                "0.0" if label == "dense" else "0.5",
            )
            run = Run(
                "sha256:m",
                "tiny",
                data,
                f"{label}{seed}",
                {"spec": method, "revision": 1},
                target,
                {},
                "",
                "float32",
                seed,
            )
            matrices = (weights or {}).get(f"{label}/{seed}", (weights or {}).get(label, ()))
            profile = (profiles or {}).get(f"{label}/{seed}", (profiles or {}).get(label))
            facts = {
                "overlap": (overlap or {}).get(label, 0.0) if seed else 0.0,
                "tokens": 4096 + seed,
            }
            files = {} if profile is None else {PROFILE: json.dumps(profile).encode()}
            about = {"processor": processors[label]} if processors else {}
            record = Record(run, 0.5, tuple(matrices), data_facts=facts, provenance=about)
            measurements: dict[str, Measurement] = {}
            for m, value in zip(measures, values, strict=True):
                if f"{label}/{m}" not in missing:
                    chance = rng.normal(0, noise, items)
                    nats = lengths[m] * (value + hard[m] + chance - chance.mean())
                    measurements[f"loss(source={m!r})"] = measured(nats, lengths[m], f"{m}:text")
            ids = {f"loss(source={m!r})": "sha256:none" for m in measures}
            yield Cell("tiny", data, method, target, seed, run.id, ids), record, files, measurements


def store_of(
    folder: Path,
    losses: Mapping[str, Sequence[Sequence[float]]],
    study: Mapping[str, Any] | None = None,
    **more: Any,
) -> Store:
    """A store of what is `made`."""
    store, cells = Store(folder), []
    for cell, record, files, measurements in made(losses, **more):
        store.add_record(record, files)
        ids = {
            text: store.add_measurement(
                cell.run, {"spec": "loss", "source": text[13:-2], "revision": 1}, measurement
            )
            for text, measurement in measurements.items()
        }
        cells.append(replace(cell, measures={**cell.measures, **ids}))
    store.write_cells(cells, study)
    return store


def in_another_type(store: Store, folder: Path) -> Store:
    """A store of the same cells in bfloat16: other runs, measured as those."""
    copy, cells = Store(folder), []
    for cell in store.cells():
        record = store.record(cell.run)
        assert record is not None
        run = copy.add_record(replace(record, run=replace(record.run, dtype="bfloat16")))
        ids: dict[str, str] = {}
        for text, measure in cell.measures.items():
            kept = store.measurement(cell.run, measure)
            if kept is not None:
                evaluator = store.evaluators(cell.run)[measure]
                ids[text] = copy.add_measurement(run, evaluator, kept)
        cells.append(replace(cell, run=run, measures={**cell.measures, **ids}))
    copy.write_cells(cells)
    return copy


def results_of(
    losses: Mapping[str, Sequence[Sequence[float]]],
    study: Mapping[str, Any] | None = None,
    **more: Any,
) -> Results:
    """What reading a store of what is `made` gives, without the store."""
    cells: list[Cell] = []
    records: dict[str, Record] = {}
    scores: dict[str, dict[str, Measurement]] = {}
    for cell, record, _, measurements in made(losses, **more):
        ids = {text: f"{cell.run}/{text}" for text in measurements}
        cells.append(replace(cell, measures={**cell.measures, **ids}))
        records[cell.run] = record
        scores[cell.run] = {ids[text]: measurement for text, measurement in measurements.items()}
    items = {run: {i: ItemValues.of(m) for i, m in each.items()} for run, each in scores.items()}
    sets = labels_of((cell.data for cell in cells), {}, records.values())
    return Results(tuple(cells), records, scores, items, study or {}, {}, frozenset(), sets)


def measured_too(results: Results, text: str, of: Callable[[int], Measurement]) -> Results:
    """The same with one more measurement of every cell: what `of` makes of its number."""
    cells: list[Cell] = []
    scores = {run: dict(own) for run, own in results.scores.items()}
    items = {run: dict(own) for run, own in results.items.items()}
    for number, cell in enumerate(results.cells):
        measurement, measure = of(number), f"{cell.run}/{text}"
        cells.append(replace(cell, measures={**cell.measures, text: measure}))
        scores[cell.run][measure] = measurement
        items[cell.run][measure] = ItemValues.of(measurement)
    return replace(results, cells=tuple(cells), scores=scores, items=items)


def with_cells(results: Results, *more: Cell) -> Results:
    """The same with cells that share the runs of others."""
    return replace(results, cells=(*results.cells, *more))
