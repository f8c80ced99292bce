"""What a model answers in its own chat template: how it is asked, which tokens end its turn, and
what of the answer is reasoning.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Chat, Conversation, FunctionCall, Message, Role, Row, roles_of_tokens
from calibrant.data._encoding import special_ids, token_offsets
from calibrant.data._templates import RefusedError
from calibrant.data._written import ASSISTANT, THINKING, tags_of, written
from calibrant.decoding import Decoder, Generated
from calibrant.evaluators._base import Steps, Subject
from calibrant.evaluators._windows import token_ids
from calibrant.models.reading import end_tokens
from calibrant.vllm import VllmDecoder

_ANSWERED: Final = Conversation(
    (Message("user", "How many?"), Message("assistant", "Five.", reasoning="Two and three."))
)
_CALLED: Final = Conversation(
    (
        Message("user", "How many?"),
        Message("assistant", calls=(FunctionCall("count", '{"what": "hens"}', "123456789"),)),
    ),
    ('{"type": "function", "function": {"name": "count", "description": "", "parameters": {}}}',),
)
"""What a template writes to show which special tokens belong to a turn of the assistant."""


@dataclass(frozen=True)
class AssistantTurn:
    """What the assistant's turn is in a chat template.

    Tokens of `ends` end it. Special tokens that are `foreign` stand in none, such as one that
    begins a turn. `opening` and `closing` stand around reasoning; `opened_by_prompt` says whether
    the prompt ends with the first. `thinks` says whether the template writes reasoning at all.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    foreign: frozenset[int]
    opening: str
    closing: str
    opened_by_prompt: bool
    thinks: bool

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, form: Chat
    ) -> "AssistantTurn":
        """Return the turn that a template asks `model` for. `DataError` without a template."""
        prompt = form.render(Row(turns=_ANSWERED.messages[:1]), tokenizer)
        roles: set[Role] = set()
        inside: set[int] = set()
        ends = set(end_tokens(model, tokenizer))
        special = special_ids(tokenizer)
        for conversation in (_ANSWERED, _CALLED):
            tokens = _assistant_tokens(conversation, tokenizer)
            roles.update(role for _, role in tokens)
            inside.update(token for token, _ in tokens)
            ends.update(_turn_ends(tokens, special))
        opening, closing = tags_of(tokenizer)
        return cls(
            tokenizer=tokenizer,
            ends=frozenset(ends),
            foreign=special - inside - ends,
            opening=opening,
            closing=closing,
            opened_by_prompt=prompt.rstrip().endswith(opening),
            thinks="reasoning" in roles,
        )

    def ended(self, ids: Sequence[int]) -> bool:
        """Return whether the last of these tokens ends the turn, or can't stand in it."""
        return ids[-1] in self.ends or ids[-1] in self.foreign

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a turn with its tags, also those that the prompt wrote."""
        inside = ids
        if self.ended(ids):
            inside = ids[:-1]
        text = str(
            self.tokenizer.decode(
                list(inside), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        if self.opened_by_prompt:
            return self.opening + text
        return text

    def answer(self, text: str) -> str:
        """Return what stands in the text of a turn behind its reasoning; nothing where reasoning
        goes on to the end.
        """
        if self.closing in text:
            return text.rpartition(self.closing)[2].strip()
        return text.partition(self.opening)[0].strip()


def prompt_ids(row: Row, form: Chat, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a row's turns as the template writes them, start token included."""
    return token_ids(tokenizer, form.render(row, tokenizer))


def decode_all(
    decoder: Decoder | VllmDecoder,
    names: Sequence[str],
    read: Callable[[int, Generated], dict[str, Any]],
    subject: Subject,
    doing: str,
) -> list[dict[str, Any]]:
    """Return what `read` keeps of the answer to each prompt, given its number. `names` are those of
    the answers in the subject's journal.
    """
    journal = subject.journal
    steps = Steps(subject.progress, doing, len(names))
    for batch in decoder.batches():
        # A batch of which only a part is kept is decoded again as a whole, so that a run that was
        # killed ends as one that wasn't.
        if not all(names[number] in journal for number in batch):
            entries: dict[str, Any] = {}
            for number, answer in zip(batch, decoder.run(batch), strict=True):
                entries[names[number]] = read(number, answer)
            journal.add(entries)
        steps.add(len(batch))
    return [journal[name] for name in names]


def _assistant_tokens(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, Role]]:
    """Return the tokens that the assistant writes in a conversation, each with its role; none
    where the template doesn't write it as it is.
    """
    try:
        result = written(tokenizer, conversation, "chat", THINKING)
    except RefusedError:
        return []
    if not result.stretches:
        return []
    ids, offsets = token_offsets(tokenizer, result.text)
    roles = roles_of_tokens(offsets, result.stretches)
    return [(token, role) for token, role in zip(ids, roles, strict=True) if role in ASSISTANT]


def _turn_ends(tokens: Iterable[tuple[int, Role]], special: frozenset[int]) -> set[int]:
    """Return the special tokens that stand behind an answer."""
    ends: set[int] = set()
    answered = False
    for token, role in tokens:
        if role == "answer":
            answered = True
        elif answered and token in special:
            ends.add(token)
    return ends
