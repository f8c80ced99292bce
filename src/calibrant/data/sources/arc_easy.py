"""ARC-Easy: science questions of school tests, the easier ones."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import Split, gold, multiple_choice, published

HUB: Final = HubDataset("allenai/ai2_arc", "ARC-Easy")
TRAIN: Final = Split("train", {("arc_easy", "train"): 2_251})
TEST: Final = Split("test", {("arc_easy", "test"): 2_376})


@dataclass(frozen=True, repr=False)
class ARCEasy(StoredSource):
    """Clark et al. 2018 (arXiv:1803.05457). Three to five choices, which aren't listed: the answer
    is the choice's own text.

    The hub labels the choices of some questions 1 to 4, the mirror all of them A, B, C…; the same
    row either way. Fields: question, choices (text and label), answerKey.

        Question: Which factor will most likely cause a person to develop a fever?
        Answer: a bacterial population in the bloodstream
    """

    kind = "questions"
    family = "commonsense"
    licence = "CC BY-SA 4.0"
    homepage = "https://allenai.org/data/arc"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> SourceRows:
        return published(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row."""
    choices = record["choices"]
    return multiple_choice(
        record["question"], choices["text"], gold(record["answerKey"], choices["label"])
    )
