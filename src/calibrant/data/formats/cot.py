"""The question, the way to the answer, and the answer."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row, question_text
from calibrant.errors import SpecError
from calibrant.spec import MOST_STEPS, check_most


@dataclass(frozen=True, repr=False)
class CoT(Format):
    """`Question: …`, `Answer:`, the rationale, and `The answer is N.`: chain of thought.

    `cot(steps=3)` takes only rows whose rationale has three steps, counted by the marks of their
    own set: the lines of a GSM8K solution, the operations of an equation, the sentences of an
    explanation, the lines of a user's own rationale.
    """

    steps: int | None = None

    revision = 2
    needs = ("question", "answer", "rationale")

    def __post_init__(self) -> None:
        check_most(self, steps=MOST_STEPS)
        if self.steps is not None and self.steps < 1:
            raise SpecError(
                f"cot(steps={self.steps}): a rationale has at least 1 step; leave steps out to "
                "take every row",
                subject="steps",
            )

    def takes(self, row: Row) -> bool:
        return super().takes(row) and self.steps in (None, row.steps)

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        return f"{question_text(row)} {worked_answer(row)}"


def worked_answer(row: Row) -> str:
    """Return the way to a row's answer, and the answer."""
    rationale = row.need("rationale")
    # A sentence that lacks its full stop would run into the next one.
    if rationale[-1:].isalnum():
        rationale += "."
    return f"{rationale} The answer is {row.need('answer')}."
