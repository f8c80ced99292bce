"""What kind of data a calibration set is: by the name of its source, so that it is known of every record, however old."""

import re
from collections.abc import Mapping
from typing import Final, Literal, get_args

from calibrant.compare.ranking import CONTROLS, source_name

Family = Literal[
    "corpus", "code", "arithmetic", "inference", "commonsense", "reading", "instructions", "languages", "selected", "mixed", "own", "control"
]
FAMILIES: Final[tuple[Family, ...]] = get_args(Family)

SOURCES: Final[Mapping[Family, tuple[str, ...]]] = {
    "corpus": ("c4", "dolma", "fineweb_edu", "oscar", "pile", "python_docs", "redpajama", "slimpajama", "wikipedia", "wikitext"),
    "code": ("python_code",),
    "arithmetic": ("arithmetic", "gsm8k", "mawps", "svamp"),
    "inference": ("anli_r1", "anli_r2", "anli_r3", "esnli", "rte"),
    "commonsense": ("arc_easy", "commonsense_qa", "hellaswag", "openbookqa", "piqa", "winogrande"),
    "reading": ("boolq", "race"),
    "instructions": ("open_platypus", "ultrachat"),
    "languages": ("flores", "mc4", "xquad"),
    "selected": ("cluster", "cola", "igsp", "least_perplexity", "longest", "selfcal", "selfgen", "similar", "zipcal"),
    "control": tuple(sorted(CONTROLS)),
}
"""The sources of each family, selectors in one of their own. What is called otherwise is a user's own."""

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

_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
"""A path in quotes, which may have a star in it."""

_BY_NAME: Final[Mapping[str, Family]] = {name: family for family, names in SOURCES.items() for name in names}


def family_of(expression: str) -> Family:
    """The family of a set by its expression; `mixed` for sums and mixes, `own` for a user's file."""
    if "*" in _QUOTED.sub("", expression) or expression.lstrip().startswith("mix("):
        return "mixed"
    return _BY_NAME.get(source_name(expression).partition("(")[0].strip(), "own")
