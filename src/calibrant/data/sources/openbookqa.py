"""OpenBookQA: elementary science that takes a fact and some thought."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Found, Hub, Row, Stored
from calibrant.data.sources._published import Split, chosen, found, gold

HUB: Final = Hub("allenai/openbookqa", "main")
TRAIN: Final = Split("train", {("openbookqa", "train"): 4_957})
TEST: Final = Split("test", {("openbookqa", "test"): 500})


@dataclass(frozen=True, repr=False)
class OpenBookQA(Stored):
    """Mihaylov et al. 2018 (arXiv:1809.02789). The choices aren't listed: the answer is the choice's own text.

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

    def read(self) -> Found:
        return found(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """A record as a row."""
    choices = record["choices"]
    return chosen(record["question_stem"], choices["text"], gold(record["answerKey"], choices["label"]))
