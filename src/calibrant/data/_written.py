"""Finds in what a chat template wrote who says what.

A template is asked twice: with the conversation, and with a mark in the place of each text of it.
What stands between the marks is the template's own. So it is seen too what a template leaves out,
such as the reasoning of earlier turns, or calls that it has no words for.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from calibrant.data._marks import MARKED, Marks, Place, Role, Value, located
from calibrant.data._messages import Conversation, Message
from calibrant.data._templates import FAULTS, RefusedError, templated, with_fixed_date

ASSISTANT: Final[tuple[Role, ...]] = ("markup", "reasoning", "answer", "call")
"""What the assistant writes."""

THINKING: Final = {"enable_thinking": True, "thinking": True}
"""The switches of templates that have one."""
_GENERATION: Final = re.compile(r"{%-?\s*generation\s*-?%}")
_TAGS: Final = ("<think>\n", "\n</think>\n\n")
"""What stands around reasoning where the template has no words for it."""
NOT_FOUND: Final = "its texts aren't found in what the template writes"


class Stretch(NamedTuple):
    """Letters from `begin` to `end` that have one role."""

    begin: int
    end: int
    role: Role


@dataclass(frozen=True)
class Written:
    """What a template wrote. `stretches` cover the text in order; there are none where its texts
    aren't found in it. `unwritten` are the roles of what the template left out.
    """

    text: str
    stretches: tuple[Stretch, ...] = ()
    unwritten: tuple[Role, ...] = ()


def written(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    subject: str,
    options: Mapping[str, Any],
    keep_reasoning: bool = False,
) -> Written:
    """Return the conversation as the template writes it, and whose each letter is.

    With `keep_reasoning` the reasoning that the template leaves out is put where it would stand.
    Raises `RefusedError` for a conversation that the template refuses, or in which that place isn't
    found.
    """

    def render(asked: Conversation) -> str:
        record = asked.record()
        return templated(tokenizer, record["messages"], subject, record.get("tools"), **options)

    text = render(conversation)
    marks = Marks()
    places = None
    try:
        marked = render(marks.conversation(conversation))
        places = located(text, marked, marks.values)
    except RefusedError:
        # A template that looks into texts may take these and not their marks.
        pass
    if places is None:
        if keep_reasoning:
            raise not_found(subject, "thinking=keep")
        return Written(text)
    template = _Template.of(tokenizer, conversation)
    found = _Found(text, places, template.generated(conversation, options))
    missing = marks.not_in(places)
    if keep_reasoning:
        found = _with_reasoning(found, missing, template, subject)
        missing = [value for value in missing if value.role != "reasoning"]
    stretches = [stretch for stretch in _stretches(found, template) if stretch.begin < stretch.end]
    return Written(found.text, tuple(stretches), tuple(value.role for value in missing))


def tags_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the tags that a tokenizer's template writes before and behind reasoning; those of
    `<think>` where it has no words for it.
    """
    before, behind = _Template.of(tokenizer, Conversation(())).tags
    closing = behind.strip() or _TAGS[1].strip()
    # A template that asks for an answer with the opening tag hides it in the prompt.
    opening = before.strip() or closing.replace("/", "", 1)
    return opening, closing


def not_found(subject: str, option: str) -> RefusedError:
    """Return what is raised where an option needs the places of texts that aren't found."""
    return RefusedError(
        "the model's chat template writes a conversation otherwise than as it is, so it can't be "
        f"told who says what; leave out {option}",
        subject=subject,
        reason=NOT_FOUND,
    )


def roles_of_tokens(offsets: Sequence[tuple[int, int]], stretches: Sequence[Stretch]) -> list[Role]:
    """Return the role of each token, whose letters `offsets` tell: that of most of its letters."""
    roles: list[Role] = []
    first = 0
    for begin, end in offsets:
        # Tokens come in order, so stretches that ended are over for good.
        while first + 1 < len(stretches) and stretches[first].end <= begin:
            first += 1
        roles.append(_most_letters(begin, end, stretches, first))
    return roles


