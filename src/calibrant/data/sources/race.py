"""RACE: reading tests of Chinese schools."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Found, Hub, Row, Stored, lettered
from calibrant.data.sources._published import Split, chosen, found, gold

HUB: Final = Hub("ehovy/race", "all")
TRAIN: Final = Split("train", {("race", "train"): 87_866})
TEST: Final = Split("test", {("race", "test"): 4_934})


@dataclass(frozen=True, repr=False)
class RACE(Stored):
    """Lai et al. 2017 (arXiv:1704.04683): an article, a question about it, four options. `shown` is false: the licence is for research only.

    The hub's `all` holds middle and high school together; hub and mirror have the same fields, article, question, options and answer.

        Article: […]

        Question: The husband likes shopping because   _  .
        A. he has much money.
        B. he likes the shops.
        […]
        Answer: C
    """

    kind = "questions"
    family = "reading"
    licence = "non-commercial research only"
    homepage = "https://www.cs.cmu.edu/~glai1/data/race/"
    hub = HUB
    shown = False
    fields = ("question", "answer", "choices")

    def read(self) -> Found:
        return found(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """A record as a row."""
    labels = lettered(record["options"])
    question = f"Article: {record['article'].strip()}\n\nQuestion: {record['question'].strip()}"
    return chosen(question, record["options"], gold(record["answer"], labels), labels, frame=("", "Answer:"))
