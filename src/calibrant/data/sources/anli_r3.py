"""Adversarial NLI, round 3."""

from dataclasses import dataclass
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import adversarial

HUB: Final = HubDataset("facebook/anli", "plain_text")


@dataclass(frozen=True, repr=False)
class ANLIRound3(StoredSource):
    """Nie et al. 2020 (arXiv:1910.14599), the third round: hypotheses that people wrote against
    RoBERTa models.

    The premises are from Wikipedia, news, fiction and transcripts. The hub's train_r3 calibrates
    (100,459 pairs) and its test_r3 measures; hub and mirror have the same fields, premise,
    hypothesis, label and reason. A mirror without train calibrates on the dev split (1,200 pairs),
    all of which have the annotator's reason; of other rows only some have one.

        Premise: one of the orders issued by Ochola in April Login to license this image […]
        Hypothesis: The decision to move the photocopier business was done for privacy reasons.
        Label: entailment
    """

    kind = "questions"
    family = "inference"
    licence = "CC BY-NC 4.0"
    homepage = "https://github.com/facebookresearch/anli"
    hub = HUB
    fields = ("question", "answer", "choices")
    sometimes = ("rationale",)

    def read(self) -> SourceRows:
        return adversarial(HUB, 3)
