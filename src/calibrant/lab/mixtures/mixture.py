"""What a search for a mixture gives back: plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Final, final

from calibrant.lab.mixtures.algebra import Shares
from calibrant.lab.mixtures.enough import TokenCurve
from calibrant.spec.grammar import names_of, written_mix
from calibrant.system.notebook import card, listing

UNIFORM: Final = "uniform"
BEST: Final = "mixture"
"""What the uniform mixture and the one that was found are called in tables."""


@final
@dataclass(frozen=True)
class ErrorRow:
    """The relative errors of one calibration set under each judge, and the mean and the worst of
    those that are sources.
    """

    calibrated_on: str
    errors: Mapping[str, float]
    mean: float
    worst: float


@final
@dataclass(frozen=True)
class Influence:
    """How the errors of the set `of` change when `without` is left out and the others keep their
    proportions: above 0, it is missed.

    `value` is the change by the objective.
    """

    of: str
    without: str
    mean: float
    worst: float
    value: float


@dataclass(frozen=True, repr=False)
class Mixture:
    """The mixture that was found: `expr` is what `--data` takes, `weights` are by source.

    `value` is its error by its `objective`, on the `final` sample. `rows` are the calibration sets
    (every source alone, `uniform`, `mixture`), each judged by `judges` on texts that no calibration
    set can hold. `enough` says of each source and of the mixture whether its tokens are enough.
    `evaluations` is how many mixtures were judged, `reused` how many of the `gathered` statistics
    were there already. `notes` say where rows are shared: two sources that hold the same texts are
    one judge with two votes.
    """

    expr: str
    weights: Mapping[str, float]
    objective: str
    value: float
    model: str
    note: str
    method: str
    target: str
    tokens: int
    length: int
    seed: int
    dtype: str
    judges: tuple[str, ...]
    rows: tuple[ErrorRow, ...]
    influence: tuple[Influence, ...]
    enough: tuple[TokenCurve, ...]
    evaluations: int
    samples: Mapping[str, Mapping[str, int]]
    seconds: Mapping[str, float]
    folder: str
    gathered: int
    reused: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return all of it as dicts, lists and numbers."""
        return asdict(self)

    def answer(self) -> dict[str, Any]:
        """Return what the same request always gives, as plain data: all but how long it took,
        and what was stored where.
        """
        answer = self.to_json()
        for name in ("seconds", "folder", "gathered", "reused"):
            del answer[name]
        return answer

    def __repr__(self) -> str:
        return f"Mixture({self.expr!r}, objective={self.objective!r}, value={self.value:.4g})"

    def _repr_html_(self) -> str:
        heads = ("calibrated on", *self.judges, "mean", "worst")
        lines: list[tuple[str, ...]] = []
        for row in self.rows:
            errors = [row.errors[judge] for judge in self.judges]
            errors += [row.mean, row.worst]
            figures = [f"{error:.4f}" for error in errors]
            lines.append((row.calibrated_on, *figures))
        facts = {
            "expression": self.expr,
            "objective": self.objective,
            "error": f"{self.value:.4f}",
            "method": f"{self.method} to {self.target}",
        }
        return card(
            f"Mixture for {self.model}",
            facts,
            note="relative errors of matrices, by judge",
            inside=listing(heads, lines),
        )


def expression(sources: Sequence[str], shares: Shares) -> str:
    """Return the text that `--data` takes. Parts of weight 0 are left out, and one part alone is
    that part.

    >>> from fractions import Fraction
    >>> expression(["c4", "gsm8k:cot", "pile"], (Fraction(1, 4), Fraction(3, 4), Fraction(0)))
    'mix(c4=c4, gsm8k_cot=gsm8k:cot, weight=0.25)'
    """
    texts: list[str] = []
    weights: list[Fraction] = []
    for source, share in zip(sources, shares, strict=True):
        if share:
            texts.append(source)
            weights.append(share)
    if len(texts) == 1:
        return texts[0]
    return written_mix(names_of(texts), texts, weights)
