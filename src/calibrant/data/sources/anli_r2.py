"""Adversarial NLI, round 2."""

from dataclasses import dataclass
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import adversarial

HUB: Final = HubDataset("facebook/anli", "plain_text")


@dataclass(frozen=True, repr=False)
class ANLIRound2(StoredSource):
    """Nie et al. 2020 (arXiv:1910.14599), the second round: hypotheses that people wrote against
    RoBERTa models.

    The premises are from Wikipedia. The hub's train_r2 calibrates (45,460 pairs) and its test_r2
    measures; hub and mirror have the same fields, premise, hypothesis, label and reason. A mirror
    without train calibrates on the dev split (1,000 pairs), all of which have the annotator's
    reason; of other rows only some have one.

        Premise: Clear Hearts Grey Flowers is the second full-length and final album by […]
        Hypothesis: Risk Records released Jack Off Jill's initial album.
        Label: neutral
    """

    kind = "questions"
    family = "inference"
    licence = "CC BY-NC 4.0"
    homepage = "https://github.com/facebookresearch/anli"
    hub = HUB
    fields = ("question", "answer", "choices")
    sometimes = ("rationale",)

    def read(self) -> SourceRows:
        return adversarial(HUB, 2)
