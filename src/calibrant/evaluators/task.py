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
the question (`blind`): where right answers are likelier as such, or one label is the usual one,
that is more, and only what goes beyond it was read from the question.

Choices are put as `_prompts` says. Where answers are numbers without choices, the right one is
ranked among three wrong ones, made as `_wrong` says. Where they are free text, there is only the
loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Final

import torch

from calibrant.data import Format, Row, Source, held_out
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import MOST_SHOTS, SourceEvaluator, Subject
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._prompts import (
    STYLES,
    Item,
    Put,
    TokenizedTexts,
    exemplars,
    prompt,
    put_for,
)
from calibrant.evaluators._scoring import Request, Scored, score_named
from calibrant.evaluators._wrong import is_number
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most, identity
from calibrant.spec.foreign import did_you_mean

RANKED: Final = ("acc", "acc_norm", "acc_prior", "offered", "offered_prior")
"""Metrics that compare the offered answers."""
METRICS: Final = ("loss", *RANKED, "solution")
TOKENS_PER_PASS: Final = 512
"""Tokens of one forward; no result depends on it beyond rounding."""


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
        if self.shots < 0 or (self.limit is not None and self.limit < 1):
            raise SpecError(
                f"task(shots={self.shots}, limit={self.limit}): shots must be at least 0 and limit at least 1",
                subject="task",
            )
        for field, value, allowed in (
            ("style", self.style, STYLES),
            ("metric", self.metric, METRICS),
        ):
            if value is not None and value not in allowed:
                raise SpecError(
                    f"task({field}={value!r}){did_you_mean(value, allowed)}: {field} is one of {', '.join(allowed)}",
                    subject=field,
                )

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
        source, put = self._source, self._put
        items = [item for item in map(put, self.rows()) if item is not None]
        passed_over = len(list(self.rows())) - len(items)
        items = items[: self.limit]
        if not items:
            raise DataError(
                f"{source} has no question whose answer can be scored; {passed_over} rows lack what is needed",
                subject=str(source),
            )
        shots, tokens = prompt(self._exemplars(put)), TokenizedTexts(subject.tokenizer)
        tokens.learn(
            text
            for item in items
            for o in item.options
            for c in (shots + o.context, o.bare)
            for text in (c, c + o.continuation)
        )
        requested = {item.name: _asked(item, shots, tokens) for item in items}
        bare = {
            f"{item.name} bare": [tokens.request(o.bare, o.continuation) for o in item.options]
            for item in items
            if len(item.options) > 1
        }
        total, done = sum(map(len, [*requested.values(), *bare.values()])), 0

        def count(number: int) -> None:
            nonlocal done
            done += number
            subject.progress(f"measuring {self}", done, total)

        results: dict[str, list[Scored]] = {}
        # Not in one call: what is asked bare doesn't begin with the exemplars.
        for requests in (requested, bare):
            results |= score_named(
                subject.model,
                requests,
                subject.journal,
                tokens_per_pass=TOKENS_PER_PASS,
                on_count=count,
                measured=self._measured,
            )
        answered = [
            _Answered(item, results[item.name], results.get(f"{item.name} bare", []))
            for item in items
        ]
        return self._measurement(answered, passed_over)

    @cached_property
    def _source(self) -> Source:
        return self.held_out()[0]

    @cached_property
    def _put(self) -> Put:
        fields = {*self._source.fields, *self._source.sometimes}
        answers = [row.answer or "" for row in islice(self.rows(), 1000)]
        choices, numbers = "choices" in fields, 2 * sum(map(is_number, answers)) > len(answers)
        if self.style and not choices:
            raise DataError(
                f"task(name={self.name!r}, style={self.style!r}): {self.name} has no choices; leave style out",
                subject=self.name,
            )
        if self.metric in RANKED and not choices and not numbers:
            raise DataError(
                f"task(name={self.name!r}, metric={self.metric!r}): {self.name} has neither choices nor numbers to rank; use metric='loss'",
                subject=self.name,
            )
        return put_for(self._source.spec_name(), self.style, choices, numbers)

    @property
    def _measured(self) -> str:
        how = (
            [f"{self.shots}-shot"] * bool(self.shots)
            + [f"seed {self.seed}"] * bool(self.shots and self.seed)
            + [self.style or ""]
        )
        setting = ", ".join(filter(None, how))
        return f"{self._source} ({setting})" if setting else str(self._source)

    def _exemplars(self, put: Put) -> list[Item]:
        """The items that stand before every question: never one of those that are measured."""
        if not self.shots:
            return []
        pool = exemplars(self._source.rows("exemplars"), put, self.seed)
        if len(pool) < self.shots:
            raise DataError(
                f"{self._source} has {len(pool)} exemplars, and {self.shots} were asked for; take fewer shots",
                subject=str(self._source),
            )
        return pool[: self.shots]

    def _measurement(self, answered: Sequence["_Answered"], passed_over: int) -> Measurement:
        ranked = len(answered[0].item.options) > 1
        worked = any(a.solution for a in answered)
        available = [
            m for m in METRICS if (ranked or m not in RANKED) and (worked or m != "solution")
        ]
        if self.metric not in available:
            raise DataError(
                f"task(metric={self.metric!r}): {self._source} has no worked solutions; use one of {', '.join(available)}",
                subject=self.metric,
            )
        facts = {"shots": self.shots, "passed_over": passed_over} | (
            {"seed": self.seed} if self.shots else {}
        )
        scores = {metric: self._score(metric, answered, facts) for metric in available}
        outcomes = tuple(
            Outcome(a.item.name, *a.result(self.metric), facts=a.facts(ranked, worked))
            for a in answered
            if a.has(self.metric)
        )
        return Measurement(scores.pop(self.metric), outcomes, beside=tuple(scores.values()))

    def _score(self, metric: str, answered: Sequence["_Answered"], facts: dict[str, Any]) -> Score:
        results = {a.item.name: a.result(metric) for a in answered if a.has(metric)}
        values, weights = [v for v, _ in results.values()], [w for _, w in results.values()]
        value, stderr = ratio(values, weights)
        facts = {
            **facts,
            "items": identity([[name, weight] for name, (_, weight) in results.items()]),
        }
        if metric not in RANKED:
            return Score(
                self._measured,
                metric,
                value,
                stderr,
                len(results),
                "nats/token",
                "lower",
                facts={**facts, "tokens": int(sum(weights))},
            )
        if metric.startswith("offered"):
            return Score(
                self._measured,
                metric,
                value,
                stderr,
                len(results),
                "nats/question",
                "lower",
                facts=facts,
            )
        chance = sum(1 / len(a.item.options) for a in answered) / len(answered)
        if metric != "acc_prior":
            facts["blind"] = sum(a.hit(metric, blind=True) for a in answered) / len(answered)
        return Score(
            self._measured, metric, value, stderr, len(results), "share", "higher", chance, facts
        )


