"""How objects show themselves in a notebook: a title, facts, a table. Everything is shown as text, whatever it is called."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape as escaped

from calibrant.foreign import visible


def card(title: str, facts: Mapping[str, object], note: str = "", inside: str = "") -> str:
    """An object as HTML: `title`, its `facts` by name (those that are empty are left out), a sentence, and whatever HTML comes `inside`."""
    told = [(name, str(value)) for name, value in facts.items() if value not in (None, "", (), [])]
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>' for name, value in told
    )
    parts = [f"<strong>{escape(title)}</strong>", f"<table>{rows}</table>" if rows else "", f"<p>{escape(note)}</p>" if note else "", inside]
    return f'<div class="calibrant">{"".join(parts)}</div>'


def listing(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table as HTML; numbers are the caller's to round."""
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in line)}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def escape(text: str) -> str:
    """The text as a browser shows it unchanged."""
    return escaped(visible(text))
