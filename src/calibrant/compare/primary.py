"""The contrasts that a study named before it ran: each tested, with Holm's correction over all of them. No torch here."""

from dataclasses import dataclass
from typing import Literal

from calibrant.compare.estimate import LEVEL, Estimate

Verdict = Literal["better", "worse", "cannot tell", "one draw cannot say", "not computed"]
ONE_DRAW: Verdict = "one draw cannot say"


@dataclass(frozen=True)
class Contrasted:
    """One primary contrast: how much *worse* `compare` is than `against` (a set, a pool or the dense model) on the measured sets `on`, averaged.

    `p` is two-sided, `p_holm` the same after Holm's correction over all of a study's primary contrasts. `draws` are those of each side (the
    fewest of a pool's sets; 0 where a side has none to draw). `smallest_p` is the least that a permutation test over draws could give with as
    many; `detectable` the smallest true difference that would be found four times in five at this study's 5 %. `needs` says in a sentence what
    it would take to detect what was seen; `reason` why there is no verdict, or what the interval doesn't cover.
    """

    name: str
    compare: str
    against: str
    on: tuple[str, ...]
    model: str
    method: str
    target: str
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    draws: tuple[int, int] = (0, 0)
    smallest_p: float | None = None
    detectable: float | None = None
    needs: str = ""
    reason: str = ""
    unit: str = ""
    propagate: str = ""
    level: float = LEVEL

    @property
    def verdict(self) -> Verdict:
        """What may be said of it, jointly with the other primary contrasts."""
        if self.difference is None:
            return "not computed"
        if self.p_holm is None:
            return ONE_DRAW if 1 in self.draws else "not computed"
        if self.p_holm > 1 - self.level:
            return "cannot tell"
        return "worse" if self.difference.value > 0 else "better"
