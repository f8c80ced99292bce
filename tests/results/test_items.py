"""The numbers of items are those of the whole table, and what is none of them is refused."""

import zlib

import numpy as np
import pyarrow as pa
import pytest

from calibrant.results.items import from_bytes, numbers_from_bytes, numbers_of, to_bytes

VALUES = [float("nan"), float("inf"), -0.0, 0.1]
WHOLE = pa.table(
    {
        "item": ["a", "b", "", "é"],
        "value": VALUES,
        "weight": [1.0, 2.0, 0.0, 3.0],
        "choices": [[1.0], [], [2.0, 3.0], [4.0]],
    }
)


def test_numbers_are_those_of_the_table_to_the_bit():
    found, expected = numbers_from_bytes(to_bytes(WHOLE)), numbers_of(from_bytes(to_bytes(WHOLE)))
    assert found.names.to_list() == expected.names.to_list() == ["a", "b", "", "é"]
    for numbers, others in ((found.values, expected.values), (found.weights, expected.weights)):
        assert numbers.dtype == np.float64
        assert numbers.tobytes() == others.tobytes()
    assert found.values.tobytes() == np.array(VALUES).tobytes()


@pytest.mark.parametrize(
    ("column", "other"),
    [
        ("value", pa.array([1.0, None, 2.0, 3.0])),
        ("item", pa.array(["a", None, "b", "c"])),
        ("item", pa.array([1, 2, 3, 4])),
        ("weight", pa.array(["1", "2", "3", "4"])),
    ],
)
def test_what_lacks_a_number_or_has_another_type_is_refused(column: str, other: pa.Array):
    table = WHOLE.set_column(WHOLE.column_names.index(column), column, other)
    with pytest.raises(ValueError, match=column if other.type != WHOLE[column].type else "no name"):
        numbers_from_bytes(to_bytes(table))


def test_a_table_without_a_column_is_refused():
    with pytest.raises(ValueError, match="weight"):
        numbers_from_bytes(to_bytes(WHOLE.drop_columns(["weight"])))


@pytest.mark.parametrize("cut", [0, 1, 40, 400])
def test_a_stream_that_is_cut_is_refused(cut: int):
    whole = zlib.decompress(to_bytes(WHOLE))
    with pytest.raises(ValueError):  # noqa: PT011  # in words of Arrow's own
        numbers_from_bytes(zlib.compress(whole[:cut]))
    with pytest.raises(ValueError, match="cut"):
        numbers_from_bytes(to_bytes(WHOLE)[:-10])
