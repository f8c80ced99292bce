"""e-SNLI: inference between captions of pictures, with explanations."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import Split, inference, published, with_rationale

HUB: Final = HubDataset("esnli/esnli", revision="refs/convert/parquet")
TRAIN: Final = Split("train", {("esnli", "train"): 549_367})
TEST: Final = Split(
    "test",
    {("esnli", "validation"): 9_842, ("esnli", "test"): 9_824},
    because="the mirror's test has the authors' preprocessed form, tokenised and with explanations "
    "in lower case",
)


@dataclass(frozen=True, repr=False)
class ESNLI(StoredSource):
    """Camburu et al. 2018 (arXiv:1812.01193). The rationale is the first explanation, in its own
    spelling.

    The hub's train calibrates and its test measures (premise, hypothesis, label, explanation_1);
    the same fields in the mirror, which has a subset of train and measures on `validation`. On the
    hub the set is a script, which is never run: what is read is the Parquet copy that the hub
    itself made of it, `refs/convert/parquet`. Should that be gone, save the three splits as JSON
    Lines in a mirror's folder `esnli`.

        Premise: A band is seen playing a variety of musical instruments.
        Hypothesis: A band plays instruments.
        Label: entailment
    """

    kind = "questions"
    family = "inference"
    licence = "MIT-style (the authors' repository)"
    homepage = "https://github.com/OanaMariaCamburu/e-SNLI"
    hub = HUB
    fields = ("question", "answer", "choices", "rationale")

    def read(self) -> SourceRows:
        return published(HUB, TRAIN, TEST, row, lacking="a label or an explanation")


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row; none if it has no label or no explanation."""
    row = inference(record["premise"], record["hypothesis"], record["label"])
    if row is None:
        return None
    explained = with_rationale(row, record["explanation_1"])
    if not explained.rationale:
        return None
    return explained
