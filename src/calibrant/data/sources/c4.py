"""C4: the English web, cleaned."""

from dataclasses import dataclass
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import corpus

HUB: Final = HubDataset(
    "allenai/c4",
    "en",
    files={
        "train": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    },
    first=20_000,
)
NOTE: Final = (
    "1,000 pages to calibrate on and 1,000 to measure on, two files of a published sample of C4 "
    "that doesn't say which split they are from"
)


@dataclass(frozen=True, repr=False)
class C4(StoredSource):
    """Raffel et al. 2019 (arXiv:1910.10683): English pages of Common Crawl of April 2019,
    boilerplate and bad words removed.

    The usual calibration set of pruning papers, from the same one shard as theirs; it stands for
    "any English text". Train calibrates, validation measures. Hub and mirror have the fields text,
    timestamp, url. A row: `Row(text="Beginners BBQ Class Taking Place in Missoula!\\nDo you …")`.
    """

    kind = "corpus"
    licence = "ODC-By 1.0 and the terms of use of Common Crawl"
    homepage = "https://huggingface.co/datasets/allenai/c4"
    hub = HUB
    fields = ("text",)
    siblings = ("redpajama",)

    def read(self) -> SourceRows:
        return corpus(HUB, "c4", "train", "validation", NOTE)
