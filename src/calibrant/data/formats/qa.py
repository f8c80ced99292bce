"""The question and its answer."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row, question_text


@dataclass(frozen=True, repr=False)
class QA(Format):
    """`Question: …` and `Answer: N`: an example as it stands in a few-shot prompt."""

    needs = ("question", "answer")

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        return f"{question_text(row)} {row.need('answer')}"
