"""Text to token ids, row by row, with what this needs to know of a tokenizer."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row
from calibrant.data._templates import templated
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
    plain, dressed = (
        tokenizer("a", add_special_tokens=False)["input_ids"],
        tokenizer("a")["input_ids"],
    )
    return [start] if dressed[:1] == [start] and plain[:1] != [start] else []


class Encoder(ABC):
    """Turns rows into numbers, a number a token; remembers what it has done, because earlier draws
    are dealt again.

    Texts are tokenised without special tokens. A start token that a chat template writes is taken
    away: the packing says where those stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._usual = bool(start_tokens(tokenizer))
        self._done: dict[tuple[object, ...], Ids] = {}

    @abstractmethod
    def text(self, text: str) -> Ids:
        """Return the numbers of a text that isn't a row's, such as a separator."""

    @abstractmethod
    def start(self) -> Ids:
        """Return the number of the start token, or nothing if the tokenizer has none."""

    @abstractmethod
    def _rendered(self, row: Row, text: str) -> Ids: ...

    @abstractmethod
    def _mapped(self, integers: tuple[int, ...]) -> Ids: ...

    def row(self, row: Row, form: Format) -> Ids:
        """Return the numbers of a row's text, or of the tokens that its integers stand for."""
        name = str(form), row.key, row.frame, row.labels
        if name not in self._done:
            self._done[name] = (
                self._written(row, form) if row.integers is None else self._mapped(row.integers)
            )
        return self._done[name]

    def starts(self, packing: Packing, form: Format) -> tuple[Ids, Ids]:
        """Return what comes before each text, and at the head of each window. `DataError` where
        a start token is asked for that doesn't exist.
        """
        nothing, start = np.zeros(0, dtype=np.int32), self.start()
        if packing.bos in ("document", "window") and not len(start):
            raise DataError(
                f"bos={packing.bos!r}: this tokenizer has no start token; use bos='tokenizer' or 'none'",
                subject=packing.bos,
            )
        match packing.bos:
            case "none":
                return nothing, nothing
            case "document":
                return start, nothing
            case "window":
                return nothing, start
            case _:
                usual = start if self._usual or self._begins(form) else nothing
                return (usual, nothing) if packing.alone else (nothing, usual)

    def _written(self, row: Row, form: Format) -> Ids:
        text = form.render(row, self.tokenizer)
        return self._rendered(
            row, text.removeprefix(str(self.tokenizer.bos_token)) if self._begins(form) else text
        )

    def _begins(self, form: Format) -> bool:
        """Return whether the format is a chat whose template begins with the start token."""
        return form.spec_name() == "chat" and self._templated

    @cached_property
    def _templated(self) -> bool:
        if not self.tokenizer.chat_template or self.tokenizer.bos_token is None:
            return False
        shown = templated(
            self.tokenizer,
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        )
        return shown.startswith(str(self.tokenizer.bos_token))

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special tokens."""
        added = (i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special)
        # A special token that the vocabulary lacks has no id.
        return frozenset(
            {i for i in self.tokenizer.all_special_ids if isinstance(i, int)} | {*added}
        )


class IdEncoder(Encoder):
    """Gives each token its id."""

    def text(self, text: str) -> Ids:
        return np.array(
            self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
            dtype=np.int32,
        )

    def start(self) -> Ids:
        start = self.tokenizer.bos_token_id
        return np.array([start] if isinstance(start, int) else [], dtype=np.int32)

    def _rendered(self, row: Row, text: str) -> Ids:
        return self.text(text)

    def _mapped(self, integers: tuple[int, ...]) -> Ids:
        if not len(self._ordinary):
            raise DataError(
                "this tokenizer has no ordinary tokens to draw from, only special ones",
                subject="random_tokens",
            )
        return self._ordinary[np.array(integers, dtype=np.int64) % len(self._ordinary)]

    @cached_property
    def _ordinary(self) -> Ids:
        return np.array(
            sorted(set(self.tokenizer.get_vocab().values()) - self.special), dtype=np.int32
        )


class KindEncoder(Encoder):
    """Gives each token the index in `KINDS` of what it is: the same cuts then say what stands
    where in a batch. Separators are template.
    """

    def text(self, text: str) -> Ids:
        return np.full(len(self._ids.text(text)), KINDS.index("template"), dtype=np.int32)

    def start(self) -> Ids:
        return np.full(len(self._ids.start()), KINDS.index("start"), dtype=np.int32)

    def _rendered(self, row: Row, text: str) -> Ids:
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        spans = content_spans(text, row)
        inside = [
            any(begin < last and end > first for first, last in spans)
            for begin, end in encoded["offset_mapping"]
        ]
        kinds = [
            "special" if i in self.special else "content" if own else "template"
            for i, own in zip(encoded["input_ids"], inside, strict=True)
        ]
        return np.array([KINDS.index(kind) for kind in kinds], dtype=np.int32)

    def _mapped(self, integers: tuple[int, ...]) -> Ids:
        return np.full(len(integers), KINDS.index("content"), dtype=np.int32)

    @cached_property
    def _ids(self) -> IdEncoder:
        return IdEncoder(self.tokenizer)


def content_spans(text: str, row: Row) -> list[tuple[int, int]]:
    """Return where in a rendered text the row's own fields stand, as (begin, end); a field is
    looked for behind the one before it, then anywhere.
    """
    fields = [
        row.text,
        *(content for _, content in row.turns),
        row.question,
        *row.choices,
        row.rationale,
        row.answer,
    ]
    spans: list[tuple[int, int]] = []
    cursor = 0
    for field in fields:
        if not (field or "").strip():
            continue
        value = str(field).strip()
        at = text.find(value, cursor)
        at = text.find(value) if at < 0 else at
        if at >= 0:
            spans.append((at, at + len(value)))
            cursor = at + len(value)
    return spans
