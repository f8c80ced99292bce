"""Every run with its settings, its results and the exact command that repeats it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from calibrant.lab.report.facts import StudyFacts
from calibrant.lab.report.page.contents import Contents
from calibrant.lab.report.sentences import short
from calibrant.lab.stats import bits_of, describe_target, is_rounded, target_noun
from calibrant.numerics import HOLE
from calibrant.results import Cell, Record
from calibrant.spec import written_form

BUDGET: Final = {"samples": 128, "length": 2048, "tokens": None}
"""The budget of a study that doesn't name one."""


@dataclass(frozen=True)
class RunRow:
    """A run in the table: its place in the study's grid, its target and what that is sorted by,
    its scores (None where there is none).
    """

    cell: Cell
    target: str
    order: float | None
    values: tuple[float | None, ...]
    stale: bool
    command: str


@dataclass(frozen=True)
class RunTable:
    """The runs, the kind of their targets, the names of what was measured, and the settings that
    they share.
    """

    rows: tuple[RunRow, ...]
    kind: str
    measured: tuple[str, ...]
    settings: Mapping[str, str]


def run_table(contents: Contents) -> RunTable:
    """Return the runs that have a record, in the order of the study's grid."""
    reading, facts = contents.reading, contents.facts
    cells = [cell for cell in reading.cells if cell.run in reading.records]
    evaluators = list(dict.fromkeys(text for cell in cells for text in cell.measures))
    budget = budget_of(facts)
    rows: list[RunRow] = []
    names: dict[str, str] = {}
    for cell in cells:
        record, scores = reading.records[cell.run], reading.scores.get(cell.run, {})
        measurements = {text: scores.get(cell.measures.get(text, "")) for text in evaluators}
        names |= {
            text: m.score.measured
            for text, m in measurements.items()
            if m is not None and text not in names
        }
        bits = bits_of(cell.target)
        if cell.method == "none":
            target, order = HOLE, None
        elif bits is None:
            target, order = describe_target(cell.target).removesuffix(" sparsity"), record.sparsity
        else:
            target, order = (
                cell.target,
                2 - bits / 16,
            )  # behind every sparsity, those of the fewest bits last
        values = tuple(None if m is None else m.score.value for m in measurements.values())
        rows.append(
            RunRow(
                cell,
                target,
                order,
                values,
                cell.run in reading.stale,
                command(cell, record, budget),
            )
        )
    named = [names.get(text, text) for text in evaluators]
    settings = {
        key: value
        for key, value in {**facts.settings, **facts.machine}.items()
        if value and key != "versions"
    }
    kind = target_noun(cell.target for cell in cells if cell.method != "none")
    return RunTable(tuple(rows), kind, tuple(short(name, named) for name in named), settings)


def budget_of(facts: StudyFacts) -> dict[str, Any]:
    """Return the budget of a draw, read from the study's own text, in which each line is a key
    and a JSON value; nothing without that text.
    """
    budget = dict(BUDGET) if facts.study else dict[str, Any]()
    for line in facts.study.splitlines():
        key, _, value = line.partition(": ")
        if key in budget:
            try:
                budget[key] = json.loads(value)
            except ValueError:
                continue
    return budget


def command(cell: Cell, record: Record, budget: Mapping[str, Any]) -> str:
    """Return what makes this model again and measures it: two commands, or one for the dense
    model.
    """
    run = record.run
    tasks = [word for evaluator in cell.measures for word in ("--task", evaluator)]
    if cell.method == "none":
        return shlex.join(["calibrant", "evaluate", cell.model, "--dtype", run.dtype, *tasks])
    # Without the study's own text the record says what was drawn, unless the budget was a number of
    # tokens.
    samples, length = (
        budget.get(key) or record.data_facts.get(fact, BUDGET[key])
        for key, fact in (("samples", "windows"), ("length", "length"))
    )
    amount = (
        ["--samples", str(samples)]
        if budget.get("tokens") is None
        else ["--tokens", str(budget["tokens"])]
    )
    # A method that looks at no data gets some all the same, because prune requires it; quantize
    # doesn't.
    verb, out = ("quantize", "quantized") if is_rounded(cell.target) else ("prune", "pruned")
    option = "--sparsity" if target_noun([cell.target]) == "sparsity" else "--target"
    equal = run.allocation.get("spec") == "uniform"
    data = ["--data", run.data or "full_stops"] if run.data or verb == "prune" else []
    words = [
        "calibrant",
        verb,
        cell.model,
        *data,
        "--method",
        cell.method if equal else written_form(run.method),
        option,
        cell.target,
    ]
    if cell.data:
        words += [*amount, "--length", str(length), "--seed", str(cell.seed)]
    elif data:
        words += ["--samples", "1", "--length", "16"]
    words += [] if equal else ["--allocation", written_form(run.allocation)]
    words += [
        word for transform in run.transforms for word in ("--transform", written_form(transform))
    ]
    words += [
        *(["--propagate", run.propagate] if run.propagate else []),
        "--dtype",
        run.dtype,
        "--out",
        out,
    ]
    return (
        shlex.join(words)
        + "\n"
        + shlex.join(["calibrant", "evaluate", out, "--dtype", run.dtype, *tasks])
    )
