"""Held-out loss: how badly a model predicts text that it was neither trained nor calibrated on here.

`loss(source=wikitext, tokens=65536, length=2048)` reads the documents of a source's `measure` part in an order fixed by their hashes. A
document is cut into windows of `length` tokens; the first windows of all documents come before any second one, so that a budget buys as
many documents as it can, and they, not tokens, are the units of the standard error: tokens of one document are anything but independent.

A window starts without memory of the one before it, and its first token is scored only where the tokenizer gives it a start token to be
predicted from. The context length is part of the score: losses at different lengths must not be compared.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Row, Source, held_out
from calibrant.errors import NumericsError, SpecError
from calibrant.estimates import ratio
from calibrant.evaluators._base import Evaluator
from calibrant.evaluators._digest import digest_of
from calibrant.evaluators._windows import by_document, cut_documents, keep_all, summed_nats
from calibrant.outcomes import Journal, Measurement, Outcome, Score
from calibrant.progress import Progress, silent
from calibrant.spec import identity

TOKENS_PER_BATCH = 2048
"""Tokens whose logits are held at once; the result doesn't depend on it beyond rounding."""


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

    def reads(self) -> Source:
        """The source whose measured part is read."""
        return held_out(self.source, self.format)[0]

    def check(self) -> None:
        """Whether there is such a source and its format."""
        held_out(self.source, self.format)

    def digest(self) -> str:
        """What a user's file holds of it."""
        return digest_of(held_out(self.source, self.format)[0])

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
        windows = cut_documents(source, self.rows(), format, tokenizer, self.length, self.tokens)
        kept = Journal() if journal is None else journal
        keep_all(windows, TOKENS_PER_BATCH, lambda batch: summed_nats(model, batch), kept, progress, f"measuring {self}")
        outcomes = tuple(
            Outcome(document, sum(kept[w.name] for w in own), float(sum(w.scored for w in own))) for document, own in by_document(windows).items()
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
