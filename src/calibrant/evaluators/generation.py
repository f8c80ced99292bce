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

With `template=true` the question is asked in the model's own chat template, as it is in use, and
what asks for the answer stands behind it. Shots are earlier turns then. Most instruct models know
what to do without, so give `shots=0`. An answer ends at a special token or at the limit alone, and
is read without its reasoning (`<think>…</think>`, or the template's own tags). The limit is 512
tokens, or 1,024 where the template writes reasoning. `thinking=strip` asks for none, and the limit
is 512 then; `keep` asks for some; `template` leaves that to the template.
"""

import hashlib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

from transformers import PreTrainedTokenizerBase

from calibrant.data import Chat, Format, Message, Row, Source, held_out, start_tokens
from calibrant.data._answers import kind_of, read_answer
from calibrant.data._base import question_text
from calibrant.data._encoding import special_ids
from calibrant.data.packings._base import check_choice
from calibrant.decoding import Decoder, Generated
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import (
    MOST_SHOTS,
    MOST_WRITTEN,
    SourceEvaluator,
    Subject,
    check_least,
    mean_of,
)
from calibrant.evaluators._planning import cache_bytes
from calibrant.evaluators._prompts import BETWEEN, draw_exemplars
from calibrant.evaluators._turns import AssistantTurn, decode_all, prompt_ids
from calibrant.evaluators._windows import token_ids
from calibrant.models import ModelOutline
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most, identity, later
from calibrant.vllm import RunByVllm, VllmDecoder

TOKENS_OF_REASONING: Final = 256
"""The limit of an answer with its reasoning, in tokens."""
TOKENS_OF_TURN: Final = 512
"""The limit of an answer in a chat template. Instruct models explain more than examples do: half of
the answers of Qwen2.5-Coder-1.5B-Instruct to gsm8k have more than 300 tokens.
"""
TOKENS_OF_THINKING: Final = 1024
"""The limit of an answer in a chat template that writes reasoning between tags."""
TOKENS_OF_ANSWER: Final = 20
"""The limit of an answer alone, unless a right answer is longer."""
TO_SPARE: Final = 8
"""Tokens of the limit beyond the longest right answer."""


@dataclass(frozen=True, repr=False)
class Generation(SourceEvaluator):
    """How often the answer that a model writes is the right one: greedy decoding after examples,
    exact match of what is read out of it. `template=true`: asked as a chat.
    """

    name: str = "gsm8k"
    shots: int = 3
    limit: int = 200
    cot: bool = False
    max_tokens: int | None = None
    seed: int = 0
    template: bool = later(False)
    thinking: str = later("template")

    def __post_init__(self) -> None:
        check_most(self, shots=MOST_SHOTS, limit=MOST, max_tokens=MOST_WRITTEN)
        check_least(self, shots=0, limit=1, max_tokens=1)
        check_choice("thinking", self.thinking, ("template", "keep", "strip"))
        if self.thinking != "template" and not self.template:
            raise SpecError(
                f"{self}: only a chat template is told whether to think; give template=true, or "
                "leave thinking out",
                subject="thinking",
            )

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.name, "qa")

    def rows(self) -> Iterator[Row]:
        """Return the questions of the source's measured part that have an answer."""
        source, _ = self.held_out()
        return (row for row in source.rows("measure") if row.question and row.answer)

    @property
    def longest_answer(self) -> int:
        """`max_tokens`. Without it the most that is usual: it is less where the template writes no
        reasoning, and more where a right answer is long.
        """
        if self.max_tokens is not None:
            return self.max_tokens
        if not self.template:
            return TOKENS_OF_REASONING if self.cot else TOKENS_OF_ANSWER
        if self.thinking == "strip":
            return TOKENS_OF_TURN
        return TOKENS_OF_THINKING

    def work_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        return cache_bytes(outlines[0], self.longest_answer)

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
        rows = list(itertools.islice(self.rows(), self.limit))
        if not rows:
            raise DataError(
                f"{source} has no question with an answer to measure on", subject=str(source)
            )
        exemplars = self.exemplars(source)
        reader = self._reader(subject, rows)
        most = self.max_tokens or reader.most
        prompts = self._prompts(exemplars, rows, subject.tokenizer)
        measured = f"generation of {source}"
        if isinstance(subject.model, RunByVllm):
            decoder = VllmDecoder(subject.model, prompts, most, reader.ended, measured)
        else:
            decoder = Decoder(subject.model, prompts, most, reader.ended, measured)

        def read(number: int, answer: Generated) -> dict[str, Any]:
            return reader.read(rows[number], answer)

        names = [row.name for row in rows]
        results = decode_all(decoder, names, read, subject, f"measuring {self}")
        outcomes: list[Outcome] = []
        for name, result in zip(names, results, strict=True):
            facts = {fact: result[fact] for fact in ("extracted", "tokens", "cut")}
            outcomes.append(Outcome(name, float(result["right"]), 1.0, facts))
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
        format_name = "cot" if cot else "qa"
        _, form = held_out(self.name, format_name)
        return form

    def _reader(self, subject: Subject, rows: Sequence[Row]) -> "_AnswerReader":
        if not self.template:
            return _TextReader(subject.tokenizer, rows, self.cot)
        turn = AssistantTurn.of(subject.model, subject.tokenizer, self._chat)
        return _TurnReader(rows, turn, self.thinking)

    @property
    def _chat(self) -> Chat:
        """The format in which questions are asked in the model's template."""
        return Chat(thinking=self.thinking, generation_prompt=True)

    def _prompts(
        self, exemplars: Sequence[Row], rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[int]]:
        # Without exemplars nothing shows the model how to reason.
        form = self._form(self.cot and len(exemplars) > 0)
        examples = [form.render(example) for example in exemplars]
        prompts: list[list[int]] = []
        if self.template:
            turns: list[Message] = []
            for exemplar, example in zip(exemplars, examples, strict=True):
                answer = example.removeprefix(question_text(exemplar)).strip()
                turns += [_asked(exemplar), Message("assistant", answer)]
            for row in rows:
                asked = Row(turns=(*turns, _asked(row)))
                prompts.append(prompt_ids(asked, self._chat, tokenizer))
            return prompts
        start = start_tokens(tokenizer)
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
        answered = sum(bool(outcome.facts["extracted"]) for outcome in outcomes)
        cut = sum(bool(outcome.facts["cut"]) for outcome in outcomes)
        facts = {
            "shots": self.shots,
            "cot": self.cot,
            "max_tokens": most,
            "exemplars": identity([row.key for row in exemplars]),
            "answered": answered / count,
            "cut": cut / count,
            "tokens": sum(int(outcome.facts["tokens"]) for outcome in outcomes),
            "items": identity([outcome.item for outcome in outcomes]),
        }
        # Nobody guesses a number or words.
        with_choices = [row for row in rows if kind_of(row) == "choice"]
        chance = sum(1 / len(row.choices) for row in with_choices) / count
        measured = f"{source}, {self.shots}-shot"
        if self.cot:
            measured += ", cot"
        if self.template:
            measured += ", in the template"
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


class _AnswerReader(ABC):
    """Reads answers out of what a model wrote, and knows when there is nothing more to read."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.same_choices = len({row.choices for row in rows}) == 1

    @property
    @abstractmethod
    def most(self) -> int:
        """How many tokens an answer may have."""

    @abstractmethod
    def ended(self, ids: Sequence[int]) -> bool:
        """Return whether these tokens hold a whole answer."""

    @abstractmethod
    def _said(self, ids: Sequence[int]) -> str:
        """Return the text out of which the answer is read."""

    def read(self, row: Row, answer: Generated) -> dict[str, Any]:
        """Return what is kept of an answer."""
        extracted, right = self._verdict(row, self._said(answer.ids))
        return {
            "right": right,
            "extracted": extracted,
            "tokens": len(answer.ids),
            "cut": answer.cut,
        }

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


@final
class _TextReader(_AnswerReader):
    """Reads what stands behind `Answer:`. It ends at a special token, or before text that nobody
    reads on behind.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], cot: bool) -> None:
        super().__init__(rows)
        self.tokenizer = tokenizer
        self.cot = cot
        self.special = special_ids(tokenizer)
        openers = sorted(set(map(_opener, rows)))
        patterns = [rf"(?:^|\n){re.escape(opener)}" for opener in openers]
        self.question_opening = re.compile("|".join(patterns))

    @property
    def most(self) -> int:
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
        return ids[-1] in self.special or self._end(self._text(ids)) is not None

    def _said(self, ids: Sequence[int]) -> str:
        text = self._text(ids)
        return text[: self._end(text)].strip()

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
        # An answer alone is one line; reasoning goes on until a blank one.
        ending = BETWEEN if self.cot else "\n"
        begin = len(text) - len(text.lstrip())
        stop = text.find(ending, begin)
        if begin < len(text) and stop >= 0:
            ends.append(stop)
        return min(ends, default=None)


@final
class _TurnReader(_AnswerReader):
    """Reads an answer in a chat template, without its reasoning."""

    def __init__(self, rows: Sequence[Row], turn: AssistantTurn, thinking: str) -> None:
        super().__init__(rows)
        self.turn = turn
        self.thinking = thinking

    @property
    def most(self) -> int:
        if self.turn.thinks and self.thinking != "strip":
            return TOKENS_OF_THINKING
        return TOKENS_OF_TURN

    def ended(self, ids: Sequence[int]) -> bool:
        return self.turn.ended(ids)

    def _said(self, ids: Sequence[int]) -> str:
        return self.turn.answer(self.turn.text(ids))


def _asked(row: Row) -> Message:
    """Return a row's question as a user asks it in a chat."""
    conversation = Chat().conversation(replace(row, turns=()))
    return conversation.messages[0]


def _opener(row: Row) -> str:
    """Return how a question of this kind begins, up to the colon, such as `Question:`."""
    match = re.match(r"\w+:", question_text(row))
    return match[0] if match else "Question:"
