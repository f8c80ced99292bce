"""A report for a terminal (rich): tables that fit its width, sentences that fold. No torch here."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from calibrant.lab.report.tables.sections import Section
from calibrant.lab.report.tables.table import Figure, Table, TableRow
from calibrant.spec.foreign import visible_name

NAMES: Final = 22
"""How wide a column of names is at least, unless all are shorter. It folds before anything else
gives way, and grows where there is room.
"""

NARROW: Final = 16
"""The same for a table whose columns stand closely."""

GAP: Final = 2
"""Blanks between two columns."""

LISTED: Final = 12
"""How many of what may be hundreds are listed; the others are counted."""

SCREEN: Final = 60
"""Lines of a summary at most."""

ROWS: Final = 26
"""Rows of a table in a summary at most."""

WARNED: Final = 4
"""Warnings in a summary at most: it is about the answer too."""

MORE: Final = (
    "--all prints every ranking with its intervals, --method NAME those of one method, "
    "--html FILE writes the page."
)


def lines(sections: Sequence[Section], width: int) -> Iterator[RenderableType]:
    """Yield everything that is shown, piece by piece."""
    for section in sections:
        yield from _section(section, width)


def summary(sections: Sequence[Section], width: int) -> Iterator[RenderableType]:
    """Yield the same in `SCREEN` lines at most, and how to see more. The sections come in the order
    of their weight, but warnings have their room first. Where there is none, what comes first in a
    section stays, and its other sentences are counted.
    """

    def order(number: int) -> bool:
        return not sections[number].warns

    hint = Text(MORE, style="dim")
    room = SCREEN - _height([hint], width)
    fitting: dict[int, list[RenderableType]] = {}
    for number in sorted(range(len(sections)), key=order):
        brief = _brief(sections[number])
        fitting[number] = _fitting(brief, width, room)
        room -= _height(fitting[number], width)
    for number in range(len(sections)):
        yield from fitting[number]
    yield hint


def _brief(section: Section) -> Section:
    """A section with no more rows and warnings than a summary has room for, and without items."""
    section = replace(section, items=())
    if section.warns:
        return _cut(section, WARNED)
    if section.table is None or section.narrow is None:
        return section
    table = replace(section.table, most=ROWS)
    return replace(section, table=table, narrow=replace(section.narrow, most=ROWS))


def _cut(section: Section, count: int) -> Section:
    """A section with its first `count` sentences, and how many more there are."""
    more = len(section.sentences) - count
    if more <= 0:
        return section
    counted = f"… and {more:,} more, which --all prints"
    return replace(section, sentences=(*section.sentences[:count], counted))


def _fitting(section: Section, width: int, room: int) -> list[RenderableType]:
    """The pieces of as much of a section as fits into `room` lines; none where nothing does."""
    least = 1 if section.table is None else 0
    for count in range(len(section.sentences), least - 1, -1):
        pieces = list(_section(_cut(section, count), width))
        if _height(pieces, width) <= room:
            return pieces
    return []


def _height(pieces: Sequence[RenderableType], width: int) -> int:
    """How many lines the pieces take."""
    text = StringIO()
    console = Console(file=text, width=width, color_system=None, emoji=False)
    for piece in pieces:
        console.print(piece, markup=False, highlight=False)
    return text.getvalue().count("\n")


def _section(section: Section, width: int) -> Iterator[RenderableType]:
    if section.table is not None:
        yield from _table(section.table, section.narrow, width)
        if section.sentences:
            yield ""
    else:
        yield Text(visible_name(section.title), style="bold")
    style = "bold yellow" if section.warns else ""
    for sentence in section.sentences:
        yield Text(visible_name(sentence), style=style)
    for item in section.items[:LISTED]:
        yield Text(f"  • {visible_name(item)}")
    if len(section.items) > LISTED:
        yield Text(f"  … and {len(section.items) - LISTED:,} more, which --format json lists")
    yield ""


def _table(table: Table, narrow: Table | None, width: int) -> Iterator[RenderableType]:
    yield Text(visible_name(table.title), style="bold")
    # What the pieces of a table say to it, each once.
    legend: dict[str, None] = {}
    for number, drawn in enumerate(_fitted(table, narrow, width)):
        if number:
            yield ""
        yield drawn.grid()
        legend |= dict.fromkeys(drawn.table.legend)
    if table.most and len(table.rows) > table.most:
        yield Text(f"… and {len(table.rows) - table.most:,} more, which --format json lists")
    key = replace(table, legend=tuple(legend)).key
    yield Text(visible_name(key), style="dim")


def _fitted(table: Table, narrow: Table | None, width: int) -> "Iterator[_Drawn]":
    """The table as the fullest that fits into `width` cells; where none does, in pieces."""
    if narrow is not None:
        # Before a table of many short columns gives way, its columns come closer.
        close = _Drawn(table, width, gap=1, names=NARROW)
        if close.room >= 0:
            wide = _Drawn(table, width)
            yield wide if wide.room >= 0 else close
            return
        table = narrow
    for shape in table.shortened():
        drawn = _Drawn(shape, width)
        if drawn.room >= 0:
            yield drawn
            return
    bare = table.brief(errors=False)
    for columns in _Drawn(bare, width).pieces():
        yield _Drawn(bare.only(columns), width)


class _Drawn:
    """A table's cells as they will be drawn, and how many columns of the terminal they need."""

    def __init__(self, table: Table, width: int, gap: int = GAP, names: int = NAMES) -> None:
        self.table = table
        self._width = width
        self._gap = gap
        self._rows = table.rows[: table.most]
        self._names = [_name(row) for row in self._rows]
        words = [cell_len(word) for word in table.head.split()]
        labels = [name.cell_len for name in self._names]
        self._longest = max([*words, *labels])
        self._narrowest = min(names, self._longest)
        self._columns: list[list[Text]] = []
        self._least: list[int] = []
        for index, column in enumerate(table.columns):
            figures = [row.figures[index] for row in self._rows]
            cells = _aligned(figures, column.words)
            self._columns.append(cells)
            texts = [cell.plain for cell in cells]
            # Words fold between themselves, numbers don't.
            parts = " ".join(texts).split() if column.words else texts
            heads = [piece.rstrip() for piece in _pieces(column.head)]
            unbroken = [*heads, *parts]
            self._least.append(max(map(cell_len, unbroken)))
        # How many cells are left beside everything at its narrowest.
        needed = sum(self._least) + gap * len(self._least)
        self.room = width - self._narrowest - needed

    def pieces(self) -> Iterator[list[int]]:
        """Yield the columns that fit beside the names, as many at a time as there is room for."""
        whole = self._width - self._narrowest
        piece: list[int] = []
        taken = 0
        for index, least in enumerate(self._least):
            needed = least + self._gap
            if piece and taken + needed > whole:
                yield piece
                piece = []
                taken = 0
            piece.append(index)
            taken += needed
        yield piece

    def grid(self) -> Grid:
        """Return the table, its heads folded only where there is no room for them."""
        padding = (0, self._gap - 1, 0, 0)
        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=padding)
        widths = self._widths()
        spare = max(0, self.room - sum(widths) + sum(self._least))
        names = min(self._longest, self._width, self._narrowest + spare)
        head = Text(visible_name(self.table.head))
        grid.add_column(head, overflow="fold", min_width=names, max_width=names)
        for column, width in zip(self.table.columns, widths, strict=True):
            justify = "left" if column.words else "right"
            head = Text(_folded(visible_name(column.head), width), justify=justify)
            grid.add_column(head, overflow="fold", min_width=width, max_width=width)
        for index, row in enumerate(self._rows):
            if index and row.part != self._rows[index - 1].part:
                grid.add_section()
            cells: list[Text] = []
            for column, width, texts in zip(self.table.columns, widths, self._columns, strict=True):
                cell = texts[index]
                if not column.words:
                    # Not flush right: that would take the blanks behind a letter for nothing and
                    # shift the number.
                    cell.pad_left(max(0, width - cell.cell_len))
                cells.append(cell)
            grid.add_row(self._names[index], *cells)
        return grid

    def _widths(self) -> list[int]:
        """How wide each column is: as its head in one line, as long as there is room."""
        spare = max(0, self.room)
        widths: list[int] = []
        for column, cells, least in zip(
            self.table.columns, self._columns, self._least, strict=True
        ):
            wanted = max(cell_len(column.head), cells[0].cell_len, least)
            width = min(wanted, least + spare)
            spare -= width - least
            widths.append(width)
        return widths


