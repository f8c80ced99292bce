"""Held-out loss: how badly a model predicts text that it was neither trained nor calibrated on
here.

`loss(source=wikitext, tokens=65536, length=2048)` reads the documents of a source's `measure` part
in an order fixed by their hashes. A document is cut into windows of `length` tokens. The first
windows of all documents come before any second one, so that a budget buys as many documents as it
can. Documents, not tokens, are the units of the standard error: tokens of one document are anything
but independent.

A window starts without memory of the one before it. Its first token is scored only where the
tokenizer gives a start token to predict it from. The context length is part of the score: losses at
different lengths must not be compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from calibrant.errors import NumericsError
from calibrant.evaluators._base import Subject, items_of, mean_of
from calibrant.evaluators._windows import (
    TextEvaluator,
    by_document,
    score_windows,
    summed_nats,
    summed_outcomes,
)
from calibrant.results.outcomes import Measurement, Outcome, Score

TOKENS_PER_BATCH = 2048
"""Tokens whose logits are held at once; the result doesn't depend on it beyond rounding."""


@dataclass(frozen=True, repr=False)
class Loss(TextEvaluator):
    """Mean negative log likelihood of held-out text, in nats per token; perplexity and bits per
    byte beside it.
    """

    def measure(self, subject: Subject) -> Measurement:
        """Return the loss with one outcome per document: `value` its summed nats, `weight` its
        scored tokens.
        """
        windows = self.windows(subject.tokenizer)
        score = partial(summed_nats, subject.model)
        nats = score_windows(windows, TOKENS_PER_BATCH, score, subject, str(self))
        outcomes = summed_outcomes(by_document(windows), nats)
        size = sum(window.size for window in windows)
        return Measurement(self._score(outcomes, size, self.measured), outcomes)

    def _score(self, outcomes: Sequence[Outcome], size: int, measured: str) -> Score:
        loss, error = mean_of(outcomes)
        if not math.isfinite(loss):
            raise NumericsError(
                f"the loss on {measured} is {loss}: the model's outputs aren't finite",
                subject=measured,
            )
        nats = sum(outcome.value for outcome in outcomes)
        count = len(outcomes)
        facts = {
            "perplexity": perplexity_of(loss),
            "bits_per_byte": nats / math.log(2) / size,
            "tokens": int(sum(outcome.weight for outcome in outcomes)),
            "bytes": size,
            "documents": count,
            "length": self.length,
            "items": items_of(outcomes),
        }
        return Score(measured, "loss", loss, error, count, "nats/token", "lower", facts=facts)


def perplexity_of(loss: float) -> float:
    """Return the exponential of a loss; infinity where no float is as large."""
    if loss >= 700:
        return math.inf
    return math.exp(loss)
