"""What calibration sets and targets are called.

The index of a store has sets in their parts; what it lacks is read from their texts here, and so is
what targets and measures say. Nothing else that compares or reports reads a text.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

from calibrant.errors import InputError, SpecError
from calibrant.names import target_removes
from calibrant.results import Record
from calibrant.spec import text_of
from calibrant.spec.families import Family, known_family
from calibrant.spec.grammar import File, Mix, SetLabel, TargetLabel, pieces, read_set, read_target

FAMILIES_OF_OLD_RECORDS: Final[Mapping[str, Family]] = {
    **dict.fromkeys(
        (
            "c4",
            "dolma",
            "fineweb_edu",
            "oscar",
            "pile",
            "python_docs",
            "redpajama",
            "slimpajama",
            "wikipedia",
            "wikitext",
        ),
        "corpus",
    ),
    "python_code": "code",
    **dict.fromkeys(("arithmetic", "gsm8k", "mawps", "svamp"), "arithmetic"),
    **dict.fromkeys(("anli_r1", "anli_r2", "anli_r3", "esnli", "rte"), "inference"),
    **dict.fromkeys(
        ("arc_easy", "commonsense_qa", "hellaswag", "openbookqa", "piqa", "winogrande"),
        "commonsense",
    ),
    **dict.fromkeys(("boolq", "race"), "reading"),
    **dict.fromkeys(("open_platypus", "ultrachat"), "instructions"),
    **dict.fromkeys(("flores", "mc4", "xquad"), "languages"),
    **dict.fromkeys(
        (
            "cluster",
            "cola",
            "igsp",
            "least_perplexity",
            "longest",
            "selfcal",
            "selfgen",
            "similar",
            "zipcal",
        ),
        "selected",
    ),
    **dict.fromkeys(("full_stops", "random_tokens"), "control"),
}
"""The family of every source there was when records began to hold it. Later records hold their
own, so nothing is added here.
"""


class MeasuredLabel(NamedTuple):
    """What an evaluator says that it measured, in its parts.

    `source` is its source, `brief` as much as is needed where no other measures the same source.
    """

    source: str
    brief: str


def labels_of(
    texts: Iterable[str],
    index: Mapping[str, SetLabel],
    records: Iterable[Record],
) -> dict[str, SetLabel]:
    """Return the label of every set by its text.

    It is that of a store's `index`, else read from the text, with the family in a record.
    """
    families: dict[str, str] = {}
    for record in records:
        # A record of several parts, and an older one, says nothing of a family.
        parts = record.data_facts.get("parts", [])
        if len(parts) == 1 and parts[0].get("family"):
            families[record.run.data] = str(parts[0]["family"])
    labels: dict[str, SetLabel] = {}
    for text in texts:
        if text and text not in labels:
            labels[text] = index.get(text) or label_set(text, families.get(text, ""))
    return labels


def label_set(text: str, family: str = "") -> SetLabel:
    """Return what a set is called whose text alone is known, and perhaps its `family`.

    Else the family is that of its source in older records, or `own`. A text that can't be read has
    no parts but a source.

    >>> label_set("gsm8k:cot").family, label_set("my_notes.txt").family
    ('arithmetic', 'own')
    """
    try:
        parts = read_set(text)
    except InputError:
        source = label_measured(text).source
        return SetLabel(text, source, family=_family("", family))
    if isinstance(parts, Mix) or len(parts) != 1:
        return SetLabel(text, text, family="mixed")
    part = parts[0]
    form = ""
    format_name = ""
    if part.format:
        form = text_of(part.format)
        format_name = part.format.name
    packing = text_of(part.packing) if part.packing else ""
    name = "" if isinstance(part.source, File) else part.source.name
    return SetLabel(
        text,
        source=part.source_text,
        name=name,
        format=format_name,
        packing=packing,
        rest="@".join(filter(None, (form, packing))),
        family=_family(name, family),
    )


def label_measured(text: str) -> MeasuredLabel:
    """Return what an evaluator measured, in its parts.

    >>> label_measured("wikitext:text"), label_measured("race (3-shot)").source
    (MeasuredLabel(source='wikitext', brief='wikitext'), 'race')
    """
    try:
        before_colon = pieces(text, ":")[0]
        before_comma = pieces(text, ",")[0]
    except SpecError:
        return MeasuredLabel(text, text)
    source = min(before_colon, before_comma, key=len)
    return MeasuredLabel(source.partition(" (")[0], before_colon)


def describe_target(target: str) -> str:
    """Return a target in words.

    `target` may be several, divided by commas, or empty. What isn't understood is returned as
    written. The space before a per cent sign doesn't break.

    >>> describe_target("2:4"), describe_target("w4g64")
    ('2:4 sparsity', '4 bits in groups of 64 (w4g64)')
    >>> describe_target("0.5, 0.6").replace("\u00a0", " ")
    '50 % and 60 % sparsity'
    """
    if not target:
        return "any sparsity"
    sparsities: list[str] = []
    others: list[str] = []
    for label in map(read_target, target.split(", ")):
        words = _in_words(label)
        if label.sparsity:
            sparsities.append(words)
        else:
            others.append(words)
    if sparsities:
        others.insert(0, f"{join_names(sparsities)} sparsity")
    return join_names(others)


def _in_words(label: TargetLabel) -> str:
    if label.bits is not None:
        groups = "by row" if label.group is None else f"in groups of {label.group}"
        zeros = " with zero points" if label.zeros else ""
        return f"{label.bits} bits {groups}{zeros} ({label.text})"
    if label.share is None:
        return label.text
    share = f"{label.share * 100:g}\u00a0%"
    return f"{share} of the {label.parts}" if label.parts else share


def is_rounded(target: str) -> bool:
    """Say whether weights are rounded for this target, those that stay if some are removed too.

    >>> [is_rounded(target) for target in ("w4g64", "2:4+w4g64", "q4_k", "2:4", "blocks 0.25", "")]
    [True, True, True, False, False, False]
    """
    return bool(target) and not target_removes(target)


def bits_of(target: str) -> int | None:
    """Return the bits of a code of a grid, 4 for `w4g64`; None for what is no grid."""
    return read_target(target).bits


def sparsity_of(target: str) -> float | None:
    """Return the share of weights that go, where the target says that and no more; else None.

    It is None for `2:4+w4g64`, which also says how the rest is rounded.

    >>> sparsity_of("0.6"), sparsity_of("2:4"), sparsity_of("blocks 0.25"), sparsity_of("4:2")
    (0.6, 0.5, None, None)
    """
    label = read_target(target)
    if label.pattern is not None:
        kept, whole = label.pattern
        if not whole or not 0 <= kept <= whole:
            return None
        return float(1 - Fraction(kept, whole))
    if label.share is None or label.parts is not None:
        return None
    return label.share if 0 <= label.share <= 1 else None


def target_noun(targets: Iterable[str]) -> str:
    """Return `sparsity` where each of these is one or an N:M pattern, else `target`."""
    only_sparsities = all(read_target(target).sparsity for target in targets)
    return "sparsity" if only_sparsities else "target"


def join_names(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`; nothing for none."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _family(name: str, family: str) -> Family:
    return known_family(family) if family else FAMILIES_OF_OLD_RECORDS.get(name, "own")
