"""Word problems made from templates: grade school arithmetic for machines without internet."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from calibrant.data._base import PARTS, Part, Row, SourceRows, StoredSource, part_of
from calibrant.errors import DataError

MOST_ROWS: Final = 24_576
_REQUEST: Final = " Give the result as your final answer. Do not include units."


@dataclass(frozen=True, repr=False)
class Arithmetic(StoredSource):
    """GSM-Symbolic (Mirzadeh et al. 2024, arXiv:2410.05229) as reasoning-gym implements it, with
    worked solutions as rationale.

    24,576 problems from one fixed seed. It is the *templates* that are divided into parts, by hash:
    what is measured comes from templates that were never calibrated on. The request at the end of
    each question ("Give the result as …") is cut off.
    """

    kind = "questions"
    family = "arithmetic"
    licence = "Apache-2.0"
    homepage = "https://github.com/open-thought/reasoning-gym"
    fields = ("question", "answer", "rationale")

    def read(self) -> SourceRows:
        try:
            from reasoning_gym.factory import create_dataset
        except ImportError as error:
            raise DataError(
                "arithmetic is made by reasoning-gym, which isn't installed; pip install "
                "reasoning-gym",
                subject="arithmetic",
            ) from error
        origin = f"reasoning-gym {version('reasoning-gym')}, gsm_symbolic, seed 0"
        return SourceRows(_parts(create_dataset), origin)


@cache
def _parts(create_dataset: Any) -> dict[Part, list[Row]]:
    """Return all problems by part: that of its template. Seconds of work, and nothing that it
    depends on ever changes: done once a process.
    """
    problems: Any = create_dataset("gsm_symbolic", size=MOST_ROWS, seed=0)
    parts: dict[Part, list[Row]] = {part: [] for part in PARTS}
    for index, template in enumerate(problems.task_indices):
        digest = hashlib.sha256(f"gsm_symbolic template {template}".encode()).hexdigest()
        parts[part_of(digest)].append(problem(problems[index]))
    return parts


def problem(record: dict[str, Any]) -> Row:
    """Return a generated record as a row."""
    worked = record["metadata"]["answer_cot"].rpartition("####")[0].strip()
    steps = sum(bool(line.strip()) for line in worked.splitlines())
    return Row(
        question=record["question"].removesuffix(_REQUEST).strip(),
        answer=record["answer"],
        rationale=worked,
        steps=steps,
    )
