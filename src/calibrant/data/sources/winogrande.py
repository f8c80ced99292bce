"""WinoGrande: which of two names fills the gap."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import Split, gold, multiple_choice, published

HUB: Final = HubDataset("allenai/winogrande", "winogrande_xl")
TRAIN: Final = Split("train", {("winogrande", "train"): 40_398})
TEST: Final = Split("validation", {("winogrande", "validation"): 1_267})
LABELS: Final = ("1", "2")


@dataclass(frozen=True, repr=False)
class WinoGrande(StoredSource):
    """Sakaguchi et al. 2020 (arXiv:1907.10641). validation measures, since the labels of test are
    kept back.

    The gap is the sentence's `_`, and the options are listed with their numbers. The original study
    calibrated on the smaller `winogrande_m`; this is `winogrande_xl`, which holds it. Hub and
    mirror have the same fields, sentence, option1, option2 and answer.

        Sentence: Ian volunteered to eat Dennis's menudo after already having a bowl because
        _ despised eating intestine.
        1. Ian
        2. Dennis
        Answer: 2
    """

    kind = "questions"
    family = "commonsense"
    licence = "Apache-2.0 (the code); the data CC BY"
    homepage = "https://github.com/allenai/winogrande"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> SourceRows:
        return published(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row."""
    options = [record["option1"], record["option2"]]
    return multiple_choice(
        record["sentence"],
        options,
        gold(record["answer"], LABELS),
        LABELS,
        frame=("Sentence: ", "Answer:"),
    )
