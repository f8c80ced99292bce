"""A report as Markdown, with tables as GitHub draws them. No torch here."""

from collections.abc import Iterator, Sequence
from typing import Final

from calibrant.lab.report.tables.sections import Section
from calibrant.lab.report.tables.table import Figure, Table, TableRow
from calibrant.spec.foreign import visible

MARKUP: Final = {sign: f"\\{sign}" for sign in "\\`*_|[]#~"} | {
    "<": "&lt;",
    ">": "&gt;",
    "&": "&amp;",
    "\n": " ",
    "\r": " ",
}
"""What Markdown or HTML would read as markup, and how it is shown as itself."""


def markdown(sections: Sequence[Section]) -> str:
    """Return the sections as one Markdown text."""
    lines: list[str] = []
    for section in sections:
        lines.extend(_section(section))
    return "\n".join(lines)


def _section(section: Section) -> Iterator[str]:
    yield f"## {escaped(section.title)}"
    yield ""
    if section.table is not None:
        yield from _table(section.table)
    for sentence in section.sentences:
        yield escaped(sentence)
        yield ""
    for item in section.items:
        yield f"- {escaped(item)}"
    if section.items:
        yield ""


def _table(table: Table) -> Iterator[str]:
    heads = [escaped(table.head)]
    rules = ["---"]
    for column in table.columns:
        rule = "---" if column.words else "---:"
        heads.append(escaped(column.head))
        rules.append(rule)
    yield _line(heads)
    yield _line(rules)
    for row in table.rows:
        yield _line([_name(row), *map(_figure, row.figures)])
    yield ""
    yield escaped(table.key)
    yield ""


def _name(row: TableRow) -> str:
    name = _bold(row.name, row.best)
    return f"{name} ({escaped(row.note)})" if row.note else name


def _figure(figure: Figure) -> str:
    text = _bold(str(figure), figure.best)
    return f"{text}<sup>{escaped(figure.letters)}</sup>" if figure.letters else text


def _bold(text: str, best: bool) -> str:
    return f"**{escaped(text)}**" if best else escaped(text)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Return `text` as Markdown shows it unchanged, in one line."""
    return "".join(MARKUP.get(sign, sign) for sign in visible(text))
