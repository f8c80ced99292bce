"""RedPajama: a copy of what the first LLaMA was trained on."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource, divide
from calibrant.data.hub import HubDataset, mirrored, records
from calibrant.data.sources._corpus import checked_subsets, corpus, subset_names, text_rows

FILES: Final = {
    "common_crawl": "cc_2023-06_sample.jsonl",
    "c4": "c4_sample.jsonl",
    "github": "github_sample.jsonl",
    "wikipedia": "wikipedia_sample.jsonl",
    "arxiv": "arxiv_sample.jsonl",
    "stackexchange": "stackexchange_sample.jsonl",
    "book": "book_sample.jsonl",
}
HUB: Final = HubDataset("togethercomputer/RedPajama-Data-1T-Sample", files=FILES, first=1_000)
NOTE: Final = (
    "730 documents to calibrate on and 731 to measure on (and a blank one), two files of a "
    "published excerpt of the sample: c4 and stackexchange 300 each, github 100, common_crawl, "
    "arxiv and wikipedia (all Bulgarian) 10, and 2 books to measure on only"
)


@dataclass(frozen=True, repr=False)
class RedPajama(StoredSource):
    """Together 2023: the published sample of RedPajama-Data-1T, an open copy of the first LLaMA's
    training data.

    It stands for a model's own training mixture. `subsets` chooses: `redpajama(subsets=['github',
    'arxiv'])`; none means all seven. Its c4 is C4. The hub's set is a script around a file a
    subset; the front of each file is read, without the script, and divided by hash. The mirror
    comes divided, and names the subset in red_pajama_subset. Bandari et al. 2024 used another set,
    the sample of RedPajama-Data-V2, which is a script that downloads from elsewhere. A row:
    `Row(text="You are here: Main » Why ACA repeal bill is the worst yet …")`.
    """

    subsets: tuple[str, ...] = ()

    kind = "corpus"
    licence = "each subset its own"
    homepage = "https://huggingface.co/datasets/togethercomputer/RedPajama-Data-1T-Sample"
    hub = HUB
    fields = ("text",)
    siblings = ("c4",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "subsets", subset_names("redpajama", self.subsets, FILES))

    def read(self) -> SourceRows:
        if mirrored([("redpajama", "train")]):
            content = corpus(HUB, "redpajama", "train", "validation", NOTE, self._keeps)
            return checked_subsets(content, self)
        rows: list[Row] = []
        origins: list[str] = []
        for subset in self.subsets or FILES:
            documents, origin = records(HUB, subset, [("redpajama", "train")])
            rows.extend(text_rows(documents, origin))
            origins.append(origin)
        return checked_subsets(SourceRows(divide(rows), "; ".join(origins)), self)

    def _keeps(self, record: dict[str, Any]) -> bool:
        return not self.subsets or record.get("red_pajama_subset") in self.subsets
