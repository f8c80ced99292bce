"""Agreement with the untouched model: how far a compressed model's predictions have moved, whatever
is right.

`agreement(source=wikitext, tokens=16384, length=512)` shows both models the same windows of
held-out text, those of `loss`, and compares what they predict for each token that `loss` scores:
the Kullback-Leibler divergence of the compressed model's distribution from the untouched one's,
KL(untouched ‖ compressed), in nats, with its 95th and 99th percentile over tokens, and how often
the most probable token is the same. They see every token's whole distribution, not one number of
it, so they distinguish two compressed models on less text than a loss does; a model agrees with
itself completely, with a divergence of exactly zero. They say nothing about whether what changed
was any good: for that the compressed model's `loss` stands beside them, from the same forward, each
document's summed nats among the facts of its outcome.

Beside the divergence stands the noise floor of what ran the models (`_floor`): how far apart two
computations of the same numbers are there. A smaller difference between two models is none that a
runtime would keep.

With `roles=true` and a conversation (`agreement(source=gsm8k, format=chat, roles=true)`) all of it
is told apart by what a token is: of the chat template, of a question, or of an answer. The same
windows are shown, in one forward; each role has scores of its own beside the whole (`kl_template`,
`top1_agreement_template`, `loss_template`, …), and its sums stand among the facts of each outcome.

The distributions are float32, or float64 for models that are. The context length is part of the
score, as it is for a loss.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import ROLES, Chat
from calibrant.errors import ModelError, NumericsError, SpecError
from calibrant.evaluators._base import Subject
from calibrant.evaluators._dense import dense_predictions
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._floor import NoiseFloor, noise_floor
from calibrant.evaluators._roles import TokenDivergence, WindowRoles, facts_of, window_roles
from calibrant.evaluators._windows import (
    ScoredWindow,
    TextEvaluator,
    by_document,
    nats_by_token,
    predictions,
    score_windows,
    wide,
)
from calibrant.models.divergence import divergences, top
from calibrant.results.outcomes import Measurement, Outcome, Score
from calibrant.spec import identity, later

TOKENS_PER_BATCH: Final = 1024
"""Tokens whose logits of both models are held at once; the result doesn't depend on it beyond
rounding.
"""
NUMBERS_PER_CHUNK: Final = 2**20
"""Logits that are compared at once: they stay in a processor's cache between the steps."""

PERCENTILES: Final = (95, 99)
"""A mean says little of the few tokens on which a compressed model goes astray; these do, and
users of quantized models quote them.
"""

ROLE_METRICS: Final[tuple[tuple[str, str, str, Literal["lower", "higher"]], ...]] = (
    ("kl", "kl", "nats/token", "lower"),
    ("top1_agreement", "agreed", "share of tokens", "higher"),
    ("loss", "nats", "nats/token", "lower"),
)
"""Of each role: what a score is called, of which sums it is made, its unit, and what is better."""


class _Compared(NamedTuple):
    """What was found in a window, over its scored tokens.

    Summed nats of divergence, how many most probable predictions are the same, the divergence of
    each token, rounded to float32, summed nats of the text, and sums by role where they are asked
    for.
    """

    divergence: float
    agreed: int
    by_token: list[float]
    nats: float
    roles: Mapping[str, Sequence[Any]] | None = None


