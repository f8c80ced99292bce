"""CoCoNot: requests that are unsafe, and answers that refuse them."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import answered, one_split

HUB: Final = HubDataset("allenai/coconot", "original")
UNSAFE: Final = "Requests with safety concerns"


@dataclass(frozen=True, repr=False)
class CoCoNot(StoredSource):
    """Brahman et al. 2024 (arXiv:2407.12043): requests that a model shouldn't follow, and answers
    of a model that doesn't.

    It stands for what a model is to refuse. Of the five kinds of requests these are the unsafe
    ones, of which some are offensive; rows of other kinds are left out and counted. The train split
    is divided by hash, since the test split has no answers. The hub has the fields id, category,
    subcategory, prompt, response: `Row(question=prompt, answer=response)`.
    """

    kind = "questions"
    family = "instructions"
    licence = "ODC-BY, and the terms of the models that wrote it"
    homepage = "https://huggingface.co/datasets/allenai/coconot"
    hub = HUB
    default = "chat"
    fields = ("question", "answer")

    def read(self) -> SourceRows:
        return one_split(HUB, "coconot", refusal, "a safety concern and an answer")


def refusal(record: dict[str, Any]) -> Row | None:
    """Return a record as a row; None where the request is of another kind, or has no answer."""
    if record["category"] != UNSAFE:
        return None
    return answered(record, "coconot", "prompt", "response")
