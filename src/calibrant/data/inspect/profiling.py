"""Tells what a calibration set's windows say, as facts that a store may keep and publish: words
with their counts, kinds of characters, quotations.

What of a window is quoted to the one who reads it, and what may be shown to everybody, is decided
here too.

No row can be put together again from them. A word is kept only if two windows have it, since one
that stands in a single window may be anybody's name; windows are quoted only of sources whose
licence lets everybody show them.
"""

import math
import re
import unicodedata
from collections import Counter
from typing import Any, Final

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import PerDraw, Source
from calibrant.data.calibration import CalibrationSet, TokenBatch

REVISION: Final = 1
"""Raised when the same windows give another profile."""

WORDS: Final = 2_000
"""Words that are kept at most, the most frequent ones."""

QUOTED: Final = 2
"""Windows of a part that are quoted."""

LETTERS: Final = 400
"""How much of a window is quoted."""

_OPEN: Final = re.compile(
    r"(MIT|Apache-2\.0|PSF-2\.0|AFL-3\.0|CC0 1\.0$|CC BY(-SA)? \d)|none needed$"
)
"""How a licence begins that lets anybody show the texts themselves. One for a collection alone
(ODC-By) says nothing of its texts.
"""

_WORD: Final = re.compile(r"[^\W\d_]{2,24}")
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")
_CLASSES: Final = {
    "L": "letters",
    "M": "letters",
    "N": "digits",
    "P": "punctuation",
    "S": "symbols",
    "Z": "spaces",
    "C": "spaces",
}
"""The first letter of a character's Unicode category, and what a reader calls it; control
characters are nearly all line ends and tabs.
"""


def profile(
    data: CalibrationSet, batch: TokenBatch, tokenizer: PreTrainedTokenizerBase, quotes: bool = True
) -> dict[str, Any]:
    """Return plain data about the windows of `batch`, which is `data` as tokens.

    `words` maps words (letters only, folded) to their counts; `counted` is how many words there are
    in all, `distinct` how many different ones, `even` how many equally frequent ones would be as
    varied. `characters` and `scripts` are shares, the former of all characters, the latter of
    letters; `numbers` come a hundred words, `word_length` is in letters. `examples` quote windows
    part by part, and `unquoted` says of the other parts why they aren't; without `quotes` both are
    empty.
    """
    counts = _Counts()
    # What the model is shown is counted, and not the rows: windows cut texts and leave some out.
    for row, mask in zip(batch.ids, text_tokens(batch), strict=True):
        counts.add(str(tokenizer.decode(row[mask].tolist(), skip_special_tokens=True)))
    words = counts.words
    total = words.total()
    shares = [count / total for count in words.values()]
    entropy = -sum(share * math.log(share) for share in shares)
    letters = sum(len(word) * count for word, count in words.items())
    shared = Counter({word: count for word, count in words.items() if counts.windows[word] > 1})
    examples: list[dict[str, str]] = []
    unquoted: dict[str, str] = {}
    if quotes:
        examples, unquoted = _quotations(data, batch, tokenizer)
    return {
        "revision": REVISION,
        "windows": len(batch.ids),
        "words": dict(_most_common(shared)[:WORDS]),
        "counted": total,
        "distinct": len(words),
        "even": math.exp(entropy),
        "word_length": letters / max(1, total),
        "numbers": 100 * counts.numbers / max(1, total),
        "characters": _shares(counts.classes),
        "scripts": _shares(counts.scripts),
        "examples": examples,
        "unquoted": unquoted,
    }


class _Counts:
    """What is counted in the texts of windows. `windows` says in how many of them each word
    stands.
    """

    def __init__(self) -> None:
        self.words = Counter[str]()
        self.windows = Counter[str]()
        self.classes = Counter[str]()
        self.scripts = Counter[str]()
        self.numbers = 0

    def add(self, text: str) -> None:
        """Count what is in the text of a window."""
        words = Counter(_WORD.findall(text.casefold()))
        self.words.update(words)
        self.windows.update(words.keys())
        self.numbers += len(_NUMBER.findall(text))
        for character, count in Counter(text).items():
            self.classes[_CLASSES[unicodedata.category(character)[0]]] += count
            if character.isalpha():
                self.scripts[_script(character)] += count


def _quotations(
    data: CalibrationSet, batch: TokenBatch, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Return the beginnings of the first windows of each part that may be quoted, and the licences
    of the other parts.
    """
    examples: list[dict[str, str]] = []
    unquoted: dict[str, str] = {}
    begin = 0  # the part's first sequence in the batch
    for term, facts in zip(data.parts, batch.facts["parts"], strict=True):
        licence = term.source.licence
        if not rows_may_be_quoted(term.source):
            unquoted[str(term)] = licence
        else:
            for place in range(begin, begin + min(QUOTED, facts["sequences"])):
                text = quoted(batch, place, tokenizer)
                examples.append({"part": str(term), "licence": licence, "text": text})
        begin += facts["sequences"]
    return examples, unquoted


def _most_common(counts: Counter[str]) -> list[tuple[str, int]]:
    """Return names and counts, the largest first; of equals, in the order of their names."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _shares(counts: Counter[str]) -> dict[str, float]:
    """Return the shares of what is counted, the largest first."""
    total = counts.total()
    return {name: count / total for name, count in _most_common(counts)}


def _script(letter: str) -> str:
    """Return `Latin`, `Cyrillic`, `Cjk`, …: how the names of a script's letters begin."""
    return unicodedata.name(letter, "unnamed").partition(" ")[0].capitalize()


def may_be_quoted(licence: str) -> bool:
    """Return whether a licence allows rows on a page that others will read; where that isn't
    plain, it doesn't.
    """
    return _OPEN.match(licence) is not None


def rows_may_be_quoted(source: Source) -> bool:
    """Return whether rows of a source may stand on a page that others will read: the source shows
    them, and its licence allows it, as do those of all sources that its rows are made of.
    """
    if not source.shown or not may_be_quoted(source.licence):
        return False
    if isinstance(source, PerDraw):
        return all(map(rows_may_be_quoted, source.origins))
    return True


def text_tokens(batch: TokenBatch) -> Tensor:
    """Return a mask that is true on tokens of texts: not on padding, nor on pads that count."""
    if batch.pads is None:
        return batch.mask
    return batch.mask & ~batch.pads


def quoted(batch: TokenBatch, sequence: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the beginning of a sequence with its special tokens; pads that count are counted,
    not written out.
    """
    shown = text_tokens(batch)[sequence]
    ids = batch.ids[sequence][shown].tolist()
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if len(text) > LETTERS:
        text = text[:LETTERS] + "…"
    pads = int((batch.mask[sequence] & ~shown).sum())
    if pads:
        text = f"⟨{pads:,} pads⟩{text}"
    return text
