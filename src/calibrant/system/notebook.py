"""How objects show themselves in a notebook: a title, facts, a table. Everything is shown as
text, whatever it is called.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape as escaped

from calibrant.spec.foreign import visible


def card(title: str, facts: Mapping[str, object], note: str = "", inside: str = "") -> str:
    """Return an object as HTML: `title`, its `facts` by name without empty ones, a sentence, and
    the HTML that comes `inside`.
    """
    rows = ""
    for name, value in facts.items():
        if value in (None, "", (), []):
            continue
        rows += (
            f'<tr><th style="text-align:left">{escape(name)}</th><td '
            f'style="text-align:left">{escape(str(value))}</td></tr>'
        )
    parts = [
        f"<strong>{escape(title)}</strong>",
        f"<table>{rows}</table>" if rows else "",
        f"<p>{escape(note)}</p>" if note else "",
        inside,
    ]
    return f'<div class="calibrant">{"".join(parts)}</div>'


def listing(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a table as HTML; numbers are rounded by the caller.

    >>> listing(["set", "loss"], [["c4", "2.91"]])
    '<table><thead><tr><th>set</th><th>loss</th></tr></thead><tbody><tr><td>c4</td><td>2.91</td></tr></tbody></table>'
    """
    head_cells = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body_rows = ""
    for line in lines:
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in line)
        body_rows += f"<tr>{cells}</tr>"
    return f"<table><thead><tr>{head_cells}</tr></thead><tbody>{body_rows}</tbody></table>"


def escape(text: str) -> str:
    """Return the text as HTML that a browser shows unchanged."""
    return escaped(visible(text))
