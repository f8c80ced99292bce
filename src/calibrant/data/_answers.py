"""Reads out of a text what it says the answer is: numbers as numbers, choices by their label or
their words. Nothing is ever executed.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from calibrant.data._base import Row

Kind = Literal["number", "choice", "words"]

LONGEST: Final = 40
"""Characters of a number; a longer one is no answer."""
TOLERANCE: Final = Fraction(1, 10**6)
"""How far, relatively, two numbers that aren't both whole may be apart and still be the same:
2/3 is 0.6666667.
"""

# A sign, a currency, then a mixed number, a fraction, or digits with decimals and a power of ten.
_DIGITS: Final = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER: Final = re.compile(
    rf"(?P<sign>(?<![\w.)\]%])[-−–])?(?:[$€£¥](?P<minus>[-−–])?)?"
    rf"(?:(?P<whole>\d{{1,9}})[ ](?P<part>\d{{1,9}}/\d{{1,9}})(?![\d/])"
    rf"|(?P<over>\d{{1,9}}/\d{{1,9}})(?![\d/])"
    rf"|(?P<plain>{_DIGITS}(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE](?P<power>[+-]?\d{{1,2}})(?!\d))?)",
    re.ASCII,
)
_CONCLUSION: Final = re.compile(r"\banswer\s*(?:is\b|:|=)\s*:?", re.IGNORECASE)
_SENTENCE_END: Final = re.compile(r"[.!?](?=\s|$)|\n")


@dataclass(frozen=True)
class Number:
    """A number as it was written: its exact value, and after how many decimals it breaks off
    (None for a fraction or an exponent).
    """

    value: Fraction
    decimals: int | None = None

    def __str__(self) -> str:
        """As short as it is exact: a whole number, or one with its decimals, else a fraction."""
        if self.value.denominator == 1:
            return str(self.value.numerator)
        # Up to 12 decimals a float of usual size is written as it was.
        if self.decimals is not None and self.decimals <= 12:
            return f"{float(self.value):.{self.decimals}f}"
        return str(self.value)


@dataclass(frozen=True)
class Reading:
    """What a text says the answer to a question is: a number, which of the choices, or words.

    `said` is empty where nothing could be read. `choice` is the place among the row's choices.
    """

    kind: Kind
    said: str
    right: bool
    choice: int | None = None


def read_answer(row: Row, text: str) -> Reading:
    """Return what a text answers to the question of a row that knows the answer.

    >>> row = Row(question="How many legs have 3 hens?", answer="6")
    >>> read_answer(row, "Each has 2. The answer is 6.")
    Reading(kind='number', said='6', right=True, choice=None)
    """
    answer = row.need("answer")
    kind = kind_of(row)
    if kind == "number":
        number = read_number(text)
        gold = number_of(answer)
        if number is None or gold is None:
            return Reading(kind, str(number or ""), right=False)
        return Reading(kind, str(number), same(number, gold))
    if kind == "choice":
        chosen = read_choice(text, row.choices, row.labels)
        if chosen is None:
            return Reading(kind, "", right=False)
        names = row.labels or row.choices
        return Reading(kind, names[chosen], chosen == names.index(answer), chosen)
    words = normalised(text)
    return Reading(kind, words, bool(words) and words == normalised(answer))


def kind_of(row: Row) -> Kind:
    """Return what the right answer is: one of the choices if there are any, else a number if it
    can be read as one, else words.
    """
    if row.choices and row.answer in (row.labels or row.choices):
        return "choice"
    return "number" if number_of(row.need("answer")) else "words"


def numbers(text: str) -> list[Number]:
    """Return the numbers in a text, in order: `1,200`, `-3`, `.5`, `$18.00`, `50%`, `3/4`, `2 1/2`;
    units and signs of currency are passed over.

    A minus between two numbers is an operation, not a sign; a fraction with nothing below the line
    is no number.

    >>> [str(number) for number in numbers("From $1,200 to 3/4 of it, or -3.50.")]
    ['1200', '3/4', '-3.50']
    """
    parsed: list[Number] = []
    for match in _NUMBER.finditer(text):
        number = _number(match)
        if number is not None:
            parsed.append(number)
    return parsed


def _number(match: re.Match[str]) -> Number | None:
    if len(match[0]) > LONGEST:
        return None
    decimals = None
    if match["plain"]:
        digits = match["plain"].replace(",", "")
        value = Fraction(digits) * Fraction(10) ** int(match["power"] or 0)
        if not match["power"]:
            decimals = len(digits.partition(".")[2])
    else:
        above, _, below = (match["part"] or match["over"]).partition("/")
        if int(below) == 0:
            return None
        value = int(match["whole"] or 0) + Fraction(int(above), int(below))
    if match["sign"] or match["minus"]:
        value = -value
    return Number(value, decimals)


def number_of(text: str) -> Number | None:
    """Return the number that a whole text is, with a unit of currency or a per cent sign at
    most; None if it is anything else.
    """
    match = _NUMBER.fullmatch(text.strip().removesuffix("%"))
    return _number(match) if match else None


def same(answer: Number, gold: Number) -> bool:
    """Return whether they are the same number: whole ones exactly, others but for a millionth.

    An answer that breaks off after two decimals or more is the same as a right one with more than
    four of which it is the rounding: 0.67 is two thirds as a set has them, 0.6666666666666666. It
    isn't 0.675.
    """
    difference = abs(answer.value - gold.value)
    if difference == 0:
        return True
    if answer.value.denominator == gold.value.denominator == 1:
        return False
    if difference <= TOLERANCE * max(1, abs(gold.value)):
        return True
    decimals = answer.decimals or 0
    if decimals < 2 or (gold.decimals or 0) <= 4:
        return False
    return difference <= Fraction(1, 2 * 10**decimals)


def concluded(text: str) -> str | None:
    """Return what stands after the last "answer is", up to the end of its sentence; None if
    nothing of the kind is said.
    """
    matches = list(_CONCLUSION.finditer(text))
    if not matches:
        return None
    conclusion = text[matches[-1].end() :].strip()
    end = _SENTENCE_END.search(conclusion)
    return conclusion[: end.start()] if end else conclusion


def read_number(text: str) -> Number | None:
    """Return the number that a text says the answer is, else the last in it. Of a conclusion `6
    * 3 = 18` it is the one behind the sign of equality.
    """
    conclusion = concluded(text) or ""
    stated = numbers(conclusion.rpartition("=")[2])
    if stated:
        return stated[0]
    anywhere = numbers(text)
    return anywhere[-1] if anywhere else None


def read_choice(text: str, choices: tuple[str, ...], labels: tuple[str, ...] = ()) -> int | None:
    """Return which choice a text names, in its conclusion or else at its beginning: `B`, `(b)`, `B.
    the words` or the words; None if it names none.

    Case, punctuation and the space around words don't matter. A label is one where nothing else is
    written, where a bracket, a full stop, a colon or a comma is put behind it, or the words of its
    choice: the `A` of "A friend" isn't.
    """
    conclusion = concluded(text)
    answer = text if conclusion is None else conclusion
    plain = normalised(answer)
    for candidates in (labels, choices):
        names = [normalised(name) for name in candidates]
        if plain and plain in names:
            return names.index(plain)
    for number, label in enumerate(labels):
        marked = re.match(rf"\s*[(\[]?{re.escape(label)}\s*[).:,\]](?!\d)", answer, re.IGNORECASE)
        if marked or plain == normalised(f"{label} {choices[number]}"):
            return number

    def length(number: int) -> int:
        return len(choices[number])

    # The longest first: what begins with "no answer" begins with "no" too.
    for number in sorted(range(len(choices)), key=length, reverse=True):
        name = normalised(choices[number])
        if name and f"{plain} ".startswith(f"{name} "):
            return number
    return None


def normalised(text: str) -> str:
    """Return a text without case, punctuation (an underscore is a space) and needless space."""
    return " ".join(re.sub(r"[^\w\s]|_", " ", text).casefold().split())
