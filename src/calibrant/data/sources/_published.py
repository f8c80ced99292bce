"""What published question sets share: what their splits are called and hold, which choice a record
says is right, requests with their answers, and the questions of natural language inference.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from calibrant.data._base import Row, SourceRows, divide, joined, train_and_test
from calibrant.data.hub import HubDataset, records
from calibrant.data.sources._corpus import text_field
from calibrant.errors import DataError

Make = Callable[[dict[str, Any]], Row | None]
"""A record as a row; none if it lacks what makes it one, usually its label."""

Made = TypeVar("Made")

INFERENCE_LABELS: Final = ("entailment", "neutral", "contradiction")
_ANLI_SIZES: Final = {
    1: (16_946, 1_000, 1_000),
    2: (45_460, 1_000, 1_000),
    3: (100_459, 1_200, 1_200),
}
"""How many records the train, dev and test splits of each round of ANLI have."""

_BETWEEN_SENTENCES: Final = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Split:
    """One split of a published set.

    `name` is what the hub calls it. `places` are the (folder, split) pairs under which a mirror may
    keep it, best first, each with how many records were published of it. A place that is called
    otherwise stands in for the split, and the note gives `because` as the reason.
    """

    name: str
    places: Mapping[tuple[str, str], int]
    because: str = ""


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split, where they were found, and in what they differ from the published
    ones.
    """

    rows: list[Row]
    origin: str
    note: str


def published(
    hub: HubDataset, train: Split, test: Split, make: Make, lacking: str = "a label"
) -> SourceRows:
    """Return both splits: train calibrates but for the exemplars, test measures."""
    train_content = read_split(hub, train, make, lacking)
    test_content = read_split(hub, test, make, lacking)
    return SourceRows(
        train_and_test(train_content.rows, test_content.rows),
        f"{train_content.origin}; measured on {test_content.origin}",
        joined(train_content.note, test_content.note),
    )


def read_split(hub: HubDataset, split: Split, make: Make, lacking: str = "a label") -> SplitRows:
    """Return one split. Records without what is `lacking` are left out and counted."""
    entries, origin = records(hub, split.name, list(split.places))
    made = make_each(entries, origin, make)
    rows = [row for row in made if row is not None]
    left_out = left_out_note(len(made) - len(rows), origin, lacking)
    return SplitRows(rows, origin, joined(_mirror_note(split, origin, len(made)), left_out))


def one_split(hub: HubDataset, folder: str, make: Make, lacking: str) -> SourceRows:
    """Return the train split, which is all there is or all that is read, divided by hash; `folder`
    is where a mirror keeps it. Records without what is `lacking` are left out and counted.
    """
    # How many records were published isn't known, so a mirror can't lack any.
    whole = read_split(hub, Split("train", {(folder, "train"): 0}), make, lacking)
    return SourceRows(divide(whole.rows), whole.origin, whole.note)


def make_each(
    entries: Iterable[dict[str, Any]], origin: str, make: Callable[[dict[str, Any]], Made]
) -> list[Made]:
    """Return what is made of each record; a record without a field that is needed is a
    `DataError` that names both.
    """
    made: list[Made] = []
    for number, record in enumerate(entries, 1):
        try:
            made.append(make(record))
        except KeyError as error:
            raise DataError(
                f"record {number} of {origin} has no field {error.args[0]!r}, only "
                f"{', '.join(record)}; is this another data set?",
                subject=origin,
            ) from error
    return made


def left_out_note(count: int, origin: str, lacking: str) -> str:
    """Return the note on records without what is `lacking`, which were left out; nothing if none
    was.
    """
    if not count:
        return ""
    noun = "record" if count == 1 else "records"
    return f"{count:,} {noun} of {origin} without {lacking} left out"


def _mirror_note(split: Split, origin: str, number: int) -> str:
    """Return how a mirror's file differs from the published split; nothing if it doesn't, or if
    the records came from the hub.
    """
    notes: list[str] = []
    for (folder, name), size in split.places.items():
        if origin != f"mirror: {folder}/{name}":
            continue
        # `train` is the split that the hub calls `train_r1`; `validation` would be another.
        if not split.name.startswith(name):
            note = f"{folder}/{name} stands in for {split.name}"
            if split.because:
                note += f", because {split.because}"
            notes.append(note)
        if number < size:
            notes.append(f"{folder}/{name} has {number:,} of the {size:,} published records")
    return joined(*notes)


def with_note(content: SourceRows, sentence: str) -> SourceRows:
    """Return the same with one more thing to know about it."""
    return replace(content, note=joined(content.note, sentence))


def gold(label: Any, names: Sequence[str]) -> int | None:
    """Return which of `names` a label means: it may be the name or its number. None for a record
    without a label: null, an empty text or -1.

    Raises `DataError` for a label that means none of them.
    """
    # One set has names where another has numbers, as numbers or as text.
    text = str(label).strip()
    if label is None or text in ("", "-1"):
        return None
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise DataError(
        f"the label {label!r} is none of {', '.join(names)}; is this another data set?",
        subject=text,
    )


def multiple_choice(
    question: str,
    choices: Sequence[str],
    right: int | None,
    labels: tuple[str, ...] = (),
    frame: tuple[str, str] = ("Question: ", "Answer:"),
) -> Row | None:
    """Return a question with its choices; None if there is no right one.

    `right` is the number of the right choice. Listed choices, which have labels, are answered by
    the label.
    """
    if right is None:
        return None
    texts = tuple(choice.strip() for choice in choices)
    return Row(
        question=question.strip(),
        answer=(labels or texts)[right],
        choices=texts,
        labels=labels,
        frame=frame,
    )


def answered(record: dict[str, Any], where: str, request: str, answer: str) -> Row | None:
    """Return a request and its answer, which stand in the fields of these names; None where one of
    them is blank.
    """
    asked = text_field(record, where, request).strip()
    said = text_field(record, where, answer).strip()
    if not asked or not said:
        return None
    return Row(question=asked, answer=said)


def with_rationale(row: Row, rationale: str | None) -> Row:
    """Return the same row with this rationale, whose sentences are its steps; as it was if there
    is none.
    """
    text = (rationale or "").strip()
    if not text:
        return row
    return replace(row, rationale=text, steps=len(_BETWEEN_SENTENCES.split(text)))


def inference(
    premise: str, hypothesis: str, label: Any, labels: tuple[str, ...] = INFERENCE_LABELS
) -> Row | None:
    """Return two sentences as a question whether one follows from the other.

    The answer is the label's word, and the words are the choices, which aren't listed.
    """
    question = f"Premise: {premise.strip()}\nHypothesis: {hypothesis.strip()}"
    return multiple_choice(question, labels, gold(label, labels), frame=("", "Label:"))


def adversarial(hub: HubDataset, number: int) -> SourceRows:
    """Return a round of ANLI. A mirror without its train split calibrates on the dev split,
    `validation`, which no test is measured on.
    """
    folder = f"anli_r{number}"
    train, dev, test = _ANLI_SIZES[number]
    calibrate = Split(
        f"train_r{number}",
        {(folder, "train"): train, (folder, "validation"): dev},
        because="the mirror has no train split",
    )
    measure = Split(f"test_r{number}", {(folder, "test"): test})
    return published(hub, calibrate, measure, adversarial_row)


def adversarial_row(record: dict[str, Any]) -> Row | None:
    """Return a record of ANLI as a row; the annotator's reason, where there is one, is the
    rationale.
    """
    row = inference(record["premise"], record["hypothesis"], record["label"])
    if row is None:
        return None
    return with_rationale(row, record.get("reason"))
