"""The search for the mixture of sources that does least damage, each candidate judged by its real
masks.

Shares are whole hundredths, so that what is judged is what is written down. The search starts from
every source alone, the uniform mixture and a closed form, and never gives back anything worse than
those.

For the `worst` judge it plays a game: a mixture against a player who weighs the judges and moves
his weights to those that suffer. That is the general method of multiplicative weights (Arora,
Hazan, Kale 2012). For a fixed mask the error is linear in the judges' Grams. So against weights μ
the answer is the mixture whose statistics are the sum of μ_B G_B / tr(W G_B Wᵀ). The answer is
exact where a method minimises that error, and good where it has the diagonal alone, as Wanda has.
One set of weights stands for all matrices, though each has its own energies. So the game proposes,
and real errors decide.

Then it descends from the best so far. A step away along each source the real error is measured,
and the shares are multiplied by the exponential of minus those slopes. The best of all that was
measured is the next start. Where none is better, the step is halved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, final

import numpy as np
from jaxtyping import Float

from calibrant.errors import SpecError
from calibrant.lab.mixtures.algebra import Shares, only, uniform

_ALLOWED: Final = (
    "write mean, worst, or target=EXPR with a source or a file of your own, "
    "such as target=gsm8k:cot"
)


@final
@dataclass(frozen=True)
class Objective:
    """`mean` or `worst` over the judges that are sources, or the error under one `target`."""

    kind: str
    target: str = ""

    def __str__(self) -> str:
        return f"target={self.target}" if self.target else self.kind

    def values(
        self, errors: Float[np.ndarray, "mixture judge"], sources: int, judges: Sequence[str]
    ) -> Float[np.ndarray, "mixture"]:
        """Return the number of each mixture that is to be small. The first `sources` of the
        `judges` are sources.
        """
        if self.target:
            column = list(judges).index(self.target)
            return errors[:, column]
        source_errors = errors[:, :sources]
        if self.kind == "mean":
            return source_errors.mean(1)
        return source_errors.max(1)


def parse_objective(text: str) -> Objective:
    """Return the objective that a text names; `SpecError` for anything else."""
    whole = text.strip()
    if whole in ("mean", "worst"):
        return Objective(whole)
    kind, _, target = text.partition("=")
    if kind.strip() == "target" and target.strip():
        return Objective("target", target.strip())
    raise SpecError(f"objective={text!r} is not known; {_ALLOWED}", subject=text)


GRAIN: Final = 100
"""A share is a whole number of these parts."""

_STEP: Final = 0.3
"""How far towards a source the first slopes are measured."""

_ROUNDS: Final = 24
"""Moves of the game at most; it has a third of the evaluations if that is less."""


@final
class Search:
    """A search among mixtures of `count` sources. `errors` gives a row of errors for each
    mixture, `value` the number for each row that is to be small; at most `evaluations` mixtures
    are judged.
    """

    def __init__(
        self,
        errors: Callable[[Sequence[Shares]], Any],
        value: Callable[[Any], Any],
        count: int,
        evaluations: int,
    ) -> None:
        self.count = count
        self.evaluations = evaluations
        self._errors = errors
        self._value = value
        self.known: dict[Shares, tuple[float, Any]] = {}

    @property
    def ranked(self) -> list[Shares]:
        """All mixtures that were judged, the best first; of equals the one that was judged
        first.
        """
        return sorted(self.known, key=self._value_of)

    def _value_of(self, shares: Shares) -> float:
        value, _ = self.known[shares]
        return value

    def ask(self, mixtures: Sequence[Shares]) -> None:
        """Judge what isn't judged yet, as far as the evaluations last."""
        left = max(0, self.evaluations - len(self.known))
        unknown = [shares for shares in dict.fromkeys(mixtures) if shares not in self.known]
        new = unknown[:left]
        if not new:
            return
        errors = self._errors(new)
        values = self._value(errors)
        for shares, value, row in zip(new, values, errors, strict=True):
            self.known[shares] = (float(value), row)

    def begin(self) -> None:
        """Judge every source alone, and the uniform mixture."""
        alone = [only(place, self.count) for place in range(self.count)]
        self.ask([*alone, uniform(self.count)])

    def play(self, typical: np.ndarray, moves: bool = True) -> None:
        """Play the game against the judges, who are the sources in their order.

        `typical` is each judge's ln tr(W G Wᵀ) a token.

        Without `moves` only the first mixture is judged, the answer to equal weights: what is in
        closed form for the mean.
        """
        rounds = 1
        turns = 1
        if moves:
            # The other two thirds of the evaluations are for the descent. A turn whose answer is
            # known already costs none, so turns have a limit of their own.
            rounds = min(_ROUNDS, self.evaluations // 3)
            turns = 4 * _ROUNDS
        last = min(self.evaluations, len(self.known) + rounds)
        weights = np.ones(self.count)
        for turn in range(1, turns + 1):
            if len(self.known) >= last:
                break
            # The judges' energies differ by orders of magnitude: each is divided by its own, on a
            # scale that doesn't overflow.
            answer = rounded(weights * np.exp(typical.min() - typical))
            self.ask([answer])
            _, row = self.known[answer]
            errors = row[: self.count]
            spread = float(np.ptp(errors)) or 1.0
            # Multiplicative weights: judges that suffer more than the others gain weight, less so
            # with every turn.
            rate = 1.5 / np.sqrt(turn)
            weights = weights * np.exp(rate * (errors - errors.mean()) / spread)
            weights /= weights.sum()

    def descend(self) -> None:
        """Go from the best so far along measured slopes, until the steps are too small to be
        written down or the evaluations are used up.
        """
        step = _STEP
        while step * GRAIN >= 1 and len(self.known) < self.evaluations:
            best = self.ranked[0]
            start = np.array(best, dtype=float)
            # The slope along a source is the real error a step towards it.
            towards: list[Shares] = []
            for source in np.eye(self.count):
                towards.append(rounded((1 - step) * start + step * source))
            self.ask(towards)
            if not self.known.keys() >= set(towards):
                break  # the evaluations are used up
            values = np.array([self._value_of(shares) for shares in towards])
            slopes = values - self._value_of(best)
            proposals = _proposals(start, slopes, step)
            self.ask([rounded(proposal) for proposal in proposals])
            if self.ranked[0] == best:
                step /= 2


def rounded(weights: np.ndarray) -> Shares:
    """Return the nearest shares in whole hundredths: all are rounded down, and what is left goes
    to those that lost most.
    """
    exact = weights / weights.sum() * GRAIN
    whole = np.floor(exact + 1e-9).astype(int)  # 0.29 of a hundred is 28.999…, and means 29
    left = GRAIN - whole.sum()
    most_lost = np.argsort(whole - exact, kind="stable")
    for place in most_lost[:left]:
        whole[place] += 1
    return tuple(Fraction(int(share), GRAIN) for share in whole)


def _proposals(shares: np.ndarray, slopes: np.ndarray, step: float) -> list[np.ndarray]:
    """Where the slopes point: shares times an exponential, soft and hard; and what one source
    gives to another.
    """
    spread = float(np.ptp(slopes)) or 1.0
    # A source that isn't in yet can't be multiplied into it.
    with_missing = shares + 0.02 * (slopes < 0)
    # Exponentials keep shares positive and their order of size; twice, because how far a slope
    # holds isn't known.
    proposals: list[np.ndarray] = []
    for factor in (2.0, 8.0):
        exponents = -factor * step * (slopes - slopes.min()) / spread
        proposals.append(with_missing * np.exp(exponents))
    taker = int(np.argmin(slopes))

    def order(place: Any) -> Any:
        return -slopes[place]

    givers = sorted(np.flatnonzero(shares > 0), key=order)
    # Beside the exponentials, the two sources that cost most each give a step of their share to the
    # one that costs least.
    for giver in givers[:2]:
        if giver != taker:
            moved = shares.copy()
            amount = min(step, moved[giver])
            moved[giver] -= amount
            moved[taker] += amount
            proposals.append(moved)
    return proposals
