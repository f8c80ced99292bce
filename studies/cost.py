"""What the paper's own grid (c4_not_optimal.yaml) would cost: floating-point operations, counted.
python -m studies.cost [--tables | --write]

Counted by torch's own counter on the operations that our code asks for, with the shapes of a Llama
of 7 billion parameters: a forward of a window through a block and through the head, and (on the
meta device, which has shapes and no numbers) a Gram of all tokens of a set for each input. Products
of an elimination are counted on a real matrix of 1,024 by 1,024; those of its updates grow as
outputs × inputs², those of its factor as inputs³. A Cholesky is taken for n³/3, since the counter
doesn't know it, nor the small triangular solves, which are left out. What an evaluator reads is
counted too: its own questions, all or the first 100 of each set scaled up without the examples
before them, go through a model of one narrow block with SmolLM2's tokenizer, whose tokens are not
quite Llama's. `cost.json` keeps the counts.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from studies.pages import write_or_print
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import LlamaConfig, LlamaForCausalLM

from calibrant.activations import Gram, Seen
from calibrant.evaluators import Subject
from calibrant.evaluators.loss import Loss
from calibrant.lab.study import read_study
from calibrant.methods import MatrixMethod
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.methods.quantization.gptq import GPTQ
from calibrant.models import open_tokenizer
from calibrant.system.products import full_speed
from calibrant.targets import parse_target

HERE: Final = Path(__file__).parent
STUDY: Final = HERE / "c4_not_optimal.yaml"
RECORD: Final = HERE / "cost.json"
PAGE: Final = HERE.parent / "docs/cost.md"
SHAPE: Final[Mapping[str, Any]] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
"""Llama 2 7B, and the first Llama."""
FITTED: Final = ("sparsegpt 0.5", "gptq w4g128", "gptq(scales='importance') w4g128")
"""Runs that go through the model for themselves, with Grams."""
SHARING: Final = "rtn(scales='importance') w4g128"
"""What reads statistics of the untouched model that were gathered before."""
RATES: Final = {"100 TFLOP/s": 1e14, "400 TFLOP/s": 4e14}
"""What a GPU may keep up in bfloat16: a tenth and four tenths of the peak of an H100."""
SMALL: Final = 1024
"""Outputs and inputs of the matrix on which eliminations are counted."""
SAMPLED: Final = 100
"""Questions of each set that are read to know how many tokens all of them take."""
PUBLISHED: Final = {"esnli": 9824}
"""Questions of sets of which a mirror may hold fewer."""


def counted(run: Callable[[], object]) -> int:
    """The operations of a call, by torch's counter, which must be told of products that are
    added in place, and of a processor's attention.
    """
    unknown = {
        torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1],
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
            sdpa_flop_count(q, k, v)
        ),
    }
    # The first time it is asked for, a product is made to see whether it is exact.
    with full_speed():
        pass
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def forwards(length: int) -> dict[str, int]:
    """The operations of a window through the blocks, and of its head. All blocks are alike, so
    one of them runs.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": 1}, dtype="bfloat16"))
    model = model.to_empty(device="cpu").bfloat16()
    ids = torch.zeros(1, length, dtype=torch.long)
    block = counted(lambda: model.model(input_ids=ids, use_cache=False))
    return {
        "blocks": SHAPE["num_hidden_layers"] * block,
        "head": counted(lambda: model(input_ids=ids, use_cache=False)) - block,
    }


def grams(tokens: int) -> int:
    """The operations of the Grams of all inputs of a model: of a block, of its attention's
    product, of the feed-forward, of its product.
    """

    def one(inputs: int) -> int:
        return counted(lambda: Gram.of(torch.empty(tokens, inputs, device="meta")))

    of_block = 3 * one(SHAPE["hidden_size"]) + one(SHAPE["intermediate_size"])
    return SHAPE["num_hidden_layers"] * of_block


def eliminations() -> dict[str, float]:
    """The operations of eliminating in all matrices of a model, by method, with the inverses of
    the factors and the Choleskys.
    """
    width = SHAPE["hidden_size"]
    inner = SHAPE["intermediate_size"]
    matrices = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
    cubes = 3 * width**3 + inner**3
    found: dict[str, float] = {}
    for name, method, target in (("sparsegpt", SparseGPT(), "0.5"), ("gptq", GPTQ(), "w4g128")):
        first, again = _updates(method, target)
        updates = sum(again * outputs * inputs**2 for outputs, inputs in matrices)
        factors = (first - again + 1 / 3) * cubes  # a Cholesky is a third of a cube
        found[name] = SHAPE["num_hidden_layers"] * (updates + factors)
    return found


def _updates(method: MatrixMethod, target: str) -> tuple[float, float]:
    """What compressing a small square matrix takes the first time, and again, when its factor is
    kept with the Gram: in cubes of its size.
    """
    seen = Seen({Gram: Gram.of(torch.randn(2 * SMALL, SMALL))})
    weight = torch.randn(SMALL, SMALL)

    def compress() -> object:
        return method.compress(weight, seen, parse_target(target))

    first = counted(compress) / SMALL**3
    again = counted(compress) / SMALL**3
    return first, again


