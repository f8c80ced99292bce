"""Conversations as values: who says what, reasons how, and calls which function."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

_OPENED: Final = "<think>"
_CLOSED: Final = "</think>"
_REASONING: Final = 2
"""The place of reasoning among the pieces of a content."""


@dataclass(frozen=True)
class FunctionCall:
    """A function that the assistant calls. `arguments` is the text of a JSON object; what a model
    wrote otherwise is any text. `id` is what the result refers to.
    """

    name: str
    arguments: str = "{}"
    id: str = ""

    def record(self) -> dict[str, Any]:
        """Return the call as OpenAI's interface has it, its arguments as the object itself."""
        function = {"name": self.name, "arguments": read_object(self.arguments)}
        if self.id:
            return {"id": self.id, "type": "function", "function": function}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """What one side says in a conversation.

    `role` is `system`, `user`, `assistant`, `tool`, or another that the template knows. `content`
    is None where nothing is said beside the calls. A tool's result has the `call_id` of its call.

    >>> Message("user", "How warm is it?").record()
    {'role': 'user', 'content': 'How warm is it?'}
    >>> call = FunctionCall("weather", '{"town": "Jena"}')
    >>> Message("assistant", calls=(call,)).said
    'weather {"town": "Jena"}'
    """

    role: str
    content: str | None = None
    reasoning: str = ""
    calls: tuple[FunctionCall, ...] = ()
    call_id: str = ""
    name: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is a role and a text and nothing else."""
        return self == Message(self.role, self.content) and self.content is not None

    @property
    def said(self) -> str:
        """All its words: reasoning, content and calls, a line each."""
        lines = [self.reasoning, self.content or ""]
        lines += [f"{call.name} {call.arguments}" for call in self.calls]
        return "\n".join(filter(None, lines))

    def record(self) -> dict[str, Any]:
        """Return the message as OpenAI's interface has it, which is what chat templates read."""
        record: dict[str, Any] = {"role": self.role}
        if self.content is not None:
            record["content"] = self.content
        if self.reasoning:
            record["reasoning_content"] = self.reasoning
        if self.calls:
            record["tool_calls"] = [call.record() for call in self.calls]
        if self.call_id:
            record["tool_call_id"] = self.call_id
        if self.name:
            record["name"] = self.name
        return record

    def with_reasoning_apart(self) -> "Message":
        """Return the message with the reasoning that stands in its content, up to `</think>`, in
        `reasoning`. Reasoning with which it begins and which is never closed goes on to its end.

        >>> message = Message("assistant", "<think>6 times 7</think>42").with_reasoning_apart()
        >>> message.reasoning, message.content
        ('6 times 7', '42')
        """
        content = self.content or ""
        if self.role != "assistant" or self.reasoning:
            return self
        before, opened, reasoning, closed, after = _pieces(content)
        if not opened and not closed:
            return self
        answer = (before + after).strip()
        return replace(self, content=answer, reasoning=reasoning.strip())

    @property
    def has_open_reasoning(self) -> bool:
        """Whether its content is reasoning that is opened and never closed."""
        return self.role == "assistant" and _is_never_closed(self.content or "")


@dataclass(frozen=True)
class Conversation:
    """Messages in their order. `tools` are the functions that the assistant is offered, each the
    text of a JSON object as OpenAI's interface has it.
    """

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return `messages`, and `tools` where there are any, as plain data."""
        record: dict[str, Any] = {"messages": [message.record() for message in self.messages]}
        if self.tools:
            record["tools"] = [json.loads(tool) for tool in self.tools]
        return record


def thought_parts(content: str) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of an assistant's content, and whether each is reasoning. The tags around
    reasoning belong to neither, so they are pieces of their own: `("<think>", False)`.
    """
    for place, piece in enumerate(_pieces(content)):
        yield piece, place == _REASONING


def _pieces(content: str) -> tuple[str, str, str, str, str]:
    """Return what stands before an assistant's reasoning, the opening tag, the reasoning, the
    closing tag, and what stands behind. What isn't there is empty.
    """
    if _is_never_closed(content):
        before, opened, reasoning = content.partition(_OPENED)
        return before, opened, reasoning, "", ""
    until, closed, after = content.rpartition(_CLOSED)
    # Models whose template writes the opening tag leave it out.
    before, opened, reasoning = until.rpartition(_OPENED)
    return before, opened, reasoning, closed, after


def _is_never_closed(content: str) -> bool:
    """Return whether a content begins with reasoning that goes on to its end. Further on a tag
    may be what the answer is about.
    """
    return content.lstrip().startswith(_OPENED) and _CLOSED not in content


def read_object(text: str) -> Any:
    """Return the JSON object that a text is; the text itself where it is none."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, Mapping):
        return value
    return text


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")
