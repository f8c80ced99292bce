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
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from transformers import PreTrainedTokenizerBase

from calibrant.data import Row, lettered, start_tokens
from calibrant.data._base import question_text
from calibrant.evaluators._scoring import Request
from calibrant.evaluators._wrong import by_hash, is_number, wrong_numbers

STYLES: Final = ("cloze", "letters")
BETWEEN: Final = "\n\n"


@dataclass(frozen=True)
class Option:
    """A choice as it is put: what is shown, what is scored, what is shown where only the choice
    itself counts, and the choice's bytes.
    """

    context: str
    continuation: str
    bare: str
    size: int

    @property
    def written(self) -> str:
        """All of it, as an exemplar has it."""
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
"""A row as an item; none if it lacks what is needed."""


def put_for(source: str, style: str | None, choices: bool, numbers: bool) -> Put:
    """Return how rows of a source are put; `numbers` says whether answers without choices are
    numbers to be ranked among wrong ones.
    """
    if not choices:
        return _number if numbers else _free
    if style == "letters":
        return _letters
    return {"winogrande": _gap, "hellaswag": _continued}.get(source, _cloze)


def prompt(exemplars: Sequence[Item]) -> str:
    """Return the text that stands before every question."""
    return "".join(item.right.written + BETWEEN for item in exemplars)


def exemplars(rows: Iterable[Row], put: Put, seed: int) -> list[Item]:
    """Rows as items in the order in which `seed` draws them."""
    return [item for item in map(put, draw_exemplars(rows, seed)) if item is not None]


def draw_exemplars(pool: Iterable[Row], seed: int) -> list[Row]:
    """Return all rows of a pool in an order that `seed` and their content decide: no answer a
    second time before every other one came as often.

    So a few examples of a set with labels show each label, and more of them go on where fewer end.
    """
    seen: dict[str | None, int] = {}
    ranked: list[tuple[int, str, Row]] = []
    for place, row in sorted(
        ((hashlib.sha256(f"{seed} {row.key}".encode()).hexdigest(), row) for row in pool),
        key=lambda pair: pair[0],
    ):
        ranked.append((seen.get(row.answer, 0), place, row))
        seen[row.answer] = seen.get(row.answer, 0) + 1
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])]


class TokenizedTexts:
    """Texts as requests, each text tokenized once. The continuation is what the whole has behind
    the tokens that it shares with its context.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._start = tokenizer, tuple(start_tokens(tokenizer))
        self._known: dict[str, tuple[int, ...]] = {}

    def learn(self, texts: Iterable[str]) -> None:
        """Tokenize texts that will be asked for, all at once: the tokenizer then uses every
        core.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            encoded = self._tokenizer(
                new, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
            self._known.update(zip(new, map(tuple, encoded), strict=True))

    def request(self, context: str, continuation: str) -> Request:
        """Return what is shown and what is scored, behind the start token where the tokenizer
        puts one.
        """
        before, whole = self._ids(context), self._ids(context + continuation)
        # A tokenizer may join the end of a context with what follows; then the token that holds
        # both is scored, for every choice in the same way.
        same = next(
            (at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
            min(len(before), len(whole) - 1),
        )
        return Request(self._start + whole[:same], whole[same:])

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            self._known[text] = tuple(
                self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            )
        return self._known[text]


def _gold(row: Row) -> int | None:
    """Which choice is right; none if no choice is."""
    names = row.labels or row.choices
    return (
        names.index(row.answer)
        if len(row.choices) > 1 and row.answer in names and row.question
        else None
    )


def _cloze(row: Row) -> Item | None:
    gold = _gold(row)
    return None if gold is None else _behind(replace(row, labels=()), row.choices, gold, row.name)


def _letters(row: Row) -> Item | None:
    gold = _gold(row)
    if gold is None:
        return None
    listed = replace(row, labels=row.labels or lettered(row.choices))
    return _behind(listed, listed.labels, gold, row.name)


def _behind(row: Row, answers: Sequence[str], gold: int, name: str) -> Item:
    """Each of the answers behind the question."""
    context, bare = question_text(row), row.frame[1]
    return Item(
        name, tuple(Option(context, f" {answer}", bare, _bytes(answer)) for answer in answers), gold
    )


def _gap(row: Row) -> Item | None:
    gold = _gold(row)
    before, gap, after = row.need("question").partition("_")
    if gold is None or not gap or not after.strip():
        return None
    return Item(
        row.name,
        tuple(
            Option(before + choice, after.rstrip(), choice, _bytes(after.rstrip()))
            for choice in row.choices
        ),
        gold,
    )


def _continued(row: Row) -> Item | None:
    gold = _gold(row)
    if gold is None:
        return None
    question, bare = row.need("question"), row.frame[1]
    return Item(
        row.name,
        tuple(Option(question, f" {choice}", bare, _bytes(choice)) for choice in row.choices),
        gold,
    )


def _number(row: Row) -> Item | None:
    if row.question is None or not is_number(row.answer or ""):
        return None
    answers = sorted(
        [row.need("answer"), *wrong_numbers(row.question, row.need("answer"), row.key)],
        key=lambda text: by_hash(f"place {row.key}", text),
    )
    return replace(
        _behind(row, answers, answers.index(row.need("answer")), row.name), solution=row.rationale
    )


def _free(row: Row) -> Item | None:
    if row.question is None or not (row.answer or "").strip():
        return None
    return replace(_behind(row, [row.need("answer").strip()], 0, row.name), solution=row.rationale)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
