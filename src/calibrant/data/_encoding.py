"""Text to token ids, row by row, with what this needs to know of a tokenizer."""

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row
from calibrant.errors import DataError


def start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The start token if the tokenizer puts one before a text by itself, else nothing."""
    start = tokenizer.bos_token_id
    if not isinstance(start, int):
        return []
    plain, dressed = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return [start] if dressed[:1] == [start] and plain[:1] != [start] else []


class Encoder:
    """Tokenises without special tokens; remembers what it has done, because earlier draws are dealt again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._done: dict[tuple[str, str], Int32[np.ndarray, " token"]] = {}
        self._ordinary: Int32[np.ndarray, " token"] | None = None
        self.start = np.array(start_tokens(tokenizer), dtype=np.int32)

    def text(self, text: str) -> Int32[np.ndarray, " token"]:
        """The ids of a text, on its own."""
        return np.array(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)

    def row(self, row: Row, form: Format) -> Int32[np.ndarray, " token"]:
        """The ids of a row's text, or those that its integers stand for."""
        name = str(form), row.key
        if name not in self._done:
            self._done[name] = self.text(form.render(row)) if row.integers is None else self._mapped(row.integers)
        return self._done[name]

    def _mapped(self, integers: tuple[int, ...]) -> Int32[np.ndarray, " token"]:
        if self._ordinary is None:
            special = {*self._tokenizer.all_special_ids, *(i for i, token in self._tokenizer.added_tokens_decoder.items() if token.special)}
            self._ordinary = np.array(sorted(set(self._tokenizer.get_vocab().values()) - special), dtype=np.int32)
        if not len(self._ordinary):
            raise DataError("this tokenizer has no ordinary tokens to draw from, only special ones", subject="random_tokens")
        return self._ordinary[np.array(integers, dtype=np.int64) % len(self._ordinary)]
