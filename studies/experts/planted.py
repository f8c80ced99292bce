"""Do the criteria find what was planted? A dead expert and a doubled one in every layer of the
mixture of `three_texts.py`, in several places.

    CALIBRANT_DATA=… python -m studies.experts.planted MODEL      # writes `planted.json`; tables.py has its table

Asked of the paper: a dead expert goes first by the smallest `ean`, `euf` and `ege`; a doubled one
by the largest `ews` and `eas`. A dead expert has zeros for numbers and the mean of the other rows
of its router; a double is a copy, row of the router included (`tests/trained_mixture.py`).
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from studies.experts.three_texts import opened

from calibrant.compress import Recipe, compress
from calibrant.data import CalibrationSet
from calibrant.models import view

from tests.trained_mixture import plant

RECORD: Final = Path(__file__).parent / "planted.json"
DATA: Final = "0.34*c4 + 0.33*gsm8k:cot + 0.33*python_code"
TOKENS, LENGTH, PLACES, BLOCKS, EXPERTS = 4096, 256, 3, 4, 16
DEAD: Final = (("euf", "min"), ("ean", "min"), ("ege", "min"), ("egn", "min"), ("reap", "min"))
DOUBLED: Final = (("ews", "max"), ("eas", "max"), ("egs", "max"))


def rows(folder: str) -> Iterator[Mapping[str, Any]]:
    """Yield, for each place, criterion and block, how many of the sixteen experts would go
    before the planted one; 0 is first.
    """
    for place in range(PLACES):
        chance = torch.Generator().manual_seed(place)
        drawn = [torch.randperm(EXPERTS, generator=chance)[:3].tolist() for _ in range(BLOCKS)]
        for criterion, drop in (*DEAD, *DOUBLED):
            bed = opened(folder)
            plant(
                bed.model,
                [(b, dead) for b, (dead, _, _) in enumerate(drawn)],
                [(b, one, copy) for b, (_, one, copy) in enumerate(drawn)],
            )
            batch = CalibrationSet(DATA, tokens=TOKENS, length=LENGTH, seed=place).tokens(
                bed.tokenizer
            )
            (edit,) = compress(
                bed,
                view(bed.model),
                batch,
                Recipe.parse(f"mc_suite(criterion={criterion}, drop={drop})", 1 / EXPERTS),
            ).edits
            sign = -1 if drop == "max" else 1
            for block, (dead, *pair) in enumerate(drawn):
                scores = [sign * score for score in edit["notes"]["scores"][str(block)]]
                before = [
                    sum(other < scores[expert] for other in scores)
                    for expert in ([dead] if (criterion, drop) in DEAD else pair)
                ]
                planted = "dead" if (criterion, drop) in DEAD else "doubled"
                yield {
                    "planted": planted,
                    "criterion": criterion,
                    "drop": drop,
                    "place": place,
                    "block": block,
                    "before": min(before),
                }


if __name__ == "__main__":
    RECORD.write_text("[\n" + ",\n".join(map(json.dumps, rows(sys.argv[1]))) + "\n]\n", "utf-8")
