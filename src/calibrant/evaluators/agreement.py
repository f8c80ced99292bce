"""Agreement with the untouched model: how far a compressed model's predictions have moved, whatever
is right.

`agreement(source=wikitext, tokens=16384, length=512)` shows both models the same windows of
held-out text, those of `loss`, and compares what they predict for each token that `loss` scores.
It gives the Kullback-Leibler divergence of the compressed model's distribution from the untouched
one's, KL(untouched ‖ compressed), in nats, its 95th and 99th percentile over tokens, and how often
the most probable token is the same. A divergence sees every token's whole distribution, not one
number of it, so it distinguishes two compressed models on less text than a loss does. A model
agrees with itself completely, with a divergence of exactly zero. None of this says whether what
changed was any good: for that the compressed model's `loss` stands beside it, from the same
forward, with each document's summed nats among the facts of its outcome.

Beside the divergence stands the noise floor of what ran the models (`_dense`): how far apart two
computations of the same numbers are there. A smaller difference between two models is none that a
runtime would keep.

With `roles=true` and a conversation (`agreement(source=gsm8k, format=chat, roles=true)`) all of it
is also measured by the role of a token: of the chat template, of a question, or of an answer. The
same windows are shown, in one forward. Each role has scores of its own beside the whole
(`kl_template`, `top1_agreement_template`, `loss_template`, …), and its sums stand among the facts
of each outcome.

The distributions are float32, or float64 for models that are. The context length is part of the
score, as it is for a loss.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.compress.planning import KERNEL_BYTES
from calibrant.data import Chat, Role, Row, Stretch, roles_of_tokens
from calibrant.data._encoding import token_offsets
from calibrant.errors import DataError, ModelError, NumericsError
from calibrant.evaluators._base import Subject, items_of, mean_of
from calibrant.evaluators._dense import (
    NoiseFloor,
    dense_predictions,
    floor_bytes,
    noise_floor,
)
from calibrant.evaluators._roles import (
    WindowRoles,
    conversation_format,
    window_roles,
    written_as_said,
)
from calibrant.evaluators._windows import (
    ScoredWindow,
    TextEvaluator,
    by_document,
    nats_by_token,
    predictions,
    score_windows,
    scored_tokens,
    wide,
)
from calibrant.models import ModelOutline
from calibrant.models.divergence import divergences, top
from calibrant.results.outcomes import Measurement, Outcome, Score
from calibrant.spec import later

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

MEASURED_ROLES: Final[tuple[Role, ...]] = ("template", "question", "answer")
"""The roles that are told apart: the template, with what the system is told; a user's turn; what
the assistant writes.
"""
_MEASURED_AS: Final[Mapping[Role, Role]] = {
    "question": "question",
    "answer": "answer",
    "reasoning": "answer",
    "call": "answer",
}
"""The measured role of each other one that isn't the template."""


class TokenDivergence(NamedTuple):
    """What is known of a token: its divergence in nats, whether both models predict the same, its
    own nats.
    """

    divergence: float
    agreed: bool
    nats: float


