"""Magicoder: requests for programs with their answers."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import answered, one_split

HUB: Final = HubDataset("ise-uiuc/Magicoder-Evol-Instruct-110K", first=20_000)


@dataclass(frozen=True, repr=False)
class Magicoder(StoredSource):
    """Wei et al. 2023 (arXiv:2312.02120): requests that were made harder step by step, and answers
    with programs in many languages, both written by a model.

    It stands for a model that writes code on request. The first 20,000 of 111,183 records, divided
    by hash. Its makers took out what shares words with HumanEval and MBPP; tasks of those that are
    told in other words may have stayed. The hub has the fields instruction and response:
    `Row(question=instruction, answer=response)`.
    """

    kind = "questions"
    family = "code"
    licence = "Apache-2.0"
    homepage = "https://huggingface.co/datasets/ise-uiuc/Magicoder-Evol-Instruct-110K"
    hub = HUB
    default = "chat"
    fields = ("question", "answer")

    def read(self) -> SourceRows:
        return one_split(HUB, "magicoder", request, "an answer")


def request(record: dict[str, Any]) -> Row | None:
    """Return a record as a row; None where there is no request or no answer."""
    return answered(record, "magicoder", "instruction", "response")
