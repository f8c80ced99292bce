"""What all results that are shown have in common: named facts, tables, and texts that can't
steer the terminal.
"""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from calibrant.spec.foreign import visible


def table_of(*columns: str) -> Any:
    """An empty table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def labelled(*facts: tuple[str, str]) -> Iterator[Text]:
    """Named facts, one a line; a fact without content is left out."""
    for name, value in facts:
        if value:
            yield Text.assemble((f"{one_line(name):<14} ", "bold"), one_line(value))


def counted(number: int, noun: str) -> str:
    """A number of things in words."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def noted(model: str, note: str) -> str:
    """A model's name with what results of it must say."""
    return f"{model} ({note})" if note else model


def one_line(text: str) -> str:
    """Text of a data set in one line that can't steer the terminal."""
    return " ".join(visible(text).split())
