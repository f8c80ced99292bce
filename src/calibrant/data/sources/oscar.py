"""OSCAR: the English web, less cleaned."""

from dataclasses import dataclass
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import corpus

HUB: Final = HubDataset(
    "oscar-corpus/OSCAR-2301", files={"train": "en_meta/en_meta_part_1.jsonl.zst"}, first=20_000
)


@dataclass(frozen=True, repr=False)
class Oscar(StoredSource):
    """Abadji et al. 2022 (arXiv:2201.06642): English pages of Common Crawl of November and December
    2022, filtered by language.

    It stands for web text with its menus and lists still in it. The hub's set is gated: accept its
    conditions there and log in. The front of one file is read, without the set's script, and
    divided by hash. Bandari et al. 2024 used the first release, `unshuffled_deduplicated_en` of
    2019, which is a script. The hub has the field content, a mirror may have content or text:
    `Row(text=…)` is that.
    """

    kind = "corpus"
    licence = "CC0 1.0 for what OSCAR adds; the pages under the terms of use of Common Crawl"
    homepage = "https://huggingface.co/datasets/oscar-corpus/OSCAR-2301"
    hub = HUB
    fields = ("text",)

    def read(self) -> SourceRows:
        return corpus(HUB, "oscar", "train", columns=("content", "text"))
