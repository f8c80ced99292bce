"""Natural language inference: whether one sentence follows from another."""

from typing import Any, Final

from calibrant.data._base import Row, SourceRows
from calibrant.data.hub import HubDataset
from calibrant.data.sources._published import (
    Split,
    gold,
    multiple_choice,
    published,
    with_rationale,
)

FRAME: Final = ("", "Label:")
LABELS: Final = ("entailment", "neutral", "contradiction")


def pair(premise: str, hypothesis: str, label: Any, labels: tuple[str, ...] = LABELS) -> Row | None:
    """Return two sentences as a question; the answer is the label's word, and the words are the
    choices, which aren't listed.
    """
    return multiple_choice(
        f"Premise: {premise.strip()}\nHypothesis: {hypothesis.strip()}",
        labels,
        gold(label, labels),
        frame=FRAME,
    )


def adversarial(hub: HubDataset, number: int) -> SourceRows:
    """Return a round of ANLI. A mirror without its train split calibrates on the dev split,
    `validation`, which no test is measured on.
    """
    folder, size = (
        f"anli_r{number}",
        {1: (16_946, 1_000, 1_000), 2: (45_460, 1_000, 1_000), 3: (100_459, 1_200, 1_200)}[number],
    )
    train = Split(
        f"train_r{number}",
        {(folder, "train"): size[0], (folder, "validation"): size[1]},
        because="the mirror has no train split",
    )
    test = Split(f"test_r{number}", {(folder, "test"): size[2]})
    return published(hub, train, test, adversarial_row)


def adversarial_row(record: dict[str, Any]) -> Row | None:
    """Return a record of ANLI as a row; the annotator's reason, where there is one, is the
    rationale.
    """
    row = pair(record["premise"], record["hypothesis"], record["label"])
    return row and with_rationale(row, record.get("reason"))
