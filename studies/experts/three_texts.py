"""A byte-level mixture of experts that has read three kinds of text, to ask which of its experts go
with which.

    CALIBRANT_DATA=… python -m studies.experts.three_texts OUT

It takes a few minutes of one core; started again, it goes on.

The tests' own mixture (`tests/trained_mixture.py`), trained on with three times as much text: C4,
GSM8K with its solutions and the source of Python's standard library, of each the rows that
calibration sets are drawn from; what is measured is new to it. `OUT` holds the model and
`training.json`: by step, what each text lost in nats a byte and what the balance of routers added.
That file is kept here as `three_texts.json`; weights are not.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version

from calibrant.data import held_out
from calibrant.models import Opened, open_model
from calibrant.testing import tiny_tokenizer

from tests.trained_mixture import trained_mixture

TEXTS: Final = ("c4", "gsm8k:cot", "python_code")
"""What it reads, as names for calibration sets and for `loss(source=…)`."""
STEPS: Final = 600
WINDOWS: Final = 2
"""Windows of every text in a step."""
LENGTH: Final = 256
"""Bytes of a window."""
RATE: Final = 3e-3
WARM_UP: Final = 30
"""Steps in which the rate rises to `RATE`."""
MOST: Final = 1_000_000
"""Bytes of each text that windows are drawn from."""
SEED: Final = 0
"""Of the order of windows."""
EVERY: Final = 25
"""Steps between two entries of the record, and between two states that are kept."""


def stream(text: str) -> Tensor:
    """Return what calibration sets of a text are drawn from, as one row of tokens."""
    tokenizer = tiny_tokenizer()
    source, form = held_out(text)

    def tokens() -> Iterator[int]:
        for row in source.rows("calibrate"):
            rendered = f"{form.render(row)}\n\n"
            yield from tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]

    return torch.tensor(list(itertools.islice(tokens(), MOST)))


class Training:
    """AdamW with a warm start and a cosine's end, over windows of every text alike; its state is
    a file, so that it can go on.
    """

    def __init__(self, streams: list[Tensor]) -> None:
        self.model: PreTrainedModel = trained_mixture()
        # Only with these does the loss have its part that balances routers.
        self.model.config.output_router_logits = True
        # Twice as fast as one expert after the other.
        self.model.set_experts_implementation("grouped_mm")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1
        )
        self.chance = np.random.default_rng(SEED)
        self.streams = streams
        self.step = 0
        self.course: list[dict[str, float]] = []

    def go(self) -> dict[str, float]:
        """Take a step; return what each text lost, and what the balance of routers added."""
        rise = (self.step + 1) / WARM_UP
        cosine = 0.5 + 0.5 * float(np.cos(np.pi * self.step / STEPS))
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(rise, cosine)
        windows: list[Tensor] = []
        for tokens in self.streams:
            for start in self.chance.integers(len(tokens) - LENGTH, size=WINDOWS):
                windows.append(tokens[start : start + LENGTH])
        ids = torch.stack(windows)
        output: Any = self.model(input_ids=ids, labels=ids, use_cache=False)
        self.optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        logits = output.logits[:, :-1].detach()
        losses = cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        nats = losses.view(len(TEXTS), -1).mean(1)
        lost = dict(zip(TEXTS, nats.tolist(), strict=True))
        lost["balance"] = float(output.loss.detach() - nats.mean())
        return lost

    def until(self, step: int, keep: Callable[[], None]) -> None:
        """Go on until `step`, and `keep` the state every `EVERY` steps, with the means of the
        steps since.
        """
        since: list[dict[str, float]] = []
        while self.step < step:
            since.append(self.go())
            if self.step % EVERY == 0:
                entry: dict[str, float] = {"step": self.step}
                for name in since[0]:
                    total = sum(lost[name] for lost in since)
                    entry[name] = round(total / len(since), 4)
                self.course.append(entry)
                since = []
                keep()

    def save(self, path: Path) -> None:
        """Write all that decides how it goes on."""
        half = path.with_suffix(".half")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "chance": self.chance.bit_generator.state,
            "step": self.step,
            "course": self.course,
        }
        torch.save(state, half)
        half.rename(path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.chance.bit_generator.state = state["chance"]
        self.step = state["step"]
        self.course = state["course"]


def train(out: Path, until: int) -> None:
    """Train the model on one thread up to a step, or go on with it, and write it with its
    tokenizer and the course of its losses.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    training = Training([stream(text) for text in TEXTS])
    state = out / "training.pt"
    if state.exists():
        training.load(state)

    def keep() -> None:
        training.save(state)
        print(json.dumps(training.course[-1]), flush=True)

    training.until(until, keep)
    training.model.config.output_router_logits = False
    training.model.eval().save_pretrained(out)
    tiny_tokenizer().save_pretrained(out)
    record = {
        "torch": torch.__version__,
        "transformers": transformers_version,
        "texts": TEXTS,
        "steps": STEPS,
        "stopped": training.step,
        "windows": WINDOWS,
        "length": LENGTH,
        "rate": RATE,
        "seed": SEED,
        "course": training.course,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def opened(folder: str) -> Opened:
    """Return the trained model, ready to be measured or pruned."""
    model = open_model(folder, "float32")
    model.model.set_experts_implementation("eager")  # pyright: ignore[reportCallIssue]
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write the model to")
    parser.add_argument(
        "--until",
        type=int,
        default=STEPS,
        help="the step to stop at, a multiple of the steps between two states",
    )
    asked = parser.parse_args()
    train(asked.out, asked.until)
