"""Tells what the conversations of a calibration set hold, and what the model's chat template makes
of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Row
from calibrant.data._messages import Conversation
from calibrant.data._templates import told_date
from calibrant.data.expression import Term
from calibrant.data.formats.chat import Chat
from calibrant.data.packings.whole import Whole


def conversation_facts(
    term: Term, facts: Mapping[str, Any], rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """Return what there is to tell of a part's conversations; None for a part in another format.
    `facts` are those of its batch.

    `turns` are how many messages a conversation has: the least, the quarters, the most. `tools`,
    `calls` and `reasoning` count conversations that have any. `left_out` counts conversations of
    which the template leaves something out, by its role, and `unclear` those in which it isn't
    known who says what. `cut_reasoning` counts windows that end within reasoning, and
    `open_reasoning` conversations whose own reasoning is never closed. `date` is what a template
    that writes the day is told, and empty for others. `roles` are the shares of
    the tokens; there are none where the tokenizer doesn't tell where they stand. The others are
    expressions that a verdict may propose in the part's place.
    """
    form = term.format
    if not isinstance(form, Chat):
        return None
    lengths: list[int] = []
    holding = Counter[str]()
    left_out = Counter[str]()
    unclear = 0
    open_reasoning = 0
    for row in rows:
        # The format may have taken tags away.
        open_reasoning += any(message.has_open_reasoning for message in row.turns)
        conversation = form.conversation(row)
        lengths.append(len(conversation.messages))
        holding.update(set(_held(conversation)))
        result = form.written(row, tokenizer)
        left_out.update(set(result.unwritten))
        unclear += not result.stretches
    turns: list[int] = []
    if lengths:
        turns = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1], method="lower").tolist()
    return {
        "count": len(rows),
        "turns": turns,
        "tools": holding["tools"],
        "calls": holding["calls"],
        "reasoning": holding["reasoning"],
        "left_out": dict(left_out),
        "unclear": unclear,
        "cut_reasoning": facts.get("cut_reasoning", 0),
        "open_reasoning": open_reasoning,
        "date": told_date(tokenizer),
        "roles": _shares(facts.get("roles", {})),
        "with_reasoning": str(replace(term, format=replace(form, thinking="keep"))),
        "without_tools": str(replace(term, format=replace(form, tools=None))),
        "uncut": str(replace(term, packing=Whole())),
    }


def _held(conversation: Conversation) -> Iterator[str]:
    """Yield what a conversation has beside what is said, some of it more than once."""
    if conversation.tools:
        yield "tools"
    for message in conversation.messages:
        if message.calls:
            yield "calls"
        if message.with_reasoning_apart().reasoning:
            yield "reasoning"


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each role that has tokens."""
    total = sum(counts.values())
    return {role: count / total for role, count in counts.items() if count}
