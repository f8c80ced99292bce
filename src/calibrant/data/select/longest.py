"""The longest texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from calibrant.data.select._base import Context, Picking
from calibrant.data.select._reading import tokenised


@dataclass(frozen=True, repr=False)
class Longest(Picking):
    """The candidates with the most tokens first; of equals, the one that comes first. No model is
    needed.

    The original study's corpora take only documents longer than a window (Bandari et al. 2024,
    arXiv 2410.07461): this shows what that alone does, and is the baseline for choices by
    perplexity or coverage, since both favour length. Packed by `many`, one long document can fill a
    whole budget (128 windows of 512 tokens from a single text of the Pile):
    `longest(source=pile)@crop` takes one window of each.
    """

    after = "the baseline of choices that favour length"
    source: str
    candidates: int = 1000

    needs_model: ClassVar[bool] = False

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        if not texts:
            return [], ""
        lengths = np.array([len(ids) for ids in tokenised(texts, context.tokenizer)])
        order = np.argsort(-lengths, kind="stable").tolist()
        middle = int(np.median(lengths))
        return order, f"{lengths.max()} to {lengths.min()} tokens, {middle} in the middle"
