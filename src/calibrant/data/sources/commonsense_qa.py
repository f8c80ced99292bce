"""CommonsenseQA: what everybody knows, with explanations from two other sets."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource, joined, train_and_test
from calibrant.data.hub import HubDataset, records
from calibrant.data.sources._published import (
    Split,
    gold,
    make_each,
    multiple_choice,
    read_split,
    with_rationale,
)
from calibrant.errors import DataError, SpecError
from calibrant.spec.foreign import did_you_mean

HUB: Final = HubDataset("tau/commonsense_qa")
ECQA: Final = HubDataset("tasksource/ecqa")
COS_E: Final = HubDataset("Salesforce/cos_e", "v1.11")
TRAIN: Final = Split("train", {("commonsense_qa", "train"): 9_741})
TEST: Final = Split("validation", {("commonsense_qa", "validation"): 1_221})
RATIONALES: Final = ("ecqa", "cos_e")

Entry = tuple[Hashable, str]
"""What an explanation is found by, and the explanation."""


@dataclass(frozen=True, repr=False)
class CommonsenseQA(StoredSource):
    """Talmor et al. 2019 (arXiv:1811.00937). validation measures, since the labels of test are kept
    back. Five choices, listed A to E.

    `rationales`: "ecqa" (Aggarwal et al. 2021), "cos_e" (Rajani et al. 2019) or none. ECQA cuts its
    own splits out of the train *and* validation questions of CommonsenseQA, so its explanations are
    joined to questions of the train split only, by question and choices; those of CoS-E by id. What
    is measured never has one. `explained=True` keeps only rows with a rationale out of train, so
    that every format has the same rows. Which rows are exemplars doesn't depend on the rationales.

        Question: What might a person see at the scene of a brutal killing?
        A. bloody mess
        […]
        Answer: A
    """

    rationales: str | None = "ecqa"
    explained: bool = False

    kind = "questions"
    family = "commonsense"
    licence = "MIT (the explanations: ECQA CDLA-Sharing-1.0, CoS-E BSD-3-Clause)"
    homepage = "https://www.tau-nlp.org/commonsenseqa"
    hub = HUB
    fields = ("question", "answer", "choices")
    sometimes = ("rationale",)

    def __post_init__(self) -> None:
        if self.rationales == "none":  # in an expression none is a word of its own
            object.__setattr__(self, "rationales", None)
        if self.rationales is None:
            object.__setattr__(self, "sometimes", ())
            if self.explained:
                text = "commonsense_qa(rationales=none, explained=true)"
                message = f"{text} would keep no row; leave one of them out"
                raise SpecError(message, subject="explained")
        elif self.rationales not in RATIONALES:
            near = did_you_mean(self.rationales, RATIONALES)
            text = f"commonsense_qa(rationales={self.rationales!r}){near}"
            message = f"{text}: rationales is one of {', '.join(RATIONALES)}, none"
            raise SpecError(message, subject="rationales")

    def read(self) -> SourceRows:
        explanations, origin, note = self._explanations()
        rationales: dict[str, str | None] = {}

        def make(record: dict[str, Any]) -> Row | None:
            bare = row(record)
            if bare is not None:
                rationales[bare.key] = explanations.get(self._explanation_key(record))
            return bare

        train = read_split(HUB, TRAIN, make)
        test = read_split(HUB, TEST, row)
        # Rows are divided before they get their rationales, so that these don't change which rows
        # are exemplars.
        parts = train_and_test(train.rows, test.rows)
        for part in ("calibrate", "exemplars"):
            rows = [with_rationale(bare, rationales[bare.key]) for bare in parts[part]]
            parts[part] = [row for row in rows if row.rationale or not self.explained]
        counted = ""
        if self.rationales:
            explained = sum(map(bool, rationales.values()))
            counted = f"{explained:,} of {len(rationales):,} train rows have a rationale"
        return SourceRows(
            parts,
            joined(f"{train.origin}; measured on {test.origin}", origin),
            joined(counted, note, train.note, test.note),
        )

    def _explanation_key(self, record: dict[str, Any]) -> Hashable:
        """Return what a record's explanation is found by."""
        if self.rationales == "ecqa":
            return _question_key(record["question"], record["choices"]["text"])
        if self.rationales == "cos_e":
            return record["id"]
        return None

    def _explanations(self) -> tuple[dict[Hashable, str], str, str]:
        """Return the explanations by what they are found by, where they are from, and why there
        are fewer than there could be.

        The first split that can't be read ends it, and is an error if rationales are a must.
        """
        if self.rationales == "ecqa":
            hub = ECQA
            splits = ("train", "validation", "test")
            entry_of = _ecqa
        elif self.rationales == "cos_e":
            hub = COS_E
            splits = ("train",)
            entry_of = _cos_e
        else:
            return {}, "", ""
        explanations: dict[Hashable, str] = {}
        origins: list[str] = []
        note = ""
        for split in splits:
            try:
                entries, origin = records(hub, split, [(self.rationales, split)])
            except DataError:
                if self.explained and not origins:
                    raise
                note = f"no rationales of {self.rationales}/{split}, which can't be read here"
                break
            explanations.update(filter(None, make_each(entries, origin, entry_of)))
            origins.append(origin)
        origin = ""
        if origins:
            origin = f"rationales from {', '.join(dict.fromkeys(origins))}"
        return explanations, origin, note


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row without a rationale."""
    choices = record["choices"]
    labels = tuple(choices["label"])
    right = gold(record["answerKey"], labels)
    return multiple_choice(record["question"], choices["text"], right, labels)


def _ecqa(record: dict[str, Any]) -> Entry | None:
    """Return what a record of ECQA is about, and its explanation; the hub and a mirror name the
    fields differently.

    None for a question of CommonsenseQA's validation split. A mirror marks them; those of the hub
    just match no question of train.
    """
    if "q_text" in record:
        choices = [record[f"q_op{number}"] for number in range(1, 6)]
        return _question_key(record["q_text"], choices), record["taskB"]
    if record.get("csqa_split", "train") != "train":
        return None
    return _question_key(record["question"], record["choices"]), record["explanation"]


def _cos_e(record: dict[str, Any]) -> Entry:
    return record["id"], record["abstractive_explanation"]


def _question_key(question: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Return the question and its choices, whatever their case and spaces."""
    return tuple(" ".join(text.casefold().split()) for text in (question, *choices))
