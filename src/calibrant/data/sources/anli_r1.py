"""Adversarial NLI, round 1."""

from dataclasses import dataclass
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import adversarial

HUB: Final = HubDataset("facebook/anli", "plain_text")


@dataclass(frozen=True, repr=False)
class ANLIRound1(StoredSource):
    """Nie et al. 2020 (arXiv:1910.14599), the first round: hypotheses that people wrote against a
    BERT.

    The premises are from Wikipedia. The hub's train_r1 calibrates (16,946 pairs) and its test_r1
    measures; hub and mirror have the same fields, premise, hypothesis, label and reason. A mirror
    without train calibrates on the dev split (1,000 pairs), all of which have the annotator's
    reason; of other rows only some have one.

        Premise: Linguistics is the scientific study of language, and involves an analysis […]
        Hypothesis: Form and meaning are the only aspects of language linguistics is concerned with.
        Label: contradiction
    """

    kind = "questions"
    family = "inference"
    licence = "CC BY-NC 4.0"
    homepage = "https://github.com/facebookresearch/anli"
    hub = HUB
    fields = ("question", "answer", "choices")
    sometimes = ("rationale",)

    def read(self) -> SourceRows:
        return adversarial(HUB, 1)
