"""CommonsenseQA: what everybody knows, with explanations from two other sets."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calibrant.data._base import Row, SourceRows, StoredSource, train_and_test
from calibrant.data.hub import HubDataset, records
from calibrant.data.sources._published import (
    Split,
    each,
    gold,
    joined,
    multiple_choice,
    read,
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
Explain = Callable[[dict[str, Any]], str | None]


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
                raise SpecError(
                    "commonsense_qa(rationales=none, explained=true) would keep no row; leave one of them out",
                    subject="explained",
                )
        elif self.rationales not in RATIONALES:
            raise SpecError(
                f"commonsense_qa(rationales={self.rationales!r}){did_you_mean(self.rationales, RATIONALES)}: rationales is one of "
                f"{', '.join(RATIONALES)}, none",
                subject="rationales",
            )

    def read(self) -> SourceRows:
        explain, origin, note = self._explanations()
        rationales: dict[str, str | None] = {}

        def make(record: dict[str, Any]) -> Row | None:
            bare = row(record)
            if bare:
                rationales[bare.key] = explain(record)
            return bare

        train, test = read(HUB, TRAIN, make), read(HUB, TEST, row)
        parts = train_and_test(train.rows, test.rows)
        for part in ("calibrate", "exemplars"):
            rows = [with_rationale(bare, rationales[bare.key]) for bare in parts[part]]
            parts[part] = [one for one in rows if one.rationale or not self.explained]
        counted = (
            f"{sum(map(bool, rationales.values())):,} of {len(rationales):,} train rows have a rationale"
            * bool(self.rationales)
        )
        return SourceRows(
            parts,
            joined(f"{train.origin}; measured on {test.origin}", origin),
            joined(counted, note, train.note, test.note),
        )

    def _explanations(self) -> tuple[Explain, str, str]:
        """Return what finds a record's explanation, where the explanations are from, and why
        there are fewer than there could be.
        """
        match self.rationales:
            case "ecqa":
                explanations, origin, note = self._read(
                    ECQA, ["train", "validation", "test"], _ecqa
                )
                return (
                    lambda record: explanations.get(
                        _matter(record["question"], record["choices"]["text"])
                    ),
                    origin,
                    note,
                )
            case "cos_e":
                explanations, origin, note = self._read(COS_E, ["train"], _cos_e)
                return lambda record: explanations.get(record["id"]), origin, note
            case _:
                return lambda record: None, "", ""

    def _read(
        self,
        hub: HubDataset,
        splits: Sequence[str],
        entry: Callable[[dict[str, Any]], Entry | None],
    ) -> tuple[dict[Hashable, str], str, str]:
        """Return the explanations of the splits that can be read; the first that can't be ends
        it, and is an error if rationales are a must.
        """
        explanations: dict[Hashable, str] = {}
        origins: list[str] = []
        for split in splits:
            try:
                entries, origin = records(hub, split, [(str(self.rationales), split)])
            except DataError:
                if self.explained and not origins:
                    raise
                return (
                    explanations,
                    _from(origins),
                    f"no rationales of {self.rationales}/{split}, which can't be read here",
                )
            explanations.update(filter(None, each(entries, origin, entry)))
            origins.append(origin)
        return explanations, _from(origins), ""


def row(record: dict[str, Any]) -> Row | None:
    """Return a record as a row without a rationale."""
    choices = record["choices"]
    labels = tuple(choices["label"])
    return multiple_choice(
        record["question"], choices["text"], gold(record["answerKey"], labels), labels
    )


def _ecqa(record: dict[str, Any]) -> Entry | None:
    """Return what a record of ECQA is about, and its explanation; the hub and a mirror name the
    fields differently.

    None for a question of CommonsenseQA's validation split. A mirror marks them; those of the hub
    just match no question of train.
    """
    if "q_text" in record:
        return _matter(
            record["q_text"], [record[f"q_op{number}"] for number in range(1, 6)]
        ), record["taskB"]
    return (
        (_matter(record["question"], record["choices"]), record["explanation"])
        if record.get("csqa_split", "train") == "train"
        else None
    )


def _cos_e(record: dict[str, Any]) -> Entry:
    return record["id"], record["abstractive_explanation"]


def _from(origins: Sequence[str]) -> str:
    return f"rationales from {', '.join(dict.fromkeys(origins))}" if origins else ""


def _matter(question: str, choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(text.casefold().split()) for text in (question, *choices))
