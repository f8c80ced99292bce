"""Where in a conversation's text its questions and answers stand, and what the chat template
writes.

The template is asked twice: with the turns, and with a mark in the place of each. What stands
between the marks is the template's own. The first text must be that with the turns in it, or
nothing is told.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from calibrant.data._templates import templated
from calibrant.errors import DataError

Role = Literal["template", "question", "answer"]
ROLES: Final[tuple[Role, ...]] = ("template", "question", "answer")
"""What a letter is of: the template, with what the system is told; a user's turn; the
assistant's.
"""

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
    marked = [message | {"content": mark} for message, mark in zip(messages, marks, strict=True)]
    own = _pieces(templated(tokenizer, marked, subject), marks)
    found = list(_told(text, own, messages)) if len(own) == len(messages) + 1 else []
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


def _pieces(marked: str, marks: Sequence[str]) -> list[str]:
    """Return what stands before, between and behind the marks; fewer pieces where one isn't
    found.
    """
    pieces: list[str] = []
    for mark in marks:
        piece, found, marked = marked.partition(mark)
        if not found:
            return pieces
        pieces.append(piece)
    return [*pieces, marked]


def _told(text: str, own: Sequence[str], messages: Sequence[dict[str, str]]) -> Iterator[Stretch]:
    """Yield the stretches as far as the text is the template's own pieces with the turns
    between.
    """
    at = len(own[0])
    if not text.startswith(own[0]):
        return
    yield Stretch(0, at, "template")
    for message, piece in zip(messages, own[1:], strict=True):
        said = message["content"]
        # Many templates take space off around what is said, some on one side only.
        ways = (said, said.lstrip(), said.rstrip(), said.strip())
        content = next((way for way in ways if text.startswith(way + piece, at)), None)
        if content is None:
            return
        yield Stretch(at, at + len(content), _SPEAKERS.get(message["role"], "template"))
        at += len(content)
        yield Stretch(at, at + len(piece), "template")
        at += len(piece)
