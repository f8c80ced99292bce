"""Downstream tasks by likelihood: how a model ranks the answers of a question set, and how badly it
predicts the right one.

`task(name='commonsense_qa', shots=5)` puts each question of the set's `measure` part behind five
exemplars, which come from a part of their own and are the same for every model and calibration set.
Scores of one measurement, of which `metric` picks the first:

- `loss`: of the right answer, in nats per token. At small sizes it moves long before any accuracy
  does.
- `acc`: the likeliest choice is right. `acc_norm`: the likeliest for its length in bytes.
  `acc_prior`: the one whose likelihood the question raises most, over that behind the bare
  `Answer:` (Holtzman et al. 2021, arXiv:2104.08315).
- `offered`: the loss of the right answer among those that are offered, −log of its share of their
  likelihood, in nats per question. `loss` also falls where a model comes to say the words of all
  answers; this doesn't. `offered_prior`: the same of what the question raises each likelihood by.
- `solution`: the loss of the worked solution, where the measured rows have one.

Beside `chance`, the facts of an accuracy say how often the right choice would come first without
the question (`blind`). Where right answers are likelier as such, or one label is the usual one,
that is more, and only what goes beyond it was read from the question.

Choices and wrong numbers are put as `_prompts` says: where answers are numbers without choices, the
right one is ranked among three wrong ones. Where they are free text, there is only the loss.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import torch

from calibrant.data import Format, Row, Source, held_out
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import (
    MOST_SHOTS,
    SourceEvaluator,
    Steps,
    Subject,
    check_least,
    ratio,
)
from calibrant.evaluators._prompts import (
    BETWEEN,
    STYLES,
    Item,
    Put,
    TokenizedTexts,
    draw_exemplars,
    is_number,
    put_all,
    put_for,
)
from calibrant.evaluators._scoring import Request, Scored, score_named
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most, identity
from calibrant.spec.foreign import did_you_mean

RANKED: Final = ("acc", "acc_norm", "acc_prior", "offered", "offered_prior")
"""Metrics that compare the offered answers."""
METRICS: Final = ("loss", *RANKED, "solution")
TOKENS_PER_PASS: Final = 512
"""Tokens of one forward; no result depends on it beyond rounding."""
ANSWERS: Final = 1000
"""Answers that are looked at to see whether they are numbers."""


@dataclass(frozen=True, repr=False)
class Task(SourceEvaluator):
    """A question set, ranked by likelihood: the loss of the right answer, and accuracies with their
    chance level.

    `limit` takes the first questions in the order of their hashes. `style` is `cloze` (the text of
    a choice is scored) or `letters` (the choices are listed and the label is scored). `seed` draws
    the exemplars.
    """

    name: str = "commonsense_qa"
    shots: int = 0
    limit: int | None = None
    style: str | None = None
    seed: int = 0
    metric: str = "loss"

    def __post_init__(self) -> None:
        check_most(self, shots=MOST_SHOTS, limit=MOST)
        check_least(self, shots=0, limit=1)
        if self.style is not None:
            _check_choice("style", self.style, STYLES)
        _check_choice("metric", self.metric, METRICS)

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.name, "qa")

    def rows(self) -> Iterator[Row]:
        """Return the questions of the set's measured part."""
        return self._source.rows("measure")

    def limited(self, limit: int) -> "Task":
        """Return the same with the first `limit` questions."""
        return replace(self, limit=limit)

    def measure(self, subject: Subject) -> Measurement:
        """Return all scores, one outcome per question. Raises `DataError` where the exemplars
        are too few or the set can't be asked like this.
        """
        put = self._put
        items, passed_over = self._items(put)
        if not items:
            raise DataError(
                f"{self._source} has no question whose answer can be scored; "
                f"{passed_over} rows lack what is needed",
                subject=str(self._source),
            )
        exemplar_text = "".join(item.right.written + BETWEEN for item in self._exemplars(put))
        tokens = TokenizedTexts(subject.tokenizer)
        tokens.learn(_texts(items, exemplar_text))
        asked = {item.name: _requests(item, exemplar_text, tokens) for item in items}
        bare: dict[str, list[Request]] = {}
        for item in items:
            # A single option isn't ranked, and needs no likelihood without its question.
            if len(item.options) > 1:
                bare[f"{item.name} bare"] = _bare_requests(item, tokens)
        total = sum(map(len, asked.values())) + sum(map(len, bare.values()))
        steps = Steps(subject.progress, f"measuring {self}", total)
        results: dict[str, list[Scored]] = {}
        # Not in one call: what is asked bare doesn't begin with the exemplars.
        for requests in (asked, bare):
            results |= score_named(
                subject.model,
                requests,
                subject.journal,
                tokens_per_pass=TOKENS_PER_PASS,
                steps=steps,
                measured=self._measured,
            )
        answered: list[_Answered] = []
        for item in items:
            scored_bare = results.get(f"{item.name} bare", [])
            answered.append(_Answered(item, results[item.name], scored_bare))
        return self._measurement(answered, passed_over)

    @cached_property
    def _source(self) -> Source:
        return self.held_out()[0]

    @cached_property
    def _put(self) -> Put:
        choices = "choices" in {*self._source.fields, *self._source.sometimes}
        answers = [row.answer or "" for row in itertools.islice(self.rows(), ANSWERS)]
        # A set's answers are numbers where more than half of them are; the others are passed over.
        numbers = 2 * sum(map(is_number, answers)) > len(answers)
        if self.style and not choices:
            raise DataError(
                f"task(name={self.name!r}, style={self.style!r}): {self.name} has no choices; "
                f"leave style out",
                subject=self.name,
            )
        if self.metric in RANKED and not choices and not numbers:
            raise DataError(
                f"task(name={self.name!r}, metric={self.metric!r}): {self.name} has neither "
                f"choices nor numbers to rank; use metric='loss'",
                subject=self.name,
            )
        return put_for(self._source.spec_name(), self.style, choices, numbers)

    @property
    def _measured(self) -> str:
        settings: list[str] = []
        if self.shots:
            settings.append(f"{self.shots}-shot")
        if self.shots and self.seed:
            settings.append(f"seed {self.seed}")
        if self.style:
            settings.append(self.style)
        if not settings:
            return str(self._source)
        return f"{self._source} ({', '.join(settings)})"

    def _items(self, put: Put) -> tuple[list[Item], int]:
        """Return what is asked, and how many rows were passed over before it was complete."""
        items: list[Item] = []
        passed_over = 0
        for row in self.rows():
            item = put(row)
            if item is None:
                passed_over += 1
                continue
            items.append(item)
            if len(items) == self.limit:
                break
        return items, passed_over

    def _exemplars(self, put: Put) -> list[Item]:
        """Return the items that stand before every question. None of them is measured."""
        if not self.shots:
            return []
        pool = list(put_all(draw_exemplars(self._source.rows("exemplars"), self.seed), put))
        if len(pool) < self.shots:
            raise DataError(
                f"{self._source} has {len(pool)} exemplars, and {self.shots} were asked for; "
                f"take fewer shots",
                subject=str(self._source),
            )
        return pool[: self.shots]

    def _measurement(self, answered: Sequence["_Answered"], passed_over: int) -> Measurement:
        is_ranked = len(answered[0].item.options) > 1
        has_solutions = any(answer.solution for answer in answered)
        available = ["loss"]
        if is_ranked:
            available += RANKED
        if has_solutions:
            available.append("solution")
        if self.metric not in available:
            raise DataError(
                f"task(metric={self.metric!r}): {self._source} has no worked solutions; "
                f"use one of {', '.join(available)}",
                subject=self.metric,
            )
        facts: dict[str, Any] = {"shots": self.shots, "passed_over": passed_over}
        if self.shots:
            facts["seed"] = self.seed
        scores = {metric: self._score(metric, answered, facts) for metric in available}
        outcomes: list[Outcome] = []
        for answer in answered:
            if answer.has(self.metric):
                kept = answer.facts(is_ranked, has_solutions)
                outcomes.append(Outcome(answer.item.name, *answer.result(self.metric), facts=kept))
        primary_score = scores.pop(self.metric)
        return Measurement(primary_score, tuple(outcomes), beside=tuple(scores.values()))

    def _score(self, metric: str, answered: Sequence["_Answered"], facts: dict[str, Any]) -> Score:
        results: dict[str, tuple[float, float]] = {}
        for answer in answered:
            if answer.has(metric):
                results[answer.item.name] = answer.result(metric)
        values = [value for value, _ in results.values()]
        weights = [weight for _, weight in results.values()]
        mean, error = ratio(values, weights)
        items = [[name, weight] for name, weight in zip(results, weights, strict=True)]
        facts = {**facts, "items": identity(items)}
        unit = "share"
        better: Literal["lower", "higher"] = "lower"
        chance = None
        if metric not in RANKED:
            unit = "nats/token"
            facts["tokens"] = int(sum(weights))
        elif metric.startswith("offered"):
            unit = "nats/question"
        else:
            better = "higher"
            chance = sum(1 / len(answer.item.options) for answer in answered) / len(answered)
            # `acc_prior` takes off what is likely without the question, so that says nothing.
            if metric != "acc_prior":
                hits = sum(answer.hit(metric, blind=True) for answer in answered)
                facts["blind"] = hits / len(answered)
        return Score(
            measured=self._measured,
            metric=metric,
            value=mean,
            stderr=error,
            n=len(results),
            unit=unit,
            better=better,
            chance=chance,
            facts=facts,
        )


