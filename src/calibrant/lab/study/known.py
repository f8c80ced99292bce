"""What the index of a store tells of a study, as far as the records bear it out.

The index may be of another study: of one before it was edited, of one that another process runs on
the same store, of a machine where the type `auto` is another one. A cell's labels say nothing of
that; the record of its run does.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from calibrant.errors import DataError, ModelError
from calibrant.lab.study.request import Workload
from calibrant.lab.study.sending import RemoteStore
from calibrant.models import resolve_dtype
from calibrant.numerics import type_name
from calibrant.results import Cell, Record, Store, measurement_id


def known_cells(
    store: Store | RemoteStore, work: Workload, numbers: Iterable[int]
) -> dict[int, Cell]:
    """Return the cells of the index whose recorded runs answer these requests, by number, each with
    what is measured on it of what is asked.

    Of an index that can't be read nothing is known.
    """
    number_by_labels = {work.requests[number].cell.labels: number for number in numbers}
    stored_cells: Sequence[Cell] = ()
    with suppress(DataError):
        stored_cells = store.cells()
    cells: list[Cell] = []
    for cell in stored_cells:
        if cell.run and cell.labels in number_by_labels:
            cells.append(cell)
    if not cells:
        return {}
    # Where this machine lacks the device, `auto` is no type, and no record is of it.
    dtype = ""
    with suppress(ModelError):
        dtype = type_name(resolve_dtype(work.dtype, work.device))
    forms = {text: work.measures(text) for text in work.evaluators}
    known: dict[int, Cell] = {}
    for cell in cells:
        number = number_by_labels[cell.labels]
        # United stores may have several runs with the same labels.
        if number in known:
            continue
        record = _record(store, cell.run)
        if record is not None and work.requests[number].is_answered_by(record, dtype):
            known[number] = replace(cell, measures=_measures(cell, forms))
    return known


def unanswered(store: Store | RemoteStore, work: Workload, numbers: Iterable[int]) -> list[int]:
    """Return which of these requests are to be answered now and, as far as the index tells, aren't
    answered yet.
    """
    chosen = [number for number in numbers if number in work.chosen]
    if not chosen:
        return []
    known = known_cells(store, work, chosen)
    left: list[int] = []
    for number in chosen:
        if number not in known or not _is_whole(store, work, known[number]):
            left.append(number)
    return left


def _record(store: Store | RemoteStore, run_id: str) -> Record | None:
    """The record of a run, without its weights; None where there is none that can be read."""
    with suppress(DataError):
        return store.record(run_id, whole=False)
    return None


def _measures(cell: Cell, forms: Mapping[str, tuple[Mapping[str, Any], str]]) -> dict[str, str]:
    """The ids of a cell's measurements that are asked for, of the data as they are now."""
    measures: dict[str, str] = {}
    for text, measure_id in cell.measures.items():
        if text in forms and measure_id == measurement_id(cell.run, *forms[text]):
            measures[text] = measure_id
    return measures


def _is_whole(store: Store | RemoteStore, work: Workload, cell: Cell) -> bool:
    """Whether all that is asked was measured on a known cell."""
    if cell.measures.keys() != work.evaluators.keys():
        return False
    return store.measured(cell.run).issuperset(cell.measures.values())
