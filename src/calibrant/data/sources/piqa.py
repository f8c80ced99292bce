"""PIQA: which of two ways to do something works."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import Split, gold, multiple_choice, published

HUB: Final = HubDataset("baber/piqa")
TRAIN: Final = Split("train", {("piqa", "train"): 16_113})
TEST: Final = Split("validation", {("piqa", "validation"): 1_838})


@dataclass(frozen=True, repr=False)
class PIQA(StoredSource):
    """Bisk et al. 2020 (arXiv:1911.11641). validation measures, since the labels of test are kept
    back; the two solutions aren't listed.

    The authors' `ybisk/piqa` is a script on the hub, which is never run; `baber/piqa` is the copy
    of its data that lm-eval reads. Many goals stand in train and in validation with other
    solutions: such rows are dropped from what calibrates. Hub and mirror: goal, sol1, sol2, label.

        Question: When boiling butter, when it's ready, you can
        Answer: Pour it into a jar
    """

    kind = "questions"
    family = "commonsense"
    licence = "AFL-3.0"
    homepage = "https://yonatanbisk.com/piqa/"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> SourceRows:
        return published(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row."""
    return multiple_choice(
        record["goal"], [record["sol1"], record["sol2"]], gold(record["label"], ["0", "1"])
    )
