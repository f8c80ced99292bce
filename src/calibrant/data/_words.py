"""Words of any script, and runs of them as numbers: what texts are compared by."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np
from jaxtyping import UInt64

Numbers = UInt64[np.ndarray, " _"]

_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"  # Thai, Lao, Burmese, Khmer, Tai, Balinese
    "\u3005-\u3007\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48f"  # kana, bopomofo, Han, Yi
    "\ua980-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"  # Javanese, more Burmese, more Han
)
"""Scripts that put no spaces between words: each letter counts as a word, together with the
marks on it.
"""

_UNSEEN: Final = re.compile("[\u00ad\u200c\u200d\u2060\ufeff]+")
"""Soft hyphens, joiners and byte order marks: they stand inside words and are lost in copying."""

LONGEST: Final = 64
"""Letters of a word: a longer one, such as a picture in base64, is several, so that what is
remembered of words stays small.
"""

_PLAIN: Final = re.compile(f"[a-z0-9]{{1,{LONGEST}}}")

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
    return _word().findall(_UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold())


def spans(text: str) -> list[tuple[int, int, str]]:
    """Return where each word begins and ends in `text`, in characters, and the word as `words`
    writes it.

    >>> spans("An ONION!")
    [(0, 2, 'an'), (3, 8, 'onion')]
    """
    found: list[tuple[int, int, str]] = []
    for match in _word().finditer(text):
        # What is case-folded may fall apart (a circled letter is one, and a sign of several becomes
        # two words): then the longest part names it.
        if parts := words(match[0]):
            found.append((match.start(), match.end(), max(parts, key=len)))
    return found


def numbered(spoken: Sequence[str]) -> Numbers:
    """Return a number for each word, the same in every process."""
    return np.fromiter(map(_remembered, spoken), dtype=np.uint64, count=len(spoken))


def runs(numbers: Numbers, length: int) -> Numbers:
    """Return a number for each run of `length` words, in order: one at each word but the last
    ones. None if there are fewer words.
    """
    count = max(0, len(numbers) - length + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for begin in range(length if count else 0):
        hashes *= np.uint64(_BASE)
        hashes += numbers[begin : begin + count]
    return hashes


def number_of(text: str) -> int:
    """64 bits of a text's hash. Python's own hash would be another in each process."""
    return int.from_bytes(
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


_remembered = lru_cache(maxsize=1 << 17)(number_of)


@cache
def _word() -> re.Pattern[str]:
    """Classes that `re` has no names for, written out. Beyond the first 65,536 characters they
    are coarse: a long list there is ten times as slow.
    """
    letters = [chr(c) for c in range(0x10000) if chr(c).isalnum()]
    alone = set(re.findall(f"[{_UNSPACED}]", "".join(letters)))
    marks = _ranges(
        chr(c) for c in range(0x300, 0x10000) if unicodedata.category(chr(c)).startswith("M")
    )
    spaced = (
        _ranges(letter for letter in letters if letter not in alone)
        + "\U00010000-\U0001cfff\U0001e000-\U0001efff"
    )
    more = f"{{0,{LONGEST - 1}}}"
    return re.compile(
        f"[{spaced}][{spaced}{marks}]{more}|[{_ranges(alone)}\U00020000-\U0003ffff][{marks}]{more}"
    )


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
