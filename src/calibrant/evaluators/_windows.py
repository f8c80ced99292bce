"""Windows of held-out documents, and how badly a model predicts them: what the measures of
running text share.
"""

import itertools
import math
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Format, Row, Source, by_length, held_out, padded, start_tokens
from calibrant.data._encoding import token_offsets
from calibrant.decoding import accepted
from calibrant.errors import DataError
from calibrant.evaluators._base import (
    LONGEST_WINDOW,
    MOST_TOKENS,
    SourceEvaluator,
    Steps,
    Subject,
    check_least,
)
from calibrant.models.readable import check_length, check_tokens
from calibrant.results.outcomes import MOST
from calibrant.spec import check_most, later
from calibrant.vllm import RunByVllm


@dataclass(frozen=True)
class ScoredWindow:
    """A stretch of a document: its token ids, how many of the first ones aren't scored, and the
    bytes of those that are.

    In a joined text, `until` is the place of the letter behind the window. Where only some of the
    other tokens are scored, `places` says which: 0 is the first of them.
    """

    document: str
    begin: int
    ids: list[int]
    unscored: int
    size: int
    until: int = 0
    places: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Its name in a journal."""
        return f"{self.document} {self.begin}"

    @property
    def scored(self) -> int:
        """The number of its tokens that are scored."""
        if self.places is not None:
            return len(self.places)
        return len(self.ids) - self.unscored

    @property
    def targets(self) -> list[int]:
        """The ids of the scored tokens."""
        targets = self.ids[self.unscored :]
        if self.places is not None:
            return [targets[place] for place in self.places]
        return targets


@dataclass(frozen=True, repr=False)
class TextEvaluator(SourceEvaluator, ABC):
    """Measures how a model predicts the tokens of held-out documents, window by window."""

    source: str = "wikitext"
    format: str | None = None
    tokens: int = 65_536
    length: int = 2048
    limit: int | None = later(None)

    def __post_init__(self) -> None:
        check_most(self, tokens=MOST_TOKENS, length=LONGEST_WINDOW, limit=MOST)
        check_least(self, tokens=1, length=2, limit=1)

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.source, self.format)

    def limited(self, limit: int) -> "TextEvaluator":
        """Return the same with a budget of `limit` tokens."""
        return replace(self, tokens=limit)

    @property
    def measured(self) -> str:
        """What a score is of: `gsm8k:qa`."""
        source, format = self.held_out()
        return f"{source}:{format.spec_name()}"

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> list[ScoredWindow]:
        """Return first windows of the first `limit` documents, then second ones, …, until
        `tokens` are scored. `DataError` if nothing can be.
        """
        source, format = self.held_out()
        rows = itertools.islice(self.rows(), self.limit)
        documents = (cut(row, format, tokenizer, self.length) for row in rows)
        return within(source, in_turn(documents), self.tokens)


def within(source: Source, windows: Iterable[ScoredWindow], tokens: int) -> list[ScoredWindow]:
    """Return the first windows, until `tokens` are scored. `DataError` if there is nothing to
    score.
    """
    chosen = first_windows(windows, tokens)
    if not chosen:
        raise DataError(
            f"{source} holds nothing to measure on (its texts have fewer than two tokens)",
            subject=str(source),
        )
    return chosen


def first_windows(windows: Iterable[ScoredWindow], tokens: int) -> list[ScoredWindow]:
    """Return the first windows, until `tokens` are scored or there are no more."""
    chosen: list[ScoredWindow] = []
    scored = 0
    for window in windows:
        chosen.append(window)
        scored += window.scored
        if scored >= tokens:
            break
    return chosen


def cut(
    row: Row, format: Format, tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[ScoredWindow]:
    """Yield the windows of one document, lazily: most documents give only their first."""
    text = format.render(row, tokenizer)
    start = start_tokens(tokenizer)
    ids, offsets = token_offsets(tokenizer, text)
    room = length - len(start)
    # Without a start token the first token has nothing that it could be predicted from.
    unscored = len(start) or 1
    for begin in range(0, len(ids), room):
        shown = [*start, *ids[begin : begin + room]]
        if len(shown) > unscored:
            first = begin + unscored - len(start)
            # Places among the document's own tokens, without the start token.
            last = min(begin + room, len(ids)) - 1
            size = bytes_of(text, offsets, first, last)
            yield ScoredWindow(row.name, begin, shown, unscored, size)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text, without special ones around it."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def bytes_of(text: str, offsets: Sequence[tuple[int, int]], first: int, last: int) -> int:
    """Return how many bytes of a text its tokens `first` to `last` are; `offsets` say where each
    token lies.
    """
    return len(text[offsets[first][0] : offsets[last][1]].encode())


def in_turn(documents: Iterator[Iterator[ScoredWindow]]) -> Iterator[ScoredWindow]:
    """Yield one window of each document, then another of each that has more."""
    # A document's windows come lazily, so only those are cut that are asked for.
    waiting = documents
    while True:
        again: list[Iterator[ScoredWindow]] = []
        for document in waiting:
            for window in itertools.islice(document, 1):
                yield window
                again.append(document)
        if not again:
            return
        waiting = iter(again)


def score_windows(
    windows: Sequence[ScoredWindow],
    tokens_per_batch: int,
    score: Callable[[list[ScoredWindow]], Sequence[Any]],
    subject: Subject,
    name: str,
    entry: str = "{}",
) -> Mapping[str, Any]:
    """Return what `score` gives for each window, by the window's name.

    A batch of which the journal has only a part is scored again as a whole. So a run that was
    killed gives bit for bit what one that wasn't gives. `entry` makes a window's name in the
    journal: another one where what is kept of a window has another form than it had.
    """
    journal = subject.journal
    steps = Steps(subject.progress, f"measuring {name}", scored_tokens(windows))
    lengths = [len(window.ids) for window in windows]
    for places in by_length(lengths, tokens_per_batch):
        batch = [windows[place] for place in places]
        entry_names = [entry.format(window.name) for window in batch]
        if not all(entry_name in journal for entry_name in entry_names):
            scored = score(batch)
            journal.add(dict(zip(entry_names, scored, strict=True)))
        steps.add(scored_tokens(batch))
    return {window.name: journal[entry.format(window.name)] for window in windows}


def scored_tokens(windows: Iterable[ScoredWindow]) -> int:
    """Return how many tokens of the windows are scored."""
    return sum(window.scored for window in windows)


def by_document(windows: Iterable[ScoredWindow]) -> dict[str, list[ScoredWindow]]:
    """Return the windows of each document, the documents in the order of their keys."""
    documents: dict[str, list[ScoredWindow]] = {}
    for window in windows:
        documents.setdefault(window.document, []).append(window)
    return {document: documents[document] for document in sorted(documents)}


def predictions(
    model: PreTrainedModel, batch: Sequence[ScoredWindow]
) -> Iterator[Float[Tensor, "token word"]]:
    """Yield for each window the logits from which its scored tokens are predicted."""
    yield from scored_logits(batch_logits(model, batch), batch)


def batch_logits(
    model: PreTrainedModel, batch: Sequence[ScoredWindow]
) -> Float[Tensor, "window position word"]:
    """Return the logits of the windows, padded, up to their ends.

    The head is only applied from the first position on that predicts a scored token. Usually that
    is the first of all. Raises `DataError` for windows that the model can't read.
    """
    check_length(model, max(len(window.ids) for window in batch))
    check_tokens(model, max(max(window.ids) for window in batch))
    inputs = padded([window.ids for window in batch], model.device)
    left_out = min(window.unscored for window in batch) - 1
    limit: dict[str, Any] = {}
    if left_out:
        longest = inputs["input_ids"].shape[1]
        limit = accepted(model, logits_to_keep=longest - left_out)
    return model(**inputs, use_cache=False, **limit).logits


def scored_logits(
    logits: Float[Tensor, "window position word"], batch: Sequence[ScoredWindow]
) -> Iterator[Float[Tensor, "token word"]]:
    """Yield for each window the rows of the batch's logits that predict its scored tokens."""
    longest = max(len(window.ids) for window in batch)
    begin = longest - logits.shape[1]
    for window, row in zip(batch, logits, strict=True):
        # The token before a scored one predicts it.
        first = window.unscored - 1
        last = len(window.ids) - 1
        predicting = row[first - begin : last - begin]
        if window.places is None:
            yield predicting
        else:
            yield predicting[list(window.places)]


