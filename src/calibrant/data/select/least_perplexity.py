"""The texts that the model finds easiest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from calibrant.data.select._base import Context, Picking
from calibrant.data.select._reading import beginnings, nats


@dataclass(frozen=True, repr=False)
class LeastPerplexity(Picking):
    """The candidates that the untouched model predicts best first, by its mean loss over the tokens
    that a window can hold.

    One of the choices that ZipCal is compared with (arXiv 2603.16105; its details aren't known to
    us). What repeats itself is easy too: look at the first texts before you trust them. Of equals,
    the one that comes first; texts of fewer than two tokens come last.
    """

    after = "ZipCal's comparison"
    source: str
    candidates: int = 1000

    needs_model: ClassVar[bool] = True

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        sequences = beginnings(texts, context.tokenizer, context.length)
        losses = np.array(nats(context.model(self), sequences, context.progress))
        # What has no loss goes last.
        order = np.argsort(np.nan_to_num(losses, nan=np.inf), kind="stable").tolist()
        known = losses[~np.isnan(losses)]
        if not len(known):
            return order, ""
        note = (
            f"perplexity {np.exp(known.min()):.3g} to {np.exp(known.max()):.3g}, "
            f"{np.exp(np.median(known)):.3g} in the middle"
        )
        return order, note
