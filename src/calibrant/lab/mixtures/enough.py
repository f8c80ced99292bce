"""Whether there are enough tokens: how far two masks agree that were made from halves of them which
share no window.

Each micro-batch gave two pieces. Both go into the same half, since they may hold parts of one
window, which are more alike than two windows are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, final

import torch
from torch import Tensor

from calibrant.activations import Seen
from calibrant.lab.mixtures.algebra import Sample, sampled_rows
from calibrant.methods import MatrixMethod
from calibrant.models import Block, Weight
from calibrant.system.products import exact
from calibrant.targets import Target
from calibrant.walk.statistics import SeenInBlock

PLATEAU: Final = 0.005
"""There are enough tokens where the last doubling of them, in each half, raised the agreement by
less than this share of all weights.
"""


@final
@dataclass(frozen=True)
class CurvePoint:
    """Two halves of `tokens` tokens each gave masks that agree about this share of the weights."""

    tokens: int
    agreement: float


@final
@dataclass(frozen=True)
class TokenCurve:
    """The curve of one set.

    `enough` follows the rule of `PLATEAU`; None where there are fewer than two points. `gain` is
    the last doubling's. `needed` is at how many tokens the rule holds: measured where it does hold,
    else foretold from how fast disagreement falls, None where it doesn't fall.
    """

    data: str
    points: tuple[CurvePoint, ...]
    enough: bool | None
    gain: float | None
    needed: int | None


def read_curve(data: str, points: Sequence[CurvePoint]) -> TokenCurve:
    """Return the curve of points, each of which has twice the tokens of the one before."""
    gains = [after.agreement - before.agreement for before, after in pairwise(points)]
    if not gains:
        return TokenCurve(data, tuple(points), None, None, None)
    if gains[-1] >= PLATEAU:
        return TokenCurve(data, tuple(points), False, gains[-1], _foretold(points))
    # The first point from which on every doubling gained little.
    enough = points[-1].tokens
    for gain, point in zip(reversed(gains), reversed(points[1:]), strict=True):
        if gain >= PLATEAU:
            break
        enough = point.tokens
    return TokenCurve(data, tuple(points), True, gains[-1], enough)


def _foretold(points: Sequence[CurvePoint]) -> int | None:
    """Tokens at which a doubling gains less than `PLATEAU` if disagreement goes on falling by
    the same factor each time.
    """
    # Disagreement falls about geometrically with each doubling; the last factor is carried on.
    before = 1 - points[-2].agreement
    last = 1 - points[-1].agreement
    factor = last / before
    if not 0 < factor < 1:
        return None
    tokens = points[-1].tokens
    while last * (1 - factor) >= PLATEAU:
        last *= factor
        tokens *= 2
    return 2 * tokens


@final
class TokenMeter:
    """Sums up agreement over blocks. `sets` are mixtures by their names: the share of each
    source.
    """

    def __init__(
        self,
        method: MatrixMethod,
        target: Target,
        sample: Sample,
        sets: Sequence[tuple[str, Sequence[float]]],
    ) -> None:
        self._method = method
        self._target = target
        self._sample = sample
        self._sets = sets
        # Of each set, by how many pieces a half had: tokens and agreement of each matrix.
        self._agreements: list[dict[int, list[tuple[float, float]]]] = [{} for _ in sets]

    @torch.no_grad()
    def add(self, block: Block, sources: Sequence[Sequence[SeenInBlock]]) -> None:
        """Look at one block, of which `sources` has the pieces of each source."""
        # Matrices that read one input have one factorisation.
        together: dict[tuple[int, ...], list[Weight]] = {}
        for weight in block.weights:
            inputs: list[int] = []
            for source in sources:
                inputs += [id(seen.get(weight)) for _, seen in source]
            together.setdefault(tuple(inputs), []).append(weight)
        for weights in together.values():
            first = weights[0]
            pieces: list[list[Seen]] = []
            for source in sources:
                pieces.append([seen[first] for _, seen in source if first in seen])
            rows = [sampled_rows(weight, self._sample) for weight in weights]
            for number, (_, shares) in enumerate(self._sets):
                # A source without a share in this set is left out.
                parts: list[tuple[Sequence[Seen], float]] = []
                for pieces_of_source, share in zip(pieces, shares, strict=True):
                    if share:
                        parts.append((pieces_of_source, share))
                self._compare(number, parts, rows)

    def _compare(
        self, number: int, parts: Sequence[tuple[Sequence[Seen], float]], rows: Sequence[Tensor]
    ) -> None:
        """Compare halves of one, two, four, … pieces of each part, as far as they last."""
        first_pieces = [(_side(pieces, 0), share) for pieces, share in parts]
        second_pieces = [(_side(pieces, 1), share) for pieces, share in parts]
        counts = [len(pieces) for pieces, _ in (*first_pieces, *second_pieces)]
        most = min(counts, default=0)
        size = 1
        while size <= most:
            one_half, tokens = _half(first_pieces, size)
            other_half, other_tokens = _half(second_pieces, size)
            mean_tokens = (tokens + other_tokens) / 2
            for matrix in rows:
                kept = self._kept(matrix, one_half)
                kept_by_other = self._kept(matrix, other_half)
                agreement = float(exact(kept == kept_by_other).mean())
                agreements = self._agreements[number].setdefault(size, [])
                agreements.append((mean_tokens, agreement))
            size *= 2

    def _kept(self, matrix: Tensor, seen: Seen) -> Tensor:
        """The mask that the method makes of what a half saw."""
        compressed = self._method.compress(matrix, seen, self._target)
        return compressed.weight != 0

    def curves(self) -> list[TokenCurve]:
        """Return one curve for each set."""
        curves: list[TokenCurve] = []
        for (data, _), by_size in zip(self._sets, self._agreements, strict=True):
            points: list[CurvePoint] = []
            for _, agreements in sorted(by_size.items()):
                tokens = _mean([tokens for tokens, _ in agreements])
                agreement = _mean([agreement for _, agreement in agreements])
                points.append(CurvePoint(round(tokens), agreement))
            curves.append(read_curve(data, points))
        return curves


def _side(pieces: Sequence[Seen], side: int) -> list[Seen]:
    """The pieces of one half.

    Pieces come in pairs, two of each micro-batch: places 0, 1, 4, 5, … are one half and 2, 3, 6,
    7, … the other.
    """
    chosen: list[Seen] = []
    for place, piece in enumerate(pieces):
        micro_batch = place // 2
        if micro_batch % 2 == side:
            chosen.append(piece)
    return chosen


def _half(parts: Sequence[tuple[Sequence[Seen], float]], size: int) -> tuple[Seen, int]:
    """The mixture of `size` pieces of each source, and how many tokens are in it."""
    total: Seen | None = None
    tokens = 0
    for pieces, share in parts:
        whole = pieces[0]
        for piece in pieces[1:size]:
            whole = whole + piece
        tokens += whole.tokens
        part = whole
        if len(parts) > 1:
            # Each source is divided by its own mass, as in a mixture's statistics. One source alone
            # needs no scale: masks don't see it.
            mass = max(getattr(statistic, "mass", 0.0) for statistic in whole.values())
            part = whole * (share / mass)
        total = part if total is None else total + part
    assert total is not None
    return total, tokens


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
