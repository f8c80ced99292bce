"""The tidy table: one flat row for each score."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from calibrant.compare.effects import share_kept
from calibrant.compare.results import Results, read
from calibrant.store import Cell, Measurement, Store

if TYPE_CHECKING:
    import polars as pl

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


def tidy(store: Store | Results) -> "pl.DataFrame":
    """Every score of the store as one flat row, the primary ones and those beside them: what was asked, what was measured, the value.

    `dense` is what the untouched model scored there and `kept` the share of it that is left (see `effects.kept`); both are empty without one.
    `stale` says that the run or the measurement is of an older revision.
    """
    import polars as pl

    reading = store if isinstance(store, Results) else read(store, items=False)
    untouched = {(c.model, text): reading.scores.get(c.run, {}).get(i) for c in reading.cells if c.method == "none" for text, i in c.measures.items()}
    rows = [row for cell in reading.cells for row in _rows(cell, reading, untouched)]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def _rows(cell: Cell, reading: Results, untouched: Mapping[tuple[str, str], Measurement | None]) -> Iterator[tuple[Any, ...]]:
    asked = (cell.model, cell.data, cell.method, cell.target, cell.propagate, cell.seed)
    for text, measure_id in cell.measures.items():
        found, dense = reading.scores.get(cell.run, {}).get(measure_id), untouched.get((cell.model, text))
        whole = {s.metric: s.value for s in (dense.score, *dense.beside)} if dense else {}
        for s in (found.score, *found.beside) if found else ():
            share = share_kept(s.value, whole[s.metric], s) if s.metric in whole else None
            numbers = (s.value, s.stderr, s.n, s.better, s.chance, whole.get(s.metric), share[0] if share else None)
            yield (*asked, s.measured, s.metric, s.unit, *numbers, cell.run, bool({cell.run, measure_id} & reading.stale))
