"""What all results that are shown have in common: named facts, tables, and texts that can't
steer the terminal.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from calibrant.numerics import duration
from calibrant.spec.foreign import visible


def table_of(*columns: str) -> Table:
    """Return an empty table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def labelled(facts: Mapping[str, str]) -> Iterator[Text]:
    """Yield facts by their names, one a line; a fact without content is left out."""
    for name, value in facts.items():
        if value:
            yield Text.assemble((f"{one_line(name):<14} ", "bold"), one_line(value))


def listed(heading: str, sentences: Iterable[str]) -> Iterator[Text]:
    """Yield sentences as a list under a heading."""
    yield Text(heading, style="bold")
    for sentence in sentences:
        yield Text(f"  • {one_line(sentence)}")


def phases(seconds: Mapping[str, float], write: Callable[[float], str] = duration) -> str:
    """Return how long each phase took."""
    return " · ".join(f"{phase} {write(spent)}" for phase, spent in seconds.items())


def tenths(seconds: float) -> str:
    """Return seconds with one decimal, also where they are many."""
    return f"{seconds:.1f} s"


def noted(model: str, note: str) -> str:
    """Return a model's name with what results of it must say."""
    return f"{model} ({note})" if note else model


def one_line(text: str) -> str:
    """Return text of a data set in one line that can't steer the terminal."""
    return " ".join(visible(text).split())
