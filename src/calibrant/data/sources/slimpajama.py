"""SlimPajama: RedPajama without its repetitions."""

from dataclasses import dataclass
from typing import Final

from calibrant.data._base import SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._corpus import corpus

HUB: Final = HubDataset(
    "cerebras/SlimPajama-627B",
    files={
        "train": "train/chunk1/example_train_0.jsonl.zst",
        "validation": "validation/chunk1/example_holdout_0.jsonl.zst",
    },
    first=20_000,
)


@dataclass(frozen=True, repr=False)
class SlimPajama(StoredSource):
    """Cerebras 2023: RedPajama-Data-1T, of which short and repeated documents were left out; its
    subsets stand shuffled.

    It stands for a cleaned training mixture. The front of one train file calibrates, the front of
    one validation file measures. The hub has the fields text and meta{redpajama_set_name}:
    `Row(text=…)` is the former.
    """

    kind = "corpus"
    licence = "each subset of RedPajama its own"
    homepage = "https://huggingface.co/datasets/cerebras/SlimPajama-627B"
    hub = HUB
    fields = ("text",)

    def read(self) -> SourceRows:
        return corpus(HUB, "slimpajama", "train", "validation")
