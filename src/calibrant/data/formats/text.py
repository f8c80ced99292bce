"""The row's text."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row


@dataclass(frozen=True, repr=False)
class Text(Format):
    """The text as it is. A control's integers and a user's token ids stand for text that is
    tokenised already, and need no rendering.
    """

    needs = ("text",)

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        return row.need("text")
