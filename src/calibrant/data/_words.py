"""Takes texts apart into words of any script, and numbers runs of these, by which texts are
compared.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np
from jaxtyping import UInt64

from calibrant.data._limits import LONGEST_WORD

Numbers = UInt64[np.ndarray, " _"]

_UNSPACED: Final = (
    # Thai, Lao, Burmese, Khmer, Tai, Balinese
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
    # kana, bopomofo, Han, Yi
    "\u3005-\u3007\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48f"
    # Javanese, more Burmese, more Han
    "\ua980-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts that put no spaces between words: each letter counts as a word, together with the
marks on it.
"""

_UNSEEN: Final = re.compile("[\u00ad\u200c\u200d\u2060\ufeff]+")
"""Soft hyphens, joiners and byte order marks: they stand inside words and are lost in copying."""

# A longer word, such as a picture in base64, is several.
_PLAIN: Final = re.compile(f"[a-z0-9]{{1,{LONGEST_WORD}}}")

_BASE: Final = 0x9E3779B97F4A7C15
"""The odd base of the polynomial that turns a run of words into a number."""


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, case-folded, with accents written in
    one way; punctuation falls away.

    >>> words("Peel an ONION, then (cut) it: 3 times")
    ['peel', 'an', 'onion', 'then', 'cut', 'it', '3', 'times']
    """
    if text.isascii():
        return _PLAIN.findall(text.lower())
    visible = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return _word_pattern().findall(visible.casefold())


def spans(text: str) -> list[tuple[int, int, str]]:
    """Return where each word begins and ends in `text`, in characters, and the word as `words`
    writes it.

    >>> spans("An ONION!")
    [(0, 2, 'an'), (3, 8, 'onion')]
    """
    found: list[tuple[int, int, str]] = []
    for match in _word_pattern().finditer(text):
        # What is case-folded may fall apart (a circled letter is one, and a sign of several becomes
        # two words): then the longest part names it.
        parts = words(match[0])
        if parts:
            found.append((match.start(), match.end(), max(parts, key=len)))
    return found


def numbered(text_words: Sequence[str]) -> Numbers:
    """Return a number for each word of a text, the same in every process."""
    return np.fromiter(map(_remembered_number, text_words), dtype=np.uint64, count=len(text_words))


def runs(numbers: Numbers, length: int) -> Numbers:
    """Return a number for each run of `length` words, in the order in which the runs begin.

    The array is empty if there are fewer words.
    """
    count = max(0, len(numbers) - length + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    if not count:
        return hashes
    # Horner's rule, modulo 2^64: all runs at once, a word at a time.
    for begin in range(length):
        hashes *= np.uint64(_BASE)
        hashes += numbers[begin : begin + count]
    return hashes


def number_of(text: str) -> int:
    """Return 64 bits of a text's hash, which unlike Python's own is the same in each process."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


_remembered_number = lru_cache(maxsize=1 << 17)(number_of)


@cache
def _word_pattern() -> re.Pattern[str]:
    """Return the expression for a word.

    Its classes have no names in `re`, so they are written out. Beyond the first 65,536 characters
    they are coarse: a long list there is ten times as slow.
    """
    characters = [chr(code) for code in range(0x10000)]
    letters = [character for character in characters if character.isalnum()]
    mark_letters = [
        character
        for character in characters[0x300:]  # the first mark of all is U+0300
        if unicodedata.category(character).startswith("M")
    ]
    whole_words = set(re.findall(f"[{_UNSPACED}]", "".join(letters)))
    marks = _ranges(mark_letters)
    spaced = _ranges(letter for letter in letters if letter not in whole_words)
    spaced += "\U00010000-\U0001cfff\U0001e000-\U0001efff"
    unspaced = _ranges(whole_words) + "\U00020000-\U0003ffff"
    further = f"{{0,{LONGEST_WORD - 1}}}"
    return re.compile(f"[{spaced}][{spaced}{marks}]{further}|[{unspaced}][{marks}]{further}")


def _ranges(letters: Iterable[str]) -> str:
    """Return a character class as few ranges: a long list of single letters makes a slow
    expression.
    """
    ranges: list[list[int]] = []
    for code in sorted(map(ord, letters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
