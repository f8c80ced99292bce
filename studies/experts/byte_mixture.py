"""A byte-level mixture of experts to try methods on, with truths planted in it where that is asked;
and what it has learnt.

    # as it was trained, in about a minute of one core
    python -m studies.experts.byte_mixture OUT
    # dead is block:expert, and doubled block:expert:copy
    python -m studies.experts.byte_mixture OUT --dead 1:3 --doubled 2:0:7

The recipe, seeds included, is `tests/trained_mixture.py`; weights are not kept in the repository.
The record (`byte_mixture.json`) has the held-out losses of the model as it was trained and with the
truths planted above, and for each router the entropy of its load as a share of the largest there
can be. `--record` writes it anew.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers

import calibrant
from calibrant.activations import Routing
from calibrant.models import Opened, open_model, save, view
from calibrant.walk import walk_blocks

from tests.trained import LANGUAGES
from tests.trained_mixture import Place, mixture_folder, plant, trained_mixture

HERE: Final = Path(__file__).parent
RECORD: Final = HERE / "byte_mixture.json"
DEAD: Final[list[Place]] = [(1, 3)]
DOUBLED: Final = [(2, 0, 7)]
TASKS: Final = [f"loss(source={language}, tokens=2048, length=256)" for language in LANGUAGES]


def planted(dead: list[Place], doubled: list[tuple[int, int, int]]) -> Opened:
    """Return the trained model with such experts, ready to be measured or saved."""
    opened = open_model(str(mixture_folder()), "float32")
    opened.model = plant(trained_mixture(), dead, doubled)
    if dead or doubled:
        opened.digest += f" {dead} {doubled}"
    return opened


def measured(opened: Opened) -> Mapping[str, Any]:
    """Return its losses in nats a byte, with standard errors over documents, and the entropy of
    each router's load; no token is padding.
    """
    losses: dict[str, Any] = {}
    for measurement in calibrant.evaluate(opened, tasks=TASKS):
        score = measurement.score
        losses[score.measured] = {
            "nats": round(score.value, 4),
            "stderr": round(score.stderr, 4),
        }
    mixed = calibrant.CalibrationSet(
        "0.4*python_docs + 0.3*python_code + 0.3*arithmetic", tokens=4096, length=256
    )
    batch = mixed.tokens(opened.tokenizer)
    entropies: list[float] = []
    for _, seen in walk_blocks(view(opened.model), batch, (Routing,)):
        entropies.append(round(_entropy(seen[Routing].counts), 4))
    return {"loss": losses, "entropy": entropies}


def _entropy(load: torch.Tensor) -> float:
    shares = load / load.sum()
    return -float(torch.special.xlogy(shares, shares).sum()) / math.log(len(load))


def record() -> Mapping[str, Any]:
    """Measure the model as it was trained, and with the truths that tests plant."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trained": measured(planted([], [])),
        f"dead {DEAD}": measured(planted(DEAD, [])),
        f"doubled {DOUBLED}": measured(planted([], DOUBLED)),
    }


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(":")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", help="the folder to write the model to")
    parser.add_argument("--dead", nargs="*", type=_numbers, default=[], help="block:expert")
    parser.add_argument("--doubled", nargs="*", type=_numbers, default=[], help="block:expert:copy")
    parser.add_argument("--record", action="store_true", help="measure, and write the record")
    asked = parser.parse_args()
    if asked.out:
        note = f"dead experts {asked.dead}, doubled {asked.doubled}"
        save(planted(asked.dead, asked.doubled), asked.out, {"note": note})
    if asked.record:
        RECORD.write_text(json.dumps(record(), indent=2) + "\n", "utf-8")
        print(RECORD.read_text("utf-8"))
