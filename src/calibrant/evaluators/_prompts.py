"""How a question is put so that its answers can be ranked: what is shown, what is scored, and what
the score is corrected by.

Each way of putting a question gives an option per choice. The right option, written out, is also
what an exemplar of a few-shot prompt is.

- `cloze`: `Question: …`, `Answer:`, and the choice's own text; the choices aren't listed. So are
  labels that are words, of inference and of yes/no.
- `letters`: the choices are listed, and the label of each is scored.
- WinoGrande (cloze) puts the choice into the gap and scores what follows the gap, which is the same
  for both (partial evaluation, Trinh and Le 2018, arXiv:1806.02847); HellaSwag (cloze) scores the
  ending right behind its context. Both as lm-eval does.

The likelihood of a choice without its question is that behind the bare `Answer:`. A WinoGrande
sentence has none, and its rest is scored behind the name alone instead.

A problem whose answer is a number gets three wrong numbers that could pass for an answer, one of
each kind, which of them the hash of the problem says:

- *near*: one more, or one less;
- *slip*: ten times as much, a tenth if that has no more decimals, or two neighbouring digits
  swapped;
- *operation*: the sum, the difference or the product of two numbers of the question.

Where a kind has none (the question has no two numbers), the next of two more, two less, three more,
… takes its place. All are different, are written with the decimals of the answer and are at most
ten times as large or as small, unless the question holds all of these. None is negative unless the
answer is, and none stands in the question unless the answer does: a model that only copies would
prefer it, and be worse than chance.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, final

from transformers import PreTrainedTokenizerBase

from calibrant.data import Row, lettered, start_tokens
from calibrant.data._base import question_text
from calibrant.decoding import common_length
from calibrant.evaluators._scoring import Request
from calibrant.evaluators._windows import token_ids

STYLES: Final = ("cloze", "letters")
BETWEEN: Final = "\n\n"

_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_NUMBER_IN_TEXT: Final = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\w])", re.ASCII)
_LONGEST: Final = 18
"""Digits of a number; a longer one is a name."""
_MOST_COMBINED: Final = 8
"""Numbers of a question that are combined with one another: its first ones."""


@dataclass(frozen=True)
class Option:
    """A choice as it is put: what is shown, what is scored, what is shown where only the choice
    itself counts, and the bytes of what is scored.
    """

    context: str
    continuation: str
    bare: str
    size: int

    @property
    def written(self) -> str:
        """The whole option, as an exemplar has it."""
        return self.context + self.continuation


@dataclass(frozen=True)
class Item:
    """A question with its options, of which `gold` is right, and the worked solution if it has
    one.
    """

    name: str
    options: tuple[Option, ...]
    gold: int = 0
    solution: str | None = None

    @property
    def right(self) -> Option:
        """The right option."""
        return self.options[self.gold]


Put = Callable[[Row], Item | None]
"""Makes an item of a row; None of a row that lacks what is needed."""


def put_for(source: str, style: str | None, choices: bool, numbers: bool) -> Put:
    """Return how rows of a source are put; `numbers` says whether answers without choices are
    numbers to be ranked among wrong ones.
    """
    if not choices:
        return _number if numbers else _free
    if style == "letters":
        return _letters
    return {"winogrande": _gap, "hellaswag": _continued}.get(source, _cloze)


def put_all(rows: Iterable[Row], put: Put) -> Iterator[Item]:
    """Yield the items of the rows that have what is needed."""
    for row in rows:
        item = put(row)
        if item is not None:
            yield item


def draw_exemplars(pool: Iterable[Row], seed: int) -> list[Row]:
    """Return all rows of a pool in an order that `seed` and their content decide: no answer comes
    again before every other one has come as often.

    So a few examples of a set with labels show each label. Three examples are the first three of
    five.
    """

    def order(row: Row) -> str:
        return by_hash(str(seed), row.key)

    rows = sorted(pool, key=order)
    times_shown: dict[str | None, int] = {}
    rounds: dict[int, list[Row]] = {}
    for row in rows:
        number = times_shown.get(row.answer, 0)
        times_shown[row.answer] = number + 1
        rounds.setdefault(number, []).append(row)
    return list(itertools.chain.from_iterable(rounds.values()))


class TokenizedTexts:
    """Texts as requests, each text tokenized once. The continuation is what the whole has behind
    the tokens that it shares with its context.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._start = tuple(start_tokens(tokenizer))
        self._known: dict[str, tuple[int, ...]] = {}

    def learn(self, texts: Iterable[str]) -> None:
        """Tokenize texts that will be asked for, all at once: the tokenizer then uses every
        core.
        """
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        if unknown:
            encoded = self._tokenizer(
                unknown, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
            self._known.update(zip(unknown, map(tuple, encoded), strict=True))

    def request(self, context: str, continuation: str) -> Request:
        """Return what is shown and what is scored, behind the start token where the tokenizer
        puts one.
        """
        before = self._ids(context)
        whole = self._ids(context + continuation)
        # A tokenizer may join the end of a context with what follows; then the token that holds
        # both is scored, for every choice in the same way. At least one token is scored.
        shared = min(common_length(before, whole), len(whole) - 1)
        return Request(self._start + whole[:shared], whole[shared:])

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            self._known[text] = tuple(token_ids(self._tokenizer, text))
        return self._known[text]


def _gold(row: Row) -> int | None:
    """Return which choice is right; None if no choice is."""
    names = row.labels or row.choices
    if len(row.choices) < 2 or row.answer not in names or not row.question:
        return None
    # The likelihood of an empty choice says nothing, and by its length it can't be divided.
    if "" in row.choices:
        return None
    return names.index(row.answer)


def _cloze(row: Row) -> Item | None:
    gold = _gold(row)
    if gold is None:
        return None
    return _item_after_question(replace(row, labels=()), row.choices, gold, row.name)


def _letters(row: Row) -> Item | None:
    gold = _gold(row)
    if gold is None:
        return None
    listed = replace(row, labels=row.labels or lettered(row.choices))
    return _item_after_question(listed, listed.labels, gold, row.name)


def _item_after_question(row: Row, answers: Sequence[str], gold: int, name: str) -> Item:
    """Return an item with each of the answers behind the question."""
    return _item(name, question_text(row), answers, row.frame[1], gold)


def _item(name: str, context: str, answers: Sequence[str], bare: str, gold: int) -> Item:
    options = [Option(context, f" {answer}", bare, _bytes(answer)) for answer in answers]
    return Item(name, tuple(options), gold)


def _gap(row: Row) -> Item | None:
    gold = _gold(row)
    before, gap, after = row.need("question").partition("_")
    scored = after.rstrip()
    if gold is None or not gap or not scored:
        return None
    options = [Option(before + choice, scored, choice, _bytes(scored)) for choice in row.choices]
    return Item(row.name, tuple(options), gold)


def _continued(row: Row) -> Item | None:
    gold = _gold(row)
    if gold is None:
        return None
    return _item(row.name, row.need("question"), row.choices, row.frame[1], gold)


def _number(row: Row) -> Item | None:
    if row.question is None or not is_number(row.answer or ""):
        return None
    answer = row.need("answer")

    def order(text: str) -> str:
        return by_hash(f"place {row.key}", text)

    answers = sorted([answer, *wrong_numbers(row.question, answer, row.key)], key=order)
    item = _item_after_question(row, answers, answers.index(answer), row.name)
    return replace(item, solution=row.rationale)


def _free(row: Row) -> Item | None:
    if row.question is None or not (row.answer or "").strip():
        return None
    item = _item_after_question(row, [row.need("answer").strip()], 0, row.name)
    return replace(item, solution=row.rationale)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def is_number(text: str) -> bool:
    """Return whether an answer is a plain number, such as -12 or 3.50."""
    return bool(_NUMBER.fullmatch(text)) and len(text) <= _LONGEST


def by_hash(key: str, text: str) -> str:
    """Return what `text` is sorted by among others that belong to `key`: a hash, so that the order
    says nothing about them.
    """
    return hashlib.sha256(f"{key} {text}".encode("utf-8", "surrogatepass")).hexdigest()


def wrong_numbers(question: str, answer: str, key: str) -> tuple[str, str, str]:
    """Return three wrong numbers beside `answer`, by the rule above."""
    value = Decimal(answer)
    decimals = len(answer.partition(".")[2])
    numbers = list(dict.fromkeys(_numbers(question)))
    # A model that only copies would prefer a number of the question.
    excluded = [value]
    if value not in numbers:
        excluded += numbers
    rule = _WrongNumberRule(value, decimals, excluded)

    def order(text: str) -> str:
        return by_hash(key, text)

    chosen: list[str] = []
    # Shared by the kinds: what one of them tried, the next doesn't try again.
    substitutes = rule.substitutes()
    for kind in (_near(value), _slips(answer, value), _operations(numbers)):
        fitting = [candidate for candidate in kind if rule.fits(candidate)]
        if not fitting:
            fitting = [next(substitutes)]
        texts = [_with_decimals(number, decimals) for number in fitting]
        wrong = min(texts, key=order)
        chosen.append(wrong)
        rule.exclude(Decimal(wrong))
    near, slip, operation = chosen
    return near, slip, operation


@final
class _WrongNumberRule:
    """Says which numbers can stand beside the right one, `value`, which has `decimals` decimals.
    What is `excluded` can't.
    """

    def __init__(self, value: Decimal, decimals: int, excluded: Iterable[Decimal]) -> None:
        self._value = value
        self._decimals = decimals
        self._excluded = list(excluded)
        self._largest = 10 * max(abs(value), Decimal(1))

    def exclude(self, number: Decimal) -> None:
        """Let a number stand beside the right one no more."""
        self._excluded.append(number)

    def fits(self, candidate: Decimal) -> bool:
        """Return whether a number could pass for the answer."""
        if abs(self._value) > 10 * max(abs(candidate), 1):
            return False
        # Before it is rounded: a number with too many digits can't be.
        if abs(candidate) > self._largest:
            return False
        return self._fits_but_for_size(candidate)

    def substitutes(self) -> Iterator[Decimal]:
        """Yield what takes the place of a kind that has no number that fits, the nearest first."""
        for candidate in _further(self._value):
            # The question may hold every number that is near enough.
            too_far = abs(candidate - self._value) > self._largest + abs(self._value)
            if self.fits(candidate) or (too_far and self._fits_but_for_size(candidate)):
                yield candidate

    def _fits_but_for_size(self, candidate: Decimal) -> bool:
        """Return whether nothing but its size speaks against a number."""
        if candidate in self._excluded or candidate != round(candidate, self._decimals):
            return False
        return candidate >= 0 or self._value < 0


def _near(value: Decimal) -> Iterator[Decimal]:
    yield value + 1
    yield value - 1


def _further(value: Decimal) -> Iterator[Decimal]:
    for step in itertools.count(2):
        yield value + step
        yield value - step


def _slips(answer: str, value: Decimal) -> Iterator[Decimal]:
    yield value * 10
    yield value / 10
    for place in range(len(answer) - 1):
        pair = answer[place : place + 2]
        swapped = answer[:place] + pair[::-1] + answer[place + 2 :]
        if pair.isdecimal() and not re.match(r"-?0\d", swapped):
            yield Decimal(swapped)


def _operations(numbers: Sequence[Decimal]) -> Iterator[Decimal]:
    for first, second in itertools.combinations(numbers[:_MOST_COMBINED], 2):
        yield first + second
        yield abs(first - second)
        yield first * second


def _numbers(question: str) -> Iterator[Decimal]:
    """Yield the numbers of a question that are written in digits."""
    for digits in _NUMBER_IN_TEXT.findall(question):
        if len(digits) <= _LONGEST:
            yield Decimal(digits.replace(",", ""))


def _with_decimals(number: Decimal, decimals: int) -> str:
    """Return a number with that many decimals."""
    return f"{number:.{decimals}f}"
