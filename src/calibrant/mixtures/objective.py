"""What a mixture is to be good at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float

from calibrant.errors import SpecError
from calibrant.grammar import pieces

_ALLOWED = "write mean, worst, or target=EXPR with a source or a file of your own, such as target=gsm8k:cot"


@final
@dataclass(frozen=True)
class Objective:
    """`mean` or `worst` over the judges that are sources, or the error under one `target`."""

    kind: str
    target: str = ""

    def __str__(self) -> str:
        return f"target={self.target}" if self.target else self.kind

    def values(self, errors: Float[np.ndarray, "mixture judge"], sources: int, judges: Sequence[str]) -> Float[np.ndarray, "mixture"]:
        """The number of each mixture that is to be small. The first `sources` of the `judges` are sources."""
        if self.target:
            return errors[:, list(judges).index(self.target)]
        return errors[:, :sources].mean(1) if self.kind == "mean" else errors[:, :sources].max(1)


def parse_objective(text: str) -> Objective:
    """The objective that a text asks for; `SpecError` for anything else."""
    kind, *rest = (piece.strip() for piece in pieces(text, "="))
    if kind == "target" and (target := "=".join(rest)):
        return Objective(kind, target)
    if kind in ("mean", "worst") and not rest:
        return Objective(kind)
    raise SpecError(f"objective={text!r} is not known; {_ALLOWED}", subject=text)
