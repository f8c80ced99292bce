"""IGSP's rule of repetition and perplexity (2026, arXiv 2606.03328), as far as its abstract
tells it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float

from calibrant.data.select._base import MOST, Context, Picking, check_between
from calibrant.data.select._embedding import in_turn
from calibrant.data.select._generating import distinct
from calibrant.data.select._reading import beginnings, nats

GRAM: Final = 4
"""Tokens of a run that may repeat itself."""


@dataclass(frozen=True, repr=False)
class IGSP(Picking):
    """The least repetitive candidates of every level of perplexity.

    The candidates are sorted by the untouched model's loss and cut into `strata` levels of equal
    size. Within each, those come first that repeat the smallest share of their runs of four tokens;
    one is taken of each level in turn, so that any budget is balanced over the levels. Loss and
    repetition are those of the tokens that a window can hold. `SpecError` for `strata` below 1.

    A reconstruction: only the abstract was at hand, which says that self-generated calibration text
    is chosen so that repetition of 4-grams is minimised and perplexity is balanced. What is
    balanced against what, the levels and the turns are ours. With `source="selfgen(…)"` it chooses
    among what the model wrote itself, as in the paper; any source will do. Short texts repeat less
    by nature; those of fewer than five tokens come last.
    """

    after = "IGSP 2026 (abstract)"
    source: str
    candidates: int = 1000
    strata: int = 4

    needs_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, strata=(1, MOST // 100))

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        sequences = beginnings(texts, context.tokenizer, context.length)
        losses = np.array(nats(context.model(self), sequences, context.progress))
        repeated = np.array([repetition(ids) for ids in sequences])
        unknown = np.isnan(losses) | np.isnan(repeated)
        judged = np.flatnonzero(~unknown)
        by_loss = judged[np.argsort(losses[judged], kind="stable")]
        levels: list[np.ndarray] = []
        # Of equal size, and not of equal width: few texts are very easy or very hard.
        for level in np.array_split(by_loss, self.strata):
            levels.append(level[np.argsort(repeated[level], kind="stable")])
        order = [*in_turn(levels), *np.flatnonzero(unknown).tolist()]
        return order, _note(repeated[judged], losses[judged])


def repetition(ids: Sequence[int]) -> float:
    """Return the share of a sequence's runs of four tokens that stood in it before; `nan` for
    one with fewer than two runs, of which none could.
    """
    if len(ids) <= GRAM:
        return float("nan")
    return 1 - distinct([ids], GRAM)


def _note(repeated: Float[np.ndarray, " text"], losses: Float[np.ndarray, " text"]) -> str:
    if not len(losses):
        return ""
    return (
        f"perplexity {np.exp(losses.min()):.3g} to {np.exp(losses.max()):.3g}; "
        f"{repeated.mean():.1%} of their 4-grams repeated on average"
    )
