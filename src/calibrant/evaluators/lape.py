"""Language-specific neurons: which of them still answer to their language after a model was
compressed.

`lape(sources=['flores(language=en)', 'flores(language=de)'])` finds the neurons of the untouched
model that are specific to each language by LAPE (`calibrant.evaluators._languages` has the
definitions), on held-out text of each, and again those of the compressed one. The score is the
share of the first that are among the second, over all languages; each language is an item.
Calibration in one language is suspected of harming the neurons of others (Kurz et al. 2024, arXiv
2408.14398).

Of few tokens the activation shares are coarse, and some of what changes is chance: a model that is
measured on other windows doesn't give the same neurons again. So compare compressed models with one
another, on the same windows, and not with 1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Row, TokenBatch, padded
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import LONGEST_WINDOW, MOST_TOKENS, Evaluator, Subject
from calibrant.evaluators._dense import state
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._languages import Lape, read_languages
from calibrant.evaluators.loss import Loss
from calibrant.results.outcomes import Journal, Measurement, Outcome, Score
from calibrant.spec import canonical, check_most, identity

_KNOWN: Final = WeakKeyDictionary[PreTrainedModel, tuple[str, Lape]]()


@dataclass(frozen=True, repr=False)
class LanguageNeurons(Evaluator):
    """How many of the untouched model's language-specific neurons still are specific to their
    language, over all languages.
    """

    sources: tuple[str, ...] = ("flores(language=en)", "flores(language=de)", "flores(language=es)")
    tokens: int = 4_096
    length: int = 256
    lowest: float = 0.01
    quantile: float = 0.95

    compares = True
    looks_inside = True

    def __post_init__(self) -> None:
        check_most(self, tokens=MOST_TOKENS, length=LONGEST_WINDOW)
        object.__setattr__(self, "sources", tuple(self.sources))
        if len(set(self.sources)) < max(2, len(self.sources)):
            raise SpecError(
                f"lape(sources={list(self.sources)}): name two languages or more, each once",
                subject="sources",
            )
        for name in ("lowest", "quantile"):
            if not 0 < getattr(self, name) < 1:
                raise SpecError(
                    f"lape({name}={getattr(self, name):g}): {name} is a share between 0 and 1",
                    subject=name,
                )
        _ = self._texts

    @property
    def _texts(self) -> Mapping[str, Loss]:
        """What is read in each language: the windows of `loss`."""
        return {
            source: Loss(source=source, tokens=self.tokens, length=self.length)
            for source in self.sources
        }

    def rows(self) -> Iterator[Row]:
        """Return the rows of all measured parts."""
        for text in self._texts.values():
            yield from text.rows()

    def check(self) -> None:
        for text in self._texts.values():
            text.check()

    def digest(self) -> str:
        """Return that of the measured files, of which there are any."""
        own = [text.digest() for text in self._texts.values()]
        return identity(own) if any(own) else ""

    def limited(self, limit: int) -> "LanguageNeurons":
        """Return the same with a budget of `limit` tokens a language."""
        return replace(self, tokens=limit)

    def measure(self, subject: Subject) -> Measurement:
        """Return the share that stays, with one outcome a language: `value` is how many stay,
        `weight` how many there are in the untouched model.

        Raises `SpecError` without a reference, `DataError` where no neuron of the untouched model
        is specific or the two aren't of one shape, and the `ModelError` of a model whose neurons
        can't be read.
        """
        if subject.reference is None:
            raise SpecError(
                f"{self} compares a model with the untouched one, and none was given; give --reference, or Subject(…, reference=model)",
                subject=str(self),
            )
        batches = {source: _batch(text, subject.tokenizer) for source, text in self._texts.items()}
        dense, own = (
            self._dense(subject, subject.reference, batches),
            self._found(subject, subject.model, batches, subject.journal),
        )
        staying, had = dense.staying(own), dense.specific.sum(1).tolist()
        now = own.specific.sum(1).tolist()
        outcomes = tuple(
            Outcome(source, float(round(staying[source] * count)), float(count), {"now": found})
            for source, count, found in zip(self.sources, had, now, strict=True)
            if count
        )
        if not outcomes:
            raise DataError(
                f"{self}: no neuron is specific to any of these languages; read more tokens",
                subject=str(self),
            )
        value, stderr = ratio([o.value for o in outcomes], [o.weight for o in outcomes])
        known = {
            "language": [o.item for o in outcomes],
            "count": [int(o.weight) for o in outcomes],
            "kept": [o.value / o.weight for o in outcomes],
        }
        facts = {
            "tokens": self.tokens,
            "length": self.length,
            "neurons": sum(dense.sizes),
            "languages": known,
        }
        return Measurement(
            Score(
                "language-specific neurons",
                "staying",
                value,
                stderr,
                len(outcomes),
                "share",
                "higher",
                facts=facts,
            ),
            outcomes,
        )

    def _found(
        self,
        subject: Subject,
        model: PreTrainedModel,
        batches: Mapping[str, TokenBatch],
        journal: Journal,
    ) -> Lape:
        def progress(what: str, done: int, total: int) -> None:
            subject.progress(f"{what} for {self}", done, total)

        return read_languages(model, "", batches, self.lowest, self.quantile, progress, journal)

    def _dense(
        self, subject: Subject, model: PreTrainedModel, batches: Mapping[str, TokenBatch]
    ) -> Lape:
        """What was found of the dense model, for the last evaluator that asked: a study compares
        hundreds of models with one.
        """
        about = identity(
            [
                state(model),
                canonical(self),
                self.digest(),
                [batch.fingerprint for batch in batches.values()],
            ]
        )
        known = _KNOWN.get(model)
        if known is None or known[0] != about:
            _KNOWN[model] = known = about, self._found(subject, model, batches, Journal())
        return known[1]


def _batch(text: Loss, tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
    """The windows of a language as one batch, whose start tokens don't count: they are the same
    in every language.
    """
    windows = text.windows(tokenizer)
    ids = padded([window.ids for window in windows])["input_ids"]
    mask, weights = (torch.zeros_like(ids, dtype=dtype) for dtype in (torch.bool, torch.float32))
    for row, window in enumerate(windows):
        mask[row, : len(window.ids)] = True
        weights[row, window.unscored : len(window.ids)] = 1.0
    return TokenBatch(ids, mask, weights, identity([[w.name, *w.ids] for w in windows]), {})
