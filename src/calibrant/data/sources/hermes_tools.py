"""Hermes function calling: conversations in which functions are offered, called and answered."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data._columns import Columns
from calibrant.data._rows import values_of
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import one_split

HUB: Final = HubDataset("NousResearch/hermes-function-calling-v1", "func_calling")
COLUMNS: Final = Columns({"turns": "conversations"})


@dataclass(frozen=True, repr=False)
class HermesTools(StoredSource):
    """Teknium et al. 2024, the data of Hermes 2 Pro: a user asks, the assistant calls functions,
    reads what they return, and answers; all written by a model.

    It stands for a model that is used with tools. Of its five parts this is `func_calling`, the one
    with results; it is divided by hash. The hub has the fields id, conversations (a list of {from,
    value}), category, subcategory and task. Functions and calls stand in the texts, in JSON or in
    Python's notation: they are read, and the model's template writes them in its own way. Records
    in which they can't be read are left out and counted. `Row(question=…, answer=…, turns=
    (Message("user", …), Message("assistant", calls=…), Message("tool", …), …), tools=…)`.
    """

    kind = "questions"
    family = "instructions"
    licence = "Apache-2.0"
    homepage = "https://huggingface.co/datasets/NousResearch/hermes-function-calling-v1"
    hub = HUB
    default = "chat"
    fields = ("question", "answer", "turns", "tools")

    def read(self) -> SourceRows:
        return one_split(HUB, "hermes_tools", conversation, "functions and calls that can be read")


def conversation(record: dict[str, Any]) -> Row | None:
    """Return a record as a row; None where its functions or calls can't be read."""
    turns = {"conversations": record["conversations"]}
    values = values_of(turns, COLUMNS, "a record of hermes_tools")
    if not {"question", "answer", "tools"} <= values.keys():
        return None
    for message in values["turns"]:
        # What can't be read stays in the text as it is.
        if "<tool_call>" in (message.content or ""):
            return None
    return Row(**values)
