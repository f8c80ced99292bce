"""SmolLM2 as a mixture of experts: its feed-forward networks split by co-activation, with routers
that were taught by the dense model.

    CALIBRANT_DATA=… python -m studies.experts.upcycled OUT

With `--record` it is measured too, and `upcycled.json` is written.

What it is for: trying methods for experts on a model that has read more than a few hundred
kilobytes. The record will say how far its loss is from the dense model's for each number of picked
experts; it hasn't been made yet. The recipe is here and in `upcycling.py`; weights are not kept in
the repository.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from scipy.stats import kendalltau
from studies.experts.upcycling import Split, layers, upcycled
from torch import Tensor, nn

import calibrant
from calibrant.activations import Routing
from calibrant.models import Opened, open_model, save, view
from calibrant.walk import walk_blocks

HERE: Final = Path(__file__).parent
RECORD: Final = HERE / "upcycled.json"
DATA: Final = "0.5*c4 + 0.5*gsm8k:qa"
TOKENS: Final = 2048
LENGTH: Final = 512
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
    found: list[list[Tensor]] = []
    handles: list[Any] = []
    for network in layers(opened.model):
        read: list[Tensor] = []
        found.append(read)
        handles.append(network.register_forward_pre_hook(_keep_inputs(read)))
    for ids, mask in zip(batch.ids.split(4), batch.mask.split(4), strict=True):
        with torch.no_grad():
            opened.model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        for read in found:
            read[-1] = read[-1][mask]
    for handle in handles:
        handle.remove()
    return [torch.cat(read) for read in found]


def _keep_inputs(read: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """What, before a network runs, adds what it is given to `read`."""

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        read.append(args[0].float())

    return keep


def losses(opened: Opened) -> dict[str, float]:
    """Return what a model loses on held-out text, in nats a token."""
    measurements = calibrant.evaluate(opened, tasks=TASKS, allow_leak=True)
    return {one.score.measured: round(one.score.value, 4) for one in measurements}


def record(dense: Opened, made: Opened, facts: list[Any]) -> dict[str, Any]:
    """Return the dense model's losses, the mixture's for each number of picked experts, with the
    gates of its own number, and its layers.
    """
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dense": losses(dense),
        "data": DATA,
        "tokens": TOKENS,
        "split": vars(SPLIT),
    }
    for picked in PICKED:
        pick(made, picked)
        found[f"picked {picked} of {SPLIT.experts}"] = losses(made)
    pick(made, SPLIT.picked)
    found["agreement of loads"] = agreements(made)
    found["layers"] = []
    for layer in facts:
        load = layer["load"]
        found["layers"].append({**layer, "load": [min(load), max(load)]})
    return found


def written(found: dict[str, Any]) -> str:
    """Return the record as JSON, with a line for each layer."""
    *_, (last, rows) = found.items()
    others = {name: value for name, value in found.items() if name != last}
    head = json.dumps(others, indent=2).removesuffix("\n}")
    lines = ",\n    ".join(map(json.dumps, rows))
    return f"{head},\n  {json.dumps(last)}: [\n    {lines}\n  ]\n}}\n"


def agreements(made: Opened) -> dict[str, float]:
    """Return how alike texts rank the experts of a layer by load: Kendall's τ, the mean over
    layers, of two draws of a text and of two texts.

    A mixture whose routers send all texts to the same experts, or each draw to others, can't tell
    what a text decides about experts.
    """
    first_draws = {text: _loads(made, text, 0) for text in TEXTS}
    second_draws = {text: _loads(made, text, 1) for text in TEXTS}
    found: dict[str, float] = {}
    for one in TEXTS:
        for other in TEXTS:
            if one <= other:
                layers_of_both = zip(first_draws[one], second_draws[other], strict=True)
                taus = [kendalltau(first, second)[0] for first, second in layers_of_both]
                found[f"{one}, {other}"] = round(statistics.mean(taus), 3)
    return found


def _loads(made: Opened, text: str, seed: int) -> list[list[float]]:
    data = calibrant.CalibrationSet(text, tokens=1024, length=LENGTH, seed=seed)
    blocks = walk_blocks(view(made.model), data.tokens(made.tokenizer), (Routing,))
    return [seen[Routing].counts.tolist() for _, seen in blocks]


def pick(made: Opened, picked: int) -> None:
    """Have routers pick so many; the gates add up to one, so what the picked experts give is
    multiplied to match.
    """
    for block in layers(made.model):
        with torch.no_grad():
            block.experts.down_proj.mul_(picked / block.gate.top_k)  # pyright: ignore[reportArgumentType]
        block.gate.top_k = picked  # pyright: ignore[reportArgumentType]
    made.model.config.num_experts_per_tok = picked
    digest, _, _ = made.digest.partition(" ")
    made.hashed = f"{digest} {picked}"


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
