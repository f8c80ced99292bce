"""HellaSwag: how a caption or an instruction goes on."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import PARTS, Found, Hub, Part, Row, Stored, part_of
from calibrant.data.hub import kept
from calibrant.data.sources._published import Split, chosen, found, gold, joined, read

HUB: Final = Hub("Rowan/hellaswag")
TRAIN: Final = Split("train", {("hellaswag", "train"): 39_905})
TEST: Final = Split("validation", {("hellaswag", "validation"): 10_042})

_TITLE: Final = re.compile(r"(?<=\w)[.\s]*\[title\]")
_MARK: Final = re.compile(r"\[(title|header|step|substeps)\]\s*")


@dataclass(frozen=True, repr=False)
class HellaSwag(Stored):
    """Zellers et al. 2019 (arXiv:1905.07830). validation measures, since the labels of test are kept back; the four endings aren't listed.

    The context stands behind its activity. The marks `[header]`, `[title]` and `[step]` of the hub's texts are taken out; the mirror has none. A
    mirror with validation alone has that divided, 70/25/5, by what a row is about: the title of an instruction, the activity of a video.
    Otherwise the ending of one row would be the context of another. Hub and mirror: activity_label, ctx, endings, label.

        Context: Roof shingle removal: A man is sitting on a roof. he
        Continuation: starts pulling up roofing on a roof.
    """

    kind = "questions"
    family = "commonsense"
    licence = "MIT"
    homepage = "https://rowanzellers.com/hellaswag/"
    hub = HUB
    fields = ("question", "answer", "choices")

    def read(self) -> Found:
        if kept(list(TRAIN.places)) or not kept(list(TEST.places)):
            return found(HUB, TRAIN, TEST, row)
        whole = read(HUB, TEST, row)
        return Found(
            divided(whole.rows), whole.origin, joined("validation divided by title and activity, as the mirror has no train split", whole.note)
        )


def row(record: dict[str, Any]) -> Row | None:
    """A record as a row."""
    question = f"{record['activity_label'].strip()}: {plain(record['ctx'])}"
    right = gold(record["label"], ["0", "1", "2", "3"])
    return chosen(question, [plain(ending) for ending in record["endings"]], right, frame=("Context: ", "Continuation:"))


def plain(text: str) -> str:
    """The text without marks; a title is ended by a full stop, so that the text behind it begins a sentence."""
    return " ".join(_MARK.sub("", _TITLE.sub(".", text)).split())


def divided(rows: Iterable[Row]) -> dict[Part, list[Row]]:
    """The rows by what they are about, all of one thing in one part."""
    parts: dict[Part, list[Row]] = {part: [] for part in PARTS}
    for given in rows:
        parts[part_of(hashlib.sha256(about(given.need("question")).encode()).hexdigest())].append(given)
    return parts


def about(question: str) -> str:
    """The title of an instruction, which is its first sentence; of a video, of which there may be several rows, the activity."""
    activity, _, context = question.partition(": ")
    return context.partition(". ")[0] if context.startswith("How to ") else activity
