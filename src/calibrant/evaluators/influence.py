"""Which words of a question the right answer hangs on, and whether they still do: each word left
out, and the answer scored again.

`influence(name='commonsense_qa')` takes from each question of the set's `measure` part, one after
another, each of its words, wherever it stands, and scores the right answer behind what is left. The
influence of a word is by how many nats the answer's loss rises without it. Unlike the responses of
neurons that `words` measures, this is causal: the model was asked twice. It says nothing of which
part of the model the answer hangs on.

What is kept is Σ i·i' / Σ i² over the words of all questions, where i is a word's influence in the
untouched model and i' that in the compressed one: 1 for the untouched model, 0 where what counts
has nothing to do with what counted. Both are sums over questions, so a question is an item.

A word that stands in every question, such as `question` in the set's own frame, is left in. There
are no exemplars: with them words count less.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from transformers import PreTrainedModel

from calibrant.data import Format, Row, Source, held_out
from calibrant.data._words import spans
from calibrant.errors import DataError
from calibrant.evaluators._base import (
    SourceEvaluator,
    Steps,
    Subject,
    check_least,
    items_of,
    mean_of,
)
from calibrant.evaluators._prompts import Item, TokenizedTexts, put_all, put_for
from calibrant.evaluators._scoring import Request, score_named
from calibrant.results.outcomes import MOST as MOST_ITEMS
from calibrant.results.outcomes import Measurement, Outcome, Score
from calibrant.spec import check_most

MOST: Final = 200
"""Words of which the influence is stored, those that stand in most questions."""
QUESTIONS: Final = 2
"""Questions in which such a word stands at least: a word of one question alone is never stored."""

Influences = Mapping[str, Mapping[str, float]]
"""Nats by question and word."""


@dataclass(frozen=True)
class _Question:
    """The requests of a question: as it is, and without each of its words."""

    whole: Request
    without: Mapping[str, Request]


@dataclass(frozen=True, repr=False)
class LeftOutWords(SourceEvaluator):
    """How much of the influence that the words of questions have on the right answer is left:
    each word left out, and the answer scored again.
    """

    name: str = "commonsense_qa"
    limit: int = 100

    compares = True

    def __post_init__(self) -> None:
        check_most(self, limit=MOST_ITEMS)
        check_least(self, limit=1)

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.name, "qa")

    def rows(self) -> Iterator[Row]:
        """Return the questions of the set's measured part."""
        return self.held_out()[0].rows("measure")

    def limited(self, limit: int) -> "LeftOutWords":
        """Return the same with the first `limit` questions."""
        return replace(self, limit=limit)

    def measure(self, subject: Subject) -> Measurement:
        """Return the share of influence kept, with one outcome a question: `value` Σ i·i', `weight`
        Σ i². The facts have the words' mean influences.

        Raises `SpecError` without a reference, `DataError` where no question has words that can be
        left out.
        """
        reference = subject.untouched(self)
        tokens = TokenizedTexts(subject.tokenizer)
        questions: dict[str, _Question] = {}
        for item, texts in self._left_out():
            answer = item.right.continuation
            whole = tokens.request(item.right.context, answer)
            without = {word: tokens.request(text, answer) for word, text in texts.items()}
            questions[item.name] = _Question(whole, without)
        if not questions:
            raise DataError(
                f"{self.name} has no question whose words can be left out; "
                f"name a set of questions with answers",
                subject=self.name,
            )
        dense = self._influences(reference, "dense", questions, subject)
        ours = self._influences(subject.model, "own", questions, subject)
        return self._measurement(dense, ours)

    def _left_out(self) -> Iterator[tuple[Item, dict[str, str]]]:
        """Yield each question with its text without each of its words."""
        source = self.held_out()[0]
        choices = "choices" in {*source.fields, *source.sometimes}
        put = put_for(source.spec_name(), None, choices, False)
        items = list(islice(put_all(self.rows(), put), self.limit))
        places = [_places(item.right.context) for item in items]
        # Of a single question every word would stand in every question.
        everywhere: set[str] = set()
        if len(items) > 1:
            everywhere = set.intersection(*map(set, places))
        for item, by_word in zip(items, places, strict=True):
            texts: dict[str, str] = {}
            for word, stretches in by_word.items():
                text = _without(item.right.context, stretches)
                # Where nothing is left to show, nothing can be asked.
                if word not in everywhere and text.strip():
                    texts[word] = text
            if texts:
                yield item, texts

    def _influences(
        self,
        model: PreTrainedModel,
        kind: str,
        questions: Mapping[str, _Question],
        subject: Subject,
    ) -> Influences:
        requests: dict[str, list[Request]] = {}
        for name, question in questions.items():
            requests[f"{name} {kind}"] = [question.whole, *question.without.values()]
        total = sum(map(len, requests.values()))
        steps = Steps(subject.progress, f"leaving out words for {self} ({kind})", total)
        scored = score_named(model, requests, subject.journal, steps=steps, measured=self.name)
        influences: dict[str, dict[str, float]] = {}
        for name, question in questions.items():
            # In the order in which they were asked: the whole question first.
            whole, *without = scored[f"{name} {kind}"]
            by_word: dict[str, float] = {}
            for word, score in zip(question.without, without, strict=True):
                by_word[word] = score.nats - whole.nats
            influences[name] = by_word
        return influences

    def _measurement(self, dense: Influences, ours: Influences) -> Measurement:
        outcomes: list[Outcome] = []
        for name, dense_influences in sorted(dense.items()):
            model_influences = ours[name]
            product = sum(nats * model_influences[word] for word, nats in dense_influences.items())
            squares = sum(nats * nats for nats in dense_influences.values())
            if squares > 0:
                outcomes.append(Outcome(name, product, squares, {"words": len(dense_influences)}))
        if not outcomes:
            raise DataError(
                f"no word of {self.name} has any influence on an answer of the untouched model",
                subject=self.name,
            )
        count = len(outcomes)
        facts = {
            "questions": count,
            "items": items_of(outcomes),
            "influences": _table(dense, ours),
        }
        measured = str(self.held_out()[0])
        kept, error = mean_of(outcomes)
        score = Score(
            measured=measured,
            metric="influence_kept",
            value=kept,
            stderr=error,
            n=count,
            unit="share",
            better="higher",
            chance=0.0,
            facts=facts,
        )
        return Measurement(score, tuple(outcomes))


