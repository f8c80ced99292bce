"""What calibration sets are called, in their parts: as the index of a store has it, else of their texts and what the records say."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from calibrant.families import Family, known_family
from calibrant.grammar import SetLabel, set_label
from calibrant.store import Record

BEFORE: Final[Mapping[str, Family]] = {
    **dict.fromkeys(("c4", "dolma", "fineweb_edu", "oscar", "pile", "python_docs", "redpajama", "slimpajama", "wikipedia", "wikitext"), "corpus"),
    "python_code": "code",
    **dict.fromkeys(("arithmetic", "gsm8k", "mawps", "svamp"), "arithmetic"),
    **dict.fromkeys(("anli_r1", "anli_r2", "anli_r3", "esnli", "rte"), "inference"),
    **dict.fromkeys(("arc_easy", "commonsense_qa", "hellaswag", "openbookqa", "piqa", "winogrande"), "commonsense"),
    **dict.fromkeys(("boolq", "race"), "reading"),
    **dict.fromkeys(("open_platypus", "ultrachat"), "instructions"),
    **dict.fromkeys(("flores", "mc4", "xquad"), "languages"),
    **dict.fromkeys(("cluster", "cola", "igsp", "least_perplexity", "longest", "selfcal", "selfgen", "similar", "zipcal"), "selected"),
    **dict.fromkeys(("full_stops", "random_tokens"), "control"),
}
"""The family of every source there was when records began to tell it. What came later tells it itself, so nothing is added here."""


def labels_of(texts: Iterable[str], told: Mapping[str, SetLabel], records: Iterable[Record]) -> dict[str, SetLabel]:
    """Every set of `texts` by its text: as `told`, else read from the text, with the family that one of the `records` has of it."""
    families = {record.run.data: family for record in records if (family := _family(record.data_facts))}
    return {text: told.get(text) or label_set(text, families.get(text, "")) for text in dict.fromkeys(texts) if text}


def label_set(text: str, family: str = "") -> SetLabel:
    """Return what a set is called whose text alone is known, and perhaps its `family`: else that of its source in older records, or `own`."""
    found = set_label(text)
    return found if found.mixed else replace(found, family=known_family(family) if family else BEFORE.get(found.name, "own"))


def _family(facts: Mapping[str, Any]) -> str:
    """What a record says of a set of one part; nothing of several, and nothing in older records."""
    parts = facts.get("parts", [])
    return str(parts[0].get("family", "")) if len(parts) == 1 else ""
