"""FineWeb-Edu: web pages that teach."""

from dataclasses import dataclass
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import corpus

HUB: Final = HubDataset("HuggingFaceFW/fineweb-edu", "sample-10BT", first=20_000)


@dataclass(frozen=True, repr=False)
class FineWebEdu(StoredSource):
    """Penedo et al. 2024 (arXiv:2406.17557): English pages of Common Crawl that a classifier found
    educational.

    It stands for well-written, factual web text. The front of the sample of ten billion tokens,
    divided by hash. The hub has the field text beside id, dump, url, score and others:
    `Row(text=…)` is that.
    """

    kind = "corpus"
    licence = "ODC-By 1.0 and the terms of use of Common Crawl"
    homepage = "https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu"
    hub = HUB
    fields = ("text",)

    def read(self) -> SourceRows:
        return corpus(HUB, "fineweb_edu", "train")
