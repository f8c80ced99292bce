"""Whether what a model answers in its own chat template is well formed, before anybody asks whether
it is right.

`chat_form(source=ultrachat, limit=64, max_tokens=256)` asks the first request of each held-out
conversation, with what the system says and the tools that are offered, and decodes the answer
greedily. An answer is well formed where all of this holds:

- `ended`: the model ends its turn before the limit;
- `answered`: it says or calls something behind its reasoning;
- `reasoning_closed`: there is no tag of reasoning, or one pair of them at the beginning;
- `calls_valid`: each `<tool_call>` is closed, and holds a JSON object with the name of a tool that
  was offered and its arguments;
- `no_stray_token`: no special token stands in it that belongs to no answer, such as one that begins
  another turn; decoding stops there;
- `no_loop`: it doesn't say the same piece, of up to 128 tokens, four times or more in a row, over
  32 tokens or more.

Tags of reasoning are those of the template. Calls in another notation than `<tool_call>` with JSON
aren't looked at.

The score is the share of answers that are well formed. The untouched model is asked the same, and
`dense` is its share. `lost` counts the requests that it alone answers well formed, `gained` those
that the compressed model alone does. Where the limit often cuts the dense model, give more
`max_tokens`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from transformers import PreTrainedModel

from calibrant.data import Chat, Format, Message, Row, Source, held_out
from calibrant.data._messages import read_object
from calibrant.data._templates import RefusedError
from calibrant.decoding import Decoder, Generated
from calibrant.errors import DataError
from calibrant.evaluators._base import (
    MOST_WRITTEN,
    SourceEvaluator,
    Subject,
    check_least,
    items_of,
    mean_of,
)
from calibrant.evaluators._dense import found_once
from calibrant.evaluators._planning import cache_bytes
from calibrant.evaluators._roles import conversation_format
from calibrant.evaluators._turns import AssistantTurn, decode_all, prompt_ids
from calibrant.models import ModelOutline
from calibrant.models.readable import longest_text
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most

CONDITIONS: Final = (
    "ended",
    "answered",
    "reasoning_closed",
    "calls_valid",
    "no_stray_token",
    "no_loop",
)
"""What holds of a well-formed answer."""
REPEATED: Final = 4
"""How often in a row the same piece makes a loop."""
SHORTEST_LOOP: Final = 32
"""Tokens of a loop at least: a line of a table says the same a few times too."""
LONGEST_PIECE: Final = 128
"""Tokens of the longest piece whose repetition is looked for."""
_CALL_TAG: Final = re.compile(r"</?tool_call>")


@dataclass(frozen=True)
class _AskedRow:
    """What a model is asked: the row's name, the prompt's tokens, the names of the tools."""

    name: str
    prompt: list[int]
    tools: Sequence[str]


AnswerFacts = Mapping[str, Any]
"""What is known of an answer: which of `CONDITIONS` hold, how many tokens and calls it has."""


@dataclass(frozen=True, repr=False)
class ChatForm(SourceEvaluator):
    """How many answers in the model's own chat template are well formed: ended, thinking and calls
    of tools closed and valid, no loop; against the untouched model.
    """

    source: str = "ultrachat"
    format: str = "chat"
    limit: int = 64
    max_tokens: int = 256

    compares = True

    def __post_init__(self) -> None:
        check_most(self, limit=MOST, max_tokens=MOST_WRITTEN)
        check_least(self, limit=1, max_tokens=1)

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.source, self.format)

    def check(self) -> None:
        self._chat()

    def rows(self) -> Iterator[Row]:
        """Return the rows of the source's measured part that begin with a request."""
        return (row for row, _ in self._asked(self._chat()))

    @property
    def longest_answer(self) -> int:
        return self.max_tokens

    def work_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        return cache_bytes(outlines[0], self.longest_answer)

    def limited(self, limit: int) -> "ChatForm":
        """Return the same with the first `limit` conversations in the order of their hashes."""
        return replace(self, limit=limit)

    def measure(self, subject: Subject) -> Measurement:
        """Return the share of well-formed answers with one outcome a conversation: `value` 1 if all
        of `CONDITIONS` hold, which stand among its facts beside `tokens`, `calls`, and `dense`,
        whether the untouched model's answer is well formed.

        Raises `SpecError` without a reference or a conversation's format, `DataError` without a
        chat template or where nothing can be asked, `NumericsError` for outputs that aren't finite.
        """
        reference = subject.untouched(self)
        form = replace(self._chat(), generation_prompt=True)
        turn = AssistantTurn.of(reference, subject.tokenizer, form)
        requests, left_out = self._requests(subject, form)
        asked = [request.prompt for request in requests]
        find = partial(self._answers, reference, "dense", requests, turn, subject)
        dense = found_once(reference, self, asked, find)
        own = self._answers(subject.model, "own", requests, turn, subject)
        outcomes: list[Outcome] = []
        for request, dense_facts, own_facts in zip(requests, dense, own, strict=True):
            facts = {**own_facts, "dense": is_well_formed(dense_facts)}
            outcomes.append(Outcome(request.name, float(is_well_formed(own_facts)), 1.0, facts))
        return Measurement(self._score(outcomes, left_out), tuple(outcomes))

    def _chat(self) -> Chat:
        return conversation_format(self, "chat_form")

    def _asked(self, form: Chat) -> Iterator[tuple[Row, Row]]:
        """Yield each row that begins with a request, and the request as a row."""
        for row in super().rows():
            request = first_request(form, row)
            if request is not None:
                yield row, request

    def _requests(self, subject: Subject, form: Chat) -> tuple[list[_AskedRow], int]:
        """Return what is asked, and how many rows are left out before that: the template refuses
        them, or the model has no room for them. `DataError` for nothing to ask.
        """
        room = longest_text(subject.model)
        requests: list[_AskedRow] = []
        left_out = 0
        for row, request in self._asked(form):
            try:
                prompt = prompt_ids(request, form, subject.tokenizer)
            except RefusedError:
                left_out += 1
                continue
            if room is not None and len(prompt) + self.max_tokens > room:
                left_out += 1
                continue
            requests.append(_AskedRow(row.name, prompt, tool_names(request)))
            if len(requests) == self.limit:
                break
        if not requests:
            raise DataError(
                f"{self}: no conversation can be asked ({left_out:,} are refused by the model's "
                f"chat template, or the model has no room for them and max_tokens="
                f"{self.max_tokens}); take fewer max_tokens, or another source",
                subject=str(self),
            )
        return requests, left_out

    def _answers(
        self,
        model: PreTrainedModel,
        kind: str,
        requests: Sequence[_AskedRow],
        turn: AssistantTurn,
        subject: Subject,
    ) -> Sequence[AnswerFacts]:
        """Return what is known of a model's answers; `kind` tells the models apart."""
        names = [f"{request.name} {kind}" for request in requests]
        prompts = [request.prompt for request in requests]
        decoder = Decoder(model, prompts, self.max_tokens, turn.ended, str(self))

        def read(number: int, answer: Generated) -> dict[str, Any]:
            return answer_facts(answer.ids, turn, requests[number].tools)

        return decode_all(decoder, names, read, subject, f"measuring {self} ({kind})")

    def _score(self, outcomes: Sequence[Outcome], left_out: int) -> Score:
        source, form = self.held_out()
        count = len(outcomes)
        shares: dict[str, float] = {}
        for condition in CONDITIONS:
            condition_share, _ = mean_of(outcomes, condition)
            shares[condition] = condition_share
        lost = 0
        gained = 0
        for outcome in outcomes:
            dense_is_right = outcome.facts["dense"]
            if dense_is_right and not outcome.value:
                lost += 1
            if outcome.value and not dense_is_right:
                gained += 1
        called = sum(outcome.facts["calls"] > 0 for outcome in outcomes)
        share, error = mean_of(outcomes)
        dense_share, _ = mean_of(outcomes, "dense")
        return Score(
            measured=f"{source}:{form}",
            metric="well_formed",
            value=share,
            stderr=error,
            n=count,
            unit="share of answers",
            better="higher",
            facts={
                **shares,
                "dense": dense_share,
                "lost": lost,
                "gained": gained,
                "called": called / count,
                "tokens": sum(outcome.facts["tokens"] for outcome in outcomes),
                "max_tokens": self.max_tokens,
                "left_out": left_out,
                "items": items_of(outcomes),
            },
        )


