"""What the runs of budget.yaml say, from a store beside this file: python -m studies.served.budget.
There is none yet.

Divergences are nats per token from the untouched model, on rows that no draw calibrates on.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from studies.arms import Measured, arm, table_head, table_row, with_interval, with_range

from calibrant.lab.stats import contrast
from calibrant.results import Store

STORE: Final = Path(__file__).parent / "budget"
BUDGET: Final = "gguf 123.132672MB"
RECIPE: Final = ("llama_cpp", "Q4_K_M")
WAYS: Final[Mapping[tuple[str, str], str]] = {
    RECIPE: "Q4_K_M",
    ("llama_cpp", BUDGET): "a budget, by errors",
    ("llama_cpp(by=kl)", BUDGET): "a budget, by predictions",
}
"""Each method with its target, and what the page calls it."""
SETS: Final = ("c4", "python_code", "gsm8k:cot")
"""What is calibrated on."""
REPLACED: Final = "replace_parameters"
"""The edit of a record that has the kinds of all tensors."""


def draws_of(way: tuple[str, str], data: str) -> Measured:
    """What the draws of a text gave, by what was measured."""
    method, target = way
    return arm(STORE, method=method, target=target, data=data)


def by_text() -> Iterator[str]:
    """Rows: the divergence on each text, by way and calibration set; then by how much it is more
    than the recipe's with the same set, mean of the texts. Below zero the budget is better.
    """
    measured = list(draws_of(RECIPE, SETS[0]))
    yield from table_head(["kinds chosen", "calibrated on"], [*measured, "more than Q4_K_M"])
    for way, name in WAYS.items():
        for data in SETS:
            found = draws_of(way, data)
            cells: list[str] = []
            for text in measured:
                cells.append(with_range([draw.score.value for draw in found[text]]))
            if way == RECIPE:
                cells.append("")
            else:
                cells.append(with_interval(contrast(found, draws_of(RECIPE, data))))
            yield table_row([name, data, *cells])


Kinds = Mapping[str, str]
"""The kind of each tensor by its name."""


def kinds() -> Mapping[str, Mapping[tuple[str, int], Kinds]]:
    """What a budget chose: by method, then by set and draw."""
    found: dict[str, dict[tuple[str, int], Kinds]] = {}
    with Store(STORE, create=False) as store:
        for cell in store.cells():
            if cell.target != BUDGET:
                continue
            record = store.record(cell.run)
            if record is not None:
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


def tables() -> dict[str, str]:
    """Each table in Markdown, by name."""
    return {"budget": "\n".join(by_text()), "kinds": "\n".join(kinds_that_differ())}


if __name__ == "__main__":
    print("\n\n".join(tables().values()))
