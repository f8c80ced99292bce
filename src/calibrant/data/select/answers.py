"""Own answers: the model that is to be compressed answers prompts in its chat template (on-policy
data, as in RAC, arXiv 2509.12464).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from calibrant.data import Chat, Conversation, Message, Row, Source, start_tokens
from calibrant.data._answers import kind_of, read_answer
from calibrant.data._conversations import first_exchange, without_tags
from calibrant.data._encoding import IdEncoder
from calibrant.data._templates import RefusedError, templated
from calibrant.data.expression import parse_source
from calibrant.data.packings._base import check_choice
from calibrant.data.select._base import (
    MOST,
    Context,
    Selection,
    Selector,
    calibrate_rows,
    check_between,
    dealt_rows,
)
from calibrant.data.select._generating import (
    LEAST,
    MARGIN,
    PATIENCE,
    Batches,
    identifying,
    known_logits,
    looped,
    most_likely,
    pick_likely,
    texts_of_round,
)
from calibrant.data.user_file import UserFile
from calibrant.decoding import Decoder
from calibrant.errors import DataError, SpecError
from calibrant.models import Opened
from calibrant.models.readable import longest_text
from calibrant.models.reading import end_tokens
from calibrant.spec import later
from calibrant.spec.grammar import read_sum
from calibrant.vllm import OpenInVllm, VllmSampling

REVISION: Final = 1
"""Raised when the same question gives other answers than before."""

ENGINES: Final = ("torch", "vllm")
"""What can write answers."""
_SEEDS_BELOW: Final = 2**62
"""Seeds that vLLM draws tokens by are numbers below it."""
_ASKS_NOTHING: Final = "rows that ask nothing"
_KNOWS_NOTHING: Final = "rows without an answer that can be compared"
_REFUSED: Final = "refused by the template"
_TOO_LONG: Final = "too long for a window"
_ANSWER: Final = "\x02answer\x03"
"""Stands for an answer where it is looked for what a template writes behind one."""


@dataclass(frozen=True, repr=False)
class Answers(Selector):
    """The model that is to be compressed answers the prompts of `source` in its chat template; what
    it says itself is calibrated on.

    A prompt is a question as `chat` puts it, or of a conversation all that stands before the
    assistant's last turn, with its tools. `system` and `thinking` are those of `chat`. The next
    token is drawn after `temperature` (0: always the most likely) and `top_p`, until the model ends
    its turn or has written `max_tokens`. The rows are conversations, rendered by `chat` unless the
    expression names another format; reasoning and calls of functions stand apart in them, as in
    conversations that are read. Where the template writes an answer in other tokens than the model
    did, the note counts it.

    `n` answers are written to a prompt. Dropped and counted are those without words, loops, those
    that don't end, those too long for a window, and copies. `keep="right"` also drops wrong ones.
    It asks only where the right answer is a number or one of several choices; that of a
    conversation is its last. `keep="shortest"` keeps of a prompt's answers that are left only the
    shortest. Where the right answer is such a one, wrong ones are dropped before.

    Answers come in rounds of about `batch` (more are faster and take more memory) until those that
    are left have the wanted tokens and a twentieth more. Draw d takes the next `candidates` rows of
    the source's calibrate part in their fixed order, round and round, each time with other chance.
    `disjoint` counts prompts.

    `engine="vllm"` has vLLM write the answers, in the type that the model has here. It draws by
    chance of its own, so it writes other answers.
    """

    after = "RAC 2025 (abstract)"
    source: str = "gsm8k"
    temperature: float = 0.7
    top_p: float = 0.95
    n: int = 1
    keep: str = "all"
    thinking: str = "template"
    system: str = ""
    max_tokens: int = 512
    candidates: int = 64
    batch: int = 32
    engine: str = later("torch")

    kind = "questions"
    licence = (
        "none of its own: what a model writes; see those of the model and of the source of its "
        "prompts"
    )
    homepage = "https://arxiv.org/abs/2509.12464"
    fields = ("question", "answer", "turns")
    sometimes = ("tools",)

    def __post_init__(self) -> None:
        check_between(
            self,
            temperature=(0, MOST),
            top_p=(LEAST, 1),
            n=(1, MOST),
            max_tokens=(1, MOST),
            candidates=(1, MOST),
            batch=(1, MOST),
        )
        check_choice("keep", self.keep, ("all", "right", "shortest"))
        check_choice("engine", self.engine, ENGINES)
        if self.greedy and self.n > 1:
            raise SpecError(
                f"answers(n={self.n}, temperature={self.temperature}): without chance all answers "
                "to a prompt are the same; raise temperature, or take n=1",
                subject="n",
            )
        # What it asks with is what it is read with, unless the expression says otherwise. The
        # format also refuses another `thinking`.
        object.__setattr__(self, "default", str(self._form))
        self._check_source()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < LEAST

    @property
    def origins(self) -> tuple[Source, ...]:
        """The source of the prompts."""
        return (self._asked_source,)

    def measured(self) -> Source:
        """Return the source of the prompts."""
        return self._asked_source

    def disjoint(self) -> int | None:
        """Return how often the rows that prompts come from suffice for as many as a draw takes."""
        return max(1, len(calibrate_rows(self._asked_source)) // self.candidates)

    def select(self, context: Context) -> Selection:
        """Return answered conversations until they suffice. `DataError` for a model without a chat
        template, if no prompt can be used, or if too little is left of what is written. What vLLM
        can't run is a `ModelError`, and `MissingPackageError` is raised where it isn't installed.
        """
        opened = context.model(self)
        if not context.tokenizer.chat_template:
            raise DataError(
                f"{self} needs a model with a chat template, and this one's tokenizer has none; "
                "use selfgen, or an instruction-tuned model",
                subject=str(self),
            )
        if self.engine == "torch":
            return _Answering(self, context, opened).selection()
        with OpenInVllm(opened) as in_vllm:
            return _Answering(self, context, opened, in_vllm).selection()

    @property
    def _form(self) -> Chat:
        return Chat(thinking=self.thinking)

    @property
    def _asked_source(self) -> Source:
        return _source_alone(self.source)

    def _check_source(self) -> None:
        source = self._asked_source
        if isinstance(source, Selector) or source.kind == "control":
            raise SpecError(
                f"answers(source={self.source!r}): prompts come from rows with a question or a "
                "conversation; name a question set",
                subject=self.source,
            )
        fields = {*source.fields, *source.sometimes}
        if not fields & {"question", "turns"}:
            raise SpecError(
                f"answers(source={self.source!r}): its rows have {', '.join(source.fields)}, and "
                "nobody asks anything; name a question set, or use selfgen",
                subject=self.source,
            )
        if self.keep == "right" and "answer" not in fields:
            raise SpecError(
                f"answers(source={self.source!r}, keep='right'): its rows know no answers; take "
                "keep='all' or 'shortest'",
                subject=self.source,
            )


@lru_cache(maxsize=64)
def _source_alone(text: str) -> Source:
    """Return the source that is named without a format, so one without answers too. `SpecError` for
    a sum, and where a format or a packing is named.
    """
    part, *others = read_sum(text)
    if others or part.format is not None or part.packing is not None:
        raise SpecError(
            f"answers(source={text!r}): prompts come from one source, and the template is their "
            "format; name a source alone, such as gsm8k",
            subject=text,
        )
    source = parse_source(part.source)
    if isinstance(source, UserFile):
        source.check_calibrates()
    return source


@dataclass(frozen=True)
class _Asked:
    """What the model is asked: the row that it comes from, with the right answer where it is known;
    the conversation so far; and its tokens in the template, with what asks for an answer.
    """

    row: Row
    conversation: Conversation
    ids: tuple[int, ...]

    @property
    def question(self) -> str:
        """The last question: that of a conversation's row is its first one."""
        if not self.row.turns and self.row.question:
            return self.row.question
        for message in reversed(self.conversation.messages):
            if message.role == "user":
                return message.content or ""
        return ""

    def answered(self, message: Message) -> Row:
        """Return the conversation with its answer."""
        return Row(
            question=self.question,
            answer=message.content or message.said,
            turns=(*self.conversation.messages, message),
            tools=self.conversation.tools,
        )


