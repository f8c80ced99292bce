"""SVAMP: short word problems, varied so that reading them matters."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._equation import problem, unexplained
from calibrant.data.sources._published import Split, published, with_note

HUB: Final = HubDataset("ChilleD/SVAMP")
TRAIN: Final = Split("train", {("svamp", "train"): 700})
TEST: Final = Split("test", {("svamp", "test"): 300})


@dataclass(frozen=True, repr=False)
class SVAMP(StoredSource):
    """Patel et al. 2021 (arXiv:2103.07191), in the 700/300 division of the hub; hub and mirror have
    the same fields.

    Body and question stand one after the other as the set has them, often without a full stop
    between. The answer is the number and the rationale the equation `( 290.0 / 2.0 )` worked out,
    an operation a line, as the original study's calibration on equations asks for:

        Question: There are 87 oranges and 290 bananas in Philip's collection. If the
        bananas are organized into 2 groups and oranges are
        organized into 93 groups How big is each group of bananas?
        Answer: 290 / 2 = 145 The answer is 145.
    """

    kind = "questions"
    family = "arithmetic"
    licence = "MIT"
    homepage = "https://github.com/arkilpatel/SVAMP"
    hub = HUB
    fields = ("question", "answer")
    sometimes = ("rationale",)

    def read(self) -> SourceRows:
        rows = published(HUB, TRAIN, TEST, row)
        return with_note(rows, unexplained(rows))


def row(record: dict[str, Any]) -> Row:
    """Return a record as a row."""
    return problem(
        f"{record['Body'].strip()} {record['Question'].strip()}",
        record["Answer"],
        record["Equation"],
    )
