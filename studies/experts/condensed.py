"""What condensing costs the byte-level mixture: shared experts alone (S), with a few others (SR),
trained a little, or nothing left of the layer.

    python -m studies.experts.condensed  # measures, prints a table, and writes `condensed.json`

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
METHODS_ON_ARITHMETIC: Final[Mapping[str, str]] = {"SR, 6 experts": "cd_moe"}
TOKENS: Final = 4096
LENGTH: Final = 128
SEEDS: Final = (0, 1, 2)


def rows() -> Iterator[Mapping[str, Any]]:
    """Yield what each way of condensing loses, for each share of the layers, calibration set and
    draw.
    """
    untouched = open_model(str(mixture_folder()), "float32")
    yield {
        "way": "untouched",
        "share": 0.0,
        "data": "",
        "seed": 0,
        "loss": losses(untouched),
    }
    for seed in SEEDS:
        yield from _of_draw(ALL, seed, METHODS)
    yield from _of_draw("arithmetic", SEEDS[0], METHODS_ON_ARITHMETIC)


def _of_draw(data: str, seed: int, methods: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    for share in SHARES:
        for way, method in methods.items():
            opened = open_model(str(mixture_folder()), "float32")
            calibrated_on = CalibrationSet(data, tokens=TOKENS, length=LENGTH, seed=seed)
            batch = calibrated_on.tokens(opened.tokenizer)
            record = compress(opened, view(opened.model), batch, Recipe.parse(method, share))
            opened.digest += f" {method} {share} {data} {seed}"
            (edit,) = record.edits
            notes = edit["notes"]
            told = {
                "way": way,
                "share": share,
                "data": data,
                "seed": seed,
                "layers": notes["layers"],
                "sparsity": record.sparsity,
            }
            yield {**told, "course": notes["course"], "loss": losses(opened)}
            if way == "S":
                yield {**told, "way": "nothing", "loss": losses(without(notes["layers"]))}


def without(blocks: list[int]) -> Opened:
    """Return the model of which these blocks have no feed-forward network at all."""
    opened = open_model(str(mixture_folder()), "float32")
    condense(view(opened.model), {block: Condensed({}, 0.0) for block in blocks})
    opened.digest += f" without {blocks}"
    return opened


def losses(opened: Opened) -> Mapping[str, float]:
    """Return the held-out losses, in nats a byte."""
    measurements = calibrant.evaluate(opened, tasks=TASKS, allow_leak=True)
    return {one.score.measured: round(one.score.value, 4) for one in measurements}


if __name__ == "__main__":
    lines = ",\n".join(map(json.dumps, rows()))
    RECORD.write_text(f"[\n{lines}\n]\n", "utf-8")
