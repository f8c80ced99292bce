"""A report as Markdown, with tables as GitHub draws them. No torch here."""

from collections.abc import Iterator, Sequence
from typing import Final

from calibrant.lab.report.tables.sections import Section
from calibrant.lab.report.tables.table import Figure, Table, TableRow
from calibrant.spec.foreign import visible

MARKUP: Final = {c: f"\\{c}" for c in "\\`*_|[]#~"} | {
    "<": "&lt;",
    ">": "&gt;",
    "&": "&amp;",
    "\n": " ",
    "\r": " ",
}
"""What Markdown or HTML would read as markup, and how it is shown as itself."""


def markdown(sections: Sequence[Section]) -> str:
    """The sections as one Markdown text."""
    return "\n".join(line for section in sections for line in _section(section))


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {escaped(section.title)}", "")
    if section.table is not None:
        yield from _table(section.table)
    for sentence in section.sentences:
        yield from (escaped(sentence), "")
    if section.items:
        yield from (f"- {escaped(item)}" for item in section.items)
        yield ""


def _table(table: Table) -> Iterator[str]:
    yield _line([escaped(table.head), *(escaped(c.head) for c in table.columns)])
    yield _line(["---", *("---" if c.words else "---:" for c in table.columns)])
    yield from (_line([_name(row), *map(_figure, row.figures)]) for row in table.rows)
    yield from ("", escaped(table.key), "")


def _name(row: TableRow) -> str:
    name = f"**{escaped(row.name)}**" if row.best else escaped(row.name)
    return f"{name} ({escaped(row.note)})" if row.note else name


def _figure(figure: Figure) -> str:
    text = escaped(str(figure))
    return (f"**{text}**" if figure.best else text) + (
        f"<sup>{escaped(figure.letters)}</sup>" if figure.letters else ""
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """`text` as Markdown shows it unchanged, in one line."""
    return "".join(MARKUP.get(c, c) for c in visible(text))
