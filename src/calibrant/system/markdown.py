"""Pieces of Markdown in which nothing that comes from outside is read as Markdown or HTML."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from calibrant.spec.foreign import visible_name

_FENCE: Final = "`"
_SIGN: Final = r"(?:\\{1,4}|/)"
"""What stands between folders. A share of Windows begins with two backslashes, and a text in quotes
may have each of them twice.
"""
_QUOTED: Final = re.compile(rf"(['\"])(?:[A-Za-z]:)?{_SIGN}(?:(?:(?!\1)[^\\/])+{_SIGN})+")
_LETTER: Final = r"(?:[^\\/'\"]|(?<=\w)'(?=\w))"
"""What a folder's name is made of where no quotes are around it."""
_PLAIN: Final = re.compile(
    rf"(^|[\s(*=,])(?:[A-Za-z]:)?{_SIGN}(?:(?:(?! \+ |, ){_LETTER})+{_SIGN})+"
)
"""The folders of an absolute path that stands without quotes, which the next part of a sum or of a
mix isn't one of.
"""


def code_span(value: Any) -> str:
    """Return a value as a code span: nothing in it is read as Markdown or HTML, and it doesn't end
    a cell of a table.

    >>> code_span("<b>|")
    '`<b>¦`'
    """
    text = visible_name(str(value)).replace("|", "¦")
    # The span's fence must be longer than any row of backticks inside it.
    longest = max(map(len, re.findall(f"{_FENCE}+", text)), default=0)
    fence = _FENCE * (longest + 1)
    if text.startswith(_FENCE) or text.endswith(_FENCE):
        text = f" {text} "
    return f"{fence}{text}{fence}"


def table_of_facts(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of names and values; a row without a value is left out."""
    yield "| | |"
    yield "| --- | --- |"
    for name, value in facts.items():
        if value not in ("", None):
            yield f"| {name} | {code_span(value)} |"


def without_folders(text: str) -> str:
    """Return a text in which the folders of absolute paths are left out: a card is made to be shown
    to others.

    >>> without_folders("0.3*/home/me/notes.jsonl + 0.7*'/home/me/my notes/all.jsonl'")
    "0.3*…/notes.jsonl + 0.7*'…/all.jsonl'"
    """
    text = _QUOTED.sub(r"\1…/", text)
    return _PLAIN.sub(r"\1…/", text)