def _most_letters(begin: int, end: int, stretches: Sequence[Stretch], first: int) -> Role:
    """Return the role of most letters from `begin` to `end`; of as many, the first one's. The
    stretch at the place `first` is the first one that goes beyond `begin`.
    """
    role = stretches[first].role
    most = 0
    for place in range(first, len(stretches)):
        stretch = stretches[place]
        if stretch.begin >= end:
            break
        letters = min(end, stretch.end) - max(begin, stretch.begin)
        if letters > most:
            role = stretch.role
            most = letters
    return role


@dataclass(frozen=True)
class _Found:
    """A text, the places of its values, and the spans that the template says to be the
    assistant's.
    """

    text: str
    places: Sequence[Place]
    spans: Sequence[tuple[int, int]]

    def with_inserted(self, border: int, added: str) -> "_Found":
        """Return the same with more text at a border, which lies in no value."""

        size = len(added)
        places: list[Place] = []
        for place in self.places:
            if place.begin >= border:
                place = place._replace(begin=place.begin + size, end=place.end + size)
            places.append(place)

        def moved(letter: int) -> int:
            return letter + size if letter > border else letter

        # A span that begins at the border has what is added, one that ends there hasn't.
        spans = [(moved(begin), moved(end)) for begin, end in self.spans]
        return _Found(self.text[:border] + added + self.text[border:], places, spans)


@dataclass(frozen=True)
class _Template:
    """What is known of a template. `opening` asks for an answer, `tags` stand before and behind
    reasoning, `ends` finds special tokens in a text.
    """

    text: str
    special: tuple[tuple[str, str], ...]
    opening: str
    tags: tuple[str, str]
    ends: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> "_Template":
        """Return the template with which a tokenizer writes a conversation."""
        tools = conversation.record().get("tools")
        text = with_fixed_date(str(tokenizer.get_chat_template(tools=tools)))
        names = tokenizer.special_tokens_map.items()
        special = tuple(sorted((name, str(value)) for name, value in names))
        opening = _opening(text, special)
        tags = _tags(text, special, opening)
        return cls(text, special, opening, tags, any_of(_special_texts(tokenizer)))

    def generated(
        self, conversation: Conversation, options: Mapping[str, Any]
    ) -> list[tuple[int, int]]:
        """Return the spans of letters that the template itself says to be the assistant's."""
        if not _GENERATION.search(self.text):
            return []
        record = conversation.record()
        _, spans = _render(
            self.text,
            self.special,
            record["messages"],
            tools=record.get("tools"),
            return_assistant_tokens_mask=True,
            **options,
        )
        return spans[0]


@lru_cache(maxsize=64)
def _opening(template: str, special: tuple[tuple[str, str], ...]) -> str:
    """Return what a template writes to ask for an answer; nothing where that isn't found."""
    question = [Message("user", "a").record()]
    try:
        asked, _ = _render(template, special, question)
        asking, _ = _render(template, special, question, add_generation_prompt=True)
    except (TemplateError, *FAULTS):
        return ""
    if not asking[0].startswith(asked[0]):
        return ""
    return asking[0].removeprefix(asked[0])


@lru_cache(maxsize=64)
def _tags(template: str, special: tuple[tuple[str, str], ...], opening: str) -> tuple[str, str]:
    """Return what a template writes before and behind reasoning."""
    reasoning = MARKED.format(0)
    answer = MARKED.format(1)
    messages = [
        Message("user", "a").record(),
        Message("assistant", answer, reasoning=reasoning).record(),
    ]
    try:
        shown, _ = _render(template, special, messages, **THINKING)
    except (TemplateError, *FAULTS):
        return _TAGS
    before, _, after = shown[0].partition(reasoning)
    behind, found, _ = after.partition(answer)
    if not found or not opening or opening not in before:
        return _TAGS
    return before.rpartition(opening)[2], behind


