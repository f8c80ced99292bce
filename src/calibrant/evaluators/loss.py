"""Held-out loss: how badly a model predicts text that it was neither trained nor calibrated on here.

`loss(source=wikitext, tokens=65536, length=2048)` reads the documents of a source's `measure` part in an order fixed by their hashes. A
document is cut into windows of `length` tokens; the first windows of all documents come before any second one, so that a budget buys as
many documents as it can, and they, not tokens, are the units of the standard error: tokens of one document are anything but independent.

A window starts without memory of the one before it, and its first token is scored only where the tokenizer gives it a start token to be
predicted from. The context length is part of the score: losses at different lengths must not be compared.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Format, Row, Source, held_out, start_tokens
from calibrant.errors import DataError, NumericsError, SpecError
from calibrant.estimates import ratio
from calibrant.evaluators._base import Evaluator
from calibrant.outcomes import Journal, Measurement, Outcome, Score
from calibrant.progress import Progress, silent
from calibrant.spec import identity

TOKENS_PER_BATCH = 2048
"""Tokens whose logits are held at once; the result doesn't depend on it beyond rounding."""


@dataclass(frozen=True)
class _Window:
    """A stretch of a document: ids to show, how many of the first ones aren't scored, and the bytes of those that are."""

    document: str
    begin: int
    ids: list[int]
    unscored: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.document} {self.begin}"

    @property
    def scored(self) -> int:
        return len(self.ids) - self.unscored


@dataclass(frozen=True, repr=False)
class Loss(Evaluator):
    """Mean negative log likelihood of held-out text, in nats per token; perplexity and bits per byte beside it."""

    source: str = "wikitext"
    format: str | None = None
    tokens: int = 65_536
    length: int = 2048

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.length < 2:
            raise SpecError(f"loss(tokens={self.tokens}, length={self.length}): tokens must be at least 1 and length at least 2", subject="loss")

    def rows(self) -> Iterator[Row]:
        """The documents of the source's measured part."""
        source, format = held_out(self.source, self.format)
        return (row for row in source.rows("measure") if format.takes(row))

    def limited(self, limit: int) -> "Loss":
        """The same with a budget of `limit` tokens."""
        return replace(self, tokens=limit)

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: PreTrainedModel | None = None,
        progress: Progress = silent,
        journal: Journal | None = None,
    ) -> Measurement:
        """The loss with one outcome per document: `value` its summed nats, `weight` its scored tokens."""
        source, format = held_out(self.source, self.format)
        windows = self._windows(source, format, tokenizer)
        kept = Journal() if journal is None else journal
        total = sum(w.scored for w in windows)
        done = sum(w.scored for w in windows if w.name in kept)
        for batch in _batches([w for w in windows if w.name not in kept]):
            kept.add({w.name: nats for w, nats in zip(batch, _nats(model, batch), strict=True)})
            done += sum(w.scored for w in batch)
            progress(f"measuring {self}", done, total)
        documents: dict[str, list[_Window]] = {}
        for window in windows:
            documents.setdefault(window.document, []).append(window)
        outcomes = tuple(
            Outcome(document, sum(kept[w.name] for w in documents[document]), float(sum(w.scored for w in documents[document])))
            for document in sorted(documents)
        )
        return Measurement(self._score(outcomes, sum(w.size for w in windows), f"{source}:{format.spec_name()}"), outcomes)

    def _score(self, outcomes: tuple[Outcome, ...], size: int, measured: str) -> Score:
        loss, stderr = ratio([o.value for o in outcomes], [o.weight for o in outcomes])
        if not math.isfinite(loss):
            raise NumericsError(f"the loss on {measured} is {loss}: the model's outputs aren't finite", subject=measured)
        nats, tokens = sum(o.value for o in outcomes), int(sum(o.weight for o in outcomes))
        facts = {
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_byte": nats / math.log(2) / size,
            "tokens": tokens,
            "bytes": size,
            "documents": len(outcomes),
            "length": self.length,
            "items": identity([[o.item, o.weight] for o in outcomes]),
        }
        return Score(measured, "loss", loss, stderr, len(outcomes), "nats/token", "lower", facts=facts)

    def _windows(self, source: Source, format: Format, tokenizer: PreTrainedTokenizerBase) -> list[_Window]:
        """First windows of all documents, then second ones, …, until the budget is scored."""
        chosen: list[_Window] = []
        left = self.tokens
        for window in _in_turn(_cut(row, format, tokenizer, self.length) for row in self.rows()):
            chosen.append(window)
            left -= window.scored
            if left <= 0:
                break
        if not chosen:
            raise DataError(f"{source} holds nothing to measure on (its texts have fewer than two tokens)", subject=str(source))
        return chosen


def _cut(row: Row, format: Format, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[_Window]:
    """The windows of one document, lazily: most documents give only their first."""
    text, start = format.render(row, tokenizer), start_tokens(tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    room, unscored = length - len(start), len(start) or 1
    for begin in range(0, len(ids), room):
        shown = [*start, *ids[begin : begin + room]]
        if len(shown) > unscored:
            first = begin + unscored - len(start)
            size = len(text[offsets[first][0] : offsets[min(begin + room, len(ids)) - 1][1]].encode())
            yield _Window(row.key, begin, shown, unscored, size)


def _in_turn(documents: Iterator[Iterator[_Window]]) -> Iterator[_Window]:
    """One window of each document, then another of each that has more."""
    waiting = documents
    while True:
        again: list[Iterator[_Window]] = []
        for document in waiting:
            for window in itertools.islice(document, 1):
                yield window
                again.append(document)
        if not again:
            return
        waiting = iter(again)


def _batches(windows: list[_Window]) -> Iterator[list[_Window]]:
    """Windows of like length together, the longest first, so that little is padded and memory runs out at once or never."""
    ordered = sorted(windows, key=lambda w: len(w.ids), reverse=True)
    while ordered:
        size = max(1, TOKENS_PER_BATCH // len(ordered[0].ids))
        yield ordered[:size]
        ordered = ordered[size:]


@torch.no_grad()
def _nats(model: PreTrainedModel, batch: list[_Window]) -> list[float]:
    """Summed negative log likelihood of each window's scored tokens, the log-softmax in float32."""
    longest = max(len(w.ids) for w in batch)
    ids = torch.tensor([w.ids + [0] * (longest - len(w.ids)) for w in batch], device=model.device)
    shown = torch.tensor([[1] * len(w.ids) + [0] * (longest - len(w.ids)) for w in batch], device=model.device)
    padding = {} if all(len(w.ids) == longest for w in batch) else {"attention_mask": shown}
    logits: Tensor = model(input_ids=ids, use_cache=False, **padding).logits
    totals = []
    for window, given, row in zip(batch, ids, logits, strict=True):
        first, last = window.unscored, len(window.ids)
        wide = row[first - 1 : last - 1].to(torch.float64 if row.dtype == torch.float64 else torch.float32)
        totals.append(float(torch.nn.functional.cross_entropy(wide, given[first:last], reduction="none").double().sum()))
    return totals
