"""Which of many scores are the lowest: exact counts, and of equal scores the first goes first."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calibrant.errors import NumericsError


def keep_highest(
    scores: Float[Tensor, "group member"], remove: int
) -> Bool[Tensor, "group member"]:
    """Return all but the `remove` lowest scores of each row; of equal scores the first goes first.

    The same mask as a stable sort gives, several times faster: find each row's threshold, and count
    only ties at it. Raises `NumericsError` if a score is NaN.
    """
    refuse_nan(scores)
    if remove == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = _lowest(scores, remove)
    keep = scores > threshold
    if keep.numel() - int(keep.count_nonzero()) == remove * scores.shape[0]:
        return keep
    below, tied = scores < threshold, scores == threshold
    still: Int[Tensor, "group 1"] = remove - below.sum(dim=1, keepdim=True)
    return ~(below | (tied & (tied.cumsum(dim=1) <= still)))


def _lowest(scores: Tensor, k: int) -> Tensor:
    """The k-th lowest score of each row, [group, 1]. NumPy's partition is vectorised, and up to
    ten times as fast as torch's selections.
    """
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(
            np.partition(scores.detach().numpy(), k - 1, axis=1)[:, k - 1 : k].copy()
        )
    return scores.kthvalue(k, dim=1, keepdim=True).values


def refuse_nan(scores: Tensor) -> None:
    """Raise `NumericsError` if a score is NaN."""
    # A sum is NaN where a score is, and also where infinities meet; only then is counting worth its
    # time.
    if bool(scores.sum().isnan()) and (nan := int(scores.isnan().count_nonzero())):
        raise NumericsError(
            f"{nan} of {scores.numel()} scores are NaN, so no weight can be chosen; look for NaN "
            "or infinity in the weight and its inputs"
        )
