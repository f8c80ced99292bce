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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from calibrant.errors import NumericsError
from calibrant.evaluators._base import Evaluator, Subject, items_of, mean_of
from calibrant.evaluators._windows import (
    ScoredWindow,
    TextEvaluator,
    by_document,
    score_windows,
    scored_tokens,
    summed_nats,
)
from calibrant.results.outcomes import Measurement, Outcome, Score

TOKENS_PER_BATCH: Final = 2048
"""Tokens whose logits are held at once; the result doesn't depend on it beyond rounding."""
LARGEST: Final = 700
"""The largest loss whose exponential is a float."""


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
        items = by_document(windows)
        facts = {"documents": len(items), "length": self.length}
        return measure_loss(self, subject, windows, items, self.measured, facts)


def measure_loss(
    evaluator: Evaluator,
    subject: Subject,
    windows: Sequence[ScoredWindow],
    items: Mapping[str, Sequence[ScoredWindow]],
    measured: str,
    facts: Mapping[str, Any],
) -> Measurement:
    """Return the loss on `windows`, which belong to `items`: an outcome an item, `value` the summed
    nats of its windows, `weight` their scored tokens. `NumericsError` if it isn't finite.

    `facts` are more of them for the score.
    """
    score = partial(summed_nats, subject.model)
    nats = score_windows(windows, TOKENS_PER_BATCH, score, subject, str(evaluator))
    outcomes: list[Outcome] = []
    for item, shown in items.items():
        value = sum(nats[window.name] for window in shown)
        outcomes.append(Outcome(item, value, float(scored_tokens(shown))))
    loss, error = mean_of(outcomes)
    if not math.isfinite(loss):
        raise NumericsError(
            f"the loss on {measured} is {loss}: the model's outputs aren't finite",
            subject=measured,
        )
    size = sum(window.size for window in windows)
    bits_per_byte = math.nan
    if size:
        bits_per_byte = sum(outcome.value for outcome in outcomes) / math.log(2) / size
    whole = Score(
        measured=measured,
        metric="loss",
        value=loss,
        stderr=error,
        n=len(outcomes),
        unit="nats/token",
        better="lower",
        facts={
            "perplexity": math.exp(loss) if loss < LARGEST else math.inf,
            "bits_per_byte": bits_per_byte,
            "tokens": scored_tokens(windows),
            "bytes": size,
            **facts,
            "items": items_of(outcomes),
        },
    )
    return Measurement(whole, tuple(outcomes))
