"""SmolLM2 as a mixture of experts: its feed-forward networks split by co-activation, with routers
that were taught by the dense model.

    CALIBRANT_DATA=… python -m studies.experts.upcycled OUT            # `--record` measures it too, and writes `upcycled.json`

What it is for: trying methods for experts on a model that has read more than a few hundred
kilobytes. The record will say how far its loss is from the dense model's for each number of picked
experts; it hasn't been made yet. The recipe is here and in `upcycling.py`; weights are not kept in
the repository.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from scipy.stats import kendalltau
from studies.experts.upcycling import Split, layers, upcycled
from torch import Tensor

import calibrant
from calibrant.activations import Routing
from calibrant.models import Opened, open_model, save, view
from calibrant.walk import walk_blocks

HERE: Final = Path(__file__).parent
RECORD: Final = HERE / "upcycled.json"
DATA: Final = "0.5*c4 + 0.5*gsm8k:qa"
TOKENS, LENGTH = 2048, 512
SPLIT: Final = Split(experts=16, picked=6, shared=512)
PICKED: Final = (16, 6)
TEXTS: Final = ("c4", "gsm8k:qa")
TASKS: Final = (
    "loss(source=wikitext, tokens=1024, length=512)",
    "loss(source=gsm8k, tokens=1024, length=512)",
)


def inputs(opened: Opened) -> list[Tensor]:
    """Return what each feed-forward network reads of the calibration tokens, [token, hidden] in
    float32.
    """
    batch = calibrant.CalibrationSet(DATA, tokens=TOKENS, length=LENGTH).tokens(opened.tokenizer)
    found: list[list[Tensor]] = [[] for _ in layers(opened.model)]
    handles = [
        network.register_forward_pre_hook(
            lambda _, args, place=place: place.append(args[0].float())
        )
        for network, place in zip(layers(opened.model), found, strict=True)
    ]
    for ids, mask in zip(batch.ids.split(4), batch.mask.split(4), strict=True):
        with torch.no_grad():
            opened.model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        for place in found:
            place[-1] = place[-1][mask]
    for handle in handles:
        handle.remove()
    return [torch.cat(place) for place in found]


def losses(opened: Opened) -> dict[str, float]:
    """Return what a model loses on held-out text, in nats a token."""
    return {
        m.score.measured: round(m.score.value, 4)
        for m in calibrant.evaluate(opened, tasks=TASKS, allow_leak=True)
    }


def record(dense: Opened, made: Opened, facts: list[Any]) -> dict[str, Any]:
    """Return the dense model's losses, the mixture's for each number of picked experts, with the
    gates of its own number, and its layers.
    """
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dense": losses(dense),
    }
    found |= {"data": DATA, "tokens": TOKENS, "split": vars(SPLIT)}
    for picked in PICKED:
        pick(made, picked)
        found[f"picked {picked} of {SPLIT.experts}"] = losses(made)
    pick(made, SPLIT.picked)
    layers_of = [{**of, "load": [min(of["load"]), max(of["load"])]} for of in facts]
    return {**found, "agreement of loads": agreements(made), "layers": layers_of}


def written(found: dict[str, Any]) -> str:
    """Return the record as JSON, with a line for each layer."""
    *_, (last, rows) = found.items()
    head = json.dumps({name: found[name] for name in found if name != last}, indent=2).removesuffix(
        "\n}"
    )
    return (
        f"{head},\n  {json.dumps(last)}: [\n    "
        + ",\n    ".join(map(json.dumps, rows))
        + "\n  ]\n}\n"
    )


def agreements(made: Opened) -> dict[str, float]:
    """Return how alike texts rank the experts of a layer by load: Kendall's τ, the mean over
    layers, of two draws of a text and of two texts.

    A mixture whose routers send all texts to the same experts, or each draw to others, can't tell
    what a text decides about experts.
    """
    loads = {(text, seed): _loads(made, text, seed) for text in TEXTS for seed in (0, 1)}
    pairs = {
        f"{one}, {other}": ((one, 0), (other, 1))
        for one in TEXTS
        for other in TEXTS
        if one <= other
    }
    return {
        name: round(
            statistics.mean(kendalltau(a, b)[0] for a, b in zip(loads[x], loads[y], strict=True)), 3
        )
        for name, (x, y) in pairs.items()
    }


def _loads(made: Opened, text: str, seed: int) -> list[list[float]]:
    batch = calibrant.CalibrationSet(text, tokens=1024, length=LENGTH, seed=seed).tokens(
        made.tokenizer
    )
    return [
        seen[Routing].counts.tolist()
        for _, seen in walk_blocks(view(made.model), batch, (Routing,))
    ]


def pick(made: Opened, picked: int) -> None:
    """Have routers pick so many; the gates add up to one, so what the picked experts give is
    multiplied to match.
    """
    for block in layers(made.model):
        with torch.no_grad():
            block.experts.down_proj.mul_(picked / block.gate.top_k)  # pyright: ignore[reportArgumentType]
        block.gate.top_k = picked  # pyright: ignore[reportArgumentType]
    made.model.config.num_experts_per_tok = picked
    made.hashed = f"{made.digest.partition(' ')[0]} {picked}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", help="the folder to write the model to")
    parser.add_argument("--record", action="store_true", help="measure, and write the record")
    asked = parser.parse_args()
    dense = open_model("smollm2", "float32")
    model, facts = upcycled(dense.model, inputs(dense), SPLIT)
    made = Opened(
        model,
        dense.tokenizer,
        f"{dense.name} as a mixture",
        f"{dense.digest}-mixture",
        dense.note,
        torch.float32,
    )
    if asked.record:
        RECORD.write_text(written(record(dense, made, facts)), "utf-8")
        print(RECORD.read_text("utf-8"))
    save(made, asked.out, {"note": f"{dense.name} split into {SPLIT}"})
