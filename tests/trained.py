"""A tiny model that has learnt something: what a choice of data does to random weights says
nothing.

A llama of bytes, four blocks of 64 features, trained for about ten seconds of one core on three
"languages" that every machine has: English about Python, Python, and word problems. It reads what
sources calibrate on; what they measure on is new to it.
"""

import hashlib
import itertools
import json
import platform
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import __version__ as transformers_version

from calibrant.data import Part, held_out
from calibrant.system.durable import UNFINISHED, take
from calibrant.testing import tiny_model, tiny_tokenizer

LANGUAGES: Final = ("python_docs", "python_code", "arithmetic")
"""What the model was trained on, as names for expressions (`CalibrationSet("python_docs")`) and
for `loss(source=…)`.
"""

SIZES: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}
STEPS, WINDOWS, LENGTH, RATE, WARM_UP = 420, 2, 128, 5e-3, 30
"""Steps of the training; in each, `WINDOWS` windows of `LENGTH` bytes of every language."""


def trained_model() -> PreTrainedModel:
    """The model, in float32 and evaluation mode; a fresh one at each call, so that a test may
    prune it.
    """
    return AutoModelForCausalLM.from_pretrained(trained_folder(), dtype=torch.float32).eval()


@cache
def trained_folder() -> Path:
    """A folder with the model and the tokenizer of bytes. Trained once on a machine."""
    return kept("trained", Path(__file__), lambda: trained(tiny_model("llama", **SIZES)))


def kept(name: str, recipe: Path, make: Callable[[], PreTrainedModel]) -> Path:
    """A folder with a model that `make` makes, and the tokenizer of bytes. Made once for each
    text of the file `recipe`: what waits finds it done.
    """
    place = Path(tempfile.gettempdir()) / f"calibrant-{name}-{_digest(recipe)}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        take(lock, wait=True)
        if not place.exists():
            half = place.with_name(f"{UNFINISHED}-{place.name}")
            make().save_pretrained(half)
            tiny_tokenizer().save_pretrained(half)
            half.rename(place)
    return place


def texts(language: str, part: Part = "calibrate") -> list[str]:
    """What the sources give of a language, each row in the format in which it is measured."""
    source, format = held_out(language)
    return [format.render(row) for row in source.rows(part)]


def _digest(recipe: Path) -> str:
    """A digest of all that decides what a model becomes: its recipe, this file, and the versions
    of what it is made with.
    """
    versions = [
        torch.__version__,
        transformers_version,
        np.__version__,
        platform.python_version(),
        platform.machine(),
    ]
    files = b"".join(path.read_bytes() for path in dict.fromkeys((recipe, Path(__file__))))
    return hashlib.sha256(files + json.dumps(versions).encode()).hexdigest()[:16]


def trained(model: PreTrainedModel, steps: int = STEPS) -> PreTrainedModel:
    """The model, trained in place on one thread: by more, sums are taken in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(model, steps)
    finally:
        torch.set_num_threads(threads)


def _train(model: PreTrainedModel, steps: int) -> PreTrainedModel:
    """AdamW with a warm start and a cosine's end, over windows of every language alike."""
    streams = [_stream(language) for language in LANGUAGES]
    chance = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(
                (step + 1) / WARM_UP, 0.5 + 0.5 * float(np.cos(np.pi * step / steps))
            )
        ids = torch.stack(
            [
                stream[at : at + LENGTH]
                for stream in streams
                for at in chance.integers(len(stream) - LENGTH, size=WINDOWS)
            ]
        )
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def _stream(language: str) -> torch.Tensor:
    """Some 400,000 bytes of a language, as tokens: more than the training draws from."""
    tokenizer = tiny_tokenizer()
    each = (
        tokenizer(f"{text}\n\n", add_special_tokens=False, verbose=False)["input_ids"]
        for text in texts(language)
    )
    return torch.tensor(list(itertools.islice(itertools.chain.from_iterable(each), 400_000)))
