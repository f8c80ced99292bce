"""Runs of a study that are chosen by chance, computed again from nothing and held against their
records.

    CALIBRANT_DATA=… python -m studies.spot_check studies/smollm2.yaml studies/smollm2 AGAIN
        [--runs 10] [--seed 0] [--elsewhere]

Chooses among the runs whose record doesn't name another processor than this one: in bfloat16
another rounds otherwise. With `--elsewhere` it chooses among those that don't name this one, which
tells what a change of processor does, to text that the model itself writes too. The earliest
records name none and are in both.

Prints Markdown, a line a run: the largest difference of a measured value from the one on record,
and the share of what the record tells of the model that is equal: sampled mask bits; where there is
no mask each matrix's error, to a thousandth of it; where no matrix is told of, what was done, such
as which blocks went. Ends with 1 where a value differs by more than 0.001 or less than 99.9 % is
equal. What is computed goes into the store AGAIN, which must be a folder of its own; killed and run
again, it goes on.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibrant.compress import costs
from calibrant.lab.stats.sets import mask_bits
from calibrant.lab.study import Study, read_study
from calibrant.results import Cell, Record, Store

APART, EQUAL = 1e-3, 0.999


@dataclass(frozen=True)
class Again:
    """One run, twice: how far a measured value is from the one on record at most, and the share
    of what is told of the model that is equal.
    """

    cell: Cell
    farthest: float
    equal: float

    @property
    def same(self) -> bool:
        """Whether the record holds."""
        return self.farthest <= APART and self.equal >= EQUAL

    def __str__(self) -> str:
        cell = self.cell
        compressed = f"{cell.model}, {cell.method} at {cell.target} ({cell.propagate})"
        holds = "yes" if self.same else "NO"
        return (
            f"| {compressed}, `{cell.data}`, draw {cell.seed} | "
            f"{self.farthest:.5f} | {self.equal:.2%} | {holds} |"
        )


def chosen(kept: Store, runs: int, seed: int, elsewhere: bool = False) -> list[Cell]:
    """Finished runs that looked at data, by chance: those that may be from a processor like this
    one, or from `elsewhere`.
    """
    here = costs.processor()
    finished: list[Cell] = []
    for cell in kept.cells():
        if not cell.data or not kept.record(cell.run, whole=False):
            continue
        is_asked = may_be_of(processor(kept, cell.run), here, elsewhere)
        if is_asked and set(cell.measures.values()) <= kept.scores(cell.run).keys():
            finished.append(cell)
    return random.Random(seed).sample(finished, min(runs, len(finished)))


def may_be_of(named: str, here: str, elsewhere: bool) -> bool:
    """Whether a run whose record names this processor, or none, may be from this one, or from
    `elsewhere`.
    """
    return not named or (named != here) is elsewhere


def processor(store: Store, run: str) -> str:
    """What a run was computed on; nothing where its record doesn't say."""
    return str(store.provenance(run).get("processor", ""))


def narrowed(study: Study, cells: list[Cell]) -> Study:
    """The study with these cells alone."""
    groups: dict[str, dict[str, Any]] = {}
    for number, cell in enumerate(cells):
        groups[f"run {number}"] = {
            "model": cell.model,
            "data": cell.data,
            "method": cell.method,
            "target": cell.target,
            "seeds": [cell.seed],
            "propagate": cell.propagate,
        }
    return replace(study, groups=groups, pools={}, primary=(), exclude=(), baseline=None)


def again(kept: Store, fresh: Store, cells: list[Cell]) -> Iterator[Again]:
    """Each of the cells in both stores."""
    for cell in cells:
        (other,) = [fresh_cell for fresh_cell in fresh.cells() if fresh_cell.labels == cell.labels]
        before = kept.scores(cell.run)
        now = fresh.scores(other.run)
        apart: list[float] = []
        for text, measure in cell.measures.items():
            now_value = now[other.measures[text]].score.value
            apart.append(abs(before[measure].score.value - now_value))
        alike = equal(record_of(kept, cell.run), record_of(fresh, other.run))
        yield Again(cell, max(apart), alike)


def markdown(found: Iterable[Again]) -> str:
    """In Markdown, a line a run."""
    heads = ["| run | largest difference | equal | holds |", "| --- | ---: | ---: | --- |"]
    return "\n".join([*heads, *map(str, found)])


def equal(one: Record, other: Record) -> float:
    """The share of mask bits that are equal, or of matrices with the same error, or 1 where the
    same was done to the model and else 0.
    """
    if not one.weights:
        done = [_without_notes(edit) for edit in one.edits]
        return float(done == [_without_notes(edit) for edit in other.edits])
    names = [weight["name"] for weight in one.weights]
    if names != [weight["name"] for weight in other.weights]:
        return 0.0
    if all("bits" in weight for weight in one.weights):
        return float(np.mean(mask_bits(one.weights) == mask_bits(other.weights)))
    are_same: list[bool] = []
    for weight, other_weight in zip(one.weights, other.weights, strict=True):
        are_same.append(_same(weight.get("error"), other_weight.get("error")))
    return float(np.mean(are_same))


def _without_notes(edit: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was done; how a search came to it is in the notes, with seconds."""
    return {name: value for name, value in edit.items() if name != "notes"}


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one == other
    return bool(np.isclose(one, other, rtol=APART, atol=0))


def record_of(store: Store, run: str) -> Record:
    """The record of a finished run."""
    record = store.record(run)
    assert record is not None, f"{run} has no record"
    return record


def _told(what: str, done: int, total: int) -> None:
    print(f"{what} {done}/{total}", file=sys.stderr)


def main() -> int:
    """Choose, compute what is lacking, compare."""
    parser = argparse.ArgumentParser(
        description="Runs of a study, computed again and held against their records."
    )
    for name in ("study", "store", "again"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--elsewhere", action="store_true")
    args = parser.parse_args()
    study = read_study(args.study)
    with Store(args.store, create=False) as kept:
        cells = chosen(kept, args.runs, args.seed, args.elsewhere)
        narrowed(study, cells).run(args.again, _told)
        with Store(args.again, create=False) as fresh:
            found = list(again(kept, fresh, cells))
    print(markdown(found))
    return not all(one.same for one in found)


if __name__ == "__main__":
    sys.exit(main())
