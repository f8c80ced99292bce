"""Reading candidates with the untouched model: how hard each is for it, and what its layers make of
each.

Sequences of like length are read together, padded on the right behind a mask, so that no real token
sees a padded one.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedTokenizerBase

from calibrant.data import by_length, padded, start_tokens
from calibrant.models import Opened
from calibrant.numerics import finite_number, not_finite
from calibrant.system.progress import Progress, silent

TOKENS_PER_BATCH: Final = 2048
"""Tokens, padded ones included, that are read at once; the result doesn't depend on it beyond
rounding.
"""

READING: Final = "reading candidates"
TEXTS_AT_ONCE: Final = 256
"""Tokenised at once: what a tokenizer tells of a text beside its ids takes much memory."""
LETTERS_PER_TOKEN: Final = 5
"""A long text is cut behind so many for each wanted token before it is tokenised; if they give
too few, it is done again with twice as many.
"""
SPARE: Final = 16
"""Tokens behind the wanted ones: where a text was cut, tokens aren't those of the whole."""


def beginnings(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[list[int]]:
    """Return the first `length` tokens of each text, as many as a window can hold; the start
    token is one of them where the tokenizer writes one.
    """
    start = start_tokens(tokenizer)
    room = max(0, length - len(start))
    results: list[list[int]] = [[] for _ in texts]
    left, letters = list(range(len(texts))), LETTERS_PER_TOKEN * (room + SPARE)
    while left:
        for i, ids in zip(
            left, tokenised([texts[i][:letters] for i in left], tokenizer), strict=True
        ):
            results[i] = ids
        left = [i for i in left if len(texts[i]) > letters and len(results[i]) < room + SPARE]
        letters *= 2
    return [[*start, *ids[:room]] for ids in results]


def tokenised(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of each text, special ones left out."""
    results: list[list[int]] = []
    for begin in range(0, len(texts), TEXTS_AT_ONCE):
        results += tokenizer(
            list(texts[begin : begin + TEXTS_AT_ONCE]), add_special_tokens=False, verbose=False
        )["input_ids"]
    return results


@torch.no_grad()
def nats(
    opened: Opened, sequences: Sequence[Sequence[int]], progress: Progress = silent
) -> list[float]:
    """Mean negative log likelihood of each sequence's tokens, in nats per predicted token; its
    exponential is the perplexity.

    Nothing is added to a sequence: its first token is shown and not predicted. One of fewer than
    two tokens has no loss, and gets `nan`. The log-softmax is taken in float32, or float64 for a
    model that is.
    """
    results = [math.nan] * len(sequences)
    for batch in _batches(sequences, 2, progress):
        inputs = padded([sequences[i] for i in batch], opened.model.device)
        logits: Tensor = opened.model(**inputs, use_cache=False).logits
        for i, row in zip(batch, logits, strict=True):
            targets = inputs["input_ids"].new_tensor(sequences[i][1:])
            nats_of_each = cross_entropy(_wide(row[: len(targets)]), targets, reduction="none")
            loss = float(nats_of_each.double().mean())
            results[i] = finite_number(
                loss, f"the loss of {opened.name} on a candidate", opened.name
            )
    return results


def check_outputs(opened: Opened, prefixes: Sequence[Sequence[int]]) -> None:
    """Raise `NumericsError` where what the model says after these tokens isn't finite."""
    nats(opened, [[*ids, ids[-1]] for ids in prefixes])


@torch.no_grad()
def pooled(
    opened: Opened,
    sequences: Sequence[Sequence[int]],
    layers: Literal["last", "all"] = "last",
    progress: Progress = silent,
) -> Float[Tensor, "text feature"]:
    """Return the mean over each sequence's tokens of the model's hidden states, on the CPU, in
    float32 (float64 for a model that is).

    `last`: what the head reads, after the final norm. `all`: the output of each block, each mean
    scaled to length one, one behind the other (the last block's after the final norm, as
    transformers gives it). An empty sequence is all zeros.
    """
    model = opened.model.base_model
    dtype = torch.float64 if opened.dtype == torch.float64 else torch.float32
    results: Tensor | None = None
    for batch in _batches(sequences, 1, progress):
        inputs = padded([sequences[i] for i in batch], opened.model.device)
        read = model(
            **inputs, use_cache=False, **({"output_hidden_states": True} if layers == "all" else {})
        )
        states = read.hidden_states[1:] if layers == "all" else (read.last_hidden_state,)
        for row, i in enumerate(batch):
            means = [state[row, : len(sequences[i])].to(dtype).mean(0) for state in states]
            if not all(bool(torch.linalg.vector_norm(mean).isfinite()) for mean in means):
                raise not_finite(f"the hidden states of {opened.name}", opened.name)
            one = (
                torch.cat([normalize(mean, dim=0) for mean in means])
                if layers == "all"
                else means[0]
            )
            results = (
                torch.zeros(len(sequences), len(one), dtype=dtype) if results is None else results
            )
            results[i] = one.cpu()
    return torch.zeros(len(sequences), 0, dtype=dtype) if results is None else results


def _batches(
    sequences: Sequence[Sequence[int]], shortest: int, progress: Progress
) -> Iterator[list[int]]:
    """Yield the places of sequences of like length that have at least `shortest` tokens."""
    lengths = [len(one) if len(one) >= shortest else 0 for one in sequences]
    done = 0
    for batch in by_length(lengths, TOKENS_PER_BATCH):
        yield batch
        done += sum(lengths[i] for i in batch)
        progress(READING, done, sum(lengths))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
