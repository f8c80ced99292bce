"""What a report tells beside the ranking, read from the store: what was measured and shown,
where the time went, how to repeat it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from calibrant.lab.stats import Results, is_rounded
from calibrant.results import Cell, Record, Score, Store, stored_bits

PHASES: Final = {
    "open": "opening the model",
    "tokenize": "making the calibration sets",
    "compress": "pruning",
    "measure": "measuring",
    "store": "writing",
}
"""What the time is spent on, in words."""


@dataclass(frozen=True)
class StudyFacts:
    """Plain facts about a store.

    `models` maps a model's name to its note ("dequantized from Q4_1", or nothing). `dense` are the
    dense model's scores, `seconds` the time by phase over everything in the store, `settings`
    (dtype, propagation, …) and `machine` what it ran with.
    """

    models: Mapping[str, str]
    dense: Sequence[Score]
    seconds: Mapping[str, float]
    settings: Mapping[str, str]
    machine: Mapping[str, str]
    failures: Sequence[Mapping[str, Any]]
    study: str


def notes_of(store: Store, reading: Results) -> dict[str, str]:
    """What must be said of each model wherever results of it are shown, by its name; nothing for
    most.
    """
    runs = {c.model: c.run for c in reversed(reading.cells) if c.run in reading.records}
    return {
        model: str(store.provenance(run).get("model_note", ""))
        for model, run in reversed(runs.items())
    }


def facts_of(store: Store, reading: Results) -> StudyFacts:
    """Gather the facts of everything that the store's grid asks for. Beside what was read
    already, only provenance is opened.
    """
    cells = [c for c in reading.cells if c.run in reading.records]
    records = {
        run: replace(head, provenance=store.provenance(run))
        for run, head in reading.records.items()
    }
    return StudyFacts(
        models={c.model: str(records[c.run].provenance.get("model_note", "")) for c in cells},
        dense=_dense_scores(cells, reading),
        seconds=_seconds(store, cells, records),
        settings=_settings(store, records),
        machine=_machine(list(records.values())),
        failures=list(reading.failures.values()),
        study=store.study_text(),
    )


def _dense_scores(cells: Sequence[Cell], reading: Results) -> list[Score]:
    """What the untouched models scored; where that wasn't asked, any run's scores say how much
    was measured.
    """
    run = next((c for c in cells if c.method == "none"), cells[0] if cells else None)
    scores = {} if run is None else reading.scores.get(run.run, {})
    return [scores[i].score for i in (run.measures.values() if run else ()) if i in scores]


def _seconds(
    store: Store, cells: Sequence[Cell], records: Mapping[str, Record]
) -> dict[str, float]:
    total: dict[str, float] = {}
    for record in records.values():
        phases = record.provenance.get("seconds")
        for phase, seconds in phases.items() if isinstance(phases, Mapping) else ():
            total[phase] = total.get(phase, 0.0) + seconds
    for run, measure in {(c.run, m): None for c in cells for m in c.measures.values()}:
        seconds = store.provenance(run, measure).get("seconds")
        if isinstance(seconds, int | float):
            total["measure"] = total.get("measure", 0.0) + seconds
    return total


def _settings(store: Store, found: Mapping[str, Record]) -> dict[str, str]:
    """What all runs share, or the several values where they don't."""
    records = list(found.values())
    compressed = {run: r for run, r in found.items() if r.run.method.get("spec") != "none"}
    rounded = {run: r for run, r in compressed.items() if is_rounded(r.run.target)}
    pruned = {run: r for run, r in compressed.items() if run not in rounded}
    first = {r.run.model: run for run, r in reversed(pruned.items())}
    return {
        "numbers": _joined(r.run.dtype for r in records),
        "propagation": _joined(r.run.propagate for r in records if r.run.propagate),
        "allocation": _joined(str(r.run.allocation.get("spec", "")) for r in records),
        "achieved sparsity": _joined(f"{r.sparsity:.4f}" for r in pruned.values()),
        "matrices pruned": _joined(
            str(len(r.weights)) for run in first.values() if (r := store.record(run)) is not None
        ),
        **({"bits a weight": _joined(_stored(store, rounded))} if rounded else {}),
        "left dense": _joined(str(len(r.dense)) for r in compressed.values()),
    }


def _stored(store: Store, rounded: Mapping[str, Record]) -> Iterator[str]:
    """How many bits a weight takes on each grid; every run on a grid takes as many, so one
    record of each is read whole.
    """
    for target, run in {r.run.target: run for run, r in rounded.items()}.items():
        record = store.record(run)
        bits = None if record is None else stored_bits(record.weights)
        if bits is not None:
            yield f"{bits:.3f} ({target})"


def _machine(records: Sequence[Record]) -> dict[str, str]:
    provenance = [r.provenance for r in records]
    versions = {name: v for p in provenance for name, v in p.get("versions", {}).items()}
    peak = max((int(p.get("peak_memory_bytes", 0)) for p in provenance), default=0)
    return {
        "device": _joined(str(p.get("device", "")) for p in provenance),
        "processor": _joined(str(p.get("processor", "not recorded")) for p in provenance),
        "threads": _joined(str(p.get("threads", "")) for p in provenance),
        "peak memory": f"{peak / 1e9:.2f} GB" if peak else "",
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items()),
    }


def _joined(values: Any) -> str:
    return ", ".join(v for v in dict.fromkeys(values) if v)