@dataclass(frozen=True, repr=False)
class Agreement(TextEvaluator):
    """Mean KL(untouched ‖ compressed) per token of held-out text, in nats; beside it high
    percentiles, how often the top token is alike, the loss.
    """

    tokens: int = 16_384
    length: int = 512
    roles: bool = later(False)

    compares = True

    def check(self) -> None:
        super().check()
        if self.roles:
            self._conversation()

    def measure(self, subject: Subject) -> Measurement:
        """Return the divergence with one outcome per document: `value` its summed nats, `weight`
        its scored tokens.

        The facts of an outcome are `agreed`, the tokens predicted alike, and `nats`, the summed
        nats of its text. With `roles` there are such sums of each role too: `tokens_template`,
        `kl_template`, `agreed_template`, `nats_template`, and the same of `question` and `answer`.

        Raises `SpecError` without a reference, or for roles of what is no conversation;
        `ModelError` for a reference with another vocabulary, `NumericsError` for outputs that
        aren't finite.
        """
        reference = subject.reference
        if reference is None:
            raise SpecError(
                f"{self} compares a model with the untouched one, and none was given; give --reference, or Subject(…, reference=model)",
                subject=str(self),
            )
        windows, measured = self.windows(subject.tokenizer), self.measured
        roles = self._roles(windows, subject.tokenizer)

        def compare(batch: list[ScoredWindow]) -> list[_Compared]:
            return _compared(subject.model, reference, batch, measured, roles)

        entry = "{} by role" if self.roles else "{} with its loss"
        scored = score_windows(windows, TOKENS_PER_BATCH, compare, subject, str(self), entry)
        compared: dict[str, _Compared] = {}
        for name, found in scored.items():
            # Those of a journal are lists.
            compared[name] = _Compared(*found)
        outcomes: list[Outcome] = []
        for document, own in by_document(windows).items():
            parts = [compared[w.name] for w in own]
            facts = {
                "agreed": sum(part.agreed for part in parts),
                "nats": math.fsum(part.nats for part in parts),
            }
            if self.roles:
                facts |= facts_of([part.roles for part in parts if part.roles is not None])
            divergence = sum(part.divergence for part in parts)
            tokens = float(sum(w.scored for w in own))
            outcomes.append(Outcome(document, divergence, tokens, facts))
        floor = noise_floor(
            subject.model,
            reference,
            windows,
            lambda model, exact, batch: _compared(model, exact, batch, measured),
        )
        by_token = [nats for w in windows for nats in compared[w.name].by_token]
        return self._measurement(tuple(outcomes), by_token, measured, floor)

    def _conversation(self) -> Chat:
        """The format, which must be a conversation's: in other texts no token has a role."""
        _, form = self.held_out()
        if not isinstance(form, Chat):
            raise SpecError(
                f"{self}: roles are those of a conversation, and the format {str(form)!r} writes none; give format=chat, or leave roles out",
                subject=str(self),
            )
        return form

    def _roles(
        self,
        windows: Sequence[ScoredWindow],
        tokenizer: PreTrainedTokenizerBase,
    ) -> WindowRoles | None:
        if not self.roles:
            return None
        return window_roles(windows, self.rows(), self._conversation(), tokenizer)

    def _by_role(
        self,
        outcomes: tuple[Outcome, ...],
        measured: str,
        facts: Mapping[str, Any],
    ) -> Iterator[Score]:
        """The scores of each role that has a token, over its own tokens and their documents."""
        for role in ROLES:
            # One without a token of the role says nothing of it, and would lessen the error.
            having = [outcome for outcome in outcomes if outcome.facts[f"tokens_{role}"]]
            if not having:
                continue
            weights = [float(outcome.facts[f"tokens_{role}"]) for outcome in having]
            n = len(having)
            own = {**facts, "tokens": int(sum(weights))}
            for metric, fact, unit, better in ROLE_METRICS:
                values = [float(outcome.facts[f"{fact}_{role}"]) for outcome in having]
                value, error = ratio(values, weights)
                yield Score(measured, f"{metric}_{role}", value, error, n, unit, better, facts=own)

    def _measurement(
        self,
        outcomes: tuple[Outcome, ...],
        by_token: Sequence[float],
        measured: str,
        floor: NoiseFloor | None,
    ) -> Measurement:
        weights = [o.weight for o in outcomes]
        facts = {
            "tokens": int(sum(weights)),
            "documents": len(outcomes),
            "length": self.length,
            "items": identity([[o.item, o.weight] for o in outcomes]),
        }
        divergence, agreed = (
            ratio([o.value for o in outcomes], weights),
            ratio([float(o.facts["agreed"]) for o in outcomes], weights),
        )
        n = len(outcomes)
        top = Score(
            measured, "top1_agreement", *agreed, n, "share of tokens", "higher", facts=facts
        )
        levels = [float(level) for level in np.percentile(by_token, PERCENTILES)]
        # No error: tokens of a document aren't independent, and a percentile is no mean of
        # documents.
        high = (
            Score(measured, f"kl_p{p}", level, None, n, "nats", "lower", facts=facts)
            for p, level in zip(PERCENTILES, levels, strict=True)
        )
        loss = Score(
            measured,
            "loss",
            *ratio([o.facts["nats"] for o in outcomes], weights),
            n,
            "nats/token",
            "lower",
            facts=facts,
        )
        known = facts if floor is None else facts | floor.facts()
        whole = Score(measured, "kl", *divergence, n, "nats/token", "lower", facts=known)
        by_role = self._by_role(outcomes, measured, facts) if self.roles else ()
        return Measurement(whole, outcomes, beside=(top, *high, loss, *by_role))


