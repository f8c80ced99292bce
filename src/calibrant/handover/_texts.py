"""The texts and conversations whose tokens a set has, and how many windows they give back."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from calibrant.data import Chat, Row, start_tokens
from calibrant.data.expression import Term
from calibrant.errors import DataError

Windows = Sequence[Sequence[int]]


def texts_of(windows: Windows, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], int]:
    """Return the text of each window, and how many windows have other tokens when the tokenizer
    reads their text.
    """
    start = start_tokens(tokenizer)
    texts: list[str] = []
    changed = 0
    for window in windows:
        # The tokenizer puts this start token before the text by itself.
        if start and window[:1] == start:
            text = _decoded(window[1:], tokenizer)
        else:
            text = _decoded(window, tokenizer)
        texts.append(text)
        if _encoded(text, tokenizer) != window:
            changed += 1
    return texts, changed


def stream_of(
    windows: Windows, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[list[str], int]:
    """Return texts that llama-imatrix, given all of them in a row, cuts into the windows of
    `length` tokens; and how many windows are shorter, or have other tokens then.

    Raises `DataError` for fewer than two windows of that length.
    """
    full = [window for window in windows if len(window) == length]
    if len(full) < 2:
        raise DataError(
            f"llama-imatrix reads two or more windows of {length} tokens, and these have "
            f"{len(full)}; draw more, in a packing that fills its windows, such as @imatrix",
            subject=str(len(full)),
        )
    start = start_tokens(tokenizer)
    # The first start token is put there by llama.cpp; in other windows it stands for any token.
    begins = 0
    if start and full[0][:1] == start:
        begins = 1
    texts = [_decoded(full[0][begins:], tokenizer)]
    texts += [_decoded(window, tokenizer) for window in full[1:]]
    stream = _encoded("".join(texts), tokenizer)
    changed = len(windows) - len(full)
    for place, window in enumerate(full):
        chunk = stream[place * length : (place + 1) * length]
        chunk[: len(start)] = start
        if chunk != window:
            changed += 1
    return texts, changed


def conversations_of(
    parts: Sequence[Term], rows_of_parts: Sequence[Sequence[Row]]
) -> list[dict[str, Any]]:
    """Return the conversations that a set in the model's template was made of."""
    conversations: list[dict[str, Any]] = []
    for term, rows in zip(parts, rows_of_parts, strict=True):
        assert isinstance(term.format, Chat)
        for row in rows:
            conversations.append(term.format.conversation(row).record())
    return conversations


def _decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def _encoded(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    encoded = tokenizer(text, verbose=False)
    return list(encoded["input_ids"])
