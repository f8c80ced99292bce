"""The Pile without its copyrighted parts: English text of many kinds."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import checked_subsets, corpus, subset_names

HUB: Final = HubDataset(
    "monology/pile-uncopyrighted",
    files={"train": "train/00.jsonl.zst", "test": "test.jsonl.zst"},
    first=20_000,
)
SUBSETS: Final = (
    "ArXiv", "DM Mathematics", "Enron Emails", "EuroParl", "FreeLaw", "Github",
    "Gutenberg (PG-19)", "HackerNews", "NIH ExPorter", "PhilPapers", "Pile-CC",
    "PubMed Abstracts", "PubMed Central", "StackExchange", "USPTO Backgrounds", "Ubuntu IRC",
    "Wikipedia (en)",
)  # fmt: skip
NOTE: Final = (
    "910 documents to calibrate on and 979 to measure on, both of the Pile's test split, none "
    "above 40,000 characters, without ArXiv, FreeLaw, PubMed Central, Gutenberg (PG-19) and Enron "
    "Emails"
)


@dataclass(frozen=True, repr=False)
class Pile(StoredSource):
    """Gao et al. 2020 (arXiv:2101.00027): papers, code, law, questions, mail and web pages, each in
    its subset.

    It stands for text of many kinds. `subsets` chooses by the set's own names:
    `pile(subsets=['Github', 'StackExchange'])`; none means all. Books3, BookCorpus2, OpenSubtitles,
    YoutubeSubtitles and OpenWebText2 were taken out by those who published it again. The front of
    the train split calibrates, the front of the test split measures; a rare subset has few rows
    there. Hub and mirror have the fields text and meta{pile_set_name}. A row: `Row(text="Here We
    Go:\\n1. Switch Off Your Phone\\n2. Press and hold Home Button +\\n…")`.
    """

    subsets: tuple[str, ...] = ()

    kind = "corpus"
    licence = "each subset its own; the collection names none"
    homepage = "https://huggingface.co/datasets/monology/pile-uncopyrighted"
    hub = HUB
    fields = ("text",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "subsets", subset_names("pile", self.subsets, SUBSETS))

    def read(self) -> SourceRows:
        return checked_subsets(corpus(HUB, "pile", "train", "test", NOTE, self._keeps), self)

    def _keeps(self, record: dict[str, Any]) -> bool:
        return not self.subsets or (record.get("meta") or {}).get("pile_set_name") in self.subsets
