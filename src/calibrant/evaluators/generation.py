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
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from calibrant.data import Format, Row, Source, held_out, start_tokens
from calibrant.data._answers import kind_of, read_answer
from calibrant.data._base import question_text
from calibrant.decoding import Decoder, Generated
from calibrant.errors import DataError
from calibrant.evaluators._base import (
    MOST_SHOTS,
    MOST_WRITTEN,
    SourceEvaluator,
    Steps,
    Subject,
    check_least,
    mean_of,
)
from calibrant.evaluators._prompts import BETWEEN, draw_exemplars
from calibrant.evaluators._windows import token_ids
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most, identity

TOKENS_OF_REASONING: Final = 256
"""The limit of an answer with its reasoning, in tokens."""
TOKENS_OF_ANSWER: Final = 20
"""The limit of an answer alone, unless a right answer is longer."""
TO_SPARE: Final = 8
"""Tokens of the limit beyond the longest right answer."""


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
        check_least(self, shots=0, limit=1, max_tokens=1)

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
        journal = subject.journal
        rows = list(itertools.islice(self.rows(), self.limit))
        if not rows:
            raise DataError(
                f"{source} has no question with an answer to measure on", subject=str(source)
            )
        exemplars = self.exemplars(source)
        reader = _AnswerReader(subject.tokenizer, rows, self.cot)
        most = self.max_tokens or reader.most()
        prompts = self._prompts(exemplars, rows, subject.tokenizer)
        decoder = Decoder(subject.model, prompts, most, reader.ended, f"generation of {source}")
        steps = Steps(subject.progress, f"measuring {self}", len(rows))
        for batch in decoder.batches():
            # A batch of which only a part is kept is decoded again as a whole, so that a run that
            # was killed ends as one that wasn't.
            if not all(rows[number].name in journal for number in batch):
                entries: dict[str, Any] = {}
                for number, answer in zip(batch, decoder.run(batch), strict=True):
                    entries[rows[number].name] = reader.read(rows[number], answer)
                journal.add(entries)
            steps.add(len(batch))
        outcomes: list[Outcome] = []
        for row in rows:
            result = journal[row.name]
            facts = {fact: result[fact] for fact in ("extracted", "tokens", "cut")}
            outcomes.append(Outcome(row.name, float(result["right"]), 1.0, facts))
        score = self._score(source, rows, exemplars, outcomes, most)
        return Measurement(score, tuple(outcomes))

    def exemplars(self, source: Source) -> Sequence[Row]:
        """Return the rows that are shown before each question. `DataError` if the source has
        fewer that can be.
        """
        if not self.shots:
            return ()
        form = self._form(self.cot)
        # An example with a blank line in its answer would show the model how to be stopped.
        pool: list[Row] = []
        for row in source.rows("exemplars"):
            if form.takes(row) and BETWEEN not in f"{row.answer}{row.rationale or ''}":
                pool.append(row)
        if len(pool) < self.shots:
            with_rationale = " with a rationale" if self.cot else ""
            raise DataError(
                f"{source} has {len(pool)} exemplars{with_rationale} and {self.shots} shots were "
                f"asked for; take fewer",
                subject=str(source),
            )
        return draw_exemplars(pool, self.seed)[: self.shots]

    def _form(self, cot: bool) -> Format:
        return held_out(self.name, "cot" if cot else "qa")[1]

    def _prompts(
        self, exemplars: Sequence[Row], rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[int]]:
        # Without exemplars nothing shows the model how to reason.
        form = self._form(self.cot and len(exemplars) > 0)
        examples = [form.render(example) for example in exemplars]
        start = start_tokens(tokenizer)
        prompts: list[list[int]] = []
        for row in rows:
            text = BETWEEN.join([*examples, question_text(row)])
            prompts.append([*start, *token_ids(tokenizer, text)])
        return prompts

    def _score(
        self,
        source: Source,
        rows: Sequence[Row],
        exemplars: Sequence[Row],
        outcomes: Sequence[Outcome],
        most: int,
    ) -> Score:
        count = len(outcomes)
        facts = {
            "shots": self.shots,
            "cot": self.cot,
            "max_tokens": most,
            "exemplars": identity([row.key for row in exemplars]),
            "answered": sum(bool(outcome.facts["extracted"]) for outcome in outcomes) / count,
            "cut": sum(bool(outcome.facts["cut"]) for outcome in outcomes) / count,
            "tokens": sum(int(outcome.facts["tokens"]) for outcome in outcomes),
            "items": identity([outcome.item for outcome in outcomes]),
        }
        # Nobody guesses a number or words.
        with_choices = [row for row in rows if kind_of(row) == "choice"]
        chance = sum(1 / len(row.choices) for row in with_choices) / count
        measured = f"{source}, {self.shots}-shot"
        if self.cot:
            measured += ", cot"
        right, error = mean_of(outcomes)
        return Score(
            measured=measured,
            metric="exact_match",
            value=right,
            stderr=error,
            n=count,
            unit="share of questions",
            better="higher",
            chance=chance,
            facts=facts,
        )


class _AnswerReader:
    """Reads answers out of what a model wrote, and knows when there is nothing more to read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], cot: bool) -> None:
        self.tokenizer = tokenizer
        self.rows = rows
        self.cot = cot
        added = tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        self.special = frozenset({*tokenizer.all_special_ids, *special})
        openers = sorted(set(map(_opener, rows)))
        self.question_opening = re.compile(
            "|".join(rf"(?:^|\n){re.escape(word)}" for word in openers)
        )
        self.same_choices = len({row.choices for row in rows}) == 1

    def most(self) -> int:
        """Return how many tokens an answer may have."""
        if self.cot:
            return TOKENS_OF_REASONING
        answers: set[str] = set()
        for row in self.rows:
            answers.add(row.answer or "")
            if not row.labels:
                answers.update(row.choices)
        longest = max(len(token_ids(self.tokenizer, f" {answer}")) for answer in answers)
        return max(TOKENS_OF_ANSWER, longest + TO_SPARE)

    def ended(self, ids: Sequence[int]) -> bool:
        """Return whether these tokens hold a whole answer: a special token came, or text that
        nobody reads on behind.
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
        written = ids[:-1] if ids[-1] in self.special else ids
        # Not cleaned up, which would move spaces: the end is looked for by letters.
        text = self.tokenizer.decode(
            list(written), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _end(self, text: str) -> int | None:
        """Return where the part that is read ends; None if more could come. Space before the first
        word is no end.
        """
        ends: list[int] = []
        opened = self.question_opening.search(text)
        if opened:
            ends.append(opened.start())
        begin = len(text) - len(text.lstrip())
        stop = text.find(BETWEEN if self.cot else "\n", begin)
        if begin < len(text) and stop >= 0:
            ends.append(stop)
        return min(ends, default=None)

    def _verdict(self, row: Row, text: str) -> tuple[str, bool]:
        """Return what was read, as a short word, and whether it is right."""
        reading = read_answer(row, text)
        # The words of an answer or of a choice would be text of the data set, which isn't kept. A
        # label, or a choice that all questions have, says nothing of it.
        if reading.kind == "words" and reading.said:
            return hashlib.sha256(reading.said.encode()).hexdigest()[:16], reading.right
        if reading.choice is not None and not row.labels and not self.same_choices:
            return str(reading.choice + 1), reading.right
        return reading.said, reading.right


def _opener(row: Row) -> str:
    """Return how a question of this kind begins, up to the colon, such as `Question:`."""
    match = re.match(r"\w+:", question_text(row))
    return match[0] if match else "Question:"
