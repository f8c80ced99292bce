"""The few forms of HTML that all of a page is written in. Whatever comes from outside passes through `text` or `name`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from calibrant.foreign import visible


def text(value: object) -> str:
    """A value as text that a browser shows unchanged, in an element or a quoted attribute."""
    return escape(visible(str(value)))


def name(value: str) -> str:
    """A name that somebody gave: its writing direction is its own, and turns nothing around it."""
    return f"<bdi>{text(value)}</bdi>"


def link(ids: Mapping[str, str], value: str) -> str:
    """The name of a calibration set, as a link to its own page where it has one."""
    target = ids.get(value)
    return f'<a href="#{target}">{name(value)}</a>' if target else name(value)


@dataclass(frozen=True)
class Head:
    """The head of a column. `words` are read and stand to the left; what is not `sorts` can't be sorted by."""

    label: str
    words: bool = False
    sorts: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell: what it holds, as HTML; the number that it is sorted by; whether it is words."""

    html: str
    value: float | int | None = None
    words: bool = False

    def __str__(self) -> str:
        value = "" if self.value is None else f' data-value="{self.value:.12g}"'
        return f"<td{' class=text' if self.words else ''}{value}>{self.html}</td>"


def bar(share: float) -> Cell:
    """A cell that draws a share of one as a bar; its number stands in another cell."""
    return Cell(f'<span class="bar" style="width:{100 * min(1.0, share):.1f}%"></span>', words=True)


@dataclass(frozen=True)
class Row:
    """A row: its head and cells as HTML; `aside` rows stay at the end however a table is sorted."""

    head: str
    cells: Sequence[Cell]
    style: str = ""


def table(label: str, caption: str, heads: Sequence[Head], rows: Iterable[Row], *, key: str = "", sortable: bool = False) -> Iterator[str]:
    """A table that scrolls by itself where it is wider than the screen; its caption stays in place and says how it is read."""
    yield '<div class="card">'
    if caption:
        yield f'<p class="caption">{text(caption)}</p>'
    yield f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">'
    marks = f"{f' id={key}' if key else ''}{' class=sortable' if sortable else ''}"
    yield f"<table{marks}><thead><tr>{''.join(_head(h, sortable) for h in heads)}</tr></thead><tbody>"
    for row in rows:
        style = f' class="{row.style}"' if row.style else ""
        yield f'<tr{style}><th scope="row">{row.head}</th>{"".join(map(str, row.cells))}</tr>'
    yield "</tbody></table></div></div>"


def _head(head: Head, sortable: bool) -> str:
    words = ' class="text"' if head.words else ""
    if sortable and head.sorts:
        return f'<th scope="col"{words}><button class="sort" type="button">{text(head.label)}</button></th>'
    return f'<th scope="col"{words}>{text(head.label)}</th>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of facts, each a term and what it is, as HTML; those without are left out."""
    inside = "".join(f"<div><dt>{text(term)}</dt><dd>{told}</dd></div>" for term, told in pairs if told)
    return f'<dl class="facts">{inside}</dl>' if inside else ""


def paragraph(sentence: str, style: str = "") -> str:
    """A sentence from outside."""
    return f"<p{f' class={style}' if style else ''}>{text(sentence)}</p>"


def details(summary: str, inside: Iterable[str]) -> Iterator[str]:
    """What is folded away until somebody asks for it."""
    yield f"<details><summary>{text(summary)}</summary>"
    yield from inside
    yield "</details>"


def chooser(key: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    """A choice among several parts of the page, of which a script shows one; without one all of them stand there. Nothing for a single part."""
    if len(options) < 2:
        return ""
    inside = "".join(f'<option value="{text(value)}">{text(told)}</option>' for value, told in options)
    return f'<p class="choice"><label>{text(label)} <select class="chooser" data-chooses="{key}">{inside}</select></label></p>'


def choice(key: str, value: str, inside: Iterable[str]) -> Iterator[str]:
    """One of the parts that a `chooser` chooses among."""
    yield f'<div data-choice="{key}" data-key="{text(value)}">'
    yield from inside
    yield "</div>"
