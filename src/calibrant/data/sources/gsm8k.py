"""GSM8K: grade school word problems with worked solutions."""

import re
from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource, train_and_test
from calibrant.data.hub import HubDataset, records
from calibrant.errors import DataError

_CALCULATOR: Final = re.compile(r"<<[^<>]*>>")
HUB: Final = HubDataset("openai/gsm8k", "main")


@dataclass(frozen=True, repr=False)
class GSM8K(StoredSource):
    """Cobbe et al. 2021 (arXiv:2110.14168). The answer is the number after `####` without thousands
    commas.

    The rationale is what stands before it, without the calculator's annotations `<<48/2=24>>`; its
    lines are its steps.
    """

    kind = "questions"
    family = "arithmetic"
    licence = "MIT"
    homepage = "https://github.com/openai/grade-school-math"
    hub = HUB
    fields = ("question", "answer", "rationale")

    def read(self) -> SourceRows:
        train, origin = records(HUB, "train", [("gsm8k", "train")])
        test, measured = records(HUB, "test", [("gsm8k", "test")])
        return SourceRows(
            train_and_test(map(problem, train), map(problem, test)),
            f"{origin}; measured on {measured}",
        )


def problem(record: dict[str, Any]) -> Row:
    """Return a record of the data set as a row."""
    worked, mark, number = record["answer"].rpartition("####")
    if not mark:
        raise DataError(
            f"the gsm8k answer {record['answer'][:40]!r} has no '#### N'; is this another data "
            "set?",
            subject="gsm8k",
        )
    rationale = _CALCULATOR.sub("", worked).strip()
    steps = sum(bool(line.strip()) for line in rationale.splitlines())
    return Row(
        question=record["question"].strip(),
        answer=number.strip().replace(",", ""),
        rationale=rationale,
        steps=steps,
    )
