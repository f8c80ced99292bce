"""How long a model takes to answer next to transformers' `generate`: python benchmarks/answers.py
[--dtype float32] [--prompts 64] [--rounds 1] [--out FILE]

SmolLM2 answers questions of gsm8k in its chat template, at most 128 tokens each, at temperature
0.7: `generate` in batches of 16 and of 64, padded on the left, and our decoder with all at once.
All stop at the same tokens, and none is asked to stop earlier or go on. They take turns, the first
by turns too, so that a slow moment of the machine meets all. Timed are the answers alone; the model
is open before. A round is of one type; a record keeps those of earlier calls,
and each way as soon as it is measured.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine

SIZES: Final = (16, 64)
"""How many prompts `generate` is given at once."""
MOST: Final = 128
TEMPERATURE: Final = 0.7

Way = Callable[[], int]
"""Answers all prompts, and returns how many tokens were written."""


def asked_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Questions of gsm8k in the model's template, with what asks for an answer."""
    from calibrant.data import Chat, Message, Row, parse_source

    form = Chat(generation_prompt=True)
    prompts: list[list[int]] = []
    for row in parse_source("gsm8k").rows("calibrate"):
        if len(prompts) == count:
            break
        text = form.render(Row(turns=(Message("user", row.question),)), tokenizer)
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return prompts


def generated(model: Any, prompts: list[list[int]], ends: list[int], size: int) -> int:
    """Answer with `generate`, so many at once."""
    import torch

    written = 0
    for begin in range(0, len(prompts), size):
        batch = prompts[begin : begin + size]
        longest = max(map(len, batch))
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MOST,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        for row in output[:, longest:].tolist():
            stops = [place for place, token in enumerate(row) if token in ends]
            written += min([place + 1 for place in stops], default=len(row))
    return written


def answered(model: Any, prompts: list[list[int]], ends: list[int]) -> int:
    """Answer as the selector `answers` does."""
    import torch

    from calibrant.data.select._generating import pick_likely
    from calibrant.decoding import Decoder

    chance = torch.rand(len(prompts), MOST, dtype=torch.float64)

    def choose(logits: Any, numbers: Any, step: int) -> Any:
        return pick_likely(logits, chance[list(numbers), step], TEMPERATURE, 1.0)

    decoder = Decoder(model, prompts, MOST, lambda ids: ids[-1] in ends, "a benchmark", choose)
    return sum(len(answer.ids) for answer in decoder.run(range(len(prompts))))


def ways_of(opened: Any, prompts: list[list[int]]) -> dict[str, Way]:
    """The ways by name."""
    from calibrant.data.select._generating import end_tokens

    ends = sorted(end_tokens(opened))
    ways: dict[str, Way] = {"calibrant": partial(answered, opened.model, prompts, ends)}
    for size in SIZES:
        ways[f"generate {size}"] = partial(generated, opened.model, prompts, ends, size)
    return ways


def main() -> None:
    """Run the rounds, and print a line for each and the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", choices=machine.DTYPES, default="float32")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file that keeps what was measured")
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch

    import calibrant

    question = {
        "prompts": asked.prompts,
        "most": MOST,
        "temperature": TEMPERATURE,
        "machine": machine.facts(),
        "versions": {name: version(name) for name in ("calibrant", "torch", "transformers")},
    }
    record = machine.started(asked.out, question, "rounds")
    opened = calibrant.open_model("smollm2", asked.dtype, "cpu")
    prompts = asked_prompts(opened.tokenizer, asked.prompts)
    ways = ways_of(opened, prompts)
    rounds = record["rounds"].setdefault(asked.dtype, [])
    for _ in range(asked.rounds):
        # A call that was killed left a round with some of the ways; the next one goes on there.
        if not rounds or len(rounds[-1]) == len(ways):
            rounds.append({})
        turn = (len(rounds) - 1) % len(ways)
        for name in [*list(ways)[turn:], *list(ways)[:turn]]:
            if name in rounds[-1]:
                continue
            torch.manual_seed(len(rounds))
            began = time.perf_counter()
            written = ways[name]()
            seconds = time.perf_counter() - began
            rounds[-1][name] = {"seconds": seconds, "tokens": written}
            machine.keep(asked.out, record)
            rate = written / seconds
            print(f"{asked.dtype}: {name} {seconds:.1f} s ({rate:.0f} tokens/s)", flush=True)
    times = statistics.median(ratios(rounds))
    print(f"{asked.dtype}: {times:.2f} times as fast as the best of generate")
    print(json.dumps(record))


def ratios(rounds: list[dict[str, dict[str, float]]]) -> list[float]:
    """Tokens per second of ours over those of the best batch of `generate`, by round."""
    found: list[float] = []
    for ways in rounds:
        rates = {name: way["tokens"] / way["seconds"] for name, way in ways.items()}
        ours = rates.pop("calibrant")
        found.append(ours / max(rates.values()))
    return found


if __name__ == "__main__":
    main()
