"""What a report tells beside the ranking, read from the store: what was measured and shown,
where the time went, how to repeat it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibrant.lab.stats import Results, is_rounded
from calibrant.numerics import decimals, gigabytes
from calibrant.results import (
    Cell,
    Record,
    Score,
    Store,
    inputs_in_words,
    stored_bits,
)
from calibrant.results.records import MEASURED, UNTOUCHED
from calibrant.spec.grammar import read_target

PHASES: Final = {
    "open": "opening the model",
    "tokenize": "making the calibration sets",
    "compress": "compressing",
    "measure": "measuring",
    "store": "writing",
}
"""What the time is spent on, in words."""


@dataclass(frozen=True)
class StudyFacts:
    """Plain facts about a store.

    `models` maps a model's name to its note ("dequantized from Q4_1", or nothing). `dense` are the
    scores of each dense model that was measured, `seconds` the time by phase over all runs of the
    grid, `settings` (dtype, propagation, …) and `machine` what it ran with.
    """

    models: Mapping[str, str]
    dense: Mapping[str, Sequence[Score]]
    seconds: Mapping[str, float]
    settings: Mapping[str, str]
    machine: Mapping[str, str]
    failures: Sequence[Mapping[str, Any]]
    study: str


def notes_of(store: Store, reading: Results) -> dict[str, str]:
    """Return what must be said of each model wherever results of it are shown, by its name;
    nothing for most.
    """
    notes: dict[str, str] = {}
    for cell in reading.cells:
        if cell.run in reading.records and cell.model not in notes:
            notes[cell.model] = str(store.provenance(cell.run).get("model_note", ""))
    return notes


def shortfalls_of(folder: Path, reading: Results) -> tuple[str, ...]:
    """Return a sentence for each target that wasn't reached. Of each model, method, target and
    allocation one run is read whole from the store in `folder`.
    """
    runs: dict[tuple[str, ...], str] = {}
    for cell in reading.cells:
        compressed = cell.method not in (UNTOUCHED, MEASURED)
        if not compressed or cell.run not in reading.records:
            continue
        # A grid has no share that could be missed.
        if read_target(cell.target).share is not None:
            allocation = reading.records[cell.run].run.allocation.get("spec", "")
            runs.setdefault((cell.model, cell.method, cell.target, str(allocation)), cell.run)
    if not runs:
        return ()
    store = Store(folder, create=False)
    sentences: dict[str, None] = {}
    for (model, method, _, _), run in runs.items():
        record = store.record(run)
        if record is not None and record.shortfall:
            sentences[f"On {model} with {method}, {record.shortfall}."] = None
    return tuple(sentences)


def facts_of(store: Store, reading: Results, shortfalls: Sequence[str]) -> StudyFacts:
    """Gather the facts of everything that the store's grid asks for. Beside what was read
    already, only provenance is opened. `shortfalls` are sentences on targets that weren't reached.
    """
    cells = [cell for cell in reading.cells if cell.run in reading.records]
    records: dict[str, Record] = {}
    for run, head in reading.records.items():
        records[run] = replace(head, provenance=store.provenance(run))
    models: dict[str, str] = {}
    for cell in cells:
        models[cell.model] = str(records[cell.run].provenance.get("model_note", ""))
    return StudyFacts(
        models=models,
        dense=_dense_scores(cells, reading),
        seconds=_seconds(store, cells, records, reading),
        settings=_settings(store, records, shortfalls),
        machine=_machine(list(records.values())),
        failures=_failures(reading),
        study=store.study_text(),
    )


def _dense_scores(cells: Sequence[Cell], reading: Results) -> dict[str, list[Score]]:
    """What the untouched models scored, by their names."""
    dense: dict[str, list[Score]] = {}
    for cell in cells:
        if cell.method == UNTOUCHED:
            scores = reading.scores.get(cell.run, {})
            found = [scores[key].score for key in cell.measures.values() if key in scores]
            if found:
                dense[cell.model] = found
    return dense


def _seconds(
    store: Store, cells: Sequence[Cell], records: Mapping[str, Record], reading: Results
) -> dict[str, float]:
    """The time of each phase, over all runs and measurements that are there, each counted once."""
    total: dict[str, float] = {}
    for record in records.values():
        phases = record.provenance.get("seconds")
        if isinstance(phases, Mapping):
            for phase, seconds in phases.items():
                total[phase] = total.get(phase, 0.0) + seconds
    measurements: dict[tuple[str, str], None] = {}
    for cell in cells:
        scores = reading.scores.get(cell.run, {})
        for measure in cell.measures.values():
            if measure in scores:
                measurements[cell.run, measure] = None
    for run, measure in measurements:
        seconds = store.provenance(run, measure).get("seconds")
        if isinstance(seconds, int | float):
            total["measure"] = total.get("measure", 0.0) + seconds
    return total


def _failures(reading: Results) -> list[Mapping[str, Any]]:
    """What failed of what the grid asks for: a store may know of older failures too."""
    asked: set[str] = set()
    without_id: set[tuple[Any, ...]] = set()
    for cell in reading.cells:
        asked.update((cell.run, *cell.measures.values()))
        if not cell.run:
            # Older failures name their cell without the propagation.
            without_id |= {cell.labels, cell.labels[:-1]}
    failures: list[Mapping[str, Any]] = []
    for failed_id, failure in reading.failures.items():
        # One of a still older store names no cell.
        of_cell = "cell" not in failure or tuple(failure["cell"]) in without_id
        if failed_id in asked or of_cell:
            failures.append(failure)
    return failures


def _settings(
    store: Store, records: Mapping[str, Record], shortfalls: Sequence[str]
) -> dict[str, str]:
    """What all runs share, or the several values where they don't."""
    every = list(records.values())
    left_dense: list[str] = []
    sparsities: list[str] = []
    rounded: dict[str, str] = {}
    pruned: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for run, record in records.items():
        if record.run.method.get("spec") in (UNTOUCHED, MEASURED):
            continue
        left_dense.append(str(len(record.dense)))
        words = inputs_in_words(record.edits)
        if words:
            inputs.setdefault(record.run.target, words)
        if is_rounded(record.run.target):
            rounded[record.run.target] = run
        else:
            sparsities.append(f"{record.sparsity:.4f}")
            pruned.setdefault(record.run.model, run)
    allocations = [str(record.run.allocation.get("spec", "")) for record in every]
    settings = {
        "numbers": _joined(record.run.dtype for record in every),
        "propagation": _joined(record.run.propagate for record in every),
        "allocation": _joined(allocations),
        "achieved sparsity": _joined(sparsities),
        "matrices pruned": _joined(_pruned(store, pruned)),
    }
    if rounded:
        settings["bits a weight"] = _joined(_stored(store, rounded))
    if shortfalls:
        settings["target not reached"] = " ".join(shortfalls)
    settings["left dense"] = _joined(left_dense)
    if inputs:
        settings["inputs"] = "; ".join(f"{target}: {words}" for target, words in inputs.items())
    return settings


