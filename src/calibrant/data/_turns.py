"""Where in a conversation's text its questions and answers stand, and what the chat template writes.

The template is asked twice: with the turns, and with a mark in the place of each. What stands between
the marks is the template's own. The first text must be that with the turns in it, or nothing is told.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from calibrant.data._templates import templated
from calibrant.errors import DataError

Role = Literal["template", "question", "answer"]
ROLES: Final[tuple[Role, ...]] = ("template", "question", "answer")
"""What a letter is of: the template, with what the system is told; a user's turn; the assistant's."""

_SPEAKERS: Final[dict[str, Role]] = {"user": "question", "assistant": "answer"}


class Stretch(NamedTuple):
    """Letters from `begin` to `end` that have one role."""

    begin: int
    end: int
    role: Role


def stretches(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    subject: str,
) -> tuple[str, list[Stretch]]:
    """Return the conversation as the tokenizer's template writes it, and its stretches in order.

    Raises `DataError` for a template that refuses it, or writes a turn otherwise than as it is.
    """
    text = templated(tokenizer, messages, subject)
    marks = [_mark(number) for number in range(len(messages))]
    empty = [message | {"content": mark} for message, mark in zip(messages, marks, strict=True)]
    found = list(_between(text, templated(tokenizer, empty, subject), messages, marks))
    if not found or found[-1].end != len(text):
        raise DataError(
            f"the model's chat template doesn't write the turns of row {subject[:16]} as they are, "
            f"so its own tokens can't be told from theirs; leave out roles=true",
            subject=subject,
        )
    return text, [stretch for stretch in found if stretch.begin < stretch.end]


def _mark(number: int) -> str:
    """Return letters for private use, which no text holds and no template takes off."""
    return f"\ue000{number}\ue001"


def _between(
    text: str,
    marked: str,
    messages: Sequence[dict[str, str]],
    marks: Sequence[str],
) -> Iterator[Stretch]:
    """Yield the stretches as far as the text is the template with the turns in it."""
    at = 0
    for message, mark in zip(messages, marks, strict=True):
        own, found, marked = marked.partition(mark)
        if not found or not text.startswith(own, at):
            return
        yield Stretch(at, at + len(own), "template")
        at += len(own)
        content = message["content"]
        if not text.startswith(content, at):
            content = content.strip()  # as many templates write it
        if not text.startswith(content, at):
            return
        yield Stretch(at, at + len(content), _SPEAKERS.get(message["role"], "template"))
        at += len(content)
    if text[at:] == marked:
        yield Stretch(at, len(text), "template")
