"""The items of a measurement as a table with a row for each: as the bytes that a database keeps,
and laid out for a published table so that no number is there twice.

A loss has its value under each of its names, the value of a question is that of its right choice,
and what a choice is worth without its question is the same for every `yes`. In a published table
such numbers are left out, and the layout says how they come back, to the bit.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from calibrant.results.outcomes import LARGEST, MOST, Outcome

COLUMNS: Final = ("item", "value", "weight")
"""The columns that the items of every measurement have; the others are facts."""

Layout = Sequence[Sequence[str]]
"""For each column its name, how it comes back, and the columns of the table that it comes from."""

AS_IT_IS: Final = "as it is"
SAME: Final = "same as"
"""Equal to another column."""
CHOSEN: Final = "chosen from"
"""The number at a place in each item's list."""
PLACED: Final = "placed from"
"""Numbers that are stored once each, and the place of each item's."""
MOST_DISTINCT: Final = 0.5
"""The share of distinct numbers in a column up to which each of them is stored once."""


class ItemNumbers(NamedTuple):
    """The items of one measurement: their names, a series of polars, their values and weights."""

    names: Any
    values: Float[np.ndarray, " items"]
    weights: Float[np.ndarray, " items"]


def table_of(outcomes: Sequence[Outcome]) -> Any:
    """Return outcomes as an Arrow table; each of their facts is a column.

    Raises `ValueError` unless all have the same facts, under names of their own.
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
    for outcome in outcomes:
        if outcome.facts.keys() != names:
            raise ValueError(f"the facts of {outcome.item!r} aren't those of the first item")
    for name in names:
        if name in COLUMNS:
            raise ValueError(f"a fact of an item can't be called {name!r}, as a column is")
        columns[name] = pa.array([outcome.facts[name] for outcome in outcomes])
    return pa.table(columns)


def outcomes_of(table: Any) -> tuple[Outcome, ...]:
    """Return the outcomes in a table of items. Raises `ValueError` where one is incomplete."""
    _check_complete(table)
    outcomes: list[Outcome] = []
    for facts in table.to_pylist():
        item = facts.pop("item")
        value = facts.pop("value")
        weight = facts.pop("weight")
        outcomes.append(Outcome(item, value, weight, facts))
    return tuple(outcomes)


def numbers_of(table: Any) -> ItemNumbers:
    """Return the numbers in a table of items. Raises `ValueError` where one is missing."""
    import polars as pl

    _check_complete(table)
    names = pl.Series(pl.from_arrow(table["item"]))
    return ItemNumbers(names, table["value"].to_numpy(), table["weight"].to_numpy())


def numbers_from_bytes(content: bytes) -> ItemNumbers:
    """Return the numbers in what `to_bytes` gave. Raises `ValueError` as `from_bytes` does.

    polars reads them in a fraction of the time that an Arrow table takes, and without pyarrow,
    which takes long to import. What it can't read is left to `from_bytes`, which says why.
    """
    import polars as pl

    try:
        frame = pl.read_ipc_stream(unzipped(content, LARGEST), columns=list(COLUMNS))
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return numbers_of(from_bytes(content))
    names, values, weights = (frame[name] for name in COLUMNS)
    # polars reads other types than these without a complaint.
    typed = names.dtype == pl.String and values.dtype.is_float() and weights.dtype.is_float()
    if not typed or any(column.null_count() for column in frame):
        return numbers_of(from_bytes(content))
    return ItemNumbers(names, values.to_numpy(), weights.to_numpy())


def same_items(table: Any, other: Any) -> bool:
    """Return whether two tables of items say the same, numbers to the last bit."""
    # As text: there NaN is itself, and 0.0 isn't -0.0.
    return repr(table.to_pydict()) == repr(other.to_pydict())


def to_bytes(table: Any) -> bytes:
    """Return a table of items as compressed bytes.

    Raises `ValueError` for more than `from_bytes` reads.
    """
    import pyarrow as pa

    check_count(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        # In one piece, or equal items could come to other bytes.
        writer.write_table(table.combine_chunks())
    content = sink.getvalue()
    if len(content) > LARGEST:
        raise ValueError(f"its items take more than {LARGEST // 2**20} MiB")
    return zlib.compress(content)


def from_bytes(content: bytes) -> Any:
    """Return the table that `to_bytes` was given.

    Raises `ValueError` for what is none, or would unpack to more than anybody measures.
    """
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
    """Return what was compressed.

    Raises `ValueError` for what wasn't, is cut, or is more than `most` bytes.
    """
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
    kind = schema.field("item").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"its column item holds {kind}, and must hold texts")
    for name in ("value", "weight"):
        kind = schema.field(name).type
        if not pa.types.is_floating(kind):
            raise ValueError(f"its column {name} holds {kind}, and must hold numbers")


def _check_complete(table: Any) -> None:
    """Raise `ValueError` for a table in which an item lacks something."""
    if any(table[name].null_count for name in COLUMNS):
        raise ValueError("some of its items have no name, value or weight")


def laid_out(table: Any) -> tuple[list[list[str]], dict[str, Any]]:
    """Return how the columns of a table of items come back, and the arrays to store, by name."""
    layout: list[list[str]] = []
    arrays: dict[str, Any] = {}
    value = table["value"].combine_chunks()
    # The first rule that fits counts.
    for name in table.column_names:
        array = table[name].combine_chunks()
        if name not in COLUMNS and _same_bits(array, value):
            layout.append([name, SAME, "value"])
        elif name == "value" and _is_chosen(table):
            layout.append([name, CHOSEN, "choices", "gold"])
        elif _repeats(array):
            values_name = f"{name} values"
            places_name = f"{name} places"
            layout.append([name, PLACED, values_name, places_name])
            arrays[values_name], arrays[places_name] = _placed(array)
        else:
            layout.append([name, AS_IT_IS, name])
            arrays[name] = array
    return layout, arrays


def restored_columns(
    layout: Layout, stored: Callable[[str], Any], wanted: Sequence[str] | None
) -> dict[str, Any]:
    """Return the columns of a measurement's items, or those that are `wanted`.

    `stored` gives an array of the table by its name. Raises `ValueError` for a layout of others.
    """
    rules = {name: (rule, sources) for name, rule, *sources in layout}
    names = [name for name in rules if wanted is None or name in wanted]
    return {name: _column(name, rules, stored) for name in names}


def _column(name: str, rules: Mapping[str, Any], stored: Callable[[str], Any]) -> Any:
    import pyarrow as pa

    rule, sources = rules[name]
    if rule == AS_IT_IS:
        return stored(sources[0])
    if rule == SAME:
        return _column(sources[0], rules, stored)
    if rule == CHOSEN:
        choices, places = (_column(source, rules, stored) for source in sources)
        return pa.array(_chosen(choices, places))
    if rule == PLACED:
        return _unplaced(*map(stored, sources))
    raise ValueError(f"{rule!r} is no rule of a layout")


def _same_bits(array: Any, value: Any) -> bool:
    """Whether a column has the numbers of another, NaN and the sign of zero included."""
    if array.type != value.type or array.null_count or value.null_count:
        return False
    return array.to_numpy().tobytes() == value.to_numpy().tobytes()


def _listed_numbers(array: Any) -> Any:
    """The numbers of all lists, one after the other; None for anything but lists of numbers."""
    import pyarrow as pa

    if not pa.types.is_list(array.type) or array.null_count:
        return None
    numbers = array.flatten()
    if numbers.type != pa.float64() or numbers.null_count:
        return None
    return numbers.to_numpy()


def _is_chosen(table: Any) -> bool:
    """Whether each item's value is that of its right choice."""
    import pyarrow as pa

    if not {"choices", "gold"} <= set(table.column_names):
        return False
    choices = table["choices"].combine_chunks()
    places = table["gold"].combine_chunks()
    whole = pa.types.is_integer(places.type) and not places.null_count
    if not whole or _listed_numbers(choices) is None:
        return False
    try:
        return _chosen(choices, places).tobytes() == table["value"].to_numpy().tobytes()
    except ValueError:
        return False