def first_request(form: Chat, row: Row) -> Row | None:
    """Return a row with the messages before the first one of the assistant; None where no user is
    among them.
    """
    conversation = form.conversation(row)
    messages: list[Message] = []
    for message in conversation.messages:
        if message.role == "assistant":
            break
        messages.append(message)
    if not any(message.role == "user" for message in messages):
        return None
    return Row(turns=tuple(messages), tools=conversation.tools)


def tool_names(row: Row) -> list[str]:
    """Return the names of the functions that a row offers."""
    names: list[str] = []
    for tool in row.tools:
        function = json.loads(tool).get("function", {})
        names.append(str(function.get("name", "")))
    return names


def answer_facts(ids: Sequence[int], turn: AssistantTurn, tools: Sequence[str]) -> dict[str, Any]:
    """Return what is known of an answer by its tokens, the one that ended it included. `tools` are
    the names of those that were offered.
    """
    text = turn.text(ids)
    answer = turn.answer(text)
    return {
        "ended": ids[-1] in turn.ends,
        "answered": answer != "",
        "reasoning_closed": is_reasoning_closed(text, turn.opening, turn.closing),
        "calls_valid": are_calls_valid(answer, tools),
        "no_stray_token": ids[-1] not in turn.foreign,
        "no_loop": not is_loop(ids),
        "tokens": len(ids),
        "calls": answer.count("<tool_call>"),
    }


