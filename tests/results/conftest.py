"""Stores to keep, to spoil and to compare."""

from pathlib import Path

import pytest

from calibrant.results import EDITS, MASK, PROFILE, Cell, Store, measurement_id
from calibrant.system.durable import compact_json

from tests.results import samples
from tests.results.samples import LOSS, MEASURED, MEASUREMENTS, OTHER, OTHER_RUN, RECORD, RUN

MEASURE = measurement_id(RUN.id, LOSS)
CELL = Cell("tiny", "wikitext", "wanda", "0.5", 3, RUN.id, {"loss": MEASURE}, "dense")
ADDED = Cell(
    "", "a tool", "measured", "", 0, OTHER_RUN.id, {"loss": measurement_id(OTHER_RUN.id, LOSS)}
)
"""What `evaluate` measured, of a model that something else made."""
LOST = "sha256:" + "0" * 64
"""What failed."""


def filled(folder: Path) -> Path:
    """A store with a run and what was measured on it."""
    with Store(folder) as store:
        store.add_record(RECORD, {MASK: samples.MASK})
        store.add_measurement(RUN.id, LOSS, MEASURED)
    return folder


def varied(folder: Path) -> Path:
    """A store with all that a store may hold."""
    with Store(folder) as store:
        store.add_record(RECORD, {MASK: samples.MASK, PROFILE: samples.PROFILE})
        store.add_record(OTHER, {EDITS: samples.EDITS})
        for evaluator, measurement in MEASUREMENTS:
            store.add_measurement(RUN.id, evaluator, measurement)
        store.add_measurement(OTHER_RUN.id, LOSS, MEASURED)
        store.write_cells([CELL], {"baseline": None}, {"method wanda": 1})
        store.write_text("study.yaml", "models: [tiny]\n")
        store.add_failure(LOST, {"what": "a third run", "error": "no"})
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """All of that, and what `evaluate` added."""
    folder = varied(tmp_path / "store")
    with Store(folder) as added:
        added.add_cell(ADDED)
    return folder


def told(folder: Path) -> list[str]:
    """All that a store says, numbers to the last bit."""
    said: list[str] = []
    with Store(folder, create=False) as store:
        for run in store.ids():
            row = store.results(run).run_row(run)
            said += [run, compact_json(row.record), compact_json(row.weights)]
            said += [compact_json(row.provenance), repr(sorted(row.files.items()))]
            record = store.record(run)
            assert record is not None
            said.append(compact_json(record.plain()))
            for measure in sorted(store.measured(run)):
                said += [measure, repr(store.entry(run, measure)), repr(store.items(run, measure))]
                said.append(compact_json(store.provenance(run, measure)))
                (numbers,) = store.numbers([(run, measure)])
                said += [repr(list(numbers.names)), numbers.values.tobytes().hex()]
                said.append(numbers.weights.tobytes().hex())
        said += [repr(store.cells()), compact_json(store.index().study)]
        said += [compact_json(store.failures()), compact_json(store.index().revisions)]
    return said


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
