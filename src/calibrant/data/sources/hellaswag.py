"""HellaSwag: how a caption or an instruction goes on."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import PARTS, Part, Row, SourceRows, StoredSource, joined, part_of
from calibrant.data.hub import HubDataset, mirrored
from calibrant.data.sources._published import Split, gold, multiple_choice, published, read_split

HUB: Final = HubDataset("Rowan/hellaswag")
TRAIN: Final = Split("train", {("hellaswag", "train"): 39_905})
TEST: Final = Split("validation", {("hellaswag", "validation"): 10_042})

_TITLE: Final = re.compile(r"(?<=\w)[.\s]*\[title\]")
_MARK: Final = re.compile(r"\[(title|header|step|substeps)\]\s*")


@dataclass(frozen=True, repr=False)
class HellaSwag(StoredSource):
    """Zellers et al. 2019 (arXiv:1905.07830). validation measures, since the labels of test are
    kept back; the four endings aren't listed.

    The context stands behind its activity. The marks `[header]`, `[title]` and `[step]` of the
    hub's texts are taken out; the mirror has none. A mirror with validation alone has that divided,
    70/25/5, by what a row is about: the title of an instruction, the activity of a video. Otherwise
    the ending of one row would be the context of another. Hub and mirror: activity_label, ctx,
    endings, label.

        Context: Roof shingle removal: A man is sitting on a roof. he
        Continuation: starts pulling up roofing on a roof.
    """

    kind = "questions"
    family = "commonsense"
    licence = "MIT"
    homepage = "https://rowanzellers.com/hellaswag/"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> SourceRows:
        if mirrored(list(TRAIN.places)) or not mirrored(list(TEST.places)):
            return published(HUB, TRAIN, TEST, row)
        whole = read_split(HUB, TEST, row)
        division = "validation divided by title and activity, as the mirror has no train split"
        return SourceRows(divide_by_subject(whole.rows), whole.origin, joined(division, whole.note))


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row."""
    question = f"{record['activity_label'].strip()}: {plain(record['ctx'])}"
    endings = [plain(ending) for ending in record["endings"]]
    right = gold(record["label"], ["0", "1", "2", "3"])
    return multiple_choice(question, endings, right, frame=("Context: ", "Continuation:"))


def plain(text: str) -> str:
    """Return the text without marks; a title is ended by a full stop, so that the text behind it
    begins a sentence.
    """
    return " ".join(_MARK.sub("", _TITLE.sub(".", text)).split())


def divide_by_subject(rows: Iterable[Row]) -> dict[Part, list[Row]]:
    """Return the rows by what they are about, all of one thing in one part."""
    parts: dict[Part, list[Row]] = {part: [] for part in PARTS}
    for row in rows:
        subject = subject_of(row.need("question"))
        parts[part_of(hashlib.sha256(subject.encode()).hexdigest())].append(row)
    return parts


def subject_of(question: str) -> str:
    """Return the title of an instruction, which is its first sentence; of a video, of which
    there may be several rows, the activity.
    """
    activity, _, context = question.partition(": ")
    if context.startswith("How to "):
        return context.partition(". ")[0]
    return activity
