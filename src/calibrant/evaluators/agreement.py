"""Agreement with the untouched model: how far a compressed model's predictions have moved, whatever is right.

`agreement(source=wikitext, tokens=16384, length=512)` shows both models the same windows of held-out text, those of `loss`, and compares what
they predict for each token that `loss` scores: the Kullback-Leibler divergence of the compressed model's distribution from the untouched one's,
KL(untouched ‖ compressed), in nats, and beside it how often the most probable token is the same. Both see every token's whole distribution, not
one number of it, so they tell two compressed models apart on less text than a loss does; a model agrees with itself completely, with a divergence of
exactly zero. They say nothing about whether what changed was any good.

The distributions are float32, or float64 for models that are. The context length is part of the score, as it is for a loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Row, Source, held_out
from calibrant.errors import ModelError, NumericsError, SpecError
from calibrant.estimates import ratio
from calibrant.evaluators._base import Evaluator
from calibrant.evaluators._digest import digest_of
from calibrant.evaluators._windows import Window, by_document, cut_documents, keep_all, predictions, wide
from calibrant.outcomes import Journal, Measurement, Outcome, Score
from calibrant.progress import Progress, silent
from calibrant.spec import identity

TOKENS_PER_BATCH: Final = 1024
"""Tokens whose logits of both models are held at once; the result doesn't depend on it beyond rounding."""
TOKENS_PER_CHUNK: Final = 128
"""Tokens whose distributions are held at once, as a handful of tensors of the vocabulary's size."""

Compared = tuple[float, int]
"""Summed nats of divergence, and how many tokens have the same most probable prediction."""


@dataclass(frozen=True, repr=False)
class Agreement(Evaluator):
    """Mean KL(untouched ‖ compressed) per token of held-out text, in nats; beside it how often the most probable token is the same."""

    source: str = "wikitext"
    format: str | None = None
    tokens: int = 16_384
    length: int = 512

    compares = True

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.length < 2:
            raise SpecError(
                f"agreement(tokens={self.tokens}, length={self.length}): tokens must be at least 1 and length at least 2", subject="agreement"
            )

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

    def limited(self, limit: int) -> "Agreement":
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
        """The divergence with one outcome per document: `value` its summed nats, `weight` its scored tokens, `agreed` those predicted alike.

        Raises `SpecError` without a reference, `ModelError` for one with another vocabulary, `NumericsError` for outputs that aren't finite.
        """
        if reference is None:
            raise SpecError(
                f"{self} compares a model with the untouched one, and none was given; give --reference, or measure(…, reference=model)",
                subject=str(self),
            )
        source, format = held_out(self.source, self.format)
        measured = f"{source}:{format.spec_name()}"
        windows = cut_documents(source, self.rows(), format, tokenizer, self.length, self.tokens)
        kept = Journal() if journal is None else journal
        keep_all(windows, TOKENS_PER_BATCH, lambda batch: _compared(model, reference, batch, measured), kept, progress, f"measuring {self}")
        outcomes = tuple(_outcome(document, own, [tuple(kept[w.name]) for w in own]) for document, own in by_document(windows).items())
        return self._measurement(outcomes, measured)

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


def _outcome(document: str, windows: Sequence[Window], found: Sequence[Compared]) -> Outcome:
    facts = {"agreed": sum(agreed for _, agreed in found)}
    return Outcome(document, sum(nats for nats, _ in found), float(sum(w.scored for w in windows)), facts)


@torch.no_grad()
def _compared(model: PreTrainedModel, reference: PreTrainedModel, batch: list[Window], measured: str) -> list[Compared]:
    found: list[Compared] = []
    for theirs, ours in zip(predictions(reference, batch), predictions(model, batch), strict=True):
        if theirs.shape != ours.shape:
            raise ModelError(
                f"the reference predicts {theirs.shape[-1]} tokens and the model {ours.shape[-1]}: with another vocabulary they can't be compared; "
                f"give the model that this one was made from",
                subject=measured,
            )
        chunks = zip(theirs.split(TOKENS_PER_CHUNK), ours.split(TOKENS_PER_CHUNK), strict=True)
        parts = [divergence(old, new.to(old.device), measured) for old, new in chunks]
        found.append((sum(nats for nats, _ in parts), sum(agreed for _, agreed in parts)))
    return found


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
