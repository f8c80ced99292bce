"""The question alone."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row, question_text


@dataclass(frozen=True, repr=False)
class Question(Format):
    """`Question: …` and `Answer:`, with nothing after it: what a model is shown zero-shot."""

    needs = ("question",)

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        return question_text(row)
