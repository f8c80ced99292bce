"""What the runs of budget.yaml say, from the store beside this file.

`python -m studies.served.budget` prints the tables of docs/findings/budget.md, and writes them
there with `--write`.

Divergences are nats per token from the untouched model, on rows that no draw calibrates on.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from studies.arms import (
    Measured,
    arm,
    named,
    source_of,
    table_head,
    table_row,
    with_interval,
    with_range,
)
from studies.made import PROJECT
from studies.pages import write_or_print

from calibrant.lab.stats import contrast
from calibrant.results import Cell, Record, Store

PAGE: Final = PROJECT / "docs/findings/budget.md"
STORE: Final = Path(__file__).parent / "budget"
BUDGET: Final = "gguf 123.132672MB"
RECIPE_NAME: Final = "Q4_K_M"
RECIPE: Final = ("llama_cpp", RECIPE_NAME)
WAYS: Final[Mapping[tuple[str, str], str]] = {
    RECIPE: RECIPE_NAME,
    ("llama_cpp", BUDGET): "a budget, by errors",
    ("llama_cpp(by='kl')", BUDGET): "a budget, by predictions",
}
"""Each method with its target, and what the page calls it."""
SETS: Final = {"c4": "C4", "python_code": "code", "gsm8k:cot": "arithmetic"}
"""What is calibrated on and measured, and what the page calls it."""
REPLACED: Final = "replace_parameters"
"""The edit of a record that has the kinds of all tensors."""

PARTS: Final[Mapping[str, Sequence[str]]] = {
    "embedding": ["model.embed_tokens.weight"],
    "head": ["lm_head.weight"],
    "queries": ["q_proj"],
    "keys": ["k_proj"],
    "values": ["v_proj"],
    "attention's output": ["o_proj"],
    "gate and up": ["gate_proj", "up_proj"],
    "down": ["down_proj"],
}
"""The parts of the model, each with its matrices."""


def draws_of(way: tuple[str, str], data: str) -> Measured:
    """What the draws of a text gave, by what was measured."""
    method, target = way
    return arm(STORE, method=method, target=target, data=data)


def by_text() -> Iterator[str]:
    """Rows: the divergence on each text, by way and calibration set; the mean of the texts; then by
    how much the mean is more than the recipe's with the same set. Below zero the budget is better.
    """
    numbers = [*SETS.values(), "mean", f"more than {RECIPE_NAME}"]
    yield from table_head(["kinds chosen", "calibrated on"], numbers)
    for way, name in WAYS.items():
        for data, data_name in SETS.items():
            found = draws_of(way, data)
            cells: list[str] = []
            means: list[float] = []
            for text in named(found, map(source_of, SETS)):
                values = [draw.score.value for draw in found[text]]
                cells.append(with_range(values))
                means.append(statistics.mean(values))
            cells.append(f"{statistics.mean(means):.3f}")
            if way == RECIPE:
                cells.append("")
            else:
                cells.append(with_interval(contrast(found, draws_of(RECIPE, data))))
            yield table_row([name, data_name, *cells])


def records() -> Iterator[tuple[Cell, Record]]:
    """Each run but the dense one, with its record."""
    with Store(STORE, create=False) as store:
        for cell in store.cells():
            if (cell.method, cell.target) in WAYS:
                record = store.record(cell.run)
                assert record is not None, f"{cell} has no record"
                yield cell, record


Kinds = Mapping[str, str]
"""The kind of each tensor by its name."""


def kinds() -> Mapping[str, Mapping[tuple[str, int], Kinds]]:
    """What a budget chose: by method, then by set and draw."""
    found: dict[str, dict[tuple[str, int], Kinds]] = {}
    for cell, record in records():
        if cell.target == BUDGET:
            choices = found.setdefault(cell.method, {})
            choices[cell.data, cell.seed] = _kinds_of(record.edits)
    return found


def _kinds_of(edits: Iterable[Mapping[str, Any]]) -> Kinds:
    (replaced,) = (edit for edit in edits if edit["edit"] == REPLACED)
    return {name: tensor["kind"] for name, tensor in replaced["notes"]["tensors"].items()}


def kinds_that_differ() -> Iterator[str]:
    """Rows: how many tensors get another kind, between draws of one set and of two."""
    yield from table_head(["kinds chosen", "pairs"], ["another kind: mean", "most", "tensors"])
    for method, choices in kinds().items():
        same: list[int] = []
        other: list[int] = []
        tensors = 0
        for (first_set, first_draw), (second_set, second_draw) in combinations(choices, 2):
            first = choices[first_set, first_draw]
            second = choices[second_set, second_draw]
            tensors = len(first)
            differing = [name for name in first if first[name] != second[name]]
            counts = same if first_set == second_set else other
            counts.append(len(differing))
        name = WAYS[method, BUDGET]
        for label, counts in (("two draws of one set", same), ("two sets", other)):
            mean = sum(counts) / len(counts)
            yield table_row([name, label, f"{mean:.0f}", str(max(counts)), str(tensors)])


def bits_by_part() -> Iterator[str]:
    """Rows: how many bits a number has in each part of the model, mean of sets and draws."""
    yield from table_head(["kinds chosen"], list(PARTS))
    parts_of_way: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for cell, record in records():
        bits = _bits_of(record)
        parts_of_way.setdefault((cell.method, cell.target), []).append(bits)
    for way, name in WAYS.items():
        cells: list[str] = []
        for part in PARTS:
            mean = statistics.mean(bits[part] for bits in parts_of_way[way])
            cells.append(f"{mean:.1f}")
        yield table_row([name, *cells])


def _bits_of(record: Record) -> Mapping[str, float]:
    """The bits of a number, by part of the model. A part's matrices are equally large, so their
    mean is that of their numbers.
    """
    by_matrix: dict[str, list[float]] = {}
    (replaced,) = (edit for edit in record.edits if edit["edit"] == REPLACED)
    for name, parameter in replaced["parameters"].items():
        by_matrix.setdefault(name, []).append(parameter["bits_a_weight"])
    for weight in record.weights:
        _, _, matrix = weight["name"].rpartition(".")
        by_matrix.setdefault(matrix, []).append(weight["bits_a_weight"])
    bits: dict[str, float] = {}
    for part, matrices in PARTS.items():
        of_part = [amount for matrix in matrices for amount in by_matrix[matrix]]
        bits[part] = statistics.mean(of_part)
    return bits


def tables() -> dict[str, str]:
    """Each table in Markdown, by name."""
    made = {"budget": by_text(), "bits": bits_by_part(), "kinds": kinds_that_differ()}
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