def _check_choice(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SpecError(
            f"task({field}={value!r}){did_you_mean(value, allowed)}: "
            f"{field} is one of {', '.join(allowed)}",
            subject=field,
        )


@dataclass(frozen=True)
class _Answered:
    """The scores of an item: one an option, then that of the solution if there is one; and one an
    option without the question.
    """

    item: Item
    scored: Sequence[Scored]
    bare: Sequence[Scored]

    @property
    def solution(self) -> Scored | None:
        """The score of the worked solution."""
        return self.scored[-1] if self.item.solution else None

    @property
    def options(self) -> Sequence[Scored]:
        """The score of each option."""
        return self.scored[: len(self.item.options)]

    def has(self, metric: str) -> bool:
        """Return whether the metric can be had of this item."""
        return metric != "solution" or self.solution is not None

    def result(self, metric: str) -> tuple[float, float]:
        """Return value and weight."""
        if metric.startswith("acc"):
            return float(self.hit(metric)), 1.0
        if metric in RANKED:
            return self.among(prior=metric == "offered_prior"), 1.0
        scored = self.scored[self.item.gold]
        if metric == "solution":
            assert self.solution is not None, "`has` says so beforehand"
            scored = self.solution
        return scored.nats, float(scored.tokens)

    def among(self, prior: bool) -> float:
        """Return −log of the right option's share of the likelihood of all, or of what the
        question raises it by (`prior`).
        """
        # In float64: the share is a difference of nats that may be large and close.
        nats = torch.tensor([scored.nats for scored in self.options], dtype=torch.float64)
        if prior:
            nats -= torch.tensor([scored.nats for scored in self.bare], dtype=torch.float64)
        # −log(e^−gold / Σ e^−nats)
        return float(nats[self.item.gold] + torch.logsumexp(-nats, 0))

    def hit(self, metric: str, blind: bool = False) -> bool:
        """Return whether the right option comes first, or would without the question; of equals,
        the first one given does.
        """
        likelihoods = self.bare if blind else self.options
        nats = [scored.nats for scored in likelihoods]
        if metric == "acc_norm":
            sizes = [option.size for option in self.item.options]
            nats = [value / size for value, size in zip(nats, sizes, strict=True)]
        elif metric == "acc_prior":
            nats = [value - bare.nats for value, bare in zip(nats, self.bare, strict=True)]
        return nats.index(min(nats)) == self.item.gold

    def facts(self, ranked: bool, worked: bool) -> dict[str, Any]:
        """Return what is kept of it besides its result, the same names for every item of a
        measurement.
        """
        gold = self.scored[self.item.gold]
        facts: dict[str, Any] = {"nats": gold.nats, "tokens": gold.tokens, "greedy": gold.greedy}
        if ranked:
            facts["choices"] = [scored.nats for scored in self.options]
            facts["bare"] = [scored.nats for scored in self.bare]
            facts["sizes"] = [option.size for option in self.item.options]
            facts["gold"] = self.item.gold
            facts["hit"] = self.hit("acc")
            facts["hit_norm"] = self.hit("acc_norm")
            facts["hit_prior"] = self.hit("acc_prior")
        if worked:
            facts["solution_nats"] = None
            facts["solution_tokens"] = None
            if self.solution is not None:
                facts["solution_nats"] = self.solution.nats
                facts["solution_tokens"] = self.solution.tokens
        return facts


def _texts(items: Sequence[Item], exemplar_text: str) -> Iterator[str]:
    """Yield the texts that will be tokenized."""
    for item in items:
        for option in item.options:
            for context in (exemplar_text + option.context, option.bare):
                yield context
                yield context + option.continuation


def _requests(item: Item, exemplar_text: str, tokens: TokenizedTexts) -> list[Request]:
    """Return the requests of an item: one an option, and one for the worked solution, which
    stands where the answer would.
    """
    requests: list[Request] = []
    for option in item.options:
        requests.append(tokens.request(exemplar_text + option.context, option.continuation))
    if item.solution:
        requests.append(tokens.request(exemplar_text + item.right.context, f" {item.solution}"))
    return requests


def _bare_requests(item: Item, tokens: TokenizedTexts) -> list[Request]:
    """Return the requests of an item's options without their question."""
    return [tokens.request(option.bare, option.continuation) for option in item.options]
