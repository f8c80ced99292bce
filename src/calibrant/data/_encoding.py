"""Turns texts into token ids, row by row, and says what kind of token each is."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row
from calibrant.data._marks import ROLES
from calibrant.data._templates import begins_with
from calibrant.data._written import Stretch, Written, roles_of_tokens
from calibrant.data.formats.chat import Chat
from calibrant.data.packings._base import Ids, Packing
from calibrant.errors import DataError

KINDS: Final = ("content", "template", "special", "start")
"""What a token can be: of the row itself, of what the format writes around it, special, or a
start token.
"""


def start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the start token if the tokenizer puts one before a text by itself, else nothing."""
    start = tokenizer.bos_token_id
    if not isinstance(start, int):
        return []
    # Configurations say little about it (`add_bos_token` is missing or wrong in many): what a
    # tokenizer does is tried.
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    usual = tokenizer("a")["input_ids"]
    if usual[:1] == [start] and plain[:1] != [start]:
        return [start]
    return []


class Encoder(ABC):
    """Turns rows into numbers, a number a token.

    Texts are tokenised without special tokens. A start token that a chat template writes is taken
    away: the packing says where start tokens stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._starts_texts = bool(start_tokens(tokenizer))
        # Rows are remembered, because earlier draws are dealt again.
        self._encoded: dict[tuple[object, ...], Ids] = {}

    @abstractmethod
    def text(self, text: str) -> Ids:
        """Return the numbers of a text that isn't a row's, such as a separator."""

    @abstractmethod
    def start(self) -> Ids:
        """Return the number of the start token, or nothing if the tokenizer has none."""

    @abstractmethod
    def _numbers_of_text(self, row: Row, form: Format) -> Ids:
        """Return the numbers of the text that a format makes of the row."""

    @abstractmethod
    def _numbers_of_ids(self, ids: Ids) -> Ids:
        """Return the numbers of tokens that a user gave."""

    @abstractmethod
    def _numbers_of_integers(self, integers: tuple[int, ...]) -> Ids:
        """Return the numbers of the tokens that a control's integers stand for."""

    def row(self, row: Row, form: Format) -> Ids:
        """Return the numbers of a row's text, or of the tokens that its integers stand for."""
        cache_key = _cache_key(row, form)
        if cache_key not in self._encoded:
            self._encoded[cache_key] = self._numbers_of_row(row, form)
        return self._encoded[cache_key]

    def starts(self, packing: Packing, form: Format) -> tuple[Ids, Ids]:
        """Return what comes before each text, and at the head of each window.

        Raises `DataError` where a start token is asked for that doesn't exist.
        """
        nothing = np.zeros(0, dtype=np.int32)
        start = self.start()
        bos = packing.bos
        if bos in ("document", "window") and not len(start):
            raise DataError(
                f"bos={bos!r}: this tokenizer has no start token; use bos='tokenizer' or 'none'",
                subject=bos,
            )
        # As the tokenizer does it: once a text where each stands alone, else once a window.
        if bos == "tokenizer":
            bos = "none"
            if self._starts_texts or self._begins_with_start(form):
                bos = "document" if packing.alone else "window"
        if bos == "document":
            return start, nothing
        if bos == "window":
            return nothing, start
        return nothing, nothing

    def _numbers_of_row(self, row: Row, form: Format) -> Ids:
        if row.ids is not None:
            self._check_ids(row.ids)
            return self._numbers_of_ids(np.array(row.ids, dtype=np.int32))
        if row.integers is not None:
            return self._numbers_of_integers(row.integers)
        return self._numbers_of_text(row, form)

    def _check_ids(self, ids: tuple[int, ...]) -> None:
        """Raise `DataError` for tokens that the vocabulary hasn't."""
        largest = max(ids)
        if largest > self._last_id:
            raise DataError(
                f"the token ids that were given hold {largest}, and the last of this tokenizer's "
                f"vocabulary is {self._last_id}; give ids of this model's own tokenizer, or texts",
                subject=str(largest),
            )

    @cached_property
    def _last_id(self) -> int:
        return max(self.tokenizer.get_vocab().values())

    def _text_of(self, row: Row, form: Format) -> str:
        return self._without_start(form.render(row, self.tokenizer), form)

    def _without_start(self, text: str, form: Format) -> str:
        if self._begins_with_start(form):
            return text.removeprefix(str(self.tokenizer.bos_token))
        return text

    def _begins_with_start(self, form: Format) -> bool:
        """Return whether the format is a chat whose template begins with the start token."""
        return isinstance(form, Chat) and self._template_begins_with_start

    @cached_property
    def _template_begins_with_start(self) -> bool:
        if not self.tokenizer.chat_template or self.tokenizer.bos_token is None:
            return False
        return begins_with(self.tokenizer, str(self.tokenizer.bos_token))

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special tokens."""
        return special_ids(self.tokenizer)


class IdEncoder(Encoder):
    """Gives each token its id."""

    def text(self, text: str) -> Ids:
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return np.array(encoded["input_ids"], dtype=np.int32)

    def start(self) -> Ids:
        start = self.tokenizer.bos_token_id
        if not isinstance(start, int):
            return np.zeros(0, dtype=np.int32)
        return np.array([start], dtype=np.int32)

    def _numbers_of_text(self, row: Row, form: Format) -> Ids:
        return self.text(self._text_of(row, form))

    def _numbers_of_ids(self, ids: Ids) -> Ids:
        return ids

    def _numbers_of_integers(self, integers: tuple[int, ...]) -> Ids:
        if not len(self._ordinary):
            raise DataError(
                "this tokenizer has no ordinary tokens to draw from, only special ones",
                subject="random_tokens",
            )
        # Integers have 32 bits, far more than a vocabulary needs: each token is as likely.
        return self._ordinary[np.array(integers, dtype=np.int64) % len(self._ordinary)]

    @cached_property
    def _ordinary(self) -> Ids:
        ordinary = set(self.tokenizer.get_vocab().values()) - self.special
        return np.array(sorted(ordinary), dtype=np.int32)


class KindEncoder(Encoder):
    """Gives each token the index in `KINDS` of what it is. Separators are template.

    Rows are cut as those of an `IdEncoder` are, so this says what stands where in a batch.
    """

    def text(self, text: str) -> Ids:
        return np.full_like(self._ids.text(text), KINDS.index("template"))

    def start(self) -> Ids:
        return np.full_like(self._ids.start(), KINDS.index("start"))

    def _numbers_of_text(self, row: Row, form: Format) -> Ids:
        text = self._text_of(row, form)
        ids, offsets = token_offsets(self.tokenizer, text)
        spans = content_spans(text, row)
        kinds: list[int] = []
        for token, (begin, end) in zip(ids, offsets, strict=True):
            if token in self.special:
                kind = "special"
            # A token may stand across a border: if it is partly the row's own, it is content.
            elif any(begin < last and end > first for first, last in spans):
                kind = "content"
            else:
                kind = "template"
            kinds.append(KINDS.index(kind))
        return np.array(kinds, dtype=np.int32)

    def _numbers_of_ids(self, ids: Ids) -> Ids:
        is_special = np.isin(ids, list(self.special))
        kinds = np.where(is_special, KINDS.index("special"), KINDS.index("content"))
        return kinds.astype(np.int32)

    def _numbers_of_integers(self, integers: tuple[int, ...]) -> Ids:
        return np.full(len(integers), KINDS.index("content"), dtype=np.int32)

    @cached_property
    def _ids(self) -> IdEncoder:
        return IdEncoder(self.tokenizer)


class RoleEncoder(Encoder):
    """Gives each token the index in `ROLES` of what it is of. Separators are template.

    Rows are cut as those of an `IdEncoder` are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self._written: dict[tuple[object, ...], Written] = {}

    def written(self, row: Row, form: Chat) -> Written:
        """Return what the template wrote of a row."""
        cache_key = _cache_key(row, form)
        if cache_key not in self._written:
            self._written[cache_key] = form.written(row, self.tokenizer)
        return self._written[cache_key]

    def text(self, text: str) -> Ids:
        return np.full_like(self._ids.text(text), ROLES.index("template"))

    def start(self) -> Ids:
        return np.full_like(self._ids.start(), ROLES.index("template"))

    def _numbers_of_text(self, row: Row, form: Format) -> Ids:
        if not isinstance(form, Chat):
            return self._numbers_of_ids(self._ids.text(self._text_of(row, form)))
        result = self.written(row, form)
        text = self._without_start(result.text, form)
        taken = len(result.text) - len(text)
        _, found = token_offsets(self.tokenizer, text)
        offsets = [(begin + taken, end + taken) for begin, end in found]
        # What isn't known to be anyone's is the template's.
        stretches = result.stretches or [Stretch(0, len(result.text), "template")]
        roles = roles_of_tokens(offsets, stretches)
        return np.array([ROLES.index(role) for role in roles], dtype=np.int32)

    def _numbers_of_ids(self, ids: Ids) -> Ids:
        return np.full_like(ids, ROLES.index("text"))

    def _numbers_of_integers(self, integers: tuple[int, ...]) -> Ids:
        return np.full(len(integers), ROLES.index("text"), dtype=np.int32)

    @cached_property
    def _ids(self) -> IdEncoder:
        return IdEncoder(self.tokenizer)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens."""
    # A special token that the vocabulary lacks has no id.
    special = {token for token in tokenizer.all_special_ids if isinstance(token, int)}
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special:
            special.add(token)
    return frozenset(special)


def token_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of a text's tokens, and where in it each begins and ends. `DataError` for a
    tokenizer that doesn't tell.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise DataError(
            f"{name} doesn't tell where in a text its tokens stand, so it can't be said what each "
            "is of; use the model's fast tokenizer (use_fast=True)",
            subject=name,
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def _cache_key(row: Row, form: Format) -> tuple[object, ...]:
    # Frame and labels change the text, and are no part of the row's key.
    return (str(form), row.key, row.frame, row.labels)


def content_spans(text: str, row: Row) -> list[tuple[int, int]]:
    """Return where in a rendered text the row's own fields stand, as (begin, end).

    A field is looked for behind the one before it, then anywhere; the answer from the end.
    """
    fields = [row.text]
    for message in row.turns:
        fields += [message.reasoning, message.content]
        fields += [call.name for call in message.calls]
    fields += [row.question, *row.choices, row.rationale]
    spans: list[tuple[int, int]] = []
    cursor = 0
    for field in fields:
        value = (field or "").strip()
        if not value:
            continue
        begin = text.find(value, cursor)
        if begin < 0:
            begin = text.find(value)
        if begin >= 0:
            cursor = begin + len(value)
            spans.append((begin, cursor))
    # A letter as an answer stands in `Answer:` too.
    answer = (row.answer or "").strip()
    begin = text.rfind(answer)
    if answer and begin >= 0:
        spans.append((begin, begin + len(answer)))
    return spans
