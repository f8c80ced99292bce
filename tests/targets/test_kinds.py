"""What a text is read as."""

from collections.abc import Callable
from typing import Any

import pytest
from jaxtyping import TypeCheckError

from calibrant.errors import TargetError
from calibrant.lab.stats import is_rounded
from calibrant.spec.grammar import read_target
from calibrant.targets import (
    Grid,
    NofM,
    Share,
    Sparsity,
    Target,
    kinds,
    parse_target,
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


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_explains_itself_with_an_example_of_its_own(kind: type[Target]):
    assert type(parse_target(kind.example)) is kind
    assert str(parse_target(kind.example)) == kind.example
    assert [other for other in kinds() if other.read(kind.example) is not None] == [kind], (
        "two kinds read one text"
    )


def test_another_package_adds_a_kind(plugged: Callable[..., None]):
    plugged({"calibrant.targets": {"rank": "ranks_of_mine:Rank"}}, ranks_of_mine=RANK)
    assert str(parse_target("rank=8")) == "rank=8"
    assert "Rank" in [kind.__name__ for kind in kinds()]
    with pytest.raises(TargetError, match="rank=16"):
        parse_target("nothing of the kind")


def test_a_broken_kind_of_another_package_stops_no_other(plugged: Callable[..., None]):
    plugged({"calibrant.targets": {"rank": "ranks:Rank"}}, ranks=RANK)
    with pytest.raises(TargetError, match=r"ranks:Rank fails on it with ValueError: .*; write one"):
        parse_target("rank=much")
    assert is_rounded("rank=much")
    plugged({"calibrant.targets": {"broken_target": "missing:Nope"}})
    assert str(parse_target("0.5")) == "0.5"
    assert kinds()
    with pytest.raises(TargetError, match="the entry point broken_target = 'missing:Nope'"):
        parse_target("nothing of the kind")


def test_what_is_no_target_is_told_in_one_sentence_what_to_write():
    with pytest.raises(TargetError) as caught:
        parse_target("int4")
    examples = ", ".join(kind.example for kind in kinds()[:-1])
    assert str(caught.value) == (
        f"'int4' is no target; write one such as {examples} or {kinds()[-1].example} "
        "(calibrant list targets says what each is); 4 bits are written w4g64"
    )


ALMOST = ["blocks", "blocks x", "blocks 0,5", "Blocks 0.5", "layers 0.5", "blocks0.5"]


@pytest.mark.parametrize(
    "given", [*ALMOST, "blocks 1", "experts 1.5", "blocks -0.1", "numbers 1.0"]
)
def test_what_is_no_share_is_refused(given: str):
    with pytest.raises(TargetError) as caught:
        parse_target(given)
    assert given.split()[0] in caught.value.subject


@pytest.mark.parametrize("given", ["half", None])
def test_a_share_that_is_no_number_is_refused(given: Any):
    # Where types are checked, that check refuses it first.
    with pytest.raises((TargetError, TypeCheckError)):
        Sparsity(given)
    with pytest.raises((TargetError, TypeCheckError)):
        Share("blocks", given)


def test_the_number_of_parts_is_exact():
    assert parse_target("blocks 0.29") == Share("blocks", 0.29)
    assert Share("blocks", 0.29).quota(100) == 29
    assert Share("experts", 0.5).quota(5) == 2
    assert parse_target("numbers 0.2") == Share("numbers", 0.2)
    assert str(parse_target("numbers 20%")) == "numbers 0.2"


@pytest.mark.parametrize(
    "given",
    [
        "0.5",
        "50%",
        ".5",
        "2:4",
        "w4",
        "w4g64",
        "w4g64a",
        "blocks 25%",
        "2:4+w4g64",
        "q4_k",
        "Q4_K_M",
        "gguf 90MB",
    ],
)
def test_what_a_report_reads_of_a_target_is_what_the_target_is(given: str):
    target = parse_target(given)
    label = read_target(str(target))
    assert label.text == str(target)
    assert label.sparsity == isinstance(target, Sparsity | NofM)
    assert label.removal == isinstance(target, Sparsity | NofM | Share)
    grid = Grid(label.bits, label.group, not label.zeros) if label.bits else None
    assert grid == (target if isinstance(target, Grid) else None)
