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
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import SourceEvaluator, Subject
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._prompts import Item, TokenizedTexts, put_for
from calibrant.evaluators._scoring import Request, score_named
from calibrant.results.outcomes import MOST as MOST_ITEMS
from calibrant.results.outcomes import Measurement, Outcome, Score
from calibrant.spec import check_most, identity

MOST: Final = 200
"""Words of which the influence is stored, those that stand in most questions."""
QUESTIONS: Final = 2
"""Questions in which such a word stands at least: what stands in one alone is never stored."""

Influences = Mapping[str, Mapping[str, float]]
"""By question and word, in nats."""


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
        if self.limit < 1:
            raise SpecError(
                f"influence(limit={self.limit}): limit must be at least 1", subject="limit"
            )

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
        if subject.reference is None:
            raise SpecError(
                f"{self} compares a model with the untouched one, and none was given; give --reference, or Subject(…, reference=model)",
                subject=str(self),
            )
        left_out = dict(self._left_out())
        if not left_out:
            raise DataError(
                f"{self.name} has no question whose words can be left out; name a set of questions with answers",
                subject=self.name,
            )
        tokens = TokenizedTexts(subject.tokenizer)
        asked = {
            item.name: (
                tuple(without),
                [
                    tokens.request(context, item.right.continuation)
                    for context in (item.right.context, *without.values())
                ],
            )
            for item, without in left_out.items()
        }
        dense, ours = (
            self._influences(model, kind, asked, subject)
            for kind, model in (("dense", subject.reference), ("own", subject.model))
        )
        return self._measurement(dense, ours)

    def _left_out(self) -> Iterator[tuple[Item, dict[str, str]]]:
        """Each question with its text without each of its words."""
        source = self.held_out()[0]
        put = put_for(
            source.spec_name(), None, "choices" in {*source.fields, *source.sometimes}, False
        )
        items = list(
            islice((item for item in map(put, self.rows()) if item is not None), self.limit)
        )
        spoken = [spans(item.right.context) for item in items]
        everywhere = (
            set.intersection(*({word for *_, word in found} for found in spoken))
            if len(items) > 1
            else set[str]()
        )
        for item, found in zip(items, spoken, strict=True):
            words = dict.fromkeys(word for *_, word in found if word not in everywhere)
            texts = {
                word: _without(
                    item.right.context, [(a, b) for a, b, other in found if other == word]
                )
                for word in words
            }
            without = {
                word: text for word, text in texts.items() if text.strip()
            }  # where nothing is left to show, nothing can be asked
            if without:
                yield item, without

    def _influences(
        self,
        model: PreTrainedModel,
        kind: str,
        asked: Mapping[str, tuple[tuple[str, ...], list[Request]]],
        subject: Subject,
    ) -> Influences:
        requests, total, done = (
            {f"{name} {kind}": own for name, (_, own) in asked.items()},
            sum(len(own) for _, own in asked.values()),
            0,
        )

        def count(number: int) -> None:
            nonlocal done
            done += number
            subject.progress(f"leaving out words for {self} ({kind})", done, total)

        scored = score_named(model, requests, subject.journal, on_count=count, measured=self.name)
        found: dict[str, dict[str, float]] = {}
        for name, (words, _) in asked.items():
            whole, *without = (one.nats for one in scored[f"{name} {kind}"])
            found[name] = {word: nats - whole for word, nats in zip(words, without, strict=True)}
        return found

    def _measurement(self, dense: Influences, ours: Influences) -> Measurement:
        pairs = {
            name: [(influence, ours[name][word]) for word, influence in own.items()]
            for name, own in dense.items()
        }
        outcomes = tuple(
            Outcome(
                name, sum(a * b for a, b in own), sum(a * a for a, _ in own), {"words": len(own)}
            )
            for name, own in sorted(pairs.items())
        )
        outcomes = tuple(outcome for outcome in outcomes if outcome.weight > 0)
        if not outcomes:
            raise DataError(
                f"no word of {self.name} has any influence on an answer of the untouched model",
                subject=self.name,
            )
        kept = ratio([o.value for o in outcomes], [o.weight for o in outcomes])
        facts = {
            "questions": len(outcomes),
            "items": identity([[o.item, o.weight] for o in outcomes]),
            "influences": _table(dense, ours),
        }
        return Measurement(
            Score(
                str(self.held_out()[0]),
                "influence_kept",
                *kept,
                len(outcomes),
                "share",
                "higher",
                0.0,
                facts,
            ),
            outcomes,
        )


def _without(text: str, places: Sequence[tuple[int, int]]) -> str:
    """A text without what stands at some places, and without the space before it."""
    kept, at = list[str](), 0
    for begin, end in places:
        kept.append(text[at:begin].removesuffix(" ") if begin else "")
        at = end
    return "".join([*kept, text[at:]])


def _table(dense: Influences, ours: Influences) -> dict[str, list[Any]]:
    """The mean influence of each word in both models, those first that count most in the
    untouched one.
    """
    questions: dict[str, list[str]] = {}
    for name, own in dense.items():
        for word in own:
            questions.setdefault(word, []).append(name)
    shared = {word: names for word, names in questions.items() if len(names) >= QUESTIONS}
    chosen = sorted(shared, key=lambda word: (-len(shared[word]), word))[:MOST]
    means = {
        word: [
            sum(of[name][word] for name in shared[word]) / len(shared[word]) for of in (dense, ours)
        ]
        for word in chosen
    }
    ordered = sorted(chosen, key=lambda word: (-means[word][0], word))
    numbers = ([round(means[word][which], 5) for word in ordered] for which in (0, 1))
    return {
        "word": ordered,
        "questions": [len(shared[word]) for word in ordered],
        **dict(zip(("dense", "now"), numbers, strict=True)),
    }
