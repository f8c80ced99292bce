"""s1K: hard questions with long reasoning and an answer."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data._messages import Message
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import text_field
from calibrant.data.sources._published import answered, one_split

HUB: Final = HubDataset("simplescaling/s1K-1.1")


@dataclass(frozen=True, repr=False)
class S1K(StoredSource):
    """Muennighoff et al. 2025 (arXiv:2501.19393): 1,000 questions, most of mathematics, with
    DeepSeek-R1's reasoning and answers (s1K-1.1).

    It stands for a model that reasons before it answers. Reasoning is long, some 30,000 letters a
    row, so give windows that hold it: `s1k:chat(thinking=keep)@whole` with `--length 16384`. One
    split, divided by hash. The hub has the fields question, solution, deepseek_thinking_trajectory,
    deepseek_attempt, and those of Gemini, which aren't used. `Row(question=…, answer=…, turns=
    (Message("user", …), Message("assistant", …, reasoning=…)))`.
    """

    kind = "questions"
    family = "instructions"
    licence = "MIT"
    homepage = "https://huggingface.co/datasets/simplescaling/s1K-1.1"
    hub = HUB
    default = "chat"
    fields = ("question", "answer", "turns")

    def read(self) -> SourceRows:
        return one_split(HUB, "s1k", trace, "reasoning and an answer")


def trace(record: dict[str, Any]) -> Row | None:
    """Return a record as a row; None where its question, reasoning or answer is blank."""
    row = answered(record, "s1k", "question", "deepseek_attempt")
    reasoning = text_field(record, "s1k", "deepseek_thinking_trajectory").strip()
    if row is None or not reasoning:
        return None
    question = row.need("question")
    answer = row.need("answer")
    turns = (Message("user", question), Message("assistant", answer, reasoning=reasoning))
    return Row(question=question, answer=answer, turns=turns)
