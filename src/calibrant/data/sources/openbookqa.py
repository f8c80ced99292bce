"""OpenBookQA: elementary science that takes a fact and some thought."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import Split, gold, multiple_choice, published

HUB: Final = HubDataset("allenai/openbookqa", "main")
TRAIN: Final = Split("train", {("openbookqa", "train"): 4_957})
TEST: Final = Split("test", {("openbookqa", "test"): 500})


@dataclass(frozen=True, repr=False)
class OpenBookQA(StoredSource):
    """Mihaylov et al. 2018 (arXiv:1809.02789). The choices aren't listed: the answer is the
    choice's own text.

    Hub and mirror have the same fields, question_stem, choices (text and label) and answerKey.

        Question: The sun is responsible for
        Answer: plants sprouting, blooming and wilting
    """

    kind = "questions"
    family = "commonsense"
    licence = "Apache-2.0"
    homepage = "https://allenai.org/data/open-book-qa"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> SourceRows:
        return published(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row."""
    choices = record["choices"]
    return multiple_choice(
        record["question_stem"], choices["text"], gold(record["answerKey"], choices["label"])
    )
