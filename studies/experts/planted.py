"""Do the criteria find what was planted? A dead expert and a doubled one in every layer of the
mixture of `three_texts.py`, in several places.

    CALIBRANT_DATA=… python -m studies.experts.planted MODEL

Writes `planted.json`; tables.py has its table.

Asked of the paper: a dead expert goes first by the smallest `ean`, `euf` and `ege`; a doubled one
by the largest `ews` and `eas`. A dead expert has zeros for numbers and the mean of the other rows
of its router; a double is a copy, row of the router included (`tests/trained_mixture.py`).
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from studies.experts.three_texts import opened

from calibrant.compress import Recipe, compress
from calibrant.data import CalibrationSet
from calibrant.models import view

from tests.trained_mixture import plant

RECORD: Final = Path(__file__).parent / "planted.json"
DATA: Final = "0.34*c4 + 0.33*gsm8k:cot + 0.33*python_code"
TOKENS: Final = 4096
LENGTH: Final = 256
PLACES: Final = 3
BLOCKS: Final = 4
EXPERTS: Final = 16
DEAD: Final = (("euf", "min"), ("ean", "min"), ("ege", "min"), ("egn", "min"), ("reap", "min"))
DOUBLED: Final = (("ews", "max"), ("eas", "max"), ("egs", "max"))


class Planted(NamedTuple):
    """Of one block the dead expert, the doubled one and its copy."""

    dead: int
    doubled: int
    copy: int


def rows(folder: str) -> Iterator[Mapping[str, Any]]:
    """Yield, for each place, criterion and block, how many of the sixteen experts would go
    before the planted one; 0 is first.
    """
    for place in range(PLACES):
        chance = torch.Generator().manual_seed(place)
        drawn: list[Planted] = []
        for _ in range(BLOCKS):
            dead, doubled, copy = torch.randperm(EXPERTS, generator=chance)[:3].tolist()
            drawn.append(Planted(dead, doubled, copy))
        for criterion, drop in (*DEAD, *DOUBLED):
            scores_by_block = scores(folder, drawn, place, criterion, drop)
            is_dead = (criterion, drop) in DEAD
            sign = -1 if drop == "max" else 1
            for block, planted in enumerate(drawn):
                of_block = [sign * score for score in scores_by_block[str(block)]]
                searched = [planted.dead] if is_dead else [planted.doubled, planted.copy]
                before = [
                    sum(other < of_block[expert] for other in of_block) for expert in searched
                ]
                yield {
                    "planted": "dead" if is_dead else "doubled",
                    "criterion": criterion,
                    "drop": drop,
                    "place": place,
                    "block": block,
                    "before": min(before),
                }


def scores(
    folder: str, drawn: list[Planted], seed: int, criterion: str, drop: str
) -> Mapping[str, list[float]]:
    """Return by block what a criterion makes of each expert of the model with planted ones."""
    bed = opened(folder)
    dead = [(block, planted.dead) for block, planted in enumerate(drawn)]
    doubled = [(block, planted.doubled, planted.copy) for block, planted in enumerate(drawn)]
    plant(bed.model, dead, doubled)
    data = CalibrationSet(DATA, tokens=TOKENS, length=LENGTH, seed=seed)
    recipe = Recipe.parse(f"mc_suite(criterion={criterion}, drop={drop})", 1 / EXPERTS)
    record = compress(bed, view(bed.model), data.tokens(bed.tokenizer), recipe)
    (edit,) = record.edits
    return edit["notes"]["scores"]


if __name__ == "__main__":
    lines = ",\n".join(map(json.dumps, rows(sys.argv[1])))
    RECORD.write_text(f"[\n{lines}\n]\n", "utf-8")