@dataclass(frozen=True)
class _Answer:
    """A conversation that was answered. `fault` says why it can't be used; where it can, `tokens`
    are those of the conversation in its template, `written` those that the model wrote, and
    `exact` says whether the former hold the latter as they are.
    """

    row: Row
    fault: str = ""
    tokens: int = 0
    written: int = 0
    exact: bool = True


class _Answering:
    """The answers of one draw, round by round: written in vLLM where the model is given to it."""

    def __init__(
        self,
        selector: Answers,
        context: Context,
        opened: Opened,
        in_vllm: OpenInVllm | None = None,
    ) -> None:
        self._selector = selector
        self._context = context
        self._opened = opened
        self._in_vllm = in_vllm
        self._encoder = IdEncoder(context.tokenizer)
        self._form = Chat(thinking=selector.thinking)
        self._room = context.length - len(start_tokens(context.tokenizer))
        self._most = min(selector.max_tokens, self._room - 1)
        self._faults: Counter[str] = Counter()
        self._prompts = self._all_prompts()
        self._ends = end_tokens(opened.model, opened.tokenizer) | self._ends_of_turns()
        self._vocabulary = len(context.tokenizer)
        facts = identifying(selector, context, opened, self._ends)
        facts["answered"] = REVISION
        facts["prompts"] = [prompt.ids for prompt in self._prompts]
        if in_vllm is not None:
            # Other versions of it compute in other ways.
            facts["engine"] = in_vllm.engine
        self._batches = Batches(facts)
        self._kept: dict[str, _Answer] = {}
        self._asked = 0  # prompts, one that comes again counted again

    def selection(self) -> Selection:
        """Return rows in the order of writing."""
        selector = self._selector
        tokens = self._context.tokens
        prompt_tokens = sum(len(prompt.ids) for prompt in self._prompts) / len(self._prompts)
        most_asked = PATIENCE * math.ceil(self._wanted_tokens / prompt_tokens) + 2 * selector.batch
        while self._goes_on(most_asked):
            answers = texts_of_round(
                self._wanted_tokens - self._kept_tokens,
                self._kept_tokens,
                self._asked * selector.n,
                prompt_tokens + self._most,
                selector.batch,
            )
            self._answer_prompts(max(1, answers // selector.n))
        self._context.progress(self._label, tokens, tokens)
        return Selection(tuple(answer.row for answer in self._kept.values()), self._note())

    @property
    def _wanted_tokens(self) -> Fraction:
        """A twentieth more than are to come."""
        return self._context.tokens * MARGIN

    @property
    def _kept_tokens(self) -> int:
        return sum(answer.tokens for answer in self._kept.values())

    @property
    def _label(self) -> str:
        return f"answering for {self._selector}"

    def _goes_on(self, most_asked: int) -> bool:
        """Return whether more answers are wanted. `DataError` where no more will come, and those
        there are don't suffice.
        """
        selector = self._selector
        if self._kept_tokens >= self._wanted_tokens:
            return False
        if selector.greedy and self._asked >= len(self._prompts):
            advice = "raise candidates, or temperature, with which a prompt can be asked again"
        elif self._asked >= most_asked:
            advice = "raise max_tokens or length, or choose keep='all' or another temperature"
        else:
            return True
        if self._kept_tokens >= self._context.tokens:
            # The twentieth to spare isn't needed where texts and windows leave nothing between.
            return False
        raise DataError(
            f"{selector} gave {self._kept_tokens:,} of {self._context.tokens:,} tokens "
            f"({self._note()}); {advice}",
            subject=str(selector),
        )

    def _answer_prompts(self, count: int) -> None:
        """Have the next prompts answered, and keep what can be used."""
        selector = self._selector
        if selector.greedy:
            count = min(count, len(self._prompts) - self._asked)
        prompts: list[_Asked] = []
        for number in range(self._asked, self._asked + count):
            prompts += [self._prompts[number % len(self._prompts)]] * selector.n
        write = self._write if self._in_vllm is None else self._write_in_vllm
        texts = self._batches.batch(len(prompts), partial(write, prompts))
        answers: list[_Answer] = []
        for prompt, (ids, cut) in zip(prompts, texts, strict=True):
            answers.append(self._read(prompt, ids, cut))
        for begin in range(0, len(answers), selector.n):
            self._keep(answers[begin : begin + selector.n])
        self._asked += count

    def _write(self, prompts: Sequence[_Asked], seed: int) -> list[list[Any]]:
        """Return the tokens of an answer to each prompt, and whether the limit ended it."""
        generator = torch.Generator().manual_seed(seed)
        # A row of chance for each answer, so that it doesn't matter when others end.
        chance = torch.rand(len(prompts), self._most, generator=generator, dtype=torch.float64)
        decoder = Decoder(
            self._opened.model,
            [prompt.ids for prompt in prompts],
            self._most,
            self._is_ended,
            str(self._selector),
            partial(self._choose, chance),
        )
        written = decoder.run(range(len(prompts)))
        return [[list(answer.ids), answer.cut] for answer in written]

    def _write_in_vllm(self, prompts: Sequence[_Asked], seed: int) -> list[list[Any]]:
        """Return what `_write` does, as vLLM writes it."""
        assert self._in_vllm is not None
        selector = self._selector
        target = self._context.tokens
        self._context.progress(self._label, min(self._kept_tokens, target), target)
        generator = torch.Generator().manual_seed(seed)
        seeds = torch.randint(_SEEDS_BELOW, (len(prompts),), generator=generator)
        temperature = 0.0 if selector.greedy else selector.temperature
        vocabulary = self._vocabulary if self._has_unknown_words else None
        sampling = VllmSampling(
            temperature, selector.top_p, seeds.tolist(), sorted(self._ends), vocabulary
        )
        # Room for any prompt at once, since vLLM starts anew where it needs more.
        room = max(len(prompt.ids) for prompt in self._prompts) + self._most
        model = self._in_vllm.run(room)
        texts = model.continued([prompt.ids for prompt in prompts], self._most, sampling)
        return [[ids, not self._is_ended(ids)] for ids in texts]

    @property
    def _has_unknown_words(self) -> bool:
        """Whether the model's head has rows of tokens that the tokenizer lacks."""
        return self._opened.model.config.get_text_config().vocab_size > self._vocabulary

    def _is_ended(self, ids: Sequence[int]) -> bool:
        return ids[-1] in self._ends

    def _choose(
        self,
        chance: Float64[Tensor, "answer step"],
        logits: Float[Tensor, "row word"],
        numbers: Sequence[int],
        step: int,
    ) -> Int[Tensor, " row"]:
        target = self._context.tokens
        done = self._kept_tokens + len(chance) * (step + 1)
        self._context.progress(self._label, min(done, target), target)
        logits = known_logits(logits, self._vocabulary)
        if self._selector.greedy:
            return most_likely(logits)
        own_chance = chance[list(numbers), step]
        return pick_likely(logits, own_chance, self._selector.temperature, self._selector.top_p)

    def _read(self, prompt: _Asked, ids: Sequence[int], cut: bool) -> _Answer:
        """Return the conversation with what the model wrote."""
        content = list(ids)
        if not cut:
            del content[-1]  # the token that ends the turn
        # Special tokens stay, because some models write calls with them.
        text: Any = self._context.tokenizer.decode(
            content, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        message = without_tags(Message("assistant", text).with_reasoning_apart())
        row = prompt.answered(message)
        fault = self._fault(prompt.row, message, content, cut)
        if fault:
            return _Answer(row, fault)
        try:
            rendered = self._ids(self._form.render(row, self._context.tokenizer))
        except RefusedError:
            return _Answer(row, _REFUSED)
        if len(rendered) > self._room:
            return _Answer(row, _TOO_LONG)
        written = [*prompt.ids, *content]
        exact = rendered[: len(written)] == written
        return _Answer(row, tokens=len(rendered), written=len(content), exact=exact)

    def _fault(self, row: Row, message: Message, content: Sequence[int], cut: bool) -> str:
        """Return why an answer can't be used; nothing where it can."""
        said = message.content or ""
        if not message.said.strip():
            return "empty"
        if looped(content):
            return "loops"
        if cut:
            return "unfinished"
        if not said.strip() and not message.calls:
            return "nothing but reasoning"
        judged = self._selector.keep != "all" and _knows_answer(row)
        if judged and not read_answer(row, said).right:
            return "wrong"
        return ""

    def _keep(self, answers: Sequence[_Answer]) -> None:
        """Keep those answers to one prompt that can be used, and count the others."""
        usable: list[_Answer] = []
        for answer in answers:
            if answer.fault:
                self._faults[answer.fault] += 1
            else:
                usable.append(answer)
        if self._selector.keep == "shortest" and usable:
            self._faults["not the shortest"] += len(usable) - 1
            usable = [min(usable, key=_length)]
        for answer in usable:
            if answer.row.key in self._kept:
                self._faults["copies"] += 1
            else:
                self._kept[answer.row.key] = answer

    def _note(self) -> str:
        asked = min(self._asked, len(self._prompts))
        wrote = f"wrote {self._asked * self._selector.n} answers to {asked} prompts"
        if self._in_vllm is not None:
            wrote = f"{wrote} in {self._in_vllm.engine}"
        notes = [wrote]
        faults = [f"{count} {fault}" for fault, count in self._faults.items() if count]
        if faults:
            notes.append(f"left out {', '.join(faults)}")
        inexact = sum(not answer.exact for answer in self._kept.values())
        if inexact:
            notes.append(f"{inexact} that the template writes in other tokens than the model")
        return "; ".join(notes)

    def _all_prompts(self) -> list[_Asked]:
        """Return the prompts of the draw. `DataError` if there are none."""
        selector = self._selector
        rows = dealt_rows(selector.origins[0], self._context.draw, selector.candidates)
        prompts: list[_Asked] = []
        for row in rows:
            prompt = self._prompt(row)
            if isinstance(prompt, str):
                self._faults[prompt] += 1
            else:
                prompts.append(prompt)
        if not prompts:
            faults = ", ".join(f"{count} {fault}" for fault, count in self._faults.items())
            advice = "raise candidates, or name another source"
            if self._faults[f"prompts {_TOO_LONG}"]:
                advice = f"raise length or lower max_tokens, {advice}"
            if self._faults[_KNOWS_NOTHING]:
                advice = f"take keep='all' or 'shortest', {advice}"
            raise DataError(
                f"{selector}: none of the {len(rows)} rows of this draw can be asked ({faults}); "
                f"{advice}",
                subject=selector.source,
            )
        return prompts

    def _prompt(self, row: Row) -> _Asked | str:
        """Return what the model is asked; or, in words, why a row can't be asked."""
        asked = Row(turns=_turns_before_answer(row), tools=row.tools)
        if not asked.turns:
            return _ASKS_NOTHING
        row = _with_right_answer(row, asked.turns)
        if self._selector.keep == "right" and not _knows_answer(row):
            return _KNOWS_NOTHING
        form = replace(self._form, system=self._selector.system, generation_prompt=True)
        try:
            ids = tuple(self._ids(form.render(asked, self._context.tokenizer)))
        except RefusedError:
            return f"prompts {_REFUSED}"
        if not self._fits(len(ids)):
            return f"prompts {_TOO_LONG}"
        return _Asked(row, form.conversation(asked), ids)

    def _fits(self, tokens: int) -> bool:
        """Return whether an answer has room behind a prompt of so many tokens, in a window and in
        what the model sees.
        """
        longest = longest_text(self._opened.model)
        if longest is not None and tokens + self._most > longest:
            return False
        return tokens < self._room

    def _ids(self, text: str) -> list[int]:
        """Return the tokens of what a template wrote: special ones are in the text already."""
        return self._encoder.text(text).tolist()

    def _ends_of_turns(self) -> set[int]:
        """Return the special token with which the template ends an answer, where it has one. A
        model whose own settings don't name it writes it all the same.
        """
        turns = [Message("user", "a").record(), Message("assistant", _ANSWER).record()]
        try:
            text = templated(self._context.tokenizer, turns, str(self._selector))
        except RefusedError:
            return set()
        _, _, behind = text.partition(_ANSWER)
        return set(self._ids(behind)[:1]) & self._encoder.special


def _turns_before_answer(row: Row) -> tuple[Message, ...]:
    """Return what is said before the assistant's last turn; nothing where that answers nobody."""
    turns = row.turns
    if not turns:
        if row.question is None:
            return ()
        return Chat().conversation(replace(row, answer="")).messages[:-1]
    for place in reversed(range(len(turns))):
        if turns[place].role == "assistant":
            turns = turns[:place]
            break
    if not turns or turns[-1].role not in ("user", "tool"):
        return ()
    return turns


def _with_right_answer(row: Row, asked: Sequence[Message]) -> Row:
    """Return the row with the answer to what is asked. A conversation's row has the answer to its
    first question; where that is asked already, the last one is meant.
    """
    _, first = first_exchange(asked)
    if first is None or first != row.answer:
        return row
    return replace(row, answer=row.turns[len(asked)].content)


def _knows_answer(row: Row) -> bool:
    """Return whether the right answer can be compared: words can be put in many ways."""
    return row.answer is not None and kind_of(row) != "words"


def _length(answer: _Answer) -> int:
    return answer.written
