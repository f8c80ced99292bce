"""A conversation in the model's own words."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row, question_text
from calibrant.data._templates import Stretch, stretches, templated
from calibrant.errors import DataError


@dataclass(frozen=True, repr=False)
class Chat(Format):
    """The row's turns, or its question and answer as one exchange, in the tokenizer's own chat
    template.

    A question with listed choices is put with them, without `Question:` and `Answer:`, for which a
    chat has no use. `system` comes first where it is given. What the template adds of itself (a
    default system prompt, for one) stays, because that is what the model meets in use.
    """

    system: str = ""

    needs = ("question", "answer")

    def takes(self, row: Row) -> bool:
        return bool(row.turns) or super().takes(row)

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        return templated(_with_template(tokenizer), self.messages(row), row.key)

    def stretches(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Stretch]]:
        """Return what `render` gives, and where in it template, questions and answers stand.

        Raises `DataError` where they can't be told apart.
        """
        return stretches(_with_template(tokenizer), self.messages(row), row.key)

    def messages(self, row: Row) -> list[dict[str, str]]:
        """Return what is said, as chat templates take it: `role` and `content` of each turn."""
        turns = list(row.turns)
        if not turns:
            before, after = row.frame
            question = question_text(row).removeprefix(before.strip()).removesuffix(after).strip()
            turns = [("user", question), ("assistant", row.need("answer"))]
        if self.system:
            turns.insert(0, ("system", self.system))
        return [{"role": role, "content": content} for role, content in turns]


def _with_template(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer. `DataError` for none, or one without a chat template."""
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            "the format 'chat' needs a tokenizer with a chat template, and this model's has none; "
            "use qa, or an instruction-tuned model",
            subject="chat",
        )
    return tokenizer
