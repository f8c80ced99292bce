"""SmoothQuant: inputs that stand out become smaller, and the weights that read them larger (Xiao et
al. 2022, arXiv 2211.10438).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureMaxima, Seen, Statistic
from calibrant.edits import Fold
from calibrant.edits.sites import Site, Sites
from calibrant.errors import ModelError, SpecError
from calibrant.models import ModelView
from calibrant.spec.foreign import brief
from calibrant.transforms._base import Transform

LEAST: Final = 1e-5
"""No factor is smaller, as in the paper's code, and none is larger than its inverse."""


@dataclass(frozen=True, repr=False)
class Smooth(Transform):
    """Divides inputs by s = max|x|^α / max|w|^(1 - α) and multiplies the columns that read them by
    it, so that inputs lose less when they are quantized; the logits stay what they were.

    max|x| is over the calibration tokens in the dense model, whatever they weigh; max|w| over all
    matrices that read the input and are compressed. The division is folded into the norm before the
    matrices; the columns of a router that reads the norm too are multiplied like theirs. So the
    result is an ordinary model of the same architecture. `sites=all` also folds into values before
    an output, where every head has its own, and into the rows that hidden units are proportional
    to; the paper doesn't. With an `alpha` of 1 all inputs become equally large, and with 0 the
    columns of the weights do.

    Inputs that were always zero, or that no weight reads, stay as they are. So do those of matrices
    whose norm also goes into something that is no matrix, or whose norm's weight is used elsewhere
    too; the notes name these. A model in which nothing can be smoothed is refused (`ModelError`).
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureMaxima,)

    alpha: float = 0.5
    sites: str = "norms"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise SpecError(
                f"smooth(alpha={brief(self.alpha)}): alpha must be from 0 (weights are made even) "
                "to 1 (inputs are); 0.5 is usual",
                subject="alpha",
            )
        if self.sites not in ("norms", "all"):
            raise SpecError(
                f"smooth(sites={brief(self.sites)}) is not known; write norms or all",
                subject="sites",
            )

    @property
    def by_block(self) -> bool:
        # What `all` looks for is found by running the whole model.
        return self.sites == "norms"

    def apply(self, view: ModelView, seen: Mapping[str, Seen]) -> Mapping[str, Any]:
        """Smooth, and return notes: how many `sites` were smoothed, and which matrices were `left`,
        with the reason.
        """
        found = Sites.of(view, norms_only=self.sites == "norms")
        if not any(found.by_block.values()):
            kind = type(view.model).__name__
            remedy = "leave the transform out"
            if self.sites == "norms":
                remedy += ", or try sites=all"
            raise ModelError(
                f"{self} finds no inputs of a {kind} that it can smooth; {remedy}", subject=kind
            )
        smoothed = 0
        left = dict(found.left)
        for block in view.blocks:
            with view.held(block):
                for site in found.by_block[block.index]:
                    fold = self._fold(site, seen)
                    if fold is None:
                        unseen = [weight.tensor_name for weight in site.readers]
                        left |= dict.fromkeys(unseen, "no calibration token reached it")
                        continue
                    fold.apply(view)
                    view.residence.changed(block.index, partial(fold.apply, view))
                    smoothed += 1
        return {"sites": smoothed, "left": left}

    def _fold(self, site: Site, seen: Mapping[str, Seen]) -> Fold | None:
        """Return the fold of a site's factors; None where none of its matrices saw anything."""
        inputs: list[Tensor] = []
        weights: list[Tensor] = []
        for weight in site.readers:
            weights.append(weight.get().abs().amax(0).cpu().double())
            if weight.name in seen:
                inputs.append(seen[weight.name][FeatureMaxima].maxima.cpu().double())
        if not inputs:
            return None
        largest_inputs = torch.stack(inputs).amax(0)
        largest_weights = torch.stack(weights).amax(0)
        scales = factors(largest_inputs, largest_weights, self.alpha)
        return Fold(site.block, site.scalings(scales))


def factors(
    inputs: Float[Tensor, "in"], weights: Float[Tensor, "in"], alpha: float
) -> Float[Tensor, "in"]:
    """Return what columns are multiplied by, given the largest |x| and |w| of each input; 1 where
    either is 0. No factor is below 1e-5 or above 1e5.

    >>> factors(torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]), 0.5).tolist()
    [2.0, 3.0, 1.0]
    """
    used = (inputs > 0) & (weights > 0)
    scales = inputs.pow(alpha) / weights.pow(1 - alpha)
    return scales.where(used, 1.0).clamp(LEAST, 1 / LEAST)