def _pruned(store: Store, pruned: Mapping[str, str]) -> Iterator[str]:
    """How many matrices of each model were pruned; one record of each is read whole."""
    for run in pruned.values():
        record = store.record(run)
        if record is not None:
            yield str(len(record.weights))


def _stored(store: Store, rounded: Mapping[str, str]) -> Iterator[str]:
    """How many bits a weight takes on each grid; every run on a grid takes as many, so one
    record of each is read whole.
    """
    for target, run in rounded.items():
        record = store.record(run)
        if record is None:
            continue
        bits = stored_bits(record.weights)
        if bits is not None:
            yield f"{decimals(bits)} ({target})"


def _machine(records: Sequence[Record]) -> dict[str, str]:
    devices: list[str] = []
    processors: list[str] = []
    threads: list[str] = []
    versions: dict[str, str] = {}
    peak = 0
    for record in records:
        provenance = record.provenance
        devices.append(str(provenance.get("device", "")))
        processors.append(str(provenance.get("processor", "not recorded")))
        threads.append(str(provenance.get("threads", "")))
        versions |= provenance.get("versions", {})
        peak = max(peak, int(provenance.get("peak_memory_bytes", 0)))
    memory = ""
    if peak:
        memory = gigabytes(peak)
    return {
        "device": _joined(devices),
        "processor": _joined(processors),
        "threads": _joined(threads),
        "peak memory": memory,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _joined(values: Iterable[str]) -> str:
    """The values that differ, without empty ones."""
    return ", ".join(value for value in dict.fromkeys(values) if value)
