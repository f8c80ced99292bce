"""Whether rankings agree with one another across methods, targets and measured sets. No torch here."""

from dataclasses import dataclass
from typing import Literal

Along = Literal["method", "target", "measured"]


@dataclass(frozen=True)
class Agreement:
    """How far two rankings of the same `sets` calibration sets agree: Kendall's τ-b, 1 for the same order, −1 for the reverse.

    `a` and `b` are two methods, targets or measured sets of `model`; `within` says what both have in common. `interval` is None where the
    estimates have no errors to make one from.
    """

    along: Along
    a: str
    b: str
    model: str
    tau: float
    interval: tuple[float, float] | None
    sets: int
    within: str = ""