def _chosen(choices: Any, places: Any) -> Any:
    """The number at its place in each item's choices. Raises `ValueError` where there is none."""
    lengths = choices.value_lengths().to_numpy()
    within = places.to_numpy()
    if (within < 0).any() or (within >= lengths).any():
        raise ValueError("some of its choices aren't there")
    firsts = np.cumsum(lengths) - lengths
    numbers = choices.flatten().to_numpy()
    return numbers[firsts + within]


def _repeats(array: Any) -> bool:
    """Whether it is a list of numbers for each item, of which most stand there several times."""
    numbers = _listed_numbers(array)
    if numbers is None or not len(numbers):
        return False
    # As bits, so that NaN is one number.
    distinct = np.unique(numbers.view(np.uint64))
    return len(distinct) <= MOST_DISTINCT * len(numbers)


def _placed(array: Any) -> tuple[Any, Any]:
    """The numbers of a list for each item, each once in the order of their appearance, and the
    places of all."""
    import pyarrow as pa

    # As bits: of numbers NaN and the signs of zero would be lost.
    bits = array.flatten().to_numpy().view(np.uint64)
    encoded = pa.array(bits).dictionary_encode()
    values = encoded.dictionary.to_numpy().view(np.float64)
    places = pa.ListArray.from_arrays(_offsets(array), encoded.indices)
    return pa.array(values), places


def _unplaced(values: Any, places: Any) -> Any:
    """The lists that `_placed` was given. Raises `ValueError` for places where nothing is."""
    import pyarrow as pa

    within = places.flatten().to_numpy()
    if (within < 0).any() or (within >= len(values)).any():
        raise ValueError("some of its numbers aren't there")
    numbers = values.to_numpy()[within]
    return pa.ListArray.from_arrays(_offsets(places), pa.array(numbers))


def _offsets(lists: Any) -> Any:
    """Where each list begins, and where the last one ends."""
    import pyarrow as pa

    lengths = lists.value_lengths().to_numpy()
    ends = np.cumsum(lengths)
    return pa.array(np.concatenate([[0], ends]), pa.int32())