def is_well_formed(facts: AnswerFacts) -> bool:
    """Return whether all conditions hold."""
    return all(facts[condition] for condition in CONDITIONS)


def is_reasoning_closed(text: str, opening: str, closing: str) -> bool:
    """Return whether a text has no tag of reasoning, or one pair of them at its beginning."""
    counts = (text.count(opening), text.count(closing))
    if counts == (0, 0):
        return True
    # A closing tag before the opening one would stand before the beginning.
    return counts == (1, 1) and text.lstrip().startswith(opening)


def are_calls_valid(answer: str, tools: Sequence[str]) -> bool:
    """Return whether each call is closed and a call of one of the tools."""
    tags = _CALL_TAG.findall(answer)
    if tags != ["<tool_call>", "</tool_call>"] * (len(tags) // 2):
        return False
    calls = _CALL_TAG.split(answer)[1::2]
    return all(is_call(call, tools) for call in calls)


def is_call(text: str, tools: Sequence[str]) -> bool:
    """Return whether a text is a JSON object with the name of one of the tools and an object of
    arguments.
    """
    call = read_object(text)
    if not isinstance(call, Mapping):
        return False
    return call.get("name") in tools and isinstance(call.get("arguments"), Mapping)


def is_loop(ids: Sequence[int]) -> bool:
    """Return whether a piece of these tokens stands there again and again, be it at the end or not.

    `selfgen` and `answers` have a stricter rule, `looped`: it may lose good texts, since others
    are written in their place. Few different words are no fault of an answer.

    >>> is_loop([7, 8, 9] * 11), is_loop(range(40))
    (True, False)
    """
    for piece in range(1, min(len(ids) // REPEATED, LONGEST_PIECE) + 1):
        # In a loop each token is that which stood one piece before.
        needed = max(REPEATED * piece, SHORTEST_LOOP) - piece
        alike = 0
        for place in range(piece, len(ids)):
            if ids[place] != ids[place - piece]:
                alike = 0
                continue
            alike += 1
            if alike == needed:
                return True
    return False
