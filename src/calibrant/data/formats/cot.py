"""The question, the way to the answer, and the answer."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row
from calibrant.data.formats._asked import asked


@dataclass(frozen=True, repr=False)
class CoT(Format):
    """`Question: …`, `Answer:`, the rationale, and `The answer is N.`: chain of thought."""

    needs = ("question", "answer", "rationale")

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        return f"{asked(row)} {row.need('rationale')} The answer is {row.need('answer')}."
