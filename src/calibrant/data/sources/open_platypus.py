"""Open-Platypus: questions of science and logic with their worked answers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource, divide
from calibrant.data.hub import HubDataset, records
from calibrant.data.sources._corpus import text_field

HUB: Final = HubDataset("garage-bAInd/Open-Platypus")


@dataclass(frozen=True, repr=False)
class OpenPlatypus(StoredSource):
    """Lee et al. 2023 (arXiv:2308.07317): 24,926 instructions out of eleven sets, among them MATH,
    ScienceQA, ReClor and LeetCode solutions.

    It stands for reasoning in the form of instructions, and is a usual set to calibrate quantised
    models with. One split, divided by hash. The hub has the fields instruction, input (mostly
    empty), output, data_source: `Row(question=instruction and input, answer=output)`. Rows aren't
    quoted, for two of the eleven sets are for non-commercial use only.
    """

    kind = "questions"
    family = "instructions"
    licence = (
        "each of its sets its own: MIT, Apache-2.0, CC BY 4.0, CC BY-NC-SA 4.0, "
        "and non-commercial use only (ReClor)"
    )
    homepage = "https://huggingface.co/datasets/garage-bAInd/Open-Platypus"
    hub = HUB
    default = "chat"
    shown = False
    fields = ("question", "answer")

    def read(self) -> SourceRows:
        entries, origin = records(HUB, "train", [("open_platypus", "train")])
        return SourceRows(divide(instructions(entries, origin)), origin)


def instructions(entries: Iterable[dict[str, Any]], where: str) -> Iterator[Row]:
    """Yield a row for each instruction that has an answer."""
    for record in entries:
        request = text_field(record, where, "instruction").strip()
        material = (record.get("input") or "").strip()
        question = "\n".join(filter(None, (request, material)))
        answer = text_field(record, where, "output").strip()
        if question and answer:
            yield Row(question=question, answer=answer)
