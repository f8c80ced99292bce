"""The items of a measurement as a table, a row an item, and as the bytes that a store keeps."""

import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from calibrant.outcomes import LARGEST, MOST, Outcome

COLUMNS: Final = ("item", "value", "weight")
"""The columns that the items of every measurement have; the others are facts."""


class ItemNumbers(NamedTuple):
    """The items of one measurement: their names, a series of polars, their values and weights."""

    names: Any
    values: Float[np.ndarray, " items"]
    weights: Float[np.ndarray, " items"]


def table_of(outcomes: Sequence[Outcome]) -> Any:
    """Return outcomes as an Arrow table; each of their facts is a column."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "item": pa.array([outcome.item for outcome in outcomes], pa.string()),
        "value": pa.array([outcome.value for outcome in outcomes], pa.float64()),
        "weight": pa.array([outcome.weight for outcome in outcomes], pa.float64()),
    }
    facts = outcomes[0].facts if outcomes else ()
    for name in facts:
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
    floats = (column.to_numpy(zero_copy_only=False) for column in (values, weights))
    return ItemNumbers(pl.Series(pl.from_arrow(names)), *floats)


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
    """Return a table of items as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # What makes large tables quick makes these, of a few hundred rows and hardly a value twice, a
    # fifth larger. The bytes of the numbers lie apart, since most were computed with fewer digits
    # than they are kept with.
    apart = dict[str, str]()
    for column in table.schema:
        path, kind = leaf(column)
        if pa.types.is_floating(kind):
            apart[path] = "BYTE_STREAM_SPLIT"
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        compression="zstd",
        compression_level=9,
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        column_encoding=apart or None,
    )
    return file.getvalue()


def from_bytes(content: bytes, columns: Sequence[str] | None = None) -> Any:
    """Return the table that `to_bytes` was given, or some of its columns. Raises `ValueError` for
    what is no such file, or would unpack to more than anybody measures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(io.BytesIO(content)) as file:
            check_items(file.schema_arrow)
            metadata = file.metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            size = sum(group.total_byte_size for group in groups)
            if metadata.num_rows > MOST or size > LARGEST:
                raise ValueError(f"it holds {metadata.num_rows} items of {size} bytes")
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError, LookupError, TypeError) as error:
        raise ValueError(str(error)) from error


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
