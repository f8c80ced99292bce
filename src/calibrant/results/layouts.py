"""How the items of a measurement are laid out in a published table, so that no number is there
twice.

A loss has its value under each of its names, the value of a question is that of its right choice,
and what a choice is worth without its question is the same for every `yes`. Such numbers are left
out, and the layout says how they come back, to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from calibrant.results.items import COLUMNS

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
"""The share of distinct numbers up to which they are stored once."""


def laid_out(table: Any) -> tuple[list[list[str]], dict[str, Any]]:
    """Return how the columns of a table of items come back, and the arrays to store, by name."""
    layout: list[list[str]] = []
    arrays = dict[str, Any]()
    for column in table.schema:
        name = column.name
        array = table[name].combine_chunks()
        if name not in COLUMNS and _same_bits(array, table["value"].combine_chunks()):
            layout.append([name, SAME, "value"])
        elif name == "value" and _is_chosen(table):
            layout.append([name, CHOSEN, "choices", "gold"])
        elif _repeats(array):
            values, places = f"{name} values", f"{name} places"
            layout.append([name, PLACED, values, places])
            arrays[values], arrays[places] = _placed(array)
        else:
            layout.append([name, AS_IT_IS, name])
            arrays[name] = array
    return layout, arrays


def restored_columns(
    layout: Layout, stored: Callable[[str], Any], wanted: Sequence[str] | None
) -> Mapping[str, Any]:
    """Return the columns of a measurement's items, or those that are `wanted`. `stored` gives an
    array of the table by its name."""
    rules = {name: (rule, sources) for name, rule, *sources in layout}
    arrays = dict[str, Any]()
    for name in rules:
        if wanted is None or name in wanted:
            arrays[name] = _column(name, rules, stored)
    return arrays


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
        values, places = (stored(source) for source in sources)
        return _unplaced(values, places)
    raise ValueError(f"{rule!r} is no rule of a layout")


def _floats(array: Any) -> Any:
    """The numbers of an array of float64 without gaps; None for anything else."""
    import pyarrow as pa

    plain = array.type == pa.float64() and not array.null_count
    return array.to_numpy(zero_copy_only=False) if plain else None


def _same_bits(array: Any, other: Any) -> bool:
    """Whether two columns are equal numbers, NaN and the sign of zero included."""
    numbers, others = _floats(array), _floats(other)
    return numbers is not None and others is not None and numbers.tobytes() == others.tobytes()


def _is_chosen(table: Any) -> bool:
    """Whether each item's value is that of its right choice."""
    import pyarrow as pa

    if not {"choices", "gold"} <= set(table.column_names):
        return False
    choices, places = table["choices"].combine_chunks(), table["gold"].combine_chunks()
    listed = pa.types.is_list(choices.type) and choices.type.value_type == pa.float64()
    if (
        not listed
        or not pa.types.is_integer(places.type)
        or places.null_count
        or choices.null_count
    ):
        return False
    if choices.flatten().null_count or not _are_within(places, choices.value_lengths()):
        return False
    return _chosen(choices, places).tobytes() == table["value"].to_numpy().tobytes()


def _are_within(places: Any, lengths: Any) -> bool:
    """Whether there is such a place in each of the lists, which are so long."""
    numbers = places.to_numpy()
    return bool((numbers >= 0).all() and (numbers < lengths.to_numpy()).all())


def _chosen(choices: Any, places: Any) -> Any:
    """The number at its place in each item's choices. Raises `ValueError` where there is none."""
    if not _are_within(places, choices.value_lengths()):
        raise ValueError("some of its choices aren't there")
    lengths = choices.value_lengths().to_numpy()
    firsts = np.cumsum(lengths) - lengths
    return choices.flatten().to_numpy()[firsts + places.to_numpy()]


def _repeats(array: Any) -> bool:
    """Whether it is a list of numbers for each item, of which most stand there several times."""
    import pyarrow as pa

    if not pa.types.is_list(array.type) or array.null_count:
        return False
    numbers = _floats(array.flatten())
    if numbers is None or not len(numbers):
        return False
    return len(np.unique(numbers.view(np.uint64))) <= MOST_DISTINCT * len(numbers)


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

    return pa.array(np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]), pa.int32())
