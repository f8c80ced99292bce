"""XQuAD: the same Wikipedia paragraphs in twelve languages."""

from dataclasses import dataclass, replace
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset, records
from calibrant.data.sources._corpus import divide_by_place, mirror_note, text_rows
from calibrant.errors import DataError
from calibrant.spec.foreign import did_you_mean

HUB: Final = HubDataset("google/xquad", "xquad.en")
LANGUAGES: Final = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
PARAGRAPHS: Final = 5
"""How many stand one after the other of each article."""
NOTE: Final = "all 240 paragraphs, without the questions"


@dataclass(frozen=True, repr=False)
class XQuAD(StoredSource):
    """Artetxe et al. 2019 (arXiv:1910.11856): 240 paragraphs of 48 English Wikipedia articles,
    translated by people.

    It stands for one and the same content in different languages, as `flores` does. The questions
    aren't used. Five paragraphs an article stand one after the other, in the same order in every
    language; whole articles are divided, by their number, since the hub doesn't name them: 36
    calibrate, 12 measure. The hub has the field context, once a question, the mirror text and
    title. A row: `Row(text="The Panthers defense gave up just 308 points, ranking sixth in the
    league, …")`.
    """

    language: str = "en"

    kind = "corpus"
    family = "languages"
    licence = "CC BY-SA 4.0"
    homepage = "https://huggingface.co/datasets/google/xquad"
    hub = HUB
    fields = ("text",)

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            near = did_you_mean(self.language, LANGUAGES)
            raise DataError(
                f"xquad(language={self.language!r}): no such language{near}; write one of "
                f"{', '.join(LANGUAGES)}",
                subject="language",
            )

    def read(self) -> SourceRows:
        hub = replace(HUB, config=f"xquad.{self.language}")
        entries, origin = records(hub, "validation", [(f"xquad/{self.language}", "validation")])
        # A paragraph comes once a question: each is kept once, in the order of the set.
        paragraphs = dict.fromkeys(text_rows(entries, origin, ("text", "context")))
        placed = ((f"article {number // PARAGRAPHS}", row) for number, row in enumerate(paragraphs))
        return SourceRows(divide_by_place(placed), origin, mirror_note(origin, NOTE))