def wide(logits: Tensor) -> Tensor:
    """Return logits in the precision in which log-softmaxes are taken: float32, or float64 for a
    model that is.
    """
    if logits.dtype == torch.float64:
        return logits
    return logits.to(torch.float32)


@torch.no_grad()
def summed_nats(model: PreTrainedModel, batch: Sequence[ScoredWindow]) -> list[float]:
    """Return the summed negative log likelihood of each window's scored tokens."""
    if isinstance(model, RunByVllm):
        return _nats_by_vllm(model, batch)
    nats: list[float] = []
    for window, logits in zip(batch, predictions(model, batch), strict=True):
        by_token = nats_by_token(torch.tensor(window.targets), logits)
        nats.append(float(by_token.sum()))
    return nats


def _nats_by_vllm(model: RunByVllm, batch: Sequence[ScoredWindow]) -> list[float]:
    nats: list[float] = []
    scored = model.scored([window.ids for window in batch])
    for window, known in zip(batch, scored, strict=True):
        # Nothing is known of the first token.
        by_token = known.nats[window.unscored - 1 :]
        if window.places is not None:
            by_token = [by_token[place] for place in window.places]
        nats.append(math.fsum(by_token))
    return nats


def nats_by_token(
    ids: Int[Tensor, "token"], logits: Float[Tensor, "token word"]
) -> Float[Tensor, "token"]:
    """Return the negative log likelihood of each token, as float64 of a float32 number."""
    # Each token's in float32, their sum in float64: a document has thousands, and the differences
    # between models are small.
    targets = ids.to(logits.device)
    nats = torch.nn.functional.cross_entropy(wide(logits), targets, reduction="none")
    return nats.cpu().double()
