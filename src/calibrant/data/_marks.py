"""Puts marks in the place of a conversation's texts, and finds the texts by them in what a template
wrote.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple, get_args

from calibrant.data._messages import Conversation, FunctionCall, Message, thought_parts

Role = Literal[
    "text",
    "template",
    "markup",
    "system",
    "tools",
    "question",
    "reasoning",
    "answer",
    "call",
    "result",
]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
"""What a token is of.

`text` is what is in no conversation; `template`, what the template writes around the messages;
`markup`, tags that the assistant writes itself: around its reasoning, and the one that ends its
turn; `tools`, the functions that are offered; `call`, with its tags, and `result`, a function's.
"""
_ROLE_OF_SPEAKER: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "question",
    "assistant": "answer",
    "tool": "result",
}
_MARK: Final = re.compile(r"zqx(\d+)xqz")
MARKED: Final = "zqx{}xqz"
"""A mark has letters that no template takes off, and that no notation escapes."""
OFFERED: Final = -1
"""Stands for the message of what is in none, since it is offered beside them."""


class Value(NamedTuple):
    """A text in whose place a mark stands; `message` is the place of its message."""

    text: str
    role: Role
    message: int


class Place(NamedTuple):
    """Where a value was found."""

    begin: int
    end: int
    number: int
    value: Value


class Marks:
    """Puts marks in the place of the texts of a conversation."""

    def __init__(self) -> None:
        self.values: list[Value] = []

    def conversation(self, conversation: Conversation) -> Conversation:
        """Return the conversation with a mark for each text."""
        tools: list[str] = []
        for tool in conversation.tools:
            tools.append(json.dumps(self._tool(json.loads(tool)), allow_nan=False))
        messages: list[Message] = []
        for number, message in enumerate(conversation.messages):
            messages.append(self._message(message, number))
        return Conversation(tuple(messages), tuple(tools))

    def not_in(self, places: Iterable[Place]) -> list[Value]:
        """Return the values that aren't in these places; of tools one, and only if none is."""
        found = {place.number for place in places}
        offered = any(place.value.role == "tools" for place in places)
        missing: list[Value] = []
        for number, value in enumerate(self.values):
            if value.role == "tools":
                if not offered:
                    missing.append(value)
                    offered = True
            elif number not in found:
                missing.append(value)
        return missing

    def _mark(self, text: str, role: Role, message: int) -> str:
        # Templates ask whether there is a text, so none stays none.
        if not text.strip():
            return text
        self.values.append(Value(text, role, message))
        return MARKED.format(len(self.values) - 1)

    def _message(self, message: Message, number: int) -> Message:
        content = message.content
        if content is not None:
            content = self._content(message, content, number)
        reasoning = self._mark(message.reasoning, "reasoning", number)
        calls: list[FunctionCall] = []
        for call in message.calls:
            record = call.record()["function"]
            name = self._mark(call.name, "call", number)
            arguments = self._argument(record["arguments"], number)
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, allow_nan=False)
            calls.append(FunctionCall(name, arguments, call.id))
        return replace(message, content=content, reasoning=reasoning, calls=tuple(calls))

    def _content(self, message: Message, content: str, number: int) -> str:
        role: Role = _ROLE_OF_SPEAKER.get(message.role, "template")
        if message.role != "assistant":
            return self._mark(content, role, number)
        # Templates look for these tags, so they stay.
        marked = ""
        for part, is_reasoning in thought_parts(content):
            if part in ("<think>", "</think>"):
                marked += part
            elif is_reasoning:
                marked += self._mark(part, "reasoning", number)
            else:
                marked += self._mark(part, role, number)
        return marked

    def _argument(self, value: Any, number: int) -> Any:
        """Return an argument, or all of them, with a mark for each text in it."""
        if isinstance(value, str):
            return self._mark(value, "call", number)
        if isinstance(value, list):
            return [self._argument(entry, number) for entry in value]
        if isinstance(value, dict):
            return {name: self._argument(entry, number) for name, entry in value.items()}
        return value

    def _tool(self, value: Any) -> Any:
        """Return a function with a mark for its name and for all that describes it."""
        if isinstance(value, list):
            return [self._tool(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        marked: dict[str, Any] = {}
        for name, entry in value.items():
            if name in ("name", "description") and isinstance(entry, str):
                marked[name] = self._mark(entry, "tools", OFFERED)
            else:
                marked[name] = self._tool(entry)
        return marked


def located(text: str, marked: str, values: Sequence[Value]) -> list[Place] | None:
    """Return where the values stand in a text, as the marks stand in the other; None where the
    texts differ in more than that.
    """
    pieces = _MARK.split(marked)
    cursor = len(pieces[0])
    if not text.startswith(pieces[0]):
        return None
    places: list[Place] = []
    for digits, following in zip(pieces[1::2], pieces[2::2], strict=True):
        number = int(digits)
        # A text of the conversation's own that looks like a mark.
        if number >= len(values):
            return None
        value = values[number]
        shown = _shown(text, cursor, value.text, following)
        if shown is None:
            return None
        end = cursor + len(shown)
        places.append(Place(cursor, end, number, value))
        cursor = end + len(following)
    if cursor != len(text):
        return None
    return places


def _shown(text: str, begin: int, value: str, following: str) -> str | None:
    """Return how a value is written at a place of a text, before what follows it."""
    for form in _forms(value):
        if text.startswith(form, begin) and text.startswith(following, begin + len(form)):
            return form
    return None


def _forms(value: str) -> Iterator[str]:
    """Yield the ways in which templates write a text: many take space off around it, some on one
    side only, and in JSON and Python's own notation letters are escaped.
    """
    trimmed = (
        *(value, value.lstrip(), value.rstrip(), value.strip()),
        *(value.lstrip("\n"), value.rstrip("\n"), value.strip("\n")),
    )
    yield from trimmed
    for form in dict.fromkeys(trimmed):
        yield json.dumps(form, ensure_ascii=False, allow_nan=False)[1:-1]
        yield json.dumps(form, allow_nan=False)[1:-1]
        yield repr(form)[1:-1]
