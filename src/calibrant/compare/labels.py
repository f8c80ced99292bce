"""What calibration sets and targets are called: sets in their parts, as the index of a store has it, else of their texts; targets in words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from calibrant.families import Family, known_family
from calibrant.grammar import SetLabel, TargetLabel, read_target, set_label
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
"""The family of every source there was when records began to hold it. Later records hold their own, so nothing is added here."""


def labels_of(texts: Iterable[str], index: Mapping[str, SetLabel], records: Iterable[Record]) -> dict[str, SetLabel]:
    """Return the label of every set by its text: that of a store's `index`, else read from the text, with the family in one of the `records`."""
    families: dict[str, str] = {}
    for record in records:
        parts = record.data_facts.get("parts", [])  # a record of several parts, and an older one, says nothing of a family
        if family := str(parts[0].get("family", "")) if len(parts) == 1 else "":
            families[record.run.data] = family
    return {text: index.get(text) or label_set(text, families.get(text, "")) for text in dict.fromkeys(texts) if text}


def label_set(text: str, family: str = "") -> SetLabel:
    """Return what a set is called whose text alone is known, and perhaps its `family`: else that of its source in older records, or `own`.

    >>> label_set("gsm8k:cot").family, label_set("my_notes.txt").family
    ('arithmetic', 'own')
    """
    label = set_label(text)
    return label if label.mixed else replace(label, family=known_family(family) if family else BEFORE.get(label.name, "own"))


def describe_target(target: str) -> str:
    """Return a target in words. Several, divided by commas, or none may be meant; what is none of these stands as it is written.

    The space before a per cent sign doesn't break.

    >>> describe_target("2:4"), describe_target("w4g64")
    ('2:4 sparsity', '4 bits in groups of 64 (w4g64)')
    >>> describe_target("0.5, 0.6").replace("\u00a0", " ")
    '50 % and 60 % sparsity'
    """
    if not target:
        return "any sparsity"
    sparsities, others = list[str](), list[str]()
    for label in map(read_target, target.split(", ")):
        if (sparsity := _sparsity(label)) is not None:
            sparsities.append(sparsity)
        elif label.bits is not None:
            groups = "by row" if label.group is None else f"in groups of {label.group}"
            others.append(f"{label.bits} bits {groups}{' with zero points' if label.zeros else ''} ({label.text})")
        elif label.share is not None:
            others.append(f"{label.share * 100:g}\u00a0% of the {label.parts}")
        else:
            others.append(label.text)
    return join_names([*([f"{join_names(sparsities)} sparsity"] if sparsities else []), *others])


def is_grid(target: str) -> bool:
    """Whether weights are rounded for this target, and not removed."""
    return bits_of(target) is not None


def is_removal(target: str) -> bool:
    """Return whether a target says how much goes, and no more: a sparsity, a pattern, or a share of blocks, experts or numbers."""
    label = read_target(target)
    return label.bits is None and (label.share is not None or label.pattern is not None)


def bits_of(target: str) -> int | None:
    """Return the bits of a code of a grid, 4 for `w4g64`; None for what is no grid."""
    return read_target(target).bits


def target_noun(targets: Iterable[str]) -> str:
    """Return what all of these can be called: `sparsity` where each is one or an N:M pattern, else `target`."""
    return "sparsity" if all(_sparsity(read_target(target)) is not None for target in targets) else "target"


def _sparsity(target: TargetLabel) -> str | None:
    """Return a sparsity in per cent, a pattern as it is written; None for what is neither."""
    if target.pattern is not None:
        return target.text
    return None if target.share is None or target.parts else f"{target.share * 100:g}\u00a0%"


def join_names(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`; nothing for none."""
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"
