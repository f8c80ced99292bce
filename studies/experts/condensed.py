"""What condensing costs the byte-level mixture: shared experts alone (S), with a few others (SR),
trained a little, or nothing left of the layer.

    python -m studies.experts.condensed              # measures, prints a table, and writes `condensed.json`

CD-MoE's own comparison, on a model that anybody can train in a minute. Calibrated on all three
texts that the model was trained on, or on arithmetic; measured on held-out rows of each. Every
choice of layers is that of the method itself.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from studies.experts.byte_mixture import TASKS

import calibrant
from calibrant.compress import Recipe, compress
from calibrant.data import CalibrationSet
from calibrant.models import Condensed, Opened, condense, open_model, view

from tests.trained_mixture import mixture_folder

RECORD: Final = Path(__file__).parent / "condensed.json"
ALL: Final = "0.34*python_docs + 0.33*python_code + 0.33*arithmetic"
SHARES: Final = (0.5,)
METHODS: Final[Mapping[str, str]] = {
    "S": "cd_moe(experts=0)",
    "SR, 1 expert": "cd_moe(experts=1)",
    "SR, 6 experts": "cd_moe",
    "SR, 6 experts, gates of all tokens": "cd_moe(gates=all)",
    "SR, 6 experts, fitted gates": "cd_moe(gates=fitted)",
    "SR, 6 experts, trained": "cd_moe(steps=30, rate=0.001)",
}
TOKENS, LENGTH, SEEDS = 4096, 128, (0, 1, 2)


def rows() -> Iterator[Mapping[str, Any]]:
    """Yield what each way of condensing loses, for each share of the layers, calibration set and
    draw.
    """
    yield {
        "way": "untouched",
        "share": 0.0,
        "data": "",
        "seed": 0,
        "loss": losses(open_model(str(mixture_folder()), "float32")),
    }
    for data in (ALL, "arithmetic"):
        for seed in SEEDS if data == ALL else SEEDS[:1]:
            yield from _of_draw(data, seed)


def _of_draw(data: str, seed: int) -> Iterator[Mapping[str, Any]]:
    for share in SHARES:
        for way, method in METHODS.items() if data == ALL else (("SR, 6 experts", "cd_moe"),):
            opened = open_model(str(mixture_folder()), "float32")
            batch = CalibrationSet(data, tokens=TOKENS, length=LENGTH, seed=seed).tokens(
                opened.tokenizer
            )
            record = compress(opened, view(opened.model), batch, Recipe.parse(method, share))
            opened.digest += f" {method} {share} {data} {seed}"
            (edit,) = record.edits
            told = {
                "way": way,
                "share": share,
                "data": data,
                "seed": seed,
                "layers": edit["notes"]["layers"],
                "sparsity": record.sparsity,
            }
            yield {**told, "course": edit["notes"]["course"], "loss": losses(opened)}
            if way == "S":
                yield {**told, "way": "nothing", "loss": losses(without(edit["notes"]["layers"]))}


def without(blocks: list[int]) -> Opened:
    """Return the model of which these blocks have no feed-forward network at all."""
    opened = open_model(str(mixture_folder()), "float32")
    condense(view(opened.model), {block: Condensed({}, 0.0) for block in blocks})
    opened.digest += f" without {blocks}"
    return opened


def losses(opened: Opened) -> Mapping[str, float]:
    """Return the held-out losses, in nats a byte."""
    return {
        m.score.measured: round(m.score.value, 4)
        for m in calibrant.evaluate(opened, tasks=TASKS, allow_leak=True)
    }


if __name__ == "__main__":
    RECORD.write_text("[\n" + ",\n".join(map(json.dumps, rows())) + "\n]\n", "utf-8")
