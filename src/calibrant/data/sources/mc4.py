"""mC4: the web in a hundred languages."""

import re
from dataclasses import dataclass, replace
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import corpus
from calibrant.errors import DataError

HUB: Final = HubDataset("allenai/c4", "de", first=20_000)


@dataclass(frozen=True, repr=False)
class MC4(StoredSource):
    """Xue et al. 2020 (arXiv:2010.11934): pages of Common Crawl in the language that a classifier
    found them to be in, `de`, `zh`, `hi-Latn`, …

    It stands for everyday text of a language, and is noisy in rare ones. The front of train
    calibrates, the front of validation measures. English is the hub's `en-multi`: its `en` is C4.
    Nobody has seen these configurations load here: their names are those of the hub's own list. The
    hub has the fields text, timestamp, url: `Row(text=…)` is the first.
    """

    language: str = "de"

    kind = "corpus"
    family = "languages"
    licence = "ODC-By 1.0 and the terms of use of Common Crawl"
    homepage = "https://huggingface.co/datasets/allenai/c4"
    hub = HUB
    fields = ("text",)

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z]{2,3}(-Latn)?", self.language):
            raise DataError(
                f"mc4(language={self.language!r}): a language is two or three small letters, such "
                "as de, zh or fil, with -Latn if it is romanised",
                subject="language",
            )

    def read(self) -> SourceRows:
        config = "en-multi" if self.language == "en" else self.language
        return corpus(replace(HUB, config=config), f"mc4/{self.language}", "train", "validation")
