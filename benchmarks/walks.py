"""How long each way through a model takes, next to the loop that most pruning code uses: python
benchmarks/walks.py [--samples 32] [--length 512]

Wanda at 50 % on smollm2, calibrated on Python's help topics. The ways take turns in one process,
several rounds, so that a slow moment of the machine meets all of them. `literal` is that loop,
written against transformers alone: one sample at a time, a forward of each block with hooks, then
all of its matrices, then the forward again. `floor` is one forward of the blocks: no walk can be
faster. Weights are put back between runs.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import calibrant
from calibrant.data import TokenBatch
from calibrant.methods.pruning.wanda import Wanda
from calibrant.models import ModelView
from calibrant.walk import walk

METHOD, TARGET = Wanda(), calibrant.parse_target("0.5")


def walked(propagate: Any) -> Callable[[ModelView, TokenBatch], None]:
    """The library's loop, one way."""

    def run(view: ModelView, batch: TokenBatch) -> None:
        for weight, seen in walk(view, batch, METHOD.observes, propagate):
            weight.set(METHOD.compress(weight.get(), seen, TARGET).weight)

    return run


@torch.no_grad()
def literal(view: ModelView, batch: TokenBatch) -> None:
    """The two-pass loop of the papers' code, for models of plain linear layers."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    class Caught(nn.Module):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            calls.append((hidden_states, kwargs))
            return hidden_states

    layers = view.base.layers
    view.base.layers = nn.ModuleList([Caught()])
    for sample in batch.ids.split(1):
        view.base(input_ids=sample, use_cache=False)
    view.base.layers = layers
    states = [state for state, _ in calls]
    for layer in layers:
        linears = {
            name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)
        }
        squares = {name: torch.zeros(module.in_features) for name, module in linears.items()}

        def watch(name: str, squares: dict[str, Tensor] = squares) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                squares[name] += inputs[0].flatten(0, 1).float().square().sum(0)

            return hook

        handles = [module.register_forward_hook(watch(name)) for name, module in linears.items()]
        for state, (_, kwargs) in zip(states, calls, strict=True):
            layer(state, **kwargs)
        for handle in handles:
            handle.remove()
        for name, module in linears.items():
            scores = module.weight.abs().float() * squares[name].sqrt()
            gone = scores.argsort(dim=1, stable=True)[:, : module.in_features // 2]
            module.weight.scatter_(1, gone, 0)
        states = [layer(state, **kwargs) for state, (_, kwargs) in zip(states, calls, strict=True)]


@torch.no_grad()
def floor(view: ModelView, batch: TokenBatch) -> None:
    """One forward of the blocks, in micro-batches of the walk's size."""
    for ids in batch.ids.split(max(1, 4096 // batch.ids.shape[1])):
        view.base(input_ids=ids, use_cache=False)


WAYS: dict[str, Callable[[ModelView, TokenBatch], None]] = {
    "arrival": walked("arrival"),
    "reference": walked("reference"),
    "dense": walked("dense"),
    "literal": literal,
    "floor": floor,
}


def main() -> None:
    """Run the rounds and print a line for each way, then the same as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    asked = parser.parse_args()
    opened = calibrant.open_model("smollm2", asked.dtype)
    view = calibrant.view(opened.model)
    batch = calibrant.CalibrationSet(
        "python_docs", samples=asked.samples, length=asked.length
    ).tokens(opened.tokenizer)
    untouched = view.snapshot()
    seconds: dict[str, list[float]] = {way: [] for way in asked.ways}
    for _ in range(asked.rounds):
        for way in asked.ways:
            began = time.perf_counter()
            WAYS[way](view, batch)
            seconds[way].append(time.perf_counter() - began)
            view.restore(untouched)
    machine = f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"
    print(
        f"smollm2 ({opened.note}), Wanda 50 %, {asked.samples} × {asked.length} tokens, "
        f"{asked.dtype}, {machine}"
    )
    for way, taken in seconds.items():
        print(
            f"{way:<10} {statistics.median(taken):7.1f} s   ({min(taken):.1f} to {max(taken):.1f}, "
            f"{asked.rounds} rounds)"
        )
    facts = {
        "seconds": seconds,
        "asked": vars(asked),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "calibrant": calibrant.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
