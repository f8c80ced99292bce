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

`loss(source=ultrachat, of=assistant)` shows a model the same windows of conversations, and scores
what the assistant writes alone: its reasoning, calls and answers, with its tags and the token that
ends its turn. `of` may be `answer`, what it says to the user; `question`; or `template`, what the
chat template writes around the messages. Windows without such a token give no outcome. Rows that
the template doesn't write as they are, so that nobody can tell whose a token is, are left out and
counted (`unclear`).

Of an instruct model such a loss may fall while the model gets worse, where the labelled answers
are not what it says: dense Qwen2.5-Coder-1.5B-Instruct doesn't answer a problem of GSM8K with "60"
alone, so a model pruned on plain text has a lower loss of such answers (3.363 nats a token against
3.544) and is far from the dense one. So let `agreement(format=chat, roles=true)` stand beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from calibrant.data import Chat, Role, Row, roles_of_tokens
from calibrant.data._encoding import token_offsets
from calibrant.data._written import ASSISTANT
from calibrant.data.packings._base import check_choice
from calibrant.errors import DataError, NumericsError
from calibrant.evaluators._base import Evaluator, Subject, items_of, mean_of
from calibrant.evaluators._roles import conversation_format, window_roles, written_as_said
from calibrant.evaluators._windows import (
    ScoredWindow,
    TextEvaluator,
    by_document,
    score_windows,
    scored_tokens,
    summed_nats,
)
from calibrant.results.outcomes import Measurement, Outcome, Score
from calibrant.spec import later

TOKENS_PER_BATCH: Final = 2048
"""Tokens whose logits are held at once; the result doesn't depend on it beyond rounding."""
LARGEST: Final = 700
"""The largest loss whose exponential is a float."""
SCORED_ROLES: Final[Mapping[str, tuple[Role, ...]]] = {
    "assistant": ASSISTANT,
    "answer": ("answer",),
    "question": ("question",),
    "template": ("template",),
}
"""The roles of the tokens that are scored, by `of`."""


@dataclass(frozen=True, repr=False)
class Loss(TextEvaluator):
    """Mean negative log likelihood of held-out text, in nats per token; perplexity and bits per
    byte beside it. `of=assistant`: of what the assistant writes in conversations.
    """

    of: str = later("all")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("of", self.of, ("all", *SCORED_ROLES))

    def check(self) -> None:
        super().check()
        if self.of != "all":
            conversation_format(self, "of")

    def measure(self, subject: Subject) -> Measurement:
        """Return the loss with one outcome per document: `value` its summed nats, `weight` its
        scored tokens.

        Raises `SpecError` for roles of what is no conversation, `DataError` where no token has
        them, `NumericsError` for outputs that aren't finite.
        """
        windows = self.windows(subject.tokenizer)
        measured = self.measured
        facts: dict[str, Any] = {"length": self.length}
        if self.of != "all":
            measured += f", {self.of}"
            windows, facts["unclear"] = self._scored_roles(windows, subject.tokenizer)
        items = by_document(windows)
        facts["documents"] = len(items)
        return measure_loss(self, subject, windows, items, measured, facts)

    def _scored_roles(
        self, windows: Sequence[ScoredWindow], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[ScoredWindow], int]:
        """Return the windows with the tokens of the roles that are scored, and of how many rows
        roles aren't clear.
        """
        roles_of = partial(_roles_of_row, form=conversation_format(self, "of"), tokenizer=tokenizer)
        by_window = window_roles(windows, self.rows(), tokenizer, roles_of)
        scored_roles = SCORED_ROLES[self.of]
        chosen: list[ScoredWindow] = []
        unclear: set[str] = set()
        for window in windows:
            if window.name not in by_window:
                unclear.add(window.document)
                continue
            roles = by_window[window.name]
            places = [place for place, role in enumerate(roles) if role in scored_roles]
            if places:
                # The bytes of some tokens of a text say little, and aren't counted.
                chosen.append(replace(window, places=tuple(places), size=0))
        if not chosen:
            raise DataError(
                f"{self}: no token is known to be of={self.of} (in {len(unclear):,} rows the "
                f"model's chat template doesn't write what is said as it is); leave of out, or "
                f"take a source of conversations",
                subject=str(self),
            )
        return chosen, len(unclear)


def _roles_of_row(row: Row, form: Chat, tokenizer: PreTrainedTokenizerBase) -> list[Role] | None:
    """Return the role of each token of a row; None where roles aren't clear."""
    result = written_as_said(row, form, tokenizer)
    if result is None:
        return None
    _, offsets = token_offsets(tokenizer, result.text)
    return roles_of_tokens(offsets, result.stretches)


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
    perplexity = math.exp(loss) if loss < LARGEST else math.inf
    whole = Score(
        measured=measured,
        metric="loss",
        value=loss,
        stderr=error,
        n=len(outcomes),
        unit="nats/token",
        better="lower",
        facts={
            "perplexity": perplexity,
            "tokens": scored_tokens(windows),
            **_facts_of_bytes(windows, outcomes),
            **facts,
            "items": items_of(outcomes),
        },
    )
    return Measurement(whole, tuple(outcomes))


def _facts_of_bytes(
    windows: Sequence[ScoredWindow], outcomes: Sequence[Outcome]
) -> dict[str, int | float]:
    """Return the loss by byte, and the bytes; nothing where these aren't counted."""
    size = sum(window.size for window in windows)
    if not size:
        return {}
    bits = sum(outcome.value for outcome in outcomes) / math.log(2)
    return {"bits_per_byte": bits / size, "bytes": size}