class RoleSums(NamedTuple):
    """Sums over tokens of one role: their number, divergence, how many are predicted alike,
    nats.
    """

    tokens: int = 0
    divergence: float = 0.0
    agreed: int = 0
    nats: float = 0.0

    def plus(self, tokens: int, divergence: float, agreed: int, nats: float) -> "RoleSums":
        """Return the sums with those of other tokens."""
        return RoleSums(
            self.tokens + int(tokens),
            self.divergence + float(divergence),
            self.agreed + int(agreed),
            self.nats + float(nats),
        )


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
            conversation_format(self, "roles")

    def work_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        if outlines[-1].device.type != "cpu":
            return 0
        # There the comparison of logits is compiled.
        return KERNEL_BYTES

    def copied_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        return floor_bytes(outlines)

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
        reference = subject.untouched(self)
        windows = self.windows(subject.tokenizer)
        measured = self.measured
        roles = None
        if self.roles:
            form = conversation_format(self, "roles")
            roles_of = partial(token_roles, form=form, tokenizer=subject.tokenizer)
            roles = window_roles(windows, self.rows(), subject.tokenizer, roles_of)
        compare = partial(_compared, subject.model, reference, measured=measured, roles=roles)
        entry = "{} by role" if self.roles else "{} with its loss"
        scored = score_windows(windows, TOKENS_PER_BATCH, compare, subject, str(self), entry)
        # Entries of a journal are lists.
        compared = {name: _Compared(*entries) for name, entries in scored.items()}
        outcomes: list[Outcome] = []
        for document, shown in by_document(windows).items():
            parts = [compared[window.name] for window in shown]
            outcomes.append(self._outcome(document, scored_tokens(shown), parts))
        floor = noise_floor(
            subject.model, reference, windows, partial(_compared, measured=measured)
        )
        by_token: list[float] = []
        for window in windows:
            by_token += compared[window.name].by_token
        return self._measurement(tuple(outcomes), by_token, measured, floor)

    def _outcome(self, document: str, tokens: int, parts: Sequence[_Compared]) -> Outcome:
        divergence = sum(part.divergence for part in parts)
        facts = {
            "agreed": sum(part.agreed for part in parts),
            "nats": math.fsum(part.nats for part in parts),
        }
        if self.roles:
            facts |= facts_of([part.roles for part in parts if part.roles is not None])
        return Outcome(document, divergence, float(tokens), facts)

    def _measurement(
        self,
        outcomes: tuple[Outcome, ...],
        by_token: Sequence[float],
        measured: str,
        floor: NoiseFloor | None,
    ) -> Measurement:
        count = len(outcomes)
        facts: dict[str, Any] = {
            "tokens": int(sum(outcome.weight for outcome in outcomes)),
            "documents": count,
            "length": self.length,
            "items": items_of(outcomes),
        }
        agreed_share, error = mean_of(outcomes, "agreed")
        top1 = Score(
            measured=measured,
            metric="top1_agreement",
            value=agreed_share,
            stderr=error,
            n=count,
            unit="share of tokens",
            better="higher",
            facts=facts,
        )
        per_token = partial(Score, measured=measured, n=count, unit="nats/token", better="lower")
        nats, error = mean_of(outcomes, "nats")
        loss = per_token(metric="loss", value=nats, stderr=error, facts=facts)
        beside = [top1, *_percentiles(by_token, measured, facts), loss]
        if self.roles:
            beside += _by_role(outcomes, measured, facts)
        if floor is not None:
            facts = facts | floor.facts()
        divergence, error = mean_of(outcomes)
        whole = per_token(metric="kl", value=divergence, stderr=error, facts=facts)
        return Measurement(whole, outcomes, beside=tuple(beside))


def _percentiles(
    by_token: Sequence[float], measured: str, facts: Mapping[str, Any]
) -> Iterator[Score]:
    """Yield high percentiles of the divergence of tokens."""
    levels = np.percentile(by_token, PERCENTILES).tolist()
    for percent, level in zip(PERCENTILES, levels, strict=True):
        # No error: tokens of a document aren't independent, and a percentile is no mean of
        # documents.
        yield Score(
            measured=measured,
            metric=f"kl_p{percent}",
            value=level,
            stderr=None,
            n=facts["documents"],
            unit="nats",
            better="lower",
            facts=facts,
        )


def _by_role(
    outcomes: Sequence[Outcome], measured: str, facts: Mapping[str, Any]
) -> Iterator[Score]:
    """Yield the scores of each role that has a token, over its own tokens and their documents."""
    for role in MEASURED_ROLES:
        tokens = f"tokens_{role}"
        # A document without a token of the role says nothing of it, and would lessen the error.
        having = [outcome for outcome in outcomes if outcome.facts[tokens]]
        if not having:
            continue
        count = len(having)
        role_facts = {**facts, "tokens": sum(int(outcome.facts[tokens]) for outcome in having)}
        for metric, fact, unit, better in ROLE_METRICS:
            mean, error = mean_of(having, f"{fact}_{role}", tokens)
            yield Score(
                measured=measured,
                metric=f"{metric}_{role}",
                value=mean,
                stderr=error,
                n=count,
                unit=unit,
                better=better,
                facts=role_facts,
            )