def _render(
    template: str,
    special: tuple[tuple[str, str], ...],
    messages: list[dict[str, Any]],
    **options: Any,
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Return what a template writes of one conversation, and what of it is the assistant's."""
    rendered = chat_template_utils.render_jinja_template(
        [messages], chat_template=template, **dict(special), **options
    )
    return cast(Any, rendered)


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    texts = set(tokenizer.all_special_tokens)
    for added in tokenizer.added_tokens_decoder.values():
        if added.special:
            texts.add(added.content)
    texts.discard("")
    return tuple(sorted(texts))


@lru_cache(maxsize=64)
def any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Return an expression for any of these texts, the longest that fits; for nothing where there
    are none.
    """
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _with_reasoning(
    found: _Found, missing: Sequence[Value], template: _Template, subject: str
) -> _Found:
    """Return the text with the missing reasoning before what its message says or calls."""
    opening_tag, closing_tag = template.tags
    # From the last one on: what stands before it is still where it was found.
    for border, place in reversed(_insertions(found, missing, template, subject)):
        words = place.value.text.strip()
        begin = border + len(opening_tag)
        found = found.with_inserted(border, opening_tag + words + closing_tag)
        inserted = place._replace(begin=begin, end=begin + len(words))
        found = replace(found, places=sorted([*found.places, inserted]))
    return found


def _insertions(
    found: _Found, missing: Sequence[Value], template: _Template, subject: str
) -> list[tuple[int, Place]]:
    """Return where missing reasoning goes into a text, in order. Each place is that before which it
    stands, with the reasoning as its value.
    """
    thoughts = {value.message: value for value in missing if value.role == "reasoning"}
    insertions: list[tuple[int, Place]] = []
    last_end = 0
    for place in found.places:
        value = place.value
        if value.role in ("answer", "call") and value.message in thoughts:
            border: int | None = place.begin
            # Of a call the first text is its name, before which it has begun.
            if value.role == "call":
                border = _begin_of_turn(found, template, last_end, place.begin)
            if border is None:
                break
            thought = thoughts.pop(value.message)
            insertions.append((border, place._replace(value=thought)))
        last_end = place.end
    if thoughts:
        raise not_found(subject, "thinking=keep")
    return insertions


def _stretches(found: _Found, template: _Template) -> Iterator[Stretch]:
    """Yield the stretches of the text in order; some are empty."""
    begin = 0
    before = None
    for place in found.places:
        yield from _between(found, template, (begin, place.begin), before, place.value)
        yield Stretch(place.begin, place.end, place.value.role)
        begin = place.end
        before = place.value
    yield from _between(found, template, (begin, len(found.text)), before, None)


def _between(
    found: _Found,
    template: _Template,
    letters: tuple[int, int],
    before: Value | None,
    after: Value | None,
) -> Iterator[Stretch]:
    """Yield the stretches of the letters between two values."""
    begin, end = letters
    if before is not None and after is not None and before.message == after.message:
        yield Stretch(begin, end, _inside(before, after))
        return
    closed = begin
    opened = end
    if before is not None and before.role in ASSISTANT:
        closed = _end_of_turn(found, template, begin, end)
    if after is not None and after.role in ASSISTANT:
        border = _begin_of_turn(found, template, closed, end)
        if border is not None:
            opened = border
    yield Stretch(begin, closed, _tag_of(before))
    yield Stretch(closed, opened, "template")
    yield Stretch(opened, end, _tag_of(after))


def _inside(before: Value, after: Value) -> Role:
    """Return the role of what stands between two values of one message."""
    if before.role == "tools":
        return "tools"
    if before.role not in ASSISTANT:
        return "template"
    if "call" in (before.role, after.role):
        return "call"
    return "markup"


def _tag_of(value: Value | None) -> Role:
    """Return the role of what the assistant writes around a value, at the border of its turn."""
    if value is not None and value.role == "call":
        return "call"
    return "markup"


def _end_of_turn(found: _Found, template: _Template, begin: int, end: int) -> int:
    """Return where the assistant's turn ends, whose last value ends at `begin`."""
    for first, last in found.spans:
        if first <= begin <= last:
            return min(last, end)
    if found.spans:
        return begin
    token = template.ends.search(found.text, begin, end)
    if token is None:
        return begin
    return token.end()


def _begin_of_turn(found: _Found, template: _Template, begin: int, end: int) -> int | None:
    """Return where the assistant's turn begins, whose first value begins at `end`; None where that
    isn't found.
    """
    for first, last in found.spans:
        if first <= end <= last:
            return max(first, begin)
    if found.spans or not template.opening:
        return None
    place = found.text.rfind(template.opening, begin, end)
    if place < 0:
        return None
    return place + len(template.opening)
