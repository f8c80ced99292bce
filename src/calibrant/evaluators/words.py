"""What was forgotten: which words a model's neurons stood for, and how much of that a compressed
model still shows.

`words(source=wikitext, tokens=16384, groups=words)` shows the untouched model and the compressed
one the same windows of held-out text, those of `loss`. It finds the feed-forward neurons of the
untouched model that respond to each group of words, against shuffled labels and at a false
discovery rate of 5 %, and measures how much of each group's pattern of responses the compressed
model keeps (`_responses` has the definitions). After Neuron Semantic Attribution (Ding et al. 2025,
arXiv 2503.01542), whose code isn't public: the definitions are ours.

A word is read at its last token, which is the first that has seen all of it. Groups (`groups`) are
`words`, each by itself; `lemmas`, which takes English endings off by simple rules where the rest is
a word of the text too; `clusters` of the untouched model's own input embeddings; or a file with a
user's list of words, in which `[name]` begins a group. Those that stand `least` times, in two
windows or more, are measured, the `most` frequent of them.

An item is a document, and its outcome what is kept at its words, in which each group counts alike:
a word of a group that stands n times weighs 1/n. So `value` / `weight` of all items together is the
mean of what is kept over the groups. Beside it stands by how much the document's loss rose.

What damage has to do with the loss stands in the score's facts, as rank correlations over groups:
`rank_documents`, with the loss of the documents that contain a group, and `rank_next`, with that of
the token behind its words; each with an interval over documents, and a correlation at equal
frequency.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from transformers import PreTrainedModel

from calibrant.evaluators._base import Subject, check_least
from calibrant.evaluators._dense import found_once
from calibrant.evaluators._forgotten import DenseWords, Forgotten
from calibrant.evaluators._responses import (
    check_alike,
    pattern,
    pattern_bytes,
    projections_of,
    responses_bytes,
    shown,
)
from calibrant.evaluators._windows import ScoredWindow, TextEvaluator
from calibrant.evaluators._word_groups import check_groups, grouped, list_content, words_of
from calibrant.models import ModelOutline
from calibrant.results.outcomes import MOST, Measurement
from calibrant.spec import check_most, identity
from calibrant.system.progress import Progress

MOST_SHUFFLES: Final = 1_000
"""The most shuffles: each is a pass over all sums."""


@dataclass(frozen=True, repr=False)
class Words(TextEvaluator):
    """How much of the untouched model's responses to words is left in its neurons, mean over
    groups of words; the groups beside it.
    """

    tokens: int = 16_384
    length: int = 512
    groups: str = "words"
    least: int = 10
    most: int = 300
    shuffles: int = 2
    seed: int = 0

    compares = True
    looks_inside = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, least=MOST, most=MOST, shuffles=MOST_SHUFFLES)
        check_least(self, least=1, most=1, shuffles=1)

    def check(self) -> None:
        super().check()
        check_groups(self.groups)

    def digest(self) -> str:
        """Return that of the measured file, and of the user's list of words where there is one."""
        listed = list_content(self.groups)
        if not listed:
            return super().digest()
        return identity([super().digest(), listed.hex()])

    def work_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        return responses_bytes(outlines[-1], self._most_groups, self.shuffles, self.length)

    def kept_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        return pattern_bytes(outlines[-1], self._most_groups)

    @property
    def _most_groups(self) -> int:
        """How many groups may be measured: each has `least` of the words, and none of these is less
        than a token. The last window may go beyond the budget.
        """
        return min(self.most, (self.tokens + self.length) // self.least)

    def measure(self, subject: Subject) -> Measurement:
        """Return the mean share kept, with one outcome a document: `value` / `weight` is the share
        kept at its words, `raised` the nats it rose by.

        Raises `SpecError` without a reference, `DataError` where no group stands often enough,
        `ModelError` for a model whose neurons can't be read or aren't those of the reference,
        `NumericsError` for outputs that aren't finite.
        """
        return self.read(subject).measurement()

    def read(self, subject: Subject, whole: bool = False) -> Forgotten:
        """Return all that `measure` sums up; with `whole` the responses of all neurons too.
        Raises the errors of `measure`.
        """
        reference = subject.untouched(self)
        check_groups(self.groups)
        windows = self.windows(subject.tokenizer)
        shown_tokens = [[window.name, *window.ids] for window in windows]
        find = partial(self._dense, subject, reference, windows)
        dense = found_once(reference, self, shown_tokens, find)
        projections = projections_of(subject.model)
        check_alike([weight.shape[1] for weight in projections], dense.widths)
        ours = shown(
            subject.model,
            projections,
            dense.readings,
            dense.pattern,
            self.measured,
            self._progress(subject),
            whole,
        )
        return Forgotten(self.measured, self.length, self.seed, dense, ours)

    def _dense(
        self, subject: Subject, model: PreTrainedModel, windows: list[ScoredWindow]
    ) -> DenseWords:
        """Return what is found of the dense model."""
        tokenizer = subject.tokenizer
        progress = self._progress(subject)
        projections = projections_of(model)
        window_words = words_of(windows, self.rows(), self.held_out()[1], tokenizer)
        groups = grouped(self.groups, window_words, self.least, self.most, model, tokenizer)
        readings = tuple((window, groups.labels(window)) for window in window_words)
        responses = pattern(
            model, projections, readings, groups, self.shuffles, self.seed, self.measured, progress
        )
        ours = shown(model, projections, readings, responses, self.measured, progress)
        # Widths and not the matrices themselves, which would keep the model alive.
        widths = tuple(weight.shape[1] for weight in projections)
        return DenseWords(widths, groups, readings, responses, ours)

    def _progress(self, subject: Subject) -> Progress:
        def progress(doing: str, done: int, total: int) -> None:
            subject.progress(f"{doing} for {self}", done, total)

        return progress