@torch.no_grad()
def _compared(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batch: list[ScoredWindow],
    measured: str,
    roles: WindowRoles | None = None,
) -> list[_Compared]:
    compared: list[_Compared] = []
    dense = dense_predictions(reference, batch)
    for window, theirs, ours in zip(batch, dense, predictions(model, batch), strict=True):
        vocabulary = theirs.shape[-1]
        if theirs.shape != ours.shape:
            raise ModelError(
                f"the reference predicts {vocabulary} tokens and the model {ours.shape[-1]}: "
                f"with another vocabulary they can't be compared; "
                f"give the model that this one was made from",
                subject=measured,
            )
        size = max(1, NUMBERS_PER_CHUNK // vocabulary)
        targets = torch.tensor(window.targets).split(size)
        chunks: list[_Chunk] = []
        for their_chunk, our_chunk, chunk_ids in zip(
            theirs.split(size), ours.split(size), targets, strict=True
        ):
            chunks.append(_chunk(their_chunk, our_chunk, chunk_ids, measured))
        role_of_tokens = None if roles is None else roles[window.name]
        compared.append(_joined(chunks, role_of_tokens))
    return compared


class _Chunk(NamedTuple):
    """The sums of a few tokens, each made as a whole, and what is known of each token."""

    divergence: float
    agreed: int
    nats: float
    tokens: list[TokenDivergence]


def _joined(chunks: Sequence[_Chunk], roles: Sequence[Role] | None) -> _Compared:
    tokens: list[TokenDivergence] = []
    for chunk in chunks:
        tokens += chunk.tokens
    by_role = None
    if roles is not None:
        by_role = role_sums(roles, tokens)
    by_token = [float(np.float32(token.divergence)) for token in tokens]
    return _Compared(
        divergence=sum(chunk.divergence for chunk in chunks),
        agreed=sum(chunk.agreed for chunk in chunks),
        by_token=by_token,
        nats=math.fsum(chunk.nats for chunk in chunks),
        roles=by_role,
    )


def _chunk(
    reference: Float[Tensor, "token word"],
    ours: Float[Tensor, "token word"],
    ids: Int[Tensor, "token"],
    measured: str,
) -> _Chunk:
    """Return KL(reference ‖ ours) of logits in nats, how many most probable tokens are the same,
    and the nats of the text, each summed, and for each token.
    """
    # bfloat16 has too few digits for differences of logarithms.
    dense_logits = wide(reference)
    model_logits = wide(ours.to(reference.device))
    divergence = divergences(dense_logits, model_logits)
    if not bool(divergence.isfinite().all()):
        whose = "the reference's"
        if bool(dense_logits.isfinite().all()):
            whose = "the model's"
        raise NumericsError(
            f"the agreement on {measured} can't be told: {whose} outputs aren't finite",
            subject=measured,
        )
    agreed = top(dense_logits) == top(model_logits)
    nats = nats_by_token(ids, ours)
    tokens = map(TokenDivergence, divergence.tolist(), agreed.tolist(), nats.tolist())
    return _Chunk(float(divergence.sum()), int(agreed.sum()), float(nats.sum()), list(tokens))


def role_sums(roles: Sequence[Role], tokens: Sequence[TokenDivergence]) -> dict[str, RoleSums]:
    """Return the sums of a window's scored tokens by their role."""
    sums: dict[str, RoleSums] = {role: RoleSums() for role in MEASURED_ROLES}
    for role, token in zip(roles, tokens, strict=True):
        sums[role] = sums[role].plus(1, *token)
    return sums


def facts_of(windows: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, int | float]:
    """Return the facts of a document's outcome: the sums over its windows, by role and by what is
    summed. `windows` are `RoleSums` by role, or their lists from a journal.
    """
    total = {role: RoleSums() for role in MEASURED_ROLES}
    for by_role in windows:
        for role in MEASURED_ROLES:
            total[role] = total[role].plus(*by_role[role])
    facts: dict[str, int | float] = {}
    for role, sums in total.items():
        facts[f"tokens_{role}"] = sums.tokens
        facts[f"kl_{role}"] = sums.divergence
        facts[f"agreed_{role}"] = sums.agreed
        facts[f"nats_{role}"] = sums.nats
    return facts


def token_roles(row: Row, form: Chat, tokenizer: PreTrainedTokenizerBase) -> list[Role]:
    """Return the role of each token of a row's conversation: that of most of its letters."""
    result = written_as_said(row, form, tokenizer)
    if result is None:
        turns = f"the turns of row {row.name}"
        raise DataError(
            f"the model's chat template doesn't write {turns} as they are, so its own tokens can't "
            "be told from theirs; leave out roles=true",
            subject=row.key,
        )
    _, offsets = token_offsets(tokenizer, result.text)
    return roles_of_tokens(offsets, _measured_stretches(result.stretches))


def _measured_stretches(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Return the stretches with the roles that are measured; those of one role in a row are one."""
    joined: list[Stretch] = []
    for stretch in stretches:
        role: Role = _MEASURED_AS.get(stretch.role, "template")
        begin = stretch.begin
        if joined and joined[-1].role == role:
            begin = joined.pop().begin
        joined.append(Stretch(begin, stretch.end, role))
    return joined
