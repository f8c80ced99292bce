"""Wikipedia: whole articles, in any of its languages."""

import re
from dataclasses import dataclass, replace
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import corpus
from calibrant.errors import DataError

HUB: Final = HubDataset("wikimedia/wikipedia", "20231101.en", first=5_000)
NOTE: Final = (
    "30 long articles whose paragraphs run into each other, from a file of examples of unknown date"
)


@dataclass(frozen=True, repr=False)
class Wikipedia(StoredSource):
    """Articles of November 2023 without their markup; `language` is the Wikipedia's code, such as
    `en`, `de` or `simple`.

    It stands for encyclopedic prose, and for a language as those who speak it write it. The front
    of the hub's articles, divided by hash; as far as is known they begin with the oldest, which are
    long and about large subjects. The hub has the fields id, url, title, text, the mirror text, in
    English only. A row of it: `Row(text="Anarchism is a political philosophy and movement that is
    sceptical of …")`.
    """

    language: str = "en"

    kind = "corpus"
    licence = "CC BY-SA 3.0 and GFDL"
    homepage = "https://huggingface.co/datasets/wikimedia/wikipedia"
    hub = HUB
    fields = ("text",)

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z]+(-[a-z]+)*", self.language):
            raise DataError(
                f"wikipedia(language={self.language!r}): a Wikipedia is called by its code, such "
                "as en, de, simple or zh-yue",
                subject="language",
            )

    def read(self) -> SourceRows:
        hub = replace(HUB, config=f"20231101.{self.language}")
        return corpus(hub, f"wikipedia_{self.language}", "train", note=NOTE)