def _pieces(head: str) -> list[str]:
    """The parts of a head that stay together: it folds at blanks, and within a name behind `_`,
    `+` and `:`, but not in `2:4`.
    """
    return re.split(r"(?<=[ _+])|(?<=:)(?=[a-z])", head)


def _folded(head: str, width: int) -> str:
    """A head in lines that are no wider than its column, where it can be folded so."""
    lines = [""]
    for piece in _pieces(head):
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines.append(piece)
        else:
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _name(row: TableRow) -> Text:
    style = "bold" if row.best else ""
    name = Text(visible_name(row.name), style=style)
    if row.note:
        name.append(f" ({visible_name(row.note)})", style="dim")
    return name


def _aligned(figures: Sequence[Figure], words: bool) -> list[Text]:
    """The cells of a column, equally wide: numbers flush to the right, letters behind them flush
    to the left.
    """
    texts = [str(figure) for figure in figures]
    widest = max(map(cell_len, texts))
    most_letters = max(cell_len(figure.letters) for figure in figures)
    # A mark stands right behind its number, letters a blank away from it.
    lettered = any(figure.letters.isalnum() for figure in figures)
    blank = " " if lettered else ""
    cells: list[Text] = []
    for figure, text in zip(figures, texts, strict=True):
        style = "bold" if figure.best else ""
        cell = Text(visible_name(text), style=style)
        padding = widest - cell_len(text)
        if words:
            cell.pad_right(padding)
        else:
            cell.pad_left(padding)
        if most_letters:
            letters = figure.letters.ljust(most_letters)
            cell.append(f"{blank}{letters}", style="italic cyan")
        cells.append(cell)
    return cells
