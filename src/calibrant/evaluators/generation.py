"""Exact match: what a model writes as the answer, after a few examples of how that is done.

`generation(name=gsm8k, shots=3, limit=200)` is the protocol of the original study with its defects
mended. Each task has its own examples, out of the source's `exemplars`, which are neither
calibrated on nor measured; `seed` draws them, no answer a second time before every other has been
shown as often. With `cot=true` they work the answer out and end with "The answer is N." Decoding is
greedy, whatever the model's generation settings say.

A model is stopped by a special token, where it begins another question, or by a blank line; without
`cot` at the end of the first line with anything on it, for nothing behind it is read. What it has
written by then is read as a number where the right answer is one (`1,200`, `$18.00`, `3/4`, units
passed over), as the label or the words of a choice where there are choices, else word by word;
case, punctuation and space don't matter. Of "The answer is N." it is N; without that, the last
number, or the choice that stands first. Nothing is executed.

An answer that can't be read is wrong, as in the study; `answered` says how many could be. `cut` are
those that the limit of tokens ended: by default 256 with `cot` and 20 without, or so many that the
longest right answer fits with 8 to spare.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from transformers import PreTrainedTokenizerBase

from calibrant.data import Format, Row, Source, held_out, start_tokens
from calibrant.data._base import question_text
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._answers import normalised, number_of, read_choice, read_number, same
from calibrant.evaluators._base import MOST_SHOTS, MOST_WRITTEN, SourceEvaluator, Subject
from calibrant.evaluators._decoding import Decoder, Generated
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._prompts import draw_exemplars
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most, identity

BETWEEN: Final = "\n\n"
TOKENS_OF_REASONING: Final = 256
TOKENS_OF_ANSWER: Final = 20
TO_SPARE: Final = 8

Kind = Literal["number", "choice", "words"]


@dataclass(frozen=True, repr=False)
class Generation(SourceEvaluator):
    """How often the answer that a model writes is the right one: greedy decoding after examples,
    exact match of what is read out of it.
    """

    name: str = "gsm8k"
    shots: int = 3
    limit: int = 200
    cot: bool = False
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_most(self, shots=MOST_SHOTS, limit=MOST, max_tokens=MOST_WRITTEN)
        for name, least in (("shots", 0), ("limit", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SpecError(
                    f"generation({name}={value}): {name} must be at least {least}", subject=name
                )

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.name, "qa")

    def rows(self) -> Iterator[Row]:
        """Return the questions of the source's measured part that have an answer."""
        source, _ = self.held_out()
        return (row for row in source.rows("measure") if row.question and row.answer)

    def limited(self, limit: int) -> "Generation":
        """Return the same with the first `limit` questions in the order of their hashes."""
        return replace(self, limit=limit)

    def measure(self, subject: Subject) -> Measurement:
        """Return the share of right answers with one outcome per question: `value` 1 if it is
        right, `extracted` what was read, `tokens`, `cut`.

        Texts are not kept: `extracted` is a number, a label, the letter of a choice, or a hash of
        other words; empty where nothing could be read.
        """
        source, _ = self.held_out()
        tokenizer, journal = subject.tokenizer, subject.journal
        rows = self._measured(source)
        exemplars = self.exemplars(source)
        reader = _AnswerReader(tokenizer, rows, self.cot)
        most = self.max_tokens or reader.most()
        decoder = Decoder(
            subject.model,
            self._prompts(exemplars, rows, tokenizer),
            most,
            reader.ended,
            f"generation of {source}",
        )
        done = 0
        for batch in decoder.batches():
            # A batch of which only a part is kept is decoded again as a whole, so that a run that
            # was killed ends as one that wasn't.
            if not all(rows[number].name in journal for number in batch):
                written = decoder.run(batch)
                journal.add(
                    {
                        rows[n].name: reader.read(rows[n], answer)
                        for n, answer in zip(batch, written, strict=True)
                    }
                )
            done += len(batch)
            subject.progress(f"measuring {self}", done, len(rows))
        results = [journal[row.name] for row in rows]
        outcomes = tuple(
            Outcome(
                row.name,
                float(result["right"]),
                1.0,
                {fact: result[fact] for fact in ("extracted", "tokens", "cut")},
            )
            for row, result in zip(rows, results, strict=True)
        )
        return Measurement(self._score(source, rows, exemplars, outcomes, most), outcomes)

    def exemplars(self, source: Source) -> tuple[Row, ...]:
        """Return the rows that are shown before each question. `DataError` if the source has
        fewer that can be.
        """
        form = held_out(self.name, "cot" if self.cot else "qa")[1] if self.shots else None
        # An example with a blank line in its answer would show the model how to be stopped.
        pool = [
            row
            for row in source.rows("exemplars")
            if form and form.takes(row) and BETWEEN not in f"{row.answer}{row.rationale or ''}"
        ]
        if len(pool) < self.shots:
            raise DataError(
                f"{source} has {len(pool)} exemplars{' with a rationale' if self.cot else ''} and {self.shots} shots were asked for; take fewer",
                subject=str(source),
            )
        return tuple(draw_exemplars(pool, self.seed)[: self.shots])

    def _measured(self, source: Source) -> list[Row]:
        rows = [row for row, _ in zip(self.rows(), range(self.limit), strict=False)]
        if not rows:
            raise DataError(
                f"{source} has no question with an answer to measure on", subject=str(source)
            )
        return rows

    def _prompts(
        self, exemplars: Sequence[Row], rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[int]]:
        form = held_out(self.name, "cot" if self.cot and exemplars else "qa")[1]
        examples = [form.render(example) for example in exemplars]
        texts = [BETWEEN.join([*examples, question_text(row)]) for row in rows]
        return [
            start_tokens(tokenizer)
            + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            for text in texts
        ]

    def _score(
        self,
        source: Source,
        rows: Sequence[Row],
        exemplars: Sequence[Row],
        outcomes: tuple[Outcome, ...],
        most: int,
    ) -> Score:
        n = len(outcomes)
        value, stderr = ratio([o.value for o in outcomes], [o.weight for o in outcomes])
        facts = {
            "shots": self.shots,
            "cot": self.cot,
            "max_tokens": most,
            "exemplars": identity([row.key for row in exemplars]),
            "answered": sum(bool(o.facts["extracted"]) for o in outcomes) / n,
            "cut": sum(bool(o.facts["cut"]) for o in outcomes) / n,
            "tokens": sum(int(o.facts["tokens"]) for o in outcomes),
            "items": identity([o.item for o in outcomes]),
        }
        chance = sum(1 / len(row.choices) if kind_of(row) == "choice" else 0.0 for row in rows) / n
        measured = f"{source}, {self.shots}-shot{', cot' if self.cot else ''}"
        return Score(
            measured, "exact_match", value, stderr, n, "share of questions", "higher", chance, facts
        )