def _places(text: str) -> dict[str, list[tuple[int, int]]]:
    """Return where each word of a text stands, by letters."""
    places: dict[str, list[tuple[int, int]]] = {}
    for begin, end, word in spans(text):
        places.setdefault(word, []).append((begin, end))
    return places


def _without(text: str, places: Sequence[tuple[int, int]]) -> str:
    """Return a text without what stands at `places`, and without a space before each."""
    kept = ""
    last = 0
    for begin, end in places:
        kept += text[last:begin].removesuffix(" ")
        last = end
    return kept + text[last:]


def _table(dense: Influences, ours: Influences) -> dict[str, list[Any]]:
    """Return the mean influence of each word in both models, those first that count most in the
    untouched one.
    """
    questions: dict[str, list[str]] = {}
    for name, influences in dense.items():
        for word in influences:
            questions.setdefault(word, []).append(name)
    shared = {word: names for word, names in questions.items() if len(names) >= QUESTIONS}

    def by_spread(word: str) -> tuple[int, str]:
        return -len(shared[word]), word

    def mean(influences: Influences, word: str) -> float:
        return sum(influences[name][word] for name in shared[word]) / len(shared[word])

    chosen = sorted(shared, key=by_spread)[:MOST]
    means = {word: mean(dense, word) for word in chosen}

    def by_influence(word: str) -> tuple[float, str]:
        return -means[word], word

    words = sorted(chosen, key=by_influence)
    return {
        "word": words,
        "questions": [len(shared[word]) for word in words],
        "dense": [round(means[word], 5) for word in words],
        "now": [round(mean(ours, word), 5) for word in words],
    }
