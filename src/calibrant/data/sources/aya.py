"""Aya: requests and answers that people wrote in 65 languages."""

import re
from dataclasses import dataclass
from typing import Final

from calibrant.data._base import Row, SourceRows, StoredSource, divide
from calibrant.data.hub import HubDataset, records
from calibrant.data.sources._corpus import text_field
from calibrant.data.sources._published import answered, left_out_note
from calibrant.errors import DataError
from calibrant.spec.foreign import did_you_mean

HUB: Final = HubDataset("CohereLabs/aya_dataset")
SHORT: Final = {
    "ar": "arb", "de": "deu", "en": "eng", "es": "spa", "fi": "fin", "fr": "fra", "hi": "hin",
    "it": "ita", "ja": "jpn", "ko": "kor", "pt": "por", "ru": "rus", "sw": "swh", "tr": "tur",
    "vi": "vie", "zh": "zho",
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Aya(StoredSource):
    """Singh et al. 2024 (arXiv:2402.06619): 202,362 requests and answers that speakers of 65
    languages wrote or corrected.

    It stands for a model that is asked in other languages than English. `language` is `all`, a code
    of three letters such as `deu`, or `de` for one of 16. The train split is divided by hash; the
    test split, which others measure on, isn't read. Records without a request or an answer are left
    out and counted. The hub has the fields inputs, targets,
    language, language_code, annotation_type, user_id: `Row(question=inputs, answer=targets)`.
    """

    language: str = "all"

    kind = "questions"
    family = "languages"
    licence = "Apache-2.0"
    homepage = "https://huggingface.co/datasets/CohereLabs/aya_dataset"
    hub = HUB
    default = "chat"
    fields = ("question", "answer")

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", SHORT.get(self.language, self.language))
        if not re.fullmatch("[a-z]{3}", self.language):
            known = ", ".join(f"{code} ({short})" for short, code in SHORT.items())
            raise DataError(
                f"aya(language={self.language!r}) is no code of three letters; write language=all "
                f"or one such as {known}",
                subject="language",
            )

    def read(self) -> SourceRows:
        entries, origin = records(HUB, "train", [("aya", "train")])
        rows: list[Row] = []
        blank = 0
        present: set[str] = set()
        for record in entries:
            code = text_field(record, origin, "language_code")
            present.add(code)
            if self.language not in ("all", code):
                continue
            row = answered(record, origin, "inputs", "targets")
            if row is None:
                blank += 1
            else:
                rows.append(row)
        if self.language not in ("all", *present):
            raise DataError(
                f"{self}: nothing in {origin} is in this language"
                f"{did_you_mean(self.language, present)}; it has {', '.join(sorted(present))}",
                subject="language",
            )
        return SourceRows(divide(rows), origin, left_out_note(blank, origin, "an answer"))
