"""What a calibration set's windows say, as facts that a store may keep and publish: words with their counts, kinds of characters, quotations.

No row can be put together again from them. A word is kept only if two windows have it, since one that stands in a single window may be
anybody's name; windows are quoted only of sources whose licence lets everybody show them.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from calibrant.data.calibration import CalibrationSet, TokenBatch
from calibrant.data.expression import Term
from calibrant.data.quoting import may_be_quoted, quoted, real

REVISION: Final = 1
"""Raised when the same windows give another profile."""

WORDS: Final = 2_000
"""Words that are kept at most, the most frequent ones."""

QUOTED: Final = 2
"""Windows of a part that are quoted."""

_WORD: Final = re.compile(r"[^\W\d_]{2,24}")
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")
_CLASSES: Final = {"L": "letters", "M": "letters", "N": "digits", "P": "punctuation", "S": "symbols", "Z": "spaces", "C": "spaces"}
"""The first letter of a character's Unicode category, and what a reader calls it; control characters are nearly all line ends and tabs."""


def profile(data: CalibrationSet, batch: TokenBatch, tokenizer: PreTrainedTokenizerBase, quotes: bool = True) -> dict[str, Any]:
    """Plain data about the windows of `batch`, which is `data` as tokens.

    `words` maps words (letters only, folded) to their counts; `counted` is how many words there are in all, `distinct` how many different ones,
    `even` how many equally frequent ones would be as varied. `characters` and `scripts` are shares, the former of all characters, the latter of
    letters; `numbers` come a hundred words, `word_length` is in letters. `examples` quote windows part by part, and `unquoted` says of the other
    parts why they aren't; without `quotes` both are empty.
    """
    there = real(batch)
    texts = [str(tokenizer.decode(row[mask].tolist(), skip_special_tokens=True)) for row, mask in zip(batch.ids, there, strict=True)]
    counts: Counter[str] = Counter()
    windows: Counter[str] = Counter()
    for text in texts:
        found = Counter(_WORD.findall(text.casefold()))
        counts.update(found)
        windows.update(found.keys())
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text)
    return {
        "revision": REVISION,
        "windows": len(texts),
        **_words(counts, windows),
        "numbers": 100 * sum(len(_NUMBER.findall(text)) for text in texts) / max(1, counts.total()),
        "characters": _shares(letters, lambda c: _CLASSES[unicodedata.category(c)[0]]),
        "scripts": _shares(Counter({c: n for c, n in letters.items() if c.isalpha()}), _script),
        "examples": list(_examples(data.parts, batch, tokenizer)) if quotes else [],
        "unquoted": {str(term): term.source.licence for term in data.parts if quotes and not may_be_quoted(term.source.licence)},
    }


def _words(counts: Counter[str], windows: Mapping[str, int]) -> dict[str, Any]:
    total = counts.total()
    kept = sorted((word for word in counts if windows[word] > 1), key=lambda word: (-counts[word], word))[:WORDS]
    entropy = -sum(n / total * math.log(n / total) for n in counts.values()) if total else 0.0
    return {
        "words": {word: counts[word] for word in kept},
        "counted": total,
        "distinct": len(counts),
        "even": math.exp(entropy),
        "word_length": sum(len(word) * n for word, n in counts.items()) / max(1, total),
    }


def _shares(counts: Counter[str], called: Any) -> dict[str, float]:
    """The shares of classes of characters, the largest first."""
    found: Counter[str] = Counter()
    for character, number in counts.items():
        found[called(character)] += number
    return {name: number / found.total() for name, number in sorted(found.items(), key=lambda item: (-item[1], item[0]))}


def _script(letter: str) -> str:
    """`Latin`, `Cyrillic`, `Cjk`, …: how the names of a script's letters begin."""
    return unicodedata.name(letter, "unnamed").partition(" ")[0].capitalize()


def _examples(parts: Sequence[Term], batch: TokenBatch, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, str]]:
    begin = 0
    for term, fact in zip(parts, batch.facts["parts"], strict=True):
        places = range(begin, begin + min(QUOTED, fact["sequences"])) if may_be_quoted(term.source.licence) else ()
        begin += fact["sequences"]
        yield from ({"part": str(term), "licence": term.source.licence, "text": quoted(batch, place, tokenizer)} for place in places)
