"""RTE: recognising textual entailment in news."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import Split, inference, published

HUB: Final = HubDataset("nyu-mll/glue", "rte")
TRAIN: Final = Split("train", {("rte", "train"): 2_490})
TEST: Final = Split("validation", {("rte", "validation"): 277})
LABELS: Final = ("entailment", "not_entailment")


@dataclass(frozen=True, repr=False)
class RTE(StoredSource):
    """Dagan et al. 2006 and its successors, as GLUE and SuperGLUE have them. validation measures,
    since the labels of test are kept back.

    The hub's GLUE calls the sentences sentence1 and sentence2, the mirror, which has SuperGLUE's
    copy, premise and hypothesis.

        Premise: No Weapons of Mass Destruction Found in Iraq Yet.
        Hypothesis: Weapons of Mass Destruction Found in Iraq.
        Label: not_entailment
    """

    kind = "questions"
    family = "inference"
    licence = "not stated by the authors of RTE"
    homepage = "https://gluebenchmark.com"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> SourceRows:
        return published(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row."""
    if "premise" in record:
        return inference(record["premise"], record["hypothesis"], record["label"], LABELS)
    return inference(record["sentence1"], record["sentence2"], record["label"], LABELS)
