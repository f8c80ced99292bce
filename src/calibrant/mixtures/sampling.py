"""Which blocks and which rows of matrices stand for a whole model, where looking at all of it would take too long."""

from dataclasses import dataclass
from typing import Final

from calibrant.activations import Gram
from calibrant.methods import MatrixMethod


@dataclass(frozen=True)
class Sample:
    """Up to `blocks` blocks and up to `rows` output rows of each of their matrices, evenly spaced: the same ones whenever they are asked for.

    Rows are pruned independently of one another by methods that choose within a row. A method that chooses over many rows sees these alone.
    """

    blocks: int
    rows: int

    def of_blocks(self, count: int) -> list[int]:
        """Indices of the blocks among `count`."""
        return spaced(self.blocks, count)

    def of_rows(self, count: int) -> list[int]:
        """Indices of the rows among `count`."""
        return spaced(self.rows, count)

    def to_json(self, count: int) -> dict[str, int]:
        """How many blocks of `count`, and rows of a matrix at most."""
        return {"blocks": min(self.blocks, count), "of": count, "rows": self.rows}


def spaced(wanted: int, count: int) -> list[int]:
    """Up to `wanted` numbers below `count`: the middles of as many equal stretches."""
    wanted = min(wanted, count)
    return [(2 * place + 1) * count // (2 * wanted) for place in range(wanted)]


@dataclass(frozen=True)
class Effort:
    """What a search may look at: how many `evaluations` of a mixture on the sample `search`, the sample of the figures that are reported, and
    that of the meter."""

    search: Sample
    evaluations: int
    final: Sample
    meter: Sample


SCORING: Final = Effort(Sample(6, 32), 120, Sample(10, 64), Sample(6, 32))
"""For methods that read the norms of inputs."""

FITTING: Final = Effort(Sample(3, 32), 30, Sample(5, 64), Sample(3, 32))
"""For methods that read a Gram: each mixture has a factorisation of its own, which costs more than all else."""


def effort_of(method: MatrixMethod) -> Effort:
    """How much looking a method's price allows."""
    return FITTING if Gram in method.observes else SCORING