class _AnswerReader:
    """Reads answers out of what a model wrote, and knows when there is nothing more to read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], cot: bool) -> None:
        self.tokenizer, self.rows, self.cot = tokenizer, rows, cot
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = frozenset({*tokenizer.all_special_ids, *special})
        self.opening = re.compile(
            "|".join(rf"(?:^|\n){re.escape(word)}" for word in sorted({*map(_opener, rows)}))
        )
        self.alike = len({row.choices for row in rows}) == 1

    def most(self) -> int:
        """Return how many tokens an answer may have."""
        if self.cot:
            return TOKENS_OF_REASONING
        texts = {
            f" {text}"
            for row in self.rows
            for text in (row.answer or "", *(() if row.labels else row.choices))
        }
        longest = max(
            len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in texts
        )
        return max(TOKENS_OF_ANSWER, longest + TO_SPARE)

    def ended(self, ids: Sequence[int]) -> bool:
        """Return whether these tokens hold a whole answer: a special token came, or what nobody
        reads on behind.
        """
        return ids[-1] in self.special or self._end(self._text(ids)) is not None

    def read(self, row: Row, answer: Generated) -> dict[str, Any]:
        """Return what is kept of an answer."""
        text = self._text(answer.ids)
        extracted, right = self._verdict(row, text[: self._end(text)].strip())
        return {
            "right": right,
            "extracted": extracted,
            "tokens": len(answer.ids),
            "cut": answer.cut,
        }

    def _text(self, ids: Sequence[int]) -> str:
        last = ids[:-1] if ids[-1] in self.special else ids
        return str(
            self.tokenizer.decode(
                list(last), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _end(self, text: str) -> int | None:
        """Where what is read ends; none if more could come. Space before the first word is no
        end.
        """
        begin = len(text) - len(text.lstrip())
        places = [text.find(BETWEEN if self.cot else "\n", begin)] if begin < len(text) else []
        opened = self.opening.search(text)
        ends = [place for place in [*places, opened.start() if opened else -1] if place >= 0]
        return min(ends, default=None)

    def _verdict(self, row: Row, text: str) -> tuple[str, bool]:
        """What was read, as a short word, and whether it is right."""
        answer = row.need("answer")
        if kind_of(row) == "number":
            number, gold = read_number(text), number_of(answer)
            return str(number or ""), number is not None and gold is not None and same(number, gold)
        if kind_of(row) == "choice":
            names = row.labels or (
                row.choices if self.alike else tuple(map(str, range(1, len(row.choices) + 1)))
            )
            chosen = read_choice(text, row.choices, row.labels)
            return (
                ("", False)
                if chosen is None
                else (names[chosen], chosen == (row.labels or row.choices).index(answer))
            )
        words = normalised(text)
        return hashlib.sha256(words.encode()).hexdigest()[:16] * bool(words), bool(
            words
        ) and words == normalised(answer)


def kind_of(row: Row) -> Kind:
    """Return what the right answer is: one of the choices if there are any, else a number if it
    can be read as one, else words.
    """
    if row.choices and row.answer in (row.labels or row.choices):
        return "choice"
    return "number" if number_of(row.need("answer")) else "words"


def _opener(row: Row) -> str:
    """How a question of this kind begins, up to the colon, such as `Question:`."""
    match = re.match(r"\w+:", question_text(row))
    return match[0] if match else "Question:"
