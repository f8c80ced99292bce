"""Windows of held-out documents, and how badly a model predicts them: what the measures of
running text share.
"""

import inspect
import itertools
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Format, Row, Source, by_length, held_out, padded, start_tokens
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import LONGEST_WINDOW, MOST_TOKENS, SourceEvaluator, Subject
from calibrant.results.outcomes import MOST
from calibrant.spec import check_most, later


@dataclass(frozen=True)
class ScoredWindow:
    """A stretch of a document: ids to show, how many of the first ones aren't scored, and the bytes
    of those that are.

    `until` is where it ends in a joined text, in letters.
    """

    document: str
    begin: int
    ids: list[int]
    unscored: int
    size: int
    until: int = 0

    @property
    def name(self) -> str:
        """What a journal calls it."""
        return f"{self.document} {self.begin}"

    @property
    def scored(self) -> int:
        """How many of its tokens are scored."""
        return len(self.ids) - self.unscored


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
        check_limit(self.spec_name(), self.limit)
        if self.tokens < 1 or self.length < 2:
            name = self.spec_name()
            raise SpecError(
                f"{name}(tokens={self.tokens}, length={self.length}): tokens must be at least 1 and length at least 2",
                subject=name,
            )

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.source, self.format)

    def limited(self, limit: int) -> "TextEvaluator":
        """Return the same with a budget of `limit` tokens."""
        return replace(self, tokens=limit)

    @property
    def measured(self) -> str:
        """What is measured, as a score says it: `gsm8k:qa`."""
        source, format = self.held_out()
        return f"{source}:{format.spec_name()}"

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> list[ScoredWindow]:
        """Return first windows of the first `limit` documents, then second ones, …, until
        `tokens` are scored. `DataError` if nothing can be.
        """
        source, format = self.held_out()
        rows = itertools.islice(self.rows(), self.limit)
        return within(
            source, in_turn(cut(row, format, tokenizer, self.length) for row in rows), self.tokens
        )


def check_limit(name: str, limit: int | None) -> None:
    """Raise `SpecError` for a limit that leaves nothing to measure."""
    if limit is not None and limit < 1:
        raise SpecError(
            f"{name}(limit={limit}): limit must be at least 1; leave it out to measure all that the tokens pay for",
            subject="limit",
        )


def within(source: Source, windows: Iterable[ScoredWindow], tokens: int) -> list[ScoredWindow]:
    """Return the first windows, until `tokens` are scored. `DataError` if there is nothing to
    score.
    """
    chosen: list[ScoredWindow] = []
    left = tokens
    for window in windows:
        chosen.append(window)
        left -= window.scored
        if left <= 0:
            break
    if not chosen:
        raise DataError(
            f"{source} holds nothing to measure on (its texts have fewer than two tokens)",
            subject=str(source),
        )
    return chosen


def cut(
    row: Row, format: Format, tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[ScoredWindow]:
    """Yield the windows of one document, lazily: most documents give only their first."""
    text, start = format.render(row, tokenizer), start_tokens(tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    room, unscored = length - len(start), len(start) or 1
    for begin in range(0, len(ids), room):
        stretch = [*start, *ids[begin : begin + room]]
        if len(stretch) > unscored:
            first = begin + unscored - len(start)
            size = len(
                text[offsets[first][0] : offsets[min(begin + room, len(ids)) - 1][1]].encode()
            )
            yield ScoredWindow(row.name, begin, stretch, unscored, size)


def in_turn(documents: Iterator[Iterator[ScoredWindow]]) -> Iterator[ScoredWindow]:
    """Yield one window of each document, then another of each that has more."""
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
    scored: Callable[[list[ScoredWindow]], Sequence[Any]],
    subject: Subject,
    name: str,
    entry: str = "{}",
) -> Mapping[str, Any]:
    """Return what `scored` gives for each window, by the window's name: what the subject's journal
    has, and what it gets now.

    A batch of which only a part is there is scored again as a whole, so that a run that was killed
    gives bit for bit what one that wasn't gives. `entry` makes a window's name in the journal:
    another one where what is kept of a window has another form than it had.
    """
    total, done, journal = sum(w.scored for w in windows), 0, subject.journal
    for places in by_length([len(w.ids) for w in windows], tokens_per_batch):
        batch = [windows[place] for place in places]
        if not all(entry.format(w.name) in journal for w in batch):
            journal.add(
                {
                    entry.format(w.name): result
                    for w, result in zip(batch, scored(batch), strict=True)
                }
            )
        done += sum(w.scored for w in batch)
        subject.progress(f"measuring {name}", done, total)
    return {w.name: journal[entry.format(w.name)] for w in windows}


def by_document(windows: Iterable[ScoredWindow]) -> dict[str, list[ScoredWindow]]:
    """Return the windows of each document, the documents in the order of their keys."""
    documents: dict[str, list[ScoredWindow]] = {}
    for window in windows:
        documents.setdefault(window.document, []).append(window)
    return {document: documents[document] for document in sorted(documents)}


def predictions(model: PreTrainedModel, batch: Sequence[ScoredWindow]) -> Iterator[Tensor]:
    """For each window the logits `[scored token, vocabulary]` from which its scored tokens are
    predicted.
    """
    inputs = padded([w.ids for w in batch], model.device)
    longest = inputs["input_ids"].shape[1]
    # The head is only applied from the first position on that somebody scores; usually that is all
    # of them.
    left_out = min(w.unscored for w in batch) - 1
    limit = accepted(model, logits_to_keep=longest - left_out) if left_out else {}
    logits: Tensor = model(**inputs, use_cache=False, **limit).logits
    begin = longest - logits.shape[1]
    for window, row in zip(batch, logits, strict=True):
        yield row[window.unscored - 1 - begin : len(window.ids) - 1 - begin]


def wide(logits: Tensor) -> Tensor:
    """Logits in the precision in which log-softmaxes are taken: float32, or float64 for a model
    that is.
    """
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


@torch.no_grad()
def summed_nats(model: PreTrainedModel, batch: Sequence[ScoredWindow]) -> list[float]:
    """Summed negative log likelihood of each window's scored tokens, the log-softmax in float32."""
    return [
        nats_of(torch.tensor(window.ids[window.unscored :]), row)
        for window, row in zip(batch, predictions(model, batch), strict=True)
    ]


def nats_of(ids: Int[Tensor, "token"], logits: Float[Tensor, "token word"]) -> float:
    """Return the summed negative log likelihood of tokens, from the logits that predict them."""
    return float(nats_by_token(ids, logits).sum())


def nats_by_token(
    ids: Int[Tensor, "token"], logits: Float[Tensor, "token word"]
) -> Float[Tensor, "token"]:
    """Return the negative log likelihood of each token, as float64 of a float32 number."""
    # Each token's in float32, their sum in float64: a document has thousands, and the differences
    # between models are small.
    return torch.nn.functional.cross_entropy(
        wide(logits), ids.to(logits.device), reduction="none"
    ).double()


def accepted(model: PreTrainedModel, **arguments: Any) -> dict[str, Any]:
    """Return those of the arguments that the model's forward names: not every family has every
    one.
    """
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in arguments.items() if name in known}