@torch.no_grad()
def _compared(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batch: list[ScoredWindow],
    measured: str,
    roles: WindowRoles | None = None,
) -> list[_Compared]:
    compared: list[_Compared] = []
    for window, theirs, ours in zip(
        batch, dense_predictions(reference, batch), predictions(model, batch), strict=True
    ):
        if theirs.shape != ours.shape:
            raise ModelError(
                f"the reference predicts {theirs.shape[-1]} tokens and the model {ours.shape[-1]}: with another vocabulary they can't be compared; "
                f"give the model that this one was made from",
                subject=measured,
            )
        tokens = max(1, NUMBERS_PER_CHUNK // theirs.shape[-1])
        scored = torch.tensor(window.ids[window.unscored :])
        chunks = zip(theirs.split(tokens), ours.split(tokens), scored.split(tokens), strict=True)
        parts = [_chunk(old, new, ids, measured) for old, new, ids in chunks]
        compared.append(_whole(window, parts, roles))
    return compared


def _whole(window: ScoredWindow, parts: Sequence["_Chunk"], roles: WindowRoles | None) -> _Compared:
    tokens = [token for part in parts for token in part.tokens]
    divergence = sum(part.divergence for part in parts)
    agreed = sum(part.agreed for part in parts)
    by_token = [float(np.float32(token.divergence)) for token in tokens]
    nats = math.fsum(part.nats for part in parts)
    sums = None if roles is None else roles.sums(window, tokens)
    return _Compared(divergence, agreed, by_token, nats, sums)


class _Chunk(NamedTuple):
    """The sums of a few tokens, each made as a whole, and what each token gave."""

    divergence: float
    agreed: int
    nats: float
    tokens: list[TokenDivergence]


def _chunk(
    reference: Float[Tensor, "token word"],
    ours: Float[Tensor, "token word"],
    ids: Int[Tensor, "token"],
    measured: str,
) -> _Chunk:
    """KL(reference ‖ ours) of logits in nats, how many most probable tokens are the same, the nats
    of the text.

    Each summed, and for each token.
    """
    old, new = wide(reference), wide(ours.to(reference.device))
    divergence = divergences(old, new)
    if not bool(divergence.isfinite().all()):
        whose = "the model's" if bool(old.isfinite().all()) else "the reference's"
        raise NumericsError(
            f"the agreement on {measured} can't be told: {whose} outputs aren't finite",
            subject=measured,
        )
    agreed = top(old) == top(new)
    nats = nats_by_token(ids, ours)
    tokens = map(TokenDivergence, divergence.tolist(), agreed.tolist(), nats.tolist())
    return _Chunk(float(divergence.sum()), int(agreed.sum()), float(nats.sum()), list(tokens))
