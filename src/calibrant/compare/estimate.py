"""A number with its uncertainty, and its test."""

import math
from dataclasses import dataclass
from typing import Final

LEVEL: Final = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    `stderr` is None where a single item leaves none to estimate. `df` are the degrees of freedom behind it, `items` the documents.
    `over_draws` says that the error covers other draws of the calibration sets as well as other items; `draws_share` is then the share of its
    variance that draws have, and `dfs` are the degrees of freedom of the items' and of the draws' part, from whose quantiles the interval is
    made. Without `dfs` it is Student's t with `df`.
    """

    value: float
    stderr: float | None
    df: float
    items: int
    over_draws: bool = False
    draws_share: float = 0.0
    dfs: tuple[float, float] | None = None

    def __format__(self, spec: str) -> str:
        """The value, written by `spec`, and its standard error where there is one: `f"{estimate:+.3f}"` is +0.123 ± 0.045."""
        return format(self.value, spec) + ("" if self.stderr is None else f" ± {format(self.stderr, spec.lstrip('+'))}")

    def interval(self, level: float = LEVEL, comparisons: int = 1) -> tuple[float, float] | None:
        """The interval at `level`, jointly over `comparisons` comparisons; None without a standard error."""
        if self.stderr is None:
            return None
        half = self.quantile(1 - (1 - level) / (2 * comparisons)) * self.stderr
        return self.value - half, self.value + half

    def significant(self, level: float = LEVEL, comparisons: int = 1) -> bool:
        """Whether the interval leaves out zero. Without an interval nothing can be told apart."""
        interval = self.interval(level, comparisons)
        return interval is not None and not interval[0] <= 0 <= interval[1]

    def quantile(self, p: float) -> float:
        """How many standard errors above the value the `p` quantile lies (p ≥ 0.5)."""
        if self.dfs is None:
            return t_quantile(p, self.df)
        items, draws = self.dfs
        return (1 - self.draws_share) * t_quantile(p, items) + self.draws_share * t_quantile(p, draws)

    def p_value(self) -> float | None:
        """Of the two-sided test that the truth is zero: 1 less the level whose interval ends there. None without a standard error."""
        from scipy.special import stdtr

        if self.stderr is None:
            return None
        if self.stderr == 0 or self.value == 0:
            return float(self.value == 0)
        t = abs(self.value) / self.stderr
        low, high = sorted(2 * float(stdtr(df, -t)) for df in (self.dfs or (self.df, self.df)))
        for _ in range(60 if 0 < low < high else 0):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.quantile(1 - middle / 2) < t else (middle, high)
        return high


def t_quantile(p: float, df: float) -> float:
    """The `p` quantile of Student's t with `df` degrees of freedom, which needn't be whole."""
    from scipy.special import stdtrit

    return float(stdtrit(df, p))
