"""Dolma: what the OLMo models were trained on."""

from dataclasses import dataclass
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import corpus

HUB: Final = HubDataset("emozilla/dolma-v1_7-3B", first=20_000)
NOTE: Final = (
    "20 web pages that the Dolma toolkit is tested with: too few to calibrate on in earnest"
)


@dataclass(frozen=True, repr=False)
class Dolma(StoredSource):
    """Soldaini et al. 2024 (arXiv:2402.00159): web pages, code, papers, books and encyclopedias in
    English.

    It stands for OLMo's own training mixture. `allenai/dolma` is a script that downloads from
    elsewhere; instead, the front of a sample of version 1.7 is read that somebody else published as
    plain files, and divided by hash. The mirror has Common Crawl pages only, with the fields text,
    id, source, file. A row of it: `Row(text="We will be starting to hold weekly teleconferences for
    businesses …")`.
    """

    kind = "corpus"
    licence = "ODC-By 1.0"
    homepage = "https://huggingface.co/datasets/allenai/dolma"
    hub = HUB
    fields = ("text",)

    def read(self) -> SourceRows:
        return corpus(HUB, "dolma_cc", "train", note=NOTE)
