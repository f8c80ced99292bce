"""A report for a terminal (rich): tables that fit its width, sentences that fold. No torch here."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table as Grid
from rich.text import Text

from calibrant.lab.report.tables.sections import Section
from calibrant.lab.report.tables.table import Figure, Table, TableRow
from calibrant.spec.foreign import visible_name

NAMES: Final = 22
"""How wide a column of names is at least, unless all are shorter: it folds before anything else
gives way, and grows where there is room.
"""

GAP: Final = 2
"""Blanks between two columns."""

LISTED: Final = 12
"""How many of what may be hundreds are join_names; the others are counted."""


def lines(sections: Sequence[Section], width: int) -> Iterator[RenderableType]:
    """Everything that is shown, piece by piece."""
    for section in sections:
        if section.table is not None:
            yield from _table(section.table, width)
        else:
            yield Text(visible_name(section.title), style="bold")
        yield from (
            Text(visible_name(s), style="bold yellow" if s.startswith("Doubtful") else "")
            for s in section.sentences
        )
        yield from (Text(f"  • {visible_name(item)}") for item in section.items[:LISTED])
        if len(section.items) > LISTED:
            yield Text(f"  … and {len(section.items) - LISTED:,} more, which --format json lists")
        yield ""


def _table(table: Table, width: int) -> Iterator[RenderableType]:
    yield Text(visible_name(table.title), style="bold")
    pieces = list(fitted(table, width))
    for number, drawn in enumerate(pieces):
        if number:
            yield ""
        yield _Drawn(drawn, width).grid()
    if table.most and len(table.rows) > table.most:
        yield Text(f"… and {len(table.rows) - table.most:,} more, which --format json lists")
    shown = replace(
        table, legend=tuple(dict.fromkeys(part for drawn in pieces for part in drawn.legend))
    )
    yield Text(visible_name(shown.key), style="dim")
    yield ""


def fitted(table: Table, width: int) -> Iterator[Table]:
    """The table as the fullest that fits into `width` cells; where none does, in pieces."""
    fitting = next((t for t in table.shortened() if _Drawn(t, width).room >= 0), None)
    if fitting is not None:
        yield fitting
    else:
        bare = table.brief(errors=False)
        yield from (bare.only(columns) for columns in _Drawn(bare, width).pieces())


class _Drawn:
    """A table's cells as they will be drawn, and how many columns of the terminal they need."""

    def __init__(self, table: Table, width: int) -> None:
        self.table, self._width = table, width
        shown = table.rows[: table.most] if table.most else table.rows
        self._names = [_name(row) for row in shown]
        self._columns = [
            _aligned([row.figures[i] for row in shown], c.words)
            for i, c in enumerate(table.columns)
        ]
        self._least = [
            max(
                map(
                    cell_len,
                    [
                        *c.head.split(),
                        *(
                            part
                            for cell in cells
                            for part in (cell.plain.split() if c.words else [cell.plain])
                        ),
                    ],
                )
            )
            for c, cells in zip(table.columns, self._columns, strict=True)
        ]
        self._longest = max(name.cell_len for name in self._names)
        self.room = width - min(NAMES, self._longest) - sum(least + GAP for least in self._least)

    def pieces(self) -> Iterator[list[int]]:
        """Columns that fit beside the names, as many at a time as there is room for."""
        whole = self._width - min(NAMES, self._longest)
        piece: list[int] = []
        for index, least in enumerate(self._least):
            if piece and sum(self._least[i] + GAP for i in piece) + least + GAP > whole:
                yield piece
                piece = []
            piece.append(index)
        yield piece

    def grid(self) -> Grid:
        """The table, its heads folded only where there is no room for them."""
        drawn = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        spare, wide = max(0, self.room), list(self._least)
        for index, (column, cells) in enumerate(
            zip(self.table.columns, self._columns, strict=True)
        ):
            more = min(
                max(0, cell_len(column.head) - wide[index], cells[0].cell_len - wide[index]), spare
            )
            spare, wide[index] = spare - more, wide[index] + more
        names = min(self._longest, self._width, NAMES + spare)
        drawn.add_column(
            Text(visible_name(self.table.head)), overflow="fold", min_width=names, max_width=names
        )
        for column, most in zip(self.table.columns, wide, strict=True):
            head = Text(visible_name(column.head), justify="left" if column.words else "right")
            drawn.add_column(head, overflow="fold", min_width=most, max_width=most)
        parts = [row.part for row in self.table.rows]
        for index, row in enumerate(zip(self._names, *self._columns, strict=True)):
            if index and parts[index] != parts[index - 1]:
                drawn.add_section()
            name, *cells = row
            for cell, column, most in zip(cells, self.table.columns, wide, strict=True):
                # Not flush right: that would take the blanks behind a letter for nothing and shift
                # the number.
                cell.pad_left(0 if column.words else max(0, most - cell.cell_len))
            drawn.add_row(name, *cells)
        return drawn


def _name(row: TableRow) -> Text:
    note = Text(f" ({visible_name(row.note)})", style="dim") if row.note else Text()
    return Text.assemble(Text(visible_name(row.name), style="bold" if row.best else ""), note)


def _aligned(figures: Sequence[Figure], words: bool) -> list[Text]:
    """The cells of a column, equally wide: numbers flush to the right, letters behind them flush
    to the left.
    """
    wide, letters = (
        max(cell_len(str(f)) for f in figures),
        max(cell_len(f.letters) for f in figures),
    )
    cells: list[Text] = []
    for f in figures:
        blank = " " * (wide - cell_len(str(f)))
        text = visible_name(str(f))
        number = Text.assemble(*((text, "bold" if f.best else ""), blank)[:: 1 if words else -1])
        cells.append(
            Text.assemble(number, (f" {f.letters:<{letters}}" if letters else "", "italic cyan"))
        )
    return cells
