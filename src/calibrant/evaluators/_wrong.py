"""Wrong numbers that could pass for an answer.

A problem whose answer is a number gets three, one of each kind, which of them the hash of the
problem says:

- *near*: one more, or one less;
- *slip*: ten times as much, a tenth if that has no more decimals, or two neighbouring digits
  swapped;
- *operation*: the sum, the difference or the product of two numbers of the question.

Where a kind has none (the question has no two numbers), the next of two more, two less, three more,
… takes its place. All are different, are written with the decimals of the answer and are at most
ten times as large or as small; none is negative unless the answer is, and none stands in the
question unless the answer does: a model that only copies would prefer it, and be worse than chance.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Final

_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_WITHIN: Final = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\w])", re.ASCII)
_LONGEST: Final = 18
"""Digits of a number; a longer one is a name."""
_FIRST: Final = 8
"""Numbers of a question that are combined."""


def is_number(text: str) -> bool:
    """Return whether an answer is a plain number, such as -12 or 3.50."""
    return bool(_NUMBER.fullmatch(text)) and len(text) <= _LONGEST


def by_hash(key: str, text: str) -> str:
    """Where `text` stands among others that belong to `key`: an order that says nothing about
    them.
    """
    return hashlib.sha256(f"{key} {text}".encode("utf-8", "surrogatepass")).hexdigest()


def wrong_numbers(question: str, answer: str, key: str) -> tuple[str, str, str]:
    """Three wrong numbers beside `answer`, by the rule above."""
    value, decimals = Decimal(answer), len(answer.partition(".")[2])
    numbers = list(dict.fromkeys(_numbers(question)))
    copied = [] if value in numbers else numbers
    chosen = [answer]

    def passes(candidate: Decimal) -> bool:
        plain = candidate == round(candidate, decimals) and (candidate >= 0 or value < 0)
        alike = abs(value) <= 10 * max(abs(candidate), 1) and abs(candidate) <= 10 * max(
            abs(value), 1
        )
        return (
            plain
            and alike
            and candidate not in copied
            and all(candidate != Decimal(text) for text in chosen)
        )

    rest = (value + sign * step for step in itertools.count(2) for sign in (1, -1))
    for kind in ([value + 1, value - 1], list(_slips(answer, value)), list(_operations(numbers))):
        fitting = sorted(
            {_as(c, decimals) for c in kind if passes(c)}, key=lambda text: by_hash(key, text)
        )
        chosen.append(fitting[0] if fitting else _as(next(filter(passes, rest)), decimals))
    return chosen[1], chosen[2], chosen[3]


def _slips(answer: str, value: Decimal) -> Iterator[Decimal]:
    yield value * 10
    yield value / 10
    for at in range(len(answer) - 1):
        pair = answer[at : at + 2]
        swapped = answer[:at] + pair[::-1] + answer[at + 2 :]
        if pair.isdecimal() and not re.match(r"-?0\d", swapped):
            yield Decimal(swapped)


def _operations(numbers: Sequence[Decimal]) -> Iterator[Decimal]:
    for one, other in itertools.combinations(numbers[:_FIRST], 2):
        yield from (one + other, abs(one - other), one * other)


def _numbers(question: str) -> Iterator[Decimal]:
    """The numbers of a question that are written in digits."""
    for digits in _WITHIN.findall(question):
        if len(digits) <= _LONGEST:
            yield Decimal(digits.replace(",", ""))


def _as(number: Decimal, decimals: int) -> str:
    """A number with that many decimals."""
    return f"{number:.{decimals}f}"
