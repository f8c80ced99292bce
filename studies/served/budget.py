"""The tables of the GGUF budgets in docs/findings/served.md, made of the store beside this file:
python -m studies.served.budget

Divergences are nats per token from the untouched model, on rows that no draw calibrates on.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from studies.arms import Measured, arm, with_interval, with_range

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
TEXTS: Final = ("c4", "python_code", "gsm8k:cot")
"""What was calibrated on."""
REPLACED: Final = "replace_parameters"
"""The edit of a record that has the kinds of all tensors."""


def of(way: tuple[str, str], data: str) -> Measured:
    """What the draws of a text gave, by what was measured."""
    method, target = way
    return arm(STORE, method=method, target=target, data=data)


def by_text() -> Iterator[str]:
    """Rows: the divergence on each text by way and calibration text; less than the recipe's by
    how much, mean of the texts.
    """
    measured = list(of(RECIPE, TEXTS[0]))
    yield f"| kinds chosen | calibrated on | {' | '.join(measured)} | more than Q4_K_M |"
    yield f"| --- | --- |{' ---: |' * (len(measured) + 1)}"
    for way, name in WAYS.items():
        for data in TEXTS:
            found = of(way, data)
            cells: list[str] = []
            for text in measured:
                cells.append(with_range([draw.score.value for draw in found[text]]))
            if way == RECIPE:
                cells.append("")
            else:
                cells.append(with_interval(contrast(found, of(RECIPE, data))))
            yield f"| {name} | {data} | {' | '.join(cells)} |"


Kinds = Mapping[str, str]
"""The kind of each tensor by its name."""


def kinds() -> Mapping[str, Mapping[tuple[str, int], Kinds]]:
    """What a budget chose: by method, then by text and draw."""
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


def changed() -> Iterator[str]:
    """Rows: how many tensors get another kind, of pairs of draws of one text and of two."""
    yield "| kinds chosen | pairs | another kind: mean, most | tensors |"
    yield "| --- | --- | ---: | ---: |"
    for method, choices in kinds().items():
        same: list[int] = []
        other: list[int] = []
        tensors = 0
        for one, two in combinations(choices, 2):
            first, second = choices[one], choices[two]
            tensors = len(first)
            differing = [name for name in first if first[name] != second[name]]
            pairs = same if one[0] == two[0] else other
            pairs.append(len(differing))
        name = WAYS[method, BUDGET]
        for label, pairs in (("two draws of one text", same), ("two texts", other)):
            if pairs:
                mean = sum(pairs) / len(pairs)
                yield f"| {name} | {label} | {mean:.0f}, {max(pairs)} | {tensors} |"


def tables() -> dict[str, str]:
    """Each table in Markdown, by name."""
    return {"budget": "\n".join(by_text()), "kinds": "\n".join(changed())}


if __name__ == "__main__":
    print("\n\n".join(tables().values()))
