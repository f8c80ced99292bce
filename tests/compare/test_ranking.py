import pytest

from calibrant.compare import bits_of, is_grid, target_noun
from calibrant.targets import Grid, kinds, parse_target


@pytest.mark.parametrize("text", ["w4g64", "w8", "w2g32a", "w5a"])
def test_grids_are_read_as_targets_reads_them(text: str):
    grid = parse_target(text)
    assert isinstance(grid, Grid)
    assert (is_grid(text), bits_of(text)) == (True, grid.bits)


@pytest.mark.parametrize("text", ["0.5", "2:4", "", "rank=16", "w", "xw4g64", "w4g64b"])
def test_nothing_else_is_a_grid(text: str):
    assert (is_grid(text), bits_of(text)) == (False, None)


def test_every_kind_of_target_is_told_from_the_others():
    assert [is_grid(kind.example) for kind in kinds()] == [kind is Grid for kind in kinds()]


@pytest.mark.parametrize(
    ("targets", "kind"), [([], "sparsity"), (["0.5", "2:4"], "sparsity"), (["w4g64"], "target"), (["0.5", "w4"], "target"), (["rank=1"], "target")]
)
def test_what_several_targets_are_called(targets: list[str], kind: str):
    assert target_noun(targets) == kind
