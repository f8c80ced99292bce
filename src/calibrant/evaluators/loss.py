"""Held-out loss: how badly a model predicts text that it was neither trained nor calibrated on
here.

`loss(source=wikitext, tokens=65536, length=2048)` reads the documents of a source's `measure` part
in an order fixed by their hashes. A document is cut into windows of `length` tokens; the first
windows of all documents come before any second one, so that a budget buys as many documents as it
can, and they, not tokens, are the units of the standard error: tokens of one document are anything
but independent.

A window starts without memory of the one before it, and its first token is scored only where the
tokenizer gives it a start token to be predicted from. The context length is part of the score:
losses at different lengths must not be compared.
"""

import math
from dataclasses import dataclass

from calibrant.errors import NumericsError
from calibrant.evaluators._base import Subject
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._windows import TextEvaluator, by_document, score_windows, summed_nats
from calibrant.results.outcomes import Measurement, Outcome, Score
from calibrant.spec import identity

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
        nats = score_windows(
            windows,
            TOKENS_PER_BATCH,
            lambda batch: summed_nats(subject.model, batch),
            subject,
            str(self),
        )
        outcomes = tuple(
            Outcome(document, sum(nats[w.name] for w in own), float(sum(w.scored for w in own)))
            for document, own in by_document(windows).items()
        )
        return Measurement(
            self._score(outcomes, sum(w.size for w in windows), self.measured), outcomes
        )

    def _score(self, outcomes: tuple[Outcome, ...], size: int, measured: str) -> Score:
        loss, stderr = ratio([o.value for o in outcomes], [o.weight for o in outcomes])
        if not math.isfinite(loss):
            raise NumericsError(
                f"the loss on {measured} is {loss}: the model's outputs aren't finite",
                subject=measured,
            )
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
        return Score(
            measured, "loss", loss, stderr, len(outcomes), "nats/token", "lower", facts=facts
        )
