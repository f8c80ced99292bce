"""FLORES: the same news, children's books and travel guides in two hundred languages."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset, records
from calibrant.data.sources._corpus import mirror_note, text_field, train_and_test_by_place
from calibrant.errors import DataError
from calibrant.spec.foreign import did_you_mean

HUB: Final = HubDataset("openlanguagedata/flores_plus", "eng_Latn")
SHORT: Final = {
    "ar": "arb_Arab", "de": "deu_Latn", "en": "eng_Latn", "es": "spa_Latn", "fi": "fin_Latn",
    "fr": "fra_Latn", "hi": "hin_Deva", "it": "ita_Latn", "ja": "jpn_Jpan", "ko": "kor_Hang",
    "pt": "por_Latn", "ru": "rus_Cyrl", "sw": "swh_Latn", "tr": "tur_Latn", "vi": "vie_Latn",
    "zh": "zho_Hans",
}  # fmt: skip
MIRRORED: Final = tuple(sorted(SHORT.values()))
RENAMED: Final = {"zho_Hans": "cmn_Hans", "zho_Hant": "cmn_Hant"}
UNSPACED: Final = ("Hans", "Hant", "Jpan")
NOTE: Final = (
    "FLORES-200 as first published, in 16 of its 204 languages; the hub has its successor FLORES+, "
    "which is still corrected"
)


@dataclass(frozen=True, repr=False)
class Flores(StoredSource):
    """NLLB Team 2022 (arXiv:2207.04672): passages of English Wikinews, Wikijunior and Wikivoyage,
    translated by people into other languages.

    It stands for one and the same content in different languages. `language` is `deu_Latn`, or `de`
    for the 16 languages that the mirror has. dev calibrates, devtest measures; consecutive
    sentences of a page are one row, joined by a space where the script has spaces. The hub's set is
    gated. Hub and mirror have the fields text and url; the splits are dev and devtest there,
    validation and test here. A row of `eng_Latn`: `Row(text="On Monday, scientists from the
    Stanford University School of Medicine announced …")`.
    """

    language: str = "eng_Latn"

    kind = "corpus"
    family = "languages"
    licence = "CC BY-SA 4.0"
    homepage = "https://huggingface.co/datasets/openlanguagedata/flores_plus"
    hub = HUB
    fields = ("text",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", SHORT.get(self.language, self.language))
        if not re.fullmatch("[a-z]{3}_[A-Z][a-z]{3}", self.language):
            raise self._unknown()

    def read(self) -> SourceRows:
        folder = f"flores200/{self.language}"
        hub = replace(HUB, config=RENAMED.get(self.language, self.language))
        try:
            train, origin = records(hub, "dev", [(folder, "validation")])
            test, measured = records(hub, "devtest", [(folder, "test")])
        except DataError as error:
            if self.language in MIRRORED:
                raise
            raise self._unknown(f"; and {error}") from error
        parts = train_and_test_by_place(
            self._passages(train, origin), self._passages(test, measured)
        )
        both = f"{origin}; measured on {measured}"
        return SourceRows(parts, both, mirror_note(both, NOTE))

    def _passages(self, lines: Iterable[dict[str, Any]], where: str) -> Iterator[tuple[str, Row]]:
        """Yield the page and the text of every passage. The mirror's are joined already, which
        joining again doesn't change.
        """
        space = "" if self.language.endswith(UNSPACED) else " "

        def page(record: dict[str, Any]) -> str:
            return text_field(record, where, "url")

        for url, sentences in groupby(lines, page):
            pieces = [text_field(sentence, where, "text").strip() for sentence in sentences]
            yield url, Row(text=space.join(pieces))

    def _unknown(self, besides: str = "") -> DataError:
        near = did_you_mean(self.language, MIRRORED)
        known = ", ".join(f"{code} ({short})" for short, code in SHORT.items())
        return DataError(
            f"flores(language={self.language!r}) is none of the mirror's languages{near} (they "
            f"are {known}){besides}",
            subject="language",
        )
