"""PIQA: which of two ways to do something works."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Found, Hub, Row, Stored
from calibrant.data.sources._published import Split, chosen, found, gold

HUB: Final = Hub("baber/piqa")
TRAIN: Final = Split("train", {("piqa", "train"): 16_113})
TEST: Final = Split("validation", {("piqa", "validation"): 1_838})


@dataclass(frozen=True, repr=False)
class PIQA(Stored):
    """Bisk et al. 2020 (arXiv:1911.11641). validation measures, since the labels of test are kept back; the two solutions aren't listed.

    The authors' `ybisk/piqa` is a script on the hub, which is never run; `baber/piqa` is the copy of its data that lm-eval reads. Many goals stand in
    train and in validation with other solutions: such rows are dropped from what calibrates. Hub and mirror: goal, sol1, sol2, label.

        Question: When boiling butter, when it's ready, you can
        Answer: Pour it into a jar
    """

    kind = "questions"
    family = "commonsense"
    licence = "AFL-3.0"
    homepage = "https://yonatanbisk.com/piqa/"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> Found:
        return found(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """A record as a row."""
    return chosen(record["goal"], [record["sol1"], record["sol2"]], gold(record["label"], ["0", "1"]))