@dataclass(frozen=True)
class _Answered:
    """What was found of an item: a score an option, then that of the solution if there is one;
    and a score an option without the question.
    """

    item: Item
    scored: Sequence[Scored]
    bare: Sequence[Scored]

    @property
    def solution(self) -> Scored | None:
        """The score of the worked solution."""
        return self.scored[-1] if self.item.solution else None

    def has(self, metric: str) -> bool:
        """Return whether the metric can be had of this item."""
        return metric != "solution" or self.solution is not None

    def result(self, metric: str) -> tuple[float, float]:
        """Value and weight."""
        if metric.startswith("acc"):
            return float(self.hit(metric)), 1.0
        if metric in RANKED:
            return self.among(prior=metric == "offered_prior"), 1.0
        scored = self.solution if metric == "solution" else self.scored[self.item.gold]
        assert scored is not None
        return scored.nats, float(scored.tokens)

    def among(self, prior: bool) -> float:
        """Return −log of the right option's share of the likelihood of all, or of what the
        question raises it by (`prior`).
        """
        nats = torch.tensor(
            [scored.nats for scored in self.scored[: len(self.item.options)]], dtype=torch.float64
        )
        if prior:
            nats -= torch.tensor([scored.nats for scored in self.bare], dtype=torch.float64)
        return float(nats[self.item.gold] + torch.logsumexp(-nats, 0))

    def hit(self, metric: str, blind: bool = False) -> bool:
        """Return whether the right option comes first, or would without the question; of equals,
        the first one given does.
        """
        nats = [
            scored.nats
            for scored in (self.bare if blind else self.scored[: len(self.item.options)])
        ]
        match metric:
            case "acc_norm":
                nats = [n / option.size for n, option in zip(nats, self.item.options, strict=True)]
            case "acc_prior":
                nats = [n - bare.nats for n, bare in zip(nats, self.bare, strict=True)]
            case _:
                pass
        return min(range(len(nats)), key=nats.__getitem__) == self.item.gold

    def facts(self, ranked: bool, worked: bool) -> dict[str, Any]:
        """Return what is kept of it besides its result, the same names for every item of a
        measurement.
        """
        options, gold = self.scored[: len(self.item.options)], self.scored[self.item.gold]
        facts: dict[str, Any] = {"nats": gold.nats, "tokens": gold.tokens, "greedy": gold.greedy}
        if ranked:
            facts |= {
                "choices": [s.nats for s in options],
                "bare": [s.nats for s in self.bare],
                "sizes": [o.size for o in self.item.options],
            }
            facts |= {
                "gold": self.item.gold,
                "hit": self.hit("acc"),
                "hit_norm": self.hit("acc_norm"),
                "hit_prior": self.hit("acc_prior"),
            }
        if worked:
            solution = self.solution
            facts |= {
                "solution_nats": solution.nats if solution else None,
                "solution_tokens": solution.tokens if solution else None,
            }
        return facts


def _asked(item: Item, shots: str, tokens: TokenizedTexts) -> list[Request]:
    """The requests of an item: one an option, and one for the worked solution, which stands
    where the answer would.
    """
    requests = [
        tokens.request(shots + option.context, option.continuation) for option in item.options
    ]
    return (
        [*requests, tokens.request(shots + item.right.context, f" {item.solution}")]
        if item.solution
        else requests
    )
