"""A conversation in the model's own words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row, question_text
from calibrant.data._marks import ROLES, Role
from calibrant.data._messages import Conversation, Message
from calibrant.data._templates import templated
from calibrant.data._written import ASSISTANT, THINKING, Written, not_found, written
from calibrant.data.formats.cot import worked_answer
from calibrant.data.packings._base import check_choice
from calibrant.errors import DataError, SpecError
from calibrant.spec import later

_COUNTED: Final[dict[str, tuple[Role, ...]]] = {
    "all": ROLES,
    "assistant": ASSISTANT,
    "answer": ("answer",),
}


@dataclass(frozen=True, repr=False)
class Chat(Format):
    """The row's turns, or its question and answer as one exchange, in the tokenizer's own chat
    template.

    A question with listed choices is put with them, without `Question:` and `Answer:`, for which a
    chat has no use. `system` comes first where it is given, in place of the conversation's own.
    What the template adds of itself (a default system prompt, for one) stays, because that is what
    the model meets in use. A template that asks for today's date is always told 26 July 2024.

    `tools`: `keep`, or `none` to show no functions, and no calls and results either.

    `thinking`: `template` gives reasoning to the template, which decides; many drop that of earlier
    turns. `keep` puts what it drops where it would stand, and asks for thinking. `strip` takes all
    reasoning away, that in `<think>` tags too, and asks for none.

    `weigh`: which tokens count. `assistant`: what the assistant writes, its reasoning and calls and
    the token that ends its turn included; where the template has `{% generation %}`, what that
    says. `answer`: what it says to the user. Others have the weight `others`; with 0 they are as if
    they weren't counted, and are still read.

    `generation_prompt` writes behind the conversation what asks the model to answer.

    `worked` lets a question be answered as `cot` does: first the way to the answer, then "The
    answer is N." It takes only rows that have such a way. Turns stay as they are.
    """

    system: str = ""
    tools: str | None = later("keep")
    thinking: str = later("template")
    generation_prompt: bool = later(False)
    weigh: str = later("all")
    others: float = later(0.0)
    worked: bool = later(False)

    needs = ("question", "answer")

    def __post_init__(self) -> None:
        if self.tools not in ("keep", None):
            raise SpecError(
                f"chat(tools={self.tools!r}): a conversation is shown with its tools or without; "
                "write tools=keep, or tools=none without quotes (None in Python)",
                subject="tools",
            )
        check_choice("thinking", self.thinking, ("template", "keep", "strip"))
        check_choice("weigh", self.weigh, tuple(_COUNTED))
        if not 0 <= self.others <= 1:
            raise SpecError(
                f"chat(others={self.others}): the weight of other tokens is 0 to 1; give 0 to "
                "leave them out",
                subject="others",
            )

    def takes(self, row: Row) -> bool:
        if row.turns:
            return True
        if self.worked and row.rationale is None:
            return False
        return super().takes(row)

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        asked = _with_template(tokenizer)
        # Only `keep` and `weigh` ask where in the text something stands.
        if self.thinking == "keep" or self.weigh != "all":
            return self.written(row, asked).text
        record = self.conversation(row).record()
        return templated(asked, record["messages"], row.key, record.get("tools"), **self._options())

    def written(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Written:
        """Return what `render` gives, whose each letter is, and what the template left out.

        Raises `RefusedError` for a row that the template refuses, or in which `thinking=keep` or
        `weigh` needs the places of texts that aren't found.
        """
        result = written(
            _with_template(tokenizer),
            self.conversation(row),
            row.key,
            self._options(),
            keep_reasoning=self.thinking == "keep",
        )
        if self.weigh != "all" and not result.stretches:
            raise not_found(row.key, f"weigh={self.weigh}")
        return result

    def conversation(self, row: Row) -> Conversation:
        """Return the messages and tools that the template is given."""
        messages = list(row.turns) or self._exchange(row)
        if self.system:
            if messages[0].role in ("system", "developer"):
                del messages[0]
            messages.insert(0, Message("system", self.system))
        if self.thinking != "template":
            messages = [message.with_reasoning_apart() for message in messages]
        if self.thinking == "strip":
            messages = [replace(message, reasoning="") for message in messages]
        if self.tools is None:
            return Conversation(tuple(_without_calls(messages)))
        return Conversation(tuple(messages), row.tools)

    def _exchange(self, row: Row) -> list[Message]:
        """Return a question, without the frame of other formats, and its answer."""
        before, after = row.frame
        question = question_text(row).removeprefix(before.strip()).removesuffix(after).strip()
        answer = row.need("answer")
        if self.worked:
            answer = worked_answer(row)
        return [Message("user", question), Message("assistant", answer)]

    def weights(self) -> Float32[np.ndarray, "role"]:
        """Return how much a token of each of `ROLES` counts."""
        counted = _COUNTED[self.weigh]
        weights = [1.0 if role in counted else self.others for role in ROLES]
        return np.array(weights, dtype=np.float32)

    def _options(self) -> dict[str, Any]:
        """Return what the template is told beside the conversation."""
        options: dict[str, Any] = {}
        if self.generation_prompt:
            options["add_generation_prompt"] = True
        if self.thinking == "keep":
            options |= THINKING
        if self.thinking == "strip":
            options |= dict.fromkeys(THINKING, False)
        return options


def weighs(form: Format) -> bool:
    """Return whether a format gives tokens of some roles another weight."""
    return isinstance(form, Chat) and form.weigh != "all"


def unused_messages(rows: Sequence[Row], form: Format) -> str:
    """Say how much of conversations a format leaves out that shows only one question of each, or
    that and its answer; nothing where there is no more than one of each.
    """
    shown = {"question", "answer"} & set(form.needs)
    if isinstance(form, Chat) or not shown:
        return ""
    messages = sum(len(row.turns) for row in rows)
    conversations = sum(bool(row.turns) for row in rows)
    used = len(shown) * conversations
    with_functions = any(row.tools for row in rows)
    # Whoever asks for the question alone misses no answer.
    if messages <= 2 * conversations and not with_functions:
        return ""
    sentence = f"these conversations have {messages:,} messages and {used:,} are used"
    if with_functions:
        sentence += ", without the functions that are offered"
    return sentence


def _without_calls(messages: list[Message]) -> list[Message]:
    """Return the messages without calls and their results."""
    kept: list[Message] = []
    for message in messages:
        uncalled = replace(message, calls=())
        if message.role != "tool" and uncalled.said.strip():
            kept.append(uncalled)
    return kept


def _with_template(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer. `DataError` for none, or one without a chat template."""
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            "the format 'chat' needs a tokenizer with a chat template, and this model's has none; "
            "use qa, or an instruction-tuned model",
            subject="chat",
        )
    return tokenizer
