"""Weights that are removed and others that are rounded, in one matrix: `2:4+w4g64`."""

from dataclasses import dataclass
from typing import ClassVar

from calibrant.targets._base import Removal, Target
from calibrant.targets.grid import Grid
from calibrant.targets.n_of_m import NofM
from calibrant.targets.sparsity import Sparsity


@dataclass(frozen=True)
class SparseGrid(Target):
    """As many weights as `removal` says become zero, and the others values of `grid`, which has
    zero among its values.

    >>> SparseGrid.read("0.5+w4g64")
    SparseGrid(removal=Sparsity(fraction=0.5), grid=Grid(bits=4, group=64, symmetric=True))
    """

    written: ClassVar[str] = "a sparsity or N:M with a grid"
    example: ClassVar[str] = "2:4+w4g64"

    removal: Removal
    grid: Grid

    @classmethod
    def read(cls, value: str | float | int) -> "SparseGrid | None":
        if not isinstance(value, str) or "+" not in value:
            return None
        before, _, after = value.partition("+")
        removal = NofM.read(before) or Sparsity.read(before)
        grid = Grid.read(after)
        if removal is None or grid is None:
            return None
        return cls(removal, grid)

    def __str__(self) -> str:
        return f"{self.removal}+{self.grid}"

    def check(self, shape: tuple[int, int], name: str) -> None:
        self.removal.check(shape, name)
        self.grid.check(shape, name)
