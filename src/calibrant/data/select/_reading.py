"""Reads candidates with the untouched model: how hard each is for it, and what its layers make of
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

from calibrant.activations import wide
from calibrant.data import by_length, padded, start_tokens
from calibrant.models import Opened
from calibrant.numerics import finite_number, not_finite
from calibrant.system.products import exact
from calibrant.system.progress import Progress, silent

TOKENS_PER_BATCH: Final = 2048
"""Tokens, padded ones included, that are read at once; the result doesn't depend on it beyond
rounding.
"""

READING: Final = "reading candidates"
TEXTS_AT_ONCE: Final = 256
"""Tokenised at once: what a tokenizer tells of a text beside its ids takes much memory."""
LETTERS_PER_TOKEN: Final = 5
"""A long text is cut before it is tokenised, behind this many letters for each wanted token.

If that gives too few tokens, it is done again with twice as many letters.
"""
SPARE: Final = 16
"""Tokens behind the wanted ones that aren't used: near the cut of a text they may be others than in
the whole text.
"""


def beginnings(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[list[int]]:
    """Return the first `length` tokens of each text, as many as a window can hold; the start
    token is one of them where the tokenizer writes one.
    """
    start = start_tokens(tokenizer)
    count = max(0, length - len(start))  # how many tokens of the text itself are wanted
    results: dict[int, list[int]] = {}
    waiting = list(range(len(texts)))
    letters = LETTERS_PER_TOKEN * (count + SPARE)
    while waiting:
        tokens = tokenised([texts[place][:letters] for place in waiting], tokenizer)
        cut_too_short: list[int] = []
        for place, ids in zip(waiting, tokens, strict=True):
            results[place] = [*start, *ids[:count]]
            if len(texts[place]) > letters and len(ids) < count + SPARE:
                cut_too_short.append(place)
        waiting = cut_too_short
        letters *= 2
    return [results[place] for place in range(len(texts))]


def tokenised(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of each text, special ones left out."""
    results: list[list[int]] = []
    for begin in range(0, len(texts), TEXTS_AT_ONCE):
        texts_at_once = list(texts[begin : begin + TEXTS_AT_ONCE])
        results += tokenizer(texts_at_once, add_special_tokens=False, verbose=False)["input_ids"]
    return results


@torch.no_grad()
def nats(
    opened: Opened, sequences: Sequence[Sequence[int]], progress: Progress = silent
) -> list[float]:
    """Return the mean negative log likelihood of each sequence's tokens, in nats per predicted
    token; its exponential is the perplexity.

    Nothing is added to a sequence: its first token is shown and not predicted. One of fewer than
    two tokens has no loss, and gets `nan`. The log-softmax is taken in float32, or float64 for a
    model that is.
    """
    results = [math.nan] * len(sequences)
    name = f"the loss of {opened.name} on a candidate"
    for batch in _batches(sequences, 2, progress):
        inputs = padded([sequences[place] for place in batch], opened.model.device)
        logits: Tensor = opened.model(**inputs, use_cache=False).logits
        for place, row in zip(batch, logits, strict=True):
            targets = inputs["input_ids"].new_tensor(sequences[place][1:])
            # Widened row by row: a whole batch in float32 would take twice the memory.
            predicted = row[: len(targets)].to(wide(row.dtype))
            nats_of_each = cross_entropy(predicted, targets, reduction="none")
            results[place] = finite_number(float(exact(nats_of_each).mean()), name, opened.name)
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
    dtype = wide(opened.dtype)
    results = torch.zeros(len(sequences), 0, dtype=dtype)
    for batch in _batches(sequences, 1, progress):
        inputs = padded([sequences[place] for place in batch], opened.model.device)
        if layers == "all":
            output = model(**inputs, use_cache=False, output_hidden_states=True)
            states = output.hidden_states[1:]
        else:
            output = model(**inputs, use_cache=False)
            states = [output.last_hidden_state]
        for row, place in enumerate(batch):
            means = [state[row, : len(sequences[place])].to(dtype).mean(0) for state in states]
            if not all(bool(torch.linalg.vector_norm(mean).isfinite()) for mean in means):
                raise not_finite(f"the hidden states of {opened.name}", opened.name)
            if layers == "all":
                means = [normalize(mean, dim=0) for mean in means]
            point = torch.cat(means)
            if not results.shape[1]:  # the first point says how many features there are
                results = torch.zeros(len(sequences), len(point), dtype=dtype)
            results[place] = point.cpu()
    return results


def _batches(
    sequences: Sequence[Sequence[int]], shortest: int, progress: Progress
) -> Iterator[list[int]]:
    """Yield the places of sequences of like length that have at least `shortest` tokens."""
    lengths: list[int] = []
    for sequence in sequences:
        length = len(sequence)
        # What has the length 0 is left out of the batches.
        if length < shortest:
            length = 0
        lengths.append(length)
    done = 0
    for batch in by_length(lengths, TOKENS_PER_BATCH):
        yield batch
        done += sum(lengths[place] for place in batch)
        progress(READING, done, sum(lengths))
