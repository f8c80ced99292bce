"""What kind of data a calibration set is: the families, one of which every source names as its
own.
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

Family = Literal[
    "corpus",
    "code",
    "arithmetic",
    "inference",
    "commonsense",
    "reading",
    "instructions",
    "languages",
    "selected",
    "mixed",
    "own",
    "control",
]
FAMILIES: Final[tuple[Family, ...]] = get_args(Family)

WORDS: Final[Mapping[Family, str]] = {
    "corpus": "running text",
    "code": "program code",
    "arithmetic": "arithmetic problems",
    "inference": "inference between sentences",
    "commonsense": "commonsense questions",
    "reading": "reading comprehension",
    "instructions": "instructions and conversations",
    "languages": "text in several languages",
    "selected": "chosen or written by a selector",
    "mixed": "a mixture of sets",
    "own": "a user's own data",
    "control": "a control without content",
}
"""What a set of each family is, in words."""


def known_family(name: str) -> Family:
    """Return the family of that name; `own` where there is none, since what a record says may be
    of a later version.
    """
    return name if name in FAMILIES else "own"


def family_of_kind(kind: str) -> str:
    """Return the family of a source that names none: that of its kind, and `own` for questions."""
    return "own" if kind == "questions" else kind
