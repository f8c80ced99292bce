"""MAWPS: word problems of older collections, put together."""

from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource
from calibrant.data.hub import HubDataset
from calibrant.data.sources._equation import problem, unexplained
from calibrant.data.sources._published import Split, published, with_note

HUB: Final = HubDataset("MU-NLPC/Calc-mawps", "default")
TRAIN: Final = Split("train", {("mawps", "train"): 1898})
TEST: Final = Split("test", {("mawps", "test"): 238})


@dataclass(frozen=True, repr=False)
class MAWPS(StoredSource):
    """Koncel-Kedziorski et al. 2016 (N16-1136): MultiArith, AddSub, SingleEq and more, so none of
    these three is unseen by who calibrates on it.

    The hub's Calc-mawps has 1,089 train and 520 test problems (fields question, expression,
    result_float), the mirror the 1,898 and 238 of LLM-Adapters (question, Equation, Answer):
    another division of the same problems, in which train repeats questions of test; those are
    dropped and counted as overlap. validation isn't used. The text is tokenised, with spaces before
    full stops, and left so. Answer and rationale as for SVAMP:

        Question: A waiter had 22 customers in his section . If 14 of them left and the rest
        of his tables had 4 people at each table , how many
        tables did he have ?
        Answer: 22 - 14 = 8
        8 / 4 = 2 The answer is 2.
    """

    kind = "questions"
    family = "arithmetic"
    licence = "MIT (Calc-mawps); ODC-By (the mirror's division)"
    homepage = "https://github.com/sroy9/mawps"
    hub = HUB
    fields = ("question", "answer")
    sometimes = ("rationale",)

    def read(self) -> SourceRows:
        rows = published(HUB, TRAIN, TEST, row)
        if "mirror: " in rows.origin:
            division = "LLM-Adapters' division of MAWPS, another than that of Calc-mawps on the hub"
            rows = with_note(rows, division)
        return with_note(rows, unexplained(rows))


def row(record: dict[str, Any]) -> Row:
    """Return a record as a row. The hub writes a result also as words such as "around 0.67";
    `result_float` is the number.
    """
    if "Equation" in record:
        return problem(record["question"], record["Answer"], record["Equation"])
    return problem(record["question"], record["result_float"], record["expression"])
