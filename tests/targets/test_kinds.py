"""What a text is read as, and what is said to be allowed."""

from collections.abc import Callable

import pytest

from calibrant.errors import TargetError
from calibrant.targets import (
    GgmlKind,
    GgufRecipe,
    Grid,
    NofM,
    Removal,
    Share,
    SparseGrid,
    Sparsity,
    Target,
    accepted,
    allowed,
    kinds,
    parse_target,
    targets,
)

RANK = """
from dataclasses import dataclass
from typing import ClassVar
from calibrant.targets import Target

@dataclass(frozen=True)
class Rank(Target):
    written: ClassVar[str] = "a rank"
    example: ClassVar[str] = "rank=16"

    size: int

    @classmethod
    def read(cls, given):
        return cls(int(given[5:])) if isinstance(given, str) and given.startswith("rank=") else None

    def __str__(self):
        return f"rank={self.size}"
"""


def test_the_folder_is_the_list():
    assert {"grid", "n_of_m", "sparsity"} <= set(targets.names())
    assert kinds() == [Sparsity, NofM, GgmlKind, Grid, GgufRecipe, SparseGrid, Share]
    assert kinds((Removal,)) == [Sparsity, NofM]
    assert kinds((Grid,)) == [Grid]
    assert kinds((Sparsity, Share)) == [Sparsity, Share]


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_explains_itself_with_an_example_of_its_own(kind: type[Target]):
    assert type(parse_target(kind.example)) is kind
    assert str(parse_target(kind.example)) == kind.example
    assert [other for other in kinds() if other.read(kind.example) is not None] == [kind], "two kinds read one text"


def test_what_is_accepted_is_said_in_words():
    assert accepted((Sparsity,)) == "a sparsity from 0 up to (not including) 1, such as 0.5"
    assert accepted((Removal,)) == "a sparsity from 0 up to (not including) 1, such as 0.5, or N:M with N kept of every M inputs, such as 2:4"
    assert accepted() == (
        "a sparsity from 0 up to (not including) 1, such as 0.5, N:M with N kept of every M inputs, such as 2:4, "
        "one of llama.cpp's kinds of blocks, such as q4_k, a grid of 2 to 8 bits, with a scale for each group of inputs, such as w4g64, "
        "one of llama.cpp's recipes, such as Q4_K_M, "
        "a sparsity or N:M with a grid, such as 2:4+w4g64, or a share of the blocks, the experts, or the numbers of feed-forward networks, "
        "such as blocks 0.25"
    )
    assert allowed((Grid,)) == "write a grid of 2 to 8 bits, with a scale for each group of inputs, such as w4g64"


def test_another_package_adds_a_kind(plugged: Callable[..., None]):
    plugged({"calibrant.targets": {"rank": "ranks_of_mine:Rank"}}, ranks_of_mine=RANK)
    assert str(parse_target("rank=8")) == "rank=8"
    assert "Rank" in [kind.__name__ for kind in kinds()]
    with pytest.raises(TargetError, match=r", a rank, such as rank=16"):
        parse_target("nothing of the kind")


@pytest.mark.parametrize("given", ["blocks", "blocks x", "blocks 0,5", "Blocks 0.5", "layers 0.5", "blocks0.5"])
def test_what_is_almost_a_share_is_no_target(given: str):
    with pytest.raises(TargetError, match="is no target"):
        parse_target(given)


@pytest.mark.parametrize("given", ["blocks 1", "experts 1.5", "blocks -0.1", "numbers 1.0"])
def test_a_share_is_less_than_all(given: str):
    with pytest.raises(TargetError, match=r"is no share of a model's parts; write blocks, experts or numbers and a share from 0 up to"):
        parse_target(given)


def test_the_number_of_parts_is_exact():
    assert parse_target("blocks 0.29") == Share("blocks", 0.29)
    assert Share("blocks", 0.29).quota(100) == 29
    assert Share("experts", 0.5).quota(5) == 2
    assert parse_target("numbers 0.2") == Share("numbers", 0.2)
    assert str(parse_target("numbers 20%")) == "numbers 0.2"
