"""Which criterion of MC-Suite costs the byte-level mixture least, at once, in rounds, and with a short training after each round.

    python -m studies.experts.criteria               # measures, prints a table, and writes `criteria.json`

Every criterion is tried both ways, with half of the experts gone; chance is what each must be better than. Calibrated on all three texts that the
model was trained on; measured on held-out rows of each.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from studies.experts.byte_mixture import TASKS

import calibrant
from calibrant.compress import Recipe, compress
from calibrant.data import CalibrationSet
from calibrant.methods import methods
from calibrant.models import open_model, view

from tests.trained_mixture import mixture_folder

RECORD: Final = Path(__file__).parent / "criteria.json"
ALL: Final = "0.34*python_docs + 0.33*python_code + 0.33*arithmetic"
CRITERIA: Final = ["ews", "rwn", "wsr", "ewn", "euf", "ecc", "evtc", "ets", "eas", "eae", "eao", "ean", "egs", "ege", "ego", "egn", "reap"]
IN_ROUNDS: Final = ("ean", "reap", "egn", "ege", "euf", "random")
SHARE, SHARES = 0.5, (0.25, 0.5, 0.75)
ROUNDS, STEPS, RATE = 4, 15, 1e-3
TOKENS, LENGTH = 8192, 128


def asked() -> Iterator[tuple[str, float, int]]:
    """Yield the methods, the share of experts that goes, and the draw."""
    for criterion in CRITERIA:
        for drop in ("min", "max"):
            yield f"mc_suite(criterion={criterion}, drop={drop})", SHARE, 0
    for share in SHARES:
        for seed in (1, 2, 3):
            yield f"mc_suite(criterion=random, seed={seed})", share, 0
        for criterion in IN_ROUNDS:
            for how in ("", f", rounds={ROUNDS}", f", rounds={ROUNDS}, steps={STEPS}, rate={RATE}"):
                yield f"mc_suite(criterion={criterion}{how})", share, 0


def rows() -> Iterator[Mapping[str, Any]]:
    """Yield what the model loses on each text, the untouched one first; of what is measured twice the first time counts."""
    untouched = open_model(str(mixture_folder()), "float32")
    yield {"method": "", "share": 0.0, "seed": 0, "loss": losses(untouched), "edits": []}
    for method, share, seed in dict.fromkeys((str(methods.build(text)), share, seed) for text, share, seed in asked()):
        opened = open_model(str(mixture_folder()), "float32")
        batch = CalibrationSet(ALL, tokens=TOKENS, length=LENGTH, seed=seed).tokens(opened.tokenizer)
        record = compress(opened, view(opened.model), batch, Recipe.parse(method, share))
        opened.digest += f" {method} {share} {seed}"
        yield {"method": method, "share": share, "seed": seed, "loss": losses(opened), "edits": [short(edit) for edit in record.edits]}


def short(edit: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return which experts went and how even the load was, or what the loss was before and after training."""
    notes = edit["notes"]
    if edit["edit"] == "tuned":
        return {"loss": notes["loss"]}
    return {"experts": edit["experts"], "even": {block: one["even"] for block, one in notes.get("routing", {}).items()}}


def losses(opened: Any) -> Mapping[str, float]:
    """Return the held-out losses, in nats a byte."""
    return {m.score.measured: round(m.score.value, 4) for m in calibrant.evaluate(opened, TASKS, allow_leak=True)}


def table(found: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the increase of the mean loss over the three texts, for each method and share."""
    means = {(row["method"], row["share"]): sum(row["loss"].values()) / len(row["loss"]) for row in found}
    dense = means.pop(("", 0.0))
    yield f"untouched: {dense:.4f}"
    for (method, share), mean in sorted(means.items(), key=lambda entry: (entry[0][1], entry[1])):
        yield f"| {share:.0%} | {method} | {mean - dense:.4f} |"


if __name__ == "__main__":
    made: list[Mapping[str, Any]] = []
    for row in rows():
        made.append(row)
        print(row["method"], row["share"], row["loss"], flush=True)
    RECORD.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    print("\n".join(table(made)))
