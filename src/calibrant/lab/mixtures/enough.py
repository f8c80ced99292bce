"""Whether there are enough tokens: how far two masks agree that were made from halves of them which
share no window.

Each micro-batch gave two pieces, which stay on one side: where a window is longer than a piece, its
parts are no two witnesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, final

import torch
from torch import Tensor

from calibrant.activations import Seen
from calibrant.lab.mixtures.algebra import Sample
from calibrant.methods import MatrixMethod
from calibrant.models import Block, Weight
from calibrant.targets import Target
from calibrant.walk.statistics import Dense

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
    """The curve of one set. `enough` by the rule of `PLATEAU`, None where fewer than two points
    leave it open; `gain` is the last doubling's.

    `needed` is at how many tokens the rule holds: measured where it does hold, else foretold from
    how fast disagreement falls, None where it doesn't.
    """

    data: str
    points: tuple[CurvePoint, ...]
    enough: bool | None
    gain: float | None
    needed: int | None


def read_curve(data: str, points: Sequence[CurvePoint]) -> TokenCurve:
    """Return the curve whose points are each of twice the tokens of the one before."""
    gains = [after.agreement - before.agreement for before, after in pairwise(points)]
    if not gains:
        return TokenCurve(data, tuple(points), None, None, None)
    reached = next(
        (place for place in range(len(gains)) if all(gain < PLATEAU for gain in gains[place:])),
        None,
    )
    if reached is not None:
        return TokenCurve(data, tuple(points), True, gains[-1], points[reached + 1].tokens)
    return TokenCurve(data, tuple(points), False, gains[-1], _foretold(points))


def _foretold(points: Sequence[CurvePoint]) -> int | None:
    """Tokens at which a doubling gains less than `PLATEAU` if disagreement goes on falling by
    the same factor each time.
    """
    # Disagreement falls about geometrically with each doubling; the last factor is carried on.
    before, last = (1 - point.agreement for point in points[-2:])
    factor, tokens = last / before, points[-1].tokens
    if not 0 < factor < 1:
        return None
    while last * (1 - factor) >= PLATEAU:
        last, tokens = last * factor, 2 * tokens
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
        self._method, self._target, self._sample, self._sets = method, target, sample, sets
        self._sums: dict[tuple[int, int], list[tuple[float, float]]] = {}

    @torch.no_grad()
    def add(self, block: Block, sources: Sequence[Sequence[Dense]]) -> None:
        """Look at one block, of which `sources` has the pieces of each source."""
        together: dict[
            tuple[int, ...], list[Weight]
        ] = {}  # matrices that read one input have one factorisation
        for weight in block.weights:
            together.setdefault(
                tuple(id(seen.get(weight)) for source in sources for _, seen in source), []
            ).append(weight)
        for weights in together.values():
            pieces = [
                [seen[weights[0]] for _, seen in source if weights[0] in seen] for source in sources
            ]
            rows = [
                w.get()[torch.tensor(self._sample.of_rows(w.shape[0]), device=w.stored.device)]
                for w in weights
            ]
            for number, (_, shares) in enumerate(self._sets):
                self._compare(
                    number,
                    [(own, share) for own, share in zip(pieces, shares, strict=True) if share],
                    rows,
                )

    def _compare(
        self, number: int, parts: Sequence[tuple[Sequence[Seen], float]], rows: Sequence[Tensor]
    ) -> None:
        """Halves of one, two, four, … pieces of each part, as far as they last."""
        # Pieces come in pairs, two of each micro-batch: places 0, 1, 4, 5, … are one half and 2, 3,
        # 6, 7, … the other.
        sides = [
            ([piece for place, piece in enumerate(own) if place // 2 % 2 == side], share)
            for side in (0, 1)
            for own, share in parts
        ]
        size = 1
        while sides and all(len(own) >= size for own, _ in sides):
            halves = [
                _half([(own[:size], share) for own, share in side])
                for side in (sides[: len(parts)], sides[len(parts) :])
            ]
            tokens = sum(tokens for _, tokens in halves) / 2
            for matrix in rows:
                one, other = (
                    self._method.compress(matrix, half, self._target).weight != 0
                    for half, _ in halves
                )
                self._sums.setdefault((number, size), []).append(
                    (tokens, float((one == other).double().mean()))
                )
            size *= 2

    def curves(self) -> list[TokenCurve]:
        """Return one curve for each set."""
        curves: list[TokenCurve] = []
        for number, (data, _) in enumerate(self._sets):
            several = [
                values for (which, _), values in sorted(self._sums.items()) if which == number
            ]
            points = [
                CurvePoint(round(_mean([t for t, _ in values])), _mean([a for _, a in values]))
                for values in several
            ]
            curves.append(read_curve(data, points))
        return curves


def _half(parts: Sequence[tuple[Sequence[Seen], float]]) -> tuple[Seen, int]:
    """The mixture of these pieces, each source divided by its own mass, and how many tokens are
    in it.
    """
    total: Seen | None = None
    tokens = 0
    for pieces, share in parts:
        whole = pieces[0]
        for piece in pieces[1:]:
            whole = whole + piece
        tokens += whole.tokens
        # Each source is divided by its own mass, as in a mixture's statistics; one source alone
        # needs no scale, masks don't see it.
        mass = max(getattr(statistic, "mass", 0.0) for statistic in whole.values())
        part = whole if len(parts) == 1 else whole * (share / mass)
        total = part if total is None else total + part
    assert total is not None
    return total, tokens


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
