"""RACE: reading tests of Chinese schools."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource, lettered
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import Split, gold, multiple_choice, published

HUB: Final = HubDataset("ehovy/race", "all")
TRAIN: Final = Split("train", {("race", "train"): 87_866})
TEST: Final = Split("test", {("race", "test"): 4_934})


@dataclass(frozen=True, repr=False)
class RACE(StoredSource):
    """Lai et al. 2017 (arXiv:1704.04683): an article, a question about it, four options. `shown` is
    false: the licence is for research only.

    The hub's `all` holds middle and high school together; hub and mirror have the same fields,
    article, question, options and answer.

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

    def read(self) -> SourceRows:
        return published(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row."""
    labels = lettered(record["options"])
    question = f"Article: {record['article'].strip()}\n\nQuestion: {record['question'].strip()}"
    return multiple_choice(
        question, record["options"], gold(record["answer"], labels), labels, frame=("", "Answer:")
    )