def measured_tokens() -> dict[str, int]:
    """How many tokens each evaluator of the study reads in one model, by its text."""
    tokenizer, _ = open_tokenizer("smollm2")
    narrow = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    config = LlamaConfig(**narrow, vocab_size=len(tokenizer), max_position_embeddings=8192)
    model = LlamaForCausalLM(config).eval()
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    found: dict[str, int] = {}
    for text, evaluator in read_study(STUDY).evaluators().items():
        if isinstance(evaluator, Loss):
            found[text] = evaluator.tokens
            continue
        limit: int | None = getattr(evaluator, "limit", None)
        published = PUBLISHED.get(getattr(evaluator, "name", ""), 0)
        questions = max(sum(1 for _ in evaluator.rows()), published)
        if limit is not None:
            questions = min(limit, questions)
        read: list[int] = []
        for few in (SAMPLED // 2, SAMPLED):
            seen.clear()
            evaluator.limited(few).measure(Subject(model, tokenizer))
            read.append(sum(seen))
        by_half, by_all = read
        # The examples before all questions are read once, so only what more questions take is
        # scaled.
        found[text] = by_all + (by_all - by_half) * (questions - SAMPLED) // (SAMPLED // 2)
        print(text, f"{questions:,} questions, {found[text]:,} tokens", file=sys.stderr, flush=True)
    return found


def record() -> dict[str, Any]:
    """Everything that is counted."""
    study = read_study(STUDY)
    labels = [label for label in study.labels() if label.model == study.models[0]]
    return {
        "models": len(study.models),
        "samples": study.samples,
        "length": study.length,
        "forward": forwards(study.length),
        "grams": grams(study.samples * study.length),
        "eliminations": eliminations(),
        "tokens": measured_tokens(),
        "runs": dict(Counter(f"{label.method} {label.target}" for label in labels)),
    }


def tables() -> dict[str, str]:
    """The tables of docs/cost.md, by name."""
    counts = json.loads(RECORD.read_text("utf-8"))
    return {"runs": "\n".join(_runs(counts)), "tokens": "\n".join(_tokens(counts))}


def _runs(counts: Mapping[str, Any]) -> Iterator[str]:
    """What a run of each method costs, and all of them on every model, with the hours of a GPU."""
    forward = counts["samples"] * counts["forward"]["blocks"]
    with_grams = forward + counts["grams"]
    measured = sum(counts["tokens"].values()) * sum(counts["forward"].values()) / counts["length"]
    once = {
        "none 0.0": 0.0,
        "magnitude 0.5": 0.0,
        "rtn w4g128": 0.0,
        SHARING: 0.0,
        "wanda 0.5": forward,
        "awq w4g128": with_grams,
    }
    for name in FITTED:
        method = "sparsegpt" if name.startswith("sparsegpt") else "gptq"
        once[name] = with_grams + counts["eliminations"][method]
    hours = " | ".join(f"hours at {rate}" for rate in RATES)
    yield (
        "| method | runs of a model | compressing, PFLOP a run | measuring, PFLOP a run "
        f"| all models, PFLOP | {hours} |"
    )
    yield f"| --- |{' ---: |' * (4 + len(RATES))}"
    total = 0.0
    for name, runs in counts["runs"].items():
        compressing = once[name]
        every = counts["models"] * runs * (compressing + measured)
        total += every
        shown = "dense" if name == "none 0.0" else f"`{name}`"
        yield _row(shown, runs, f"{compressing / 1e15:.1f}", f"{measured / 1e15:.1f}", every)
    runs = counts["runs"][SHARING]
    shared = counts["models"] * runs * forward
    total += shared
    name = "the untouched model's statistics, for `rtn`"
    yield _row(name, runs, f"{forward / 1e15:.1f}", "", shared)
    yield _row("**all**", sum(counts["runs"].values()), "", "", total)


def _row(name: str, runs: int, compressing: str, measuring: str, every: float) -> str:
    hours = " | ".join(f"{every / rate / 3600:,.1f}" for rate in RATES.values())
    return f"| {name} | {runs} | {compressing} | {measuring} | {every / 1e15:,.0f} | {hours} |"


def _tokens(counts: Mapping[str, Any]) -> Iterator[str]:
    """What each evaluator reads."""
    yield "| measured | tokens of a run | share |"
    yield "| --- | ---: | ---: |"
    whole = sum(counts["tokens"].values())
    for text, tokens in counts["tokens"].items():
        yield f"| `{text}` | {tokens:,} | {100 * tokens / whole:.1f}% |"
    yield f"| all | {whole:,} | 100% |"


if __name__ == "__main__":
    if "--tables" not in sys.argv[1:] and "--write" not in sys.argv[1:]:
        RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
    write_or_print(PAGE, tables())
