"""One way of pruning a saved model, in a process of its own: python benchmarks/ways.py '{"way":
"calibrant", …}'

`peers.py` starts it, with its own interpreter or with that of the peer's virtual environment, so
nothing is imported before the way is known. The model, its tokenizer and the tokens lie in files.
What is timed is the pruning: the model is open and everything is imported before, and saving comes
after. The last line that is written says the seconds, and the most memory that the process held
until the pruning was done and in all.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCHEMES = ("W8A8", "NVFP4")
"""Targets that also round inputs. Their folders are compressed-tensors' own."""
METHODS = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}


def peak() -> float:
    """The most memory this process has held, in MiB. Linux's `ru_maxrss` begins with that of the
    process that started it, so it isn't asked.
    """
    status = Path("/proc/self/status")
    held = (
        [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if status.is_file()
        else []
    )
    return (
        int(held[0]) / 2**10
        if held
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10)
    )


def llmcompressor(asked: dict[str, Any]) -> dict[str, Any]:
    """`oneshot` of llm-compressor, as its examples call it."""
    import llmcompressor
    import torch
    from datasets import Dataset
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=getattr(torch, asked["dtype"])
    )
    rows = json.loads(Path(asked["tokens"]).read_text())
    data = Dataset.from_dict(
        {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    )
    if asked["target"] in SCHEMES:
        recipe = scheme(asked["method"], asked["target"])
    elif asked["method"] == "gptq":
        recipe = rounding(asked["target"])
    else:
        recipe = removing(asked["method"], asked["target"])
    budget = {
        "num_calibration_samples": len(rows),
        "max_seq_length": max(map(len, rows)),
        "batch_size": asked["batch"],
        "shuffle_calibration_samples": False,
    }
    began = time.perf_counter()
    llmcompressor.oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=data,
        recipe=recipe,
        pipeline="sequential",
        output_dir=None,
        **budget,
    )
    found = {"seconds": time.perf_counter() - began, "peak": peak()}
    if asked["target"] in SCHEMES:
        model.save_pretrained(asked["out"], save_compressed=True)
    elif (
        asked["method"] == "gptq"
    ):  # the rounded numbers as an ordinary folder, which any evaluator opens
        AutoModelForCausalLM.from_config(model.config).save_pretrained(asked["out"])
        state = model.state_dict()  # a head that is the embedding is stored once
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set[str]()
        weights = {
            name: state[name].contiguous()
            for name in state
            if name.endswith((".weight", ".bias")) and name not in tied
        }
        save_file(weights, Path(asked["out"]) / "model.safetensors", {"format": "pt"})
    else:
        model.save_pretrained(asked["out"])
    tokenizer.save_pretrained(asked["out"])
    versions = {
        "llmcompressor": version("llmcompressor"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    return {**found, "dtype": asked["dtype"], "versions": versions}


def removing(method: str, target: str) -> Any:
    """The peer's recipe for pruning."""
    from llmcompressor.modifiers import pruning

    sparsity, structure = (0.5, target) if ":" in target else (float(target), "0:0")
    extra = {"block_size": 128, "dampening_frac": 0.01} if method == "sparsegpt" else {}
    return getattr(pruning, METHODS[method])(
        sparsity=sparsity,
        mask_structure=structure,
        targets=["Linear"],
        ignore=["re:.*lm_head"],
        **extra,
    )


def scheme(method: str, target: str) -> Any:
    """The peer's recipe for a scheme, which also rounds inputs."""
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    told = {"targets": "Linear", "scheme": target, "ignore": ["re:.*lm_head"]}
    if method == "rtn":
        return QuantizationModifier(**told)
    return GPTQModifier(**told, block_size=128, dampening_frac=0.01, actorder=None)


def rounding(target: str) -> Any:
    """The peer's recipe for GPTQ on a symmetric grid: inputs in their natural order, as ours
    takes them.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier

    bits, group = map(int, target.removeprefix("w").split("g"))
    grid = QuantizationArgs(
        num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=grid)
    return GPTQModifier(
        config_groups={"group_0": scheme},
        ignore=["re:.*lm_head"],
        block_size=128,
        dampening_frac=0.01,
        actorder=None,
    )


def auto_round(asked: dict[str, Any]) -> dict[str, Any]:
    """AutoRound on a symmetric grid with groups (w4g64), as its README calls it."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=getattr(torch, asked["dtype"])
    )
    rows = [torch.tensor([row]) for row in json.loads(Path(asked["tokens"]).read_text())]
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    bits, group = map(int, asked["target"].removeprefix("w").split("g"))
    began = time.perf_counter()
    rounding = AutoRound(
        model,
        tokenizer,
        bits=bits,
        group_size=group,
        sym=True,
        dataset=data,
        nsamples=len(rows),
        seqlen=rows[0].shape[1],
        batch_size=asked["batch"],
        iters=asked["steps"],
        seed=asked["seed"],
        device_map="cpu",
    )
    rounded, _ = rounding.quantize()
    found = {"seconds": time.perf_counter() - began, "peak": peak()}
    # The rounded numbers are in the model, as plain ones.
    rounded.save_pretrained(asked["out"])
    tokenizer.save_pretrained(asked["out"])
    versions = {"auto_round": version("auto-round"), "torch": torch.__version__}
    return {**found, "dtype": str(next(rounded.parameters()).dtype), "versions": versions}


def calibrant(asked: dict[str, Any]) -> dict[str, Any]:
    """`prune` or `quantize` in memory, and what its record says of the time between opening and
    saving.
    """
    import torch

    from calibrant import CalibrationSet, prune, quantize
    from calibrant.models import save
    from calibrant.system.process import own_process

    # As the command line does.
    own_process()
    data = CalibrationSet(
        asked["data"], samples=asked["samples"], length=asked["length"], seed=asked["seed"]
    )
    told = {name: asked[name] for name in ("method", "target", "propagate", "dtype")}
    compress = quantize if asked["target"].startswith("w") else prune
    done = compress(asked["model"], data=data, **told)
    phases = done.record.provenance["seconds"]
    found = {
        "seconds": sum(
            seconds for phase, seconds in phases.items() if phase not in ("open", "tokenize")
        ),
        "peak": peak(),
    }
    if asked["out"]:
        save(done.opened, asked["out"], {})
    versions = {
        "calibrant": version("calibrant"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    about = {
        "tokens": done.record.run.tokens,
        "dtype": done.record.run.dtype,
        "propagate": done.record.run.propagate,
    }
    return {**found, **about, "phases": phases, "versions": versions}


def job(asked: dict[str, Any]) -> dict[str, Any]:
    """A job as the command line does it, checkpoint and folder included: its phases, the parts of
    compressing, and the floor, which is measured in the same process.
    """
    from calibrant import prune, quantize, view
    from calibrant.system.process import own_process

    own_process()
    compress = quantize if asked["target"].startswith("w") else prune
    names = ("data", "method", "target", "samples", "length", "dtype", "out")
    told = {name: asked[name] for name in names}
    done = compress(asked["model"], **told, profile=True)
    costs = done.costs
    assert costs is not None, "a job with a profile has costs"
    shapes = [weight.shape for weight in view(done.model).weights]
    return {
        "seconds": costs.phases["compress"],
        "phases": dict(costs.phases),
        "parts": dict(costs.parts),
        "floor": costs.floor,
        "rate": costs.peak,
        "dtype": costs.dtype,
        "weights": sum(outputs * inputs for outputs, inputs in shapes),
        "peak": done.record.provenance["peak_memory_bytes"] / 2**20,
    }


def opening(asked: dict[str, Any]) -> dict[str, Any]:
    """Opening a model, everything imported before; what is kept of it lies in `cache`."""
    os.environ["CALIBRANT_CACHE"] = asked["cache"]
    import transformers  # noqa: F401

    from calibrant import open_model
    from calibrant.system.process import own_process

    own_process()
    began = time.perf_counter()
    opened = open_model(asked["model"], asked["dtype"])
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak": peak(), "numbers": opened.model.num_parameters()}


def literal(asked: dict[str, Any]) -> dict[str, Any]:
    """The loop of the papers' code, which is Wanda at 50 % in the type of the other peer."""
    import torch

    import calibrant
    from calibrant.models import save

    opened = calibrant.open_model(asked["model"], asked["dtype"])
    view = calibrant.view(opened.model)
    data = calibrant.CalibrationSet(
        asked["data"], samples=asked["samples"], length=asked["length"], seed=asked["seed"]
    )
    batch = data.tokens(opened.tokenizer)
    began = time.perf_counter()
    with torch.no_grad():
        two_passes(view, batch)
    found = {"seconds": time.perf_counter() - began, "peak": peak()}
    save(opened, asked["out"], {})
    return {**found, "tokens": batch.fingerprint, "dtype": asked["dtype"]}


def two_passes(view: Any, batch: Any) -> None:
    """Prune a model of plain linear layers with transformers alone: one sample at a time, a
    forward of each block with hooks, then all of its matrices, then the forward again.
    """
    import torch
    from torch import Tensor, nn

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


def products(asked: dict[str, Any]) -> dict[str, Any]:
    """The peaks of the machine's products; a way of going through nothing."""
    from machine import peaks

    found = peaks(tuple(map(tuple, asked["shapes"])))
    return {
        dtype: [[*shape, rate] for shape, rate in rates.items()] for dtype, rates in found.items()
    }


WAYS = {
    "llmcompressor": llmcompressor,
    "auto_round": auto_round,
    "calibrant": calibrant,
    "job": job,
    "opening": opening,
    "literal": literal,
    "products": products,
}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    found = WAYS[asked["way"]](asked)
    print(json.dumps({**found, "peak_in_all": peak()} if "seconds" in found else found))
