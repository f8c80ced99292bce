"""Agreement with the untouched model: how far a compressed model's predictions have moved, whatever is right.

`agreement(source=wikitext, tokens=16384, length=512)` shows both models the same windows of held-out text, those of `loss`, and compares what
they predict for each token that `loss` scores: the Kullback-Leibler divergence of the compressed model's distribution from the untouched one's,
KL(untouched ‖ compressed), in nats, and beside it how often the most probable token is the same. Both see every token's whole distribution, not
one number of it, so they tell two compressed models apart on less text than a loss does; a model agrees with itself completely, with a divergence of
exactly zero. They say nothing about whether what changed was any good.

The distributions are float32, or float64 for models that are. The context length is part of the score, as it is for a loss.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from calibrant.errors import ModelError, NumericsError, SpecError
from calibrant.estimates import ratio
from calibrant.evaluators._base import Subject
from calibrant.evaluators._windows import ScoredWindow, TextEvaluator, by_document, predictions, score_windows, wide
from calibrant.outcomes import Measurement, Outcome, Score
from calibrant.spec import identity

TOKENS_PER_BATCH: Final = 1024
"""Tokens whose logits of both models are held at once; the result doesn't depend on it beyond rounding."""
TOKENS_PER_CHUNK: Final = 128
"""Tokens whose distributions are held at once, as a handful of tensors of the vocabulary's size."""

Compared = tuple[float, int]
"""Summed nats of divergence, and how many tokens have the same most probable prediction."""


@dataclass(frozen=True, repr=False)
class Agreement(TextEvaluator):
    """Mean KL(untouched ‖ compressed) per token of held-out text, in nats; beside it how often the most probable token is the same."""

    tokens: int = 16_384
    length: int = 512

    compares = True

    def measure(self, subject: Subject) -> Measurement:
        """Return the divergence with one outcome per document: `value` its summed nats, `weight` its scored tokens, `agreed` those predicted alike.

        Raises `SpecError` without a reference, `ModelError` for one with another vocabulary, `NumericsError` for outputs that aren't finite.
        """
        reference = subject.reference
        if reference is None:
            raise SpecError(
                f"{self} compares a model with the untouched one, and none was given; give --reference, or Subject(…, reference=model)",
                subject=str(self),
            )
        windows, measured = self.windows(subject.tokenizer), self.measured
        compared = score_windows(windows, TOKENS_PER_BATCH, lambda batch: _compared(subject.model, reference, batch, measured), subject, str(self))
        outcomes: list[Outcome] = []
        for document, own in by_document(windows).items():
            divergences, agreed = zip(*(compared[w.name] for w in own), strict=True)
            outcomes.append(Outcome(document, sum(divergences), float(sum(w.scored for w in own)), {"agreed": sum(agreed)}))
        return self._measurement(tuple(outcomes), measured)

    def _measurement(self, outcomes: tuple[Outcome, ...], measured: str) -> Measurement:
        weights = [o.weight for o in outcomes]
        facts = {
            "tokens": int(sum(weights)),
            "documents": len(outcomes),
            "length": self.length,
            "items": identity([[o.item, o.weight] for o in outcomes]),
        }
        divergence, agreed = ratio([o.value for o in outcomes], weights), ratio([float(o.facts["agreed"]) for o in outcomes], weights)
        n = len(outcomes)
        top = Score(measured, "top1_agreement", *agreed, n, "share of tokens", "higher", facts=facts)
        return Measurement(Score(measured, "kl", *divergence, n, "nats/token", "lower", facts=facts), outcomes, beside=(top,))


@torch.no_grad()
def _compared(model: PreTrainedModel, reference: PreTrainedModel, batch: list[ScoredWindow], measured: str) -> list[Compared]:
    compared: list[Compared] = []
    for theirs, ours in zip(predictions(reference, batch), predictions(model, batch), strict=True):
        if theirs.shape != ours.shape:
            raise ModelError(
                f"the reference predicts {theirs.shape[-1]} tokens and the model {ours.shape[-1]}: with another vocabulary they can't be compared; "
                f"give the model that this one was made from",
                subject=measured,
            )
        chunks = zip(theirs.split(TOKENS_PER_CHUNK), ours.split(TOKENS_PER_CHUNK), strict=True)
        parts = [divergence(old, new.to(old.device), measured) for old, new in chunks]
        compared.append((sum(nats for nats, _ in parts), sum(agreed for _, agreed in parts)))
    return compared


def divergence(reference: Tensor, ours: Tensor, measured: str) -> Compared:
    """Summed KL(reference ‖ ours) of logits `[token, vocabulary]` in nats, and how many most probable tokens are the same."""
    before, after = wide(reference).log_softmax(-1), wide(ours).log_softmax(-1)
    for whose, logs in (("the reference's", before), ("the model's", after)):
        if not bool(logs.isfinite().all()):
            raise NumericsError(f"the agreement on {measured} can't be told: {whose} outputs aren't finite", subject=measured)
    # Σp(log p - log q) is a small difference of large terms. With Σ(q - p), which is zero but for rounding, each summand is p(e^d - 1 - d) with
    # d = log q - log p: at least zero, and exact for the small d that decide a small divergence. For large d it is written so that it can't overflow.
    p, apart = before.exp(), after - before
    near, far = p * (apart.expm1() - apart), after.exp() - p - p * apart
    nats = torch.where(apart.abs() < 1, near, far).sum(dtype=torch.float64)
    return float(nats), int((reference.argmax(-1) == ours.argmax(-1)).sum())
