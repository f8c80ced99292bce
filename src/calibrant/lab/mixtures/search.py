"""The search for the mixture of sources that does least damage, each candidate judged by its real
masks.

Shares are whole hundredths, so that what is judged is what is written down. The search starts from
every source alone, the uniform mixture and a closed form, and never gives back anything worse than
those.

For the `worst` judge it plays the game of a mixture against a player who weighs the judges and
moves his weights to those that suffer (multiplicative weights: Arora, Hazan, Kale 2012, the general
method [R]). For a fixed mask the error is linear in the judges' Grams, so against weights μ the
mixture whose statistics are the sum of μ_B G_B / tr(W G_B Wᵀ) is the answer [I]: exact where a
method minimises that error, good where it has the diagonal alone, as Wanda has; and one set of
weights stands for all matrices, where each has its own energies. So it proposes, and real errors
decide.

What follows descends from the best so far: along each source the real error is measured a step
away, the shares are multiplied by the exponential of minus those slopes, and the best of all that
was measured is the next start; where none is better, the step is halved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, final

import numpy as np
from jaxtyping import Float

from calibrant.errors import SpecError
from calibrant.lab.mixtures.algebra import Shares, only, uniform

_ALLOWED = "write mean, worst, or target=EXPR with a source or a file of your own, such as target=gsm8k:cot"


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
            return errors[:, list(judges).index(self.target)]
        return errors[:, :sources].mean(1) if self.kind == "mean" else errors[:, :sources].max(1)


def parse_objective(text: str) -> Objective:
    """Return the objective that a text names; `SpecError` for anything else."""
    if text.strip() in ("mean", "worst"):
        return Objective(text.strip())
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
        self.count, self.evaluations = count, evaluations
        self._errors, self._value = errors, value
        self.known: dict[Shares, tuple[float, Any]] = {}

    @property
    def ranked(self) -> list[Shares]:
        """All mixtures that were judged, the best first; of equals the one that was judged
        first.
        """
        return sorted(self.known, key=lambda shares: self.known[shares][0])

    def ask(self, mixtures: Sequence[Shares]) -> None:
        """Judge what isn't judged yet, as far as the evaluations last."""
        new = [shares for shares in dict.fromkeys(mixtures) if shares not in self.known][
            : max(0, self.evaluations - len(self.known))
        ]
        if new:
            errors = self._errors(new)
            self.known |= dict(
                zip(new, zip(map(float, self._value(errors)), errors, strict=True), strict=True)
            )

    def begin(self) -> None:
        """Every source alone, and the uniform mixture."""
        self.ask([*(only(place, self.count) for place in range(self.count)), uniform(self.count)])

    def play(self, typical: np.ndarray, moves: bool = True) -> None:
        """The game against the judges, who are the sources in their order; `typical` is each
        judge's ln tr(W G Wᵀ) a token.

        Without `moves` only the first mixture is judged, the answer to equal weights: what is in
        closed form for the mean.
        """
        rounds = (
            min(_ROUNDS, self.evaluations // 3) if moves else 1
        )  # the other two thirds are for the descent
        weights, last = np.ones(self.count), min(self.evaluations, len(self.known) + rounds)
        turn = 0
        while len(self.known) < last and turn < (4 * _ROUNDS if moves else 1):
            turn += 1
            # The judges' energies differ by orders of magnitude: each is divided by its own, on a
            # scale that doesn't overflow.
            answer = rounded(weights * np.exp(typical.min() - typical))
            self.ask([answer])
            errors = self.known[answer][1][: self.count]
            spread = float(np.ptp(errors)) or 1.0
            # Multiplicative weights: judges that suffer more than the others gain weight, less so
            # with every turn.
            weights = weights * np.exp(1.5 / np.sqrt(turn) * (errors - errors.mean()) / spread)
            weights /= weights.sum()

    def descend(self) -> None:
        """From the best so far along measured slopes, until the steps are too small to be
        written down or the evaluations are used up.
        """
        step = _STEP
        while step * GRAIN >= 1 and len(self.known) < self.evaluations:
            best = self.ranked[0]
            at = np.array(best, dtype=float)
            # The slope along a source is the real error a step towards it.
            towards = [
                rounded((1 - step) * at + step * np.eye(self.count)[place])
                for place in range(self.count)
            ]
            self.ask(towards)
            if any(shares not in self.known for shares in towards):
                break
            slopes = np.array([self.known[shares][0] - self.known[best][0] for shares in towards])
            self.ask([rounded(proposal) for proposal in _proposals(at, slopes, step)])
            if self.ranked[0] == best:
                step /= 2


def rounded(weights: np.ndarray) -> Shares:
    """Return the nearest shares in whole hundredths: all are rounded down, and what is left goes
    to those that lost most.
    """
    exact = weights / weights.sum() * GRAIN
    whole = np.floor(exact + 1e-9).astype(int)  # 0.29 of a hundred is 28.999…, and means 29
    for place in np.argsort(whole - exact, kind="stable")[: GRAIN - whole.sum()]:
        whole[place] += 1
    return tuple(Fraction(int(share), GRAIN) for share in whole)


def _proposals(at: np.ndarray, slopes: np.ndarray, step: float) -> list[np.ndarray]:
    """Where the slopes point: shares times an exponential, soft and hard; and what one source
    gives to another.
    """
    spread = float(np.ptp(slopes)) or 1.0
    mild = at + 0.02 * (slopes < 0)  # a source that isn't in yet can't be multiplied into it
    # Exponentials keep shares positive and their order of size; twice, because how far a slope
    # holds isn't known.
    proposals = [
        mild * np.exp(-factor * step * (slopes - slopes.min()) / spread) for factor in (2.0, 8.0)
    ]
    inside = np.flatnonzero(at > 0)
    # Beside the exponentials: the two sources that cost most each hand a step of their share to the
    # one that costs least.
    for giver in sorted(inside, key=lambda place: -slopes[place])[:2]:
        moved, amount, taker = at.copy(), min(step, at[giver]), int(np.argmin(slopes))
        moved[giver], moved[taker] = moved[giver] - amount, moved[taker] + amount
        if giver != taker:
            proposals.append(moved)
    return proposals
