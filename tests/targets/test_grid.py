import pytest

from calibrant.errors import TargetError
from calibrant.targets import Grid, parse_target


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("w4g64", Grid(4, 64)),
        ("w8", Grid(8)),
        ("w2", Grid(2)),
        ("w3g128a", Grid(3, 128, symmetric=False)),
        ("w8a", Grid(8, None, False)),
        ("w5g2", Grid(5, 2)),
    ],
)
def test_a_grid_is_read_and_writes_itself_back(text: str, grid: Grid):
    assert parse_target(text) == parse_target(f" {text} ") == grid
    assert str(grid) == text
    assert hash(grid) == hash(parse_target(text))


NO_GRIDS = ["w1", "w9", "w0g64", "w16g128", "w4g0", "w4g1"]
ALMOST = [
    "w4g",
    "W4",
    "w",
    "w-4",
    "w4g-2",
    "4w",
    "w4 g64",
    "w" + "9" * 40,
    "w4g" + "9" * 5000,
    "w٤",
]


@pytest.mark.parametrize("given", [*NO_GRIDS, *ALMOST])
def test_what_is_no_grid_is_refused(given: str):
    with pytest.raises(TargetError) as caught:
        parse_target(given)
    assert caught.value.subject == given


@pytest.mark.parametrize(
    ("inputs", "text", "fitting"),
    [
        (576, "w4g128", ["w4g64", "w4g96", "w4g144", "w4"]),
        (1536, "w3g100a", ["w3g64a", "w3g96a", "w3g128a", "w3a"]),
        (30, "w4g64", ["w4g15", "w4"]),
        (31, "w4g64", ["w4"]),
    ],
)
def test_groups_that_do_not_fit_name_the_matrix_and_what_does(
    inputs: int, text: str, fitting: list[str]
):
    with pytest.raises(TargetError) as caught:
        parse_target(text).check((8, inputs), "layers.0.up")
    assert caught.value.subject == "layers.0.up"
    for choice in fitting:
        assert f" {choice}" in str(caught.value)
        parse_target(choice).check((8, inputs), "layers.0.up")
