"""The items of a measurement as a table, a row an item, and as the bytes that a store keeps."""

import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from calibrant.results.outcomes import LARGEST, MOST, Outcome

COLUMNS: Final = ("item", "value", "weight")
"""The columns that the items of every measurement have; the others are facts."""


class ItemNumbers(NamedTuple):
    """The items of one measurement: their names, a series of polars, their values and weights."""

    names: Any
    values: Float[np.ndarray, " items"]
    weights: Float[np.ndarray, " items"]


def table_of(outcomes: Sequence[Outcome]) -> Any:
    """Return outcomes as an Arrow table; each of their facts is a column. Raises `ValueError`
    unless all have the same facts, under names of their own.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {
        "item": pa.array([outcome.item for outcome in outcomes], pa.string()),
        "value": pa.array([outcome.value for outcome in outcomes], pa.float64()),
        "weight": pa.array([outcome.weight for outcome in outcomes], pa.float64()),
    }
    if not outcomes:
        return pa.table(columns)
    names = outcomes[0].facts.keys()
    taken = sorted(names & columns.keys())
    if taken:
        raise ValueError(f"a fact of an item can't be called {taken[0]!r}, as a column is")
    for outcome in outcomes:
        if outcome.facts.keys() != names:
            raise ValueError(f"the facts of {outcome.item!r} aren't those of the first item")
    for name in names:
        columns[name] = pa.array([outcome.facts[name] for outcome in outcomes])
    return pa.table(columns)


def outcomes_of(table: Any) -> tuple[Outcome, ...]:
    """Return the outcomes in a table of items. Raises `ValueError` where one is incomplete."""
    if any(table[name].null_count for name in COLUMNS):
        raise ValueError("some of its items have no name, value or weight")
    outcomes: list[Outcome] = []
    for row in table.to_pylist():
        item, value, weight = (row.pop(name) for name in COLUMNS)
        outcomes.append(Outcome(item, value, weight, facts=row))
    return tuple(outcomes)


def numbers_of(table: Any) -> ItemNumbers:
    """Return the numbers in a table of items. Raises `ValueError` where one is missing."""
    import polars as pl

    names, values, weights = (table[name].combine_chunks() for name in COLUMNS)
    if names.null_count or values.null_count or weights.null_count:
        raise ValueError("some of its items have no name, value or weight")
    return ItemNumbers(
        names=pl.Series(pl.from_arrow(names)),
        values=values.to_numpy(zero_copy_only=False),
        weights=weights.to_numpy(zero_copy_only=False),
    )


def numbers_from_bytes(content: bytes) -> ItemNumbers:
    """Return the numbers in what `to_bytes` gave. polars reads them in a fraction of the time
    that an Arrow table takes, and without pyarrow, which takes long to import. What it can't
    read is left to `from_bytes`, which says why. Raises `ValueError` as that does.
    """
    import polars as pl

    try:
        frame = pl.read_ipc_stream(unzipped(content, LARGEST), columns=list(COLUMNS))
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return numbers_of(from_bytes(content))
    names, values, weights = (frame[name] for name in COLUMNS)
    typed = names.dtype == pl.String and values.dtype.is_float() and weights.dtype.is_float()
    if not typed or any(column.null_count() for column in (names, values, weights)):
        return numbers_of(from_bytes(content))
    return ItemNumbers(names, values.to_numpy(), weights.to_numpy())


def same_items(table: Any, other: Any) -> bool:
    """Return whether two tables of items say the same, numbers to the last bit."""
    if table.column_names != other.column_names:
        return False
    return all(_leaves(table[name]) == _leaves(other[name]) for name in table.column_names)


def _leaves(column: Any) -> list[Any]:
    """What a column holds, without what libraries call its types: how long its lists are, and the
    innermost values."""
    import pyarrow as pa

    array = column.combine_chunks()
    content = list[Any]()
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        content.append(array.value_lengths().to_pylist())
        array = array.flatten()
    if pa.types.is_floating(array.type) and not array.null_count:
        content.append(array.to_numpy().tobytes())
    else:
        content.append(repr(array.to_pylist()))
    return content


def to_bytes(table: Any) -> bytes:
    """Return a table of items as compressed bytes. Raises `ValueError` for more than `from_bytes`
    reads."""
    import pyarrow as pa

    check_count(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    content = sink.getvalue()
    if len(content) > LARGEST:
        raise ValueError(f"its items take more than {LARGEST // 2**20} MiB")
    return zlib.compress(content)


def from_bytes(content: bytes) -> Any:
    """Return the table that `to_bytes` was given. Raises `ValueError` for what is none, or would
    unpack to more than anybody measures."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(unzipped(content, LARGEST)).read_all()
        table.validate(full=True)  # or numbers of a made-up file could point anywhere
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    check_items(table.schema)
    check_count(table)
    return table


def unzipped(content: bytes, most: int) -> bytes:
    """Return what was compressed. Raises `ValueError` for what wasn't, is cut, or is more than so
    many bytes."""
    reader = zlib.decompressobj()
    try:
        unpacked = reader.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(unpacked) > most or not reader.eof:
        raise ValueError(f"it is cut, or holds more than {most // 2**20} MiB")
    return unpacked


def check_count(table: Any) -> None:
    """Raise `ValueError` for a table of more items than anybody measures."""
    if len(table) > MOST:
        raise ValueError(f"it holds {len(table)} items")


def check_items(schema: Any) -> None:
    """Raise `ValueError` for the schema of a table that isn't one of items."""
    import pyarrow as pa

    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")
    named = schema.field("item").type
    if not (pa.types.is_string(named) or pa.types.is_large_string(named)):
        raise ValueError(f"its items are called by {named}, and must have texts for names")
    for name in ("value", "weight"):
        kind = schema.field(name).type
        if not pa.types.is_floating(kind):
            raise ValueError(f"its column {name} is {kind}, and must hold numbers")


def leaf(column: Any) -> tuple[str, Any]:
    """Return what Parquet calls the innermost values of a column, and their type."""
    import pyarrow as pa

    path, kind = column.name, column.type
    while pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path, kind
