"""BoolQ: questions that people asked a search engine, answered by a paragraph with yes or no."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import Split, gold, multiple_choice, published

HUB: Final = HubDataset("google/boolq")
TRAIN: Final = Split("train", {("boolq", "train"): 9_427})
TEST: Final = Split("validation", {("boolq", "validation"): 3_270})


@dataclass(frozen=True, repr=False)
class BoolQ(StoredSource):
    """Clark et al. 2019 (arXiv:1905.10044). validation measures, since the labels of test are kept
    back.

    The answer is `yes` or `no`, as lm-eval ranks them and as one answers such a question; the
    original study calibrated on the words `True` and `False`. The question gets the question mark
    that the set leaves out. Hub and mirror have the same fields, passage, question and answer.

        Passage: Persian language -- Persian (/ˈpɜːrʒən, -ʃən/), also known by its endonym Farsi […]
        Question: do iran and afghanistan speak the same language?
        Answer: yes
    """

    kind = "questions"
    family = "reading"
    licence = "CC BY-SA 3.0"
    homepage = "https://github.com/google-research-datasets/boolean-questions"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> SourceRows:
        return published(HUB, TRAIN, TEST, row)


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row."""
    passage = record["passage"].strip()
    question = record["question"].strip().removesuffix("?")
    right = gold(record["answer"], ["False", "True"])
    text = f"Passage: {passage}\nQuestion: {question}?"
    return multiple_choice(text, ["no", "yes"], right, frame=("", "Answer:"))
