"""Control: questions and answers of random letters."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from string import ascii_lowercase
from typing import Final

from calibrant.data._base import Part, Row, Source, check_part

WORDS: Final = 24
"""Words of a question, which make about as many tokens as a word problem of a grade school."""
LONGEST: Final = 8
"""Letters of a word at most."""


@dataclass(frozen=True, repr=False)
class RandomLetters(Source):
    """Endless questions of 24 words and answers of one, each of one to eight letters of a to z.

    Only the template makes sense here. `random_letters:chat` shows what the template alone is
    worth. Letters come from SHAKE-128 over part, seed and number.
    """

    kind = "control"
    default = "qa"
    licence = "none needed"
    homepage = "https://nvlpubs.nist.gov/nistpubs/FIPS/NIST.FIPS.202.pdf"
    fields = ("question", "answer")

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        check_part(part)
        size = (WORDS + 1) * (LONGEST + 1)
        for number in count():
            name = f"random_letters {part} {seed} {number}"
            noise = hashlib.shake_128(name.encode()).digest(size)
            *question, answer = _words(noise)
            yield Row(question=" ".join(question), answer=answer)


def _words(noise: bytes) -> Iterator[str]:
    """Yield a word for each nine bytes: the first is its length, the others are its letters."""
    for begin in range(0, len(noise), LONGEST + 1):
        length = 1 + noise[begin] % LONGEST
        letters = noise[begin + 1 : begin + 1 + length]
        yield "".join(ascii_lowercase[byte % len(ascii_lowercase)] for byte in letters)
