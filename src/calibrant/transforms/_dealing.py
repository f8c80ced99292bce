"""Orders of inputs in which N of every M consecutive ones keep as much as they can: inputs that
matter are spread over the groups.

The search is RIA's (Zhang et al. 2024): inputs are dealt to groups as cards are, and then the
places of a group are filled anew one after the other, each time in the best way there is while the
others stay.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.system.extras import needed_for


def kept(scores: Float[Tensor, "out in"], order: Int[Tensor, "in"], n: int, m: int) -> float:
    """Return the sum of the scores that stay if of every `m` inputs in this order `n` do, in
    each row the highest.
    """
    grouped = scores[:, order].unflatten(1, (-1, m))
    return float(grouped.topk(n, dim=2).values.double().sum())


def dealt(scores: Float[Tensor, "out in"], m: int) -> Int[Tensor, "in"]:
    """Return the inputs by falling sum, dealt to groups of `m`: one to each group, then one to each
    from the last group back to the first, and so on.

    >>> dealt(torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]), 3).tolist()
    [0, 3, 4, 1, 2, 5]
    """
    rounds = scores.double().sum(0).argsort(descending=True, stable=True).reshape(m, -1)
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.flatten()


def assigned(
    scores: Float[Tensor, "out in"], order: Int[Tensor, "in"], n: int, m: int
) -> Int[Tensor, "in"]:
    """Return an order that keeps no less: for each place in turn, the inputs that stand there are
    assigned to groups anew, in the best way.

    What a group keeps with an input more is what it keeps without, and what the input's score is
    above the `n`-th highest of the others.
    """
    with needed_for("the transform permute"):
        from scipy.optimize import linear_sum_assignment
    groups = order.reshape(-1, m).clone()
    for place in range(m):
        others = torch.cat([groups[:, :place], groups[:, place + 1 :]], dim=1)
        bars = scores[:, others].topk(n, dim=2).values[:, :, -1]
        standing = scores[:, groups[:, place]]
        gains: list[Tensor] = []
        for bar in bars.unbind(1):
            gains.append((standing - bar[:, None]).clamp_min(0).sum(0))
        table = torch.stack(gains).cpu().double().numpy()
        _, best = linear_sum_assignment(table, maximize=True)
        groups[:, place] = groups[torch.from_numpy(best).to(groups.device), place]
    return groups.flatten()


def spread(scores: Float[Tensor, "out in"], n: int, m: int) -> Int[Tensor, "in"]:
    """Return the best order that was found, or the one in which the inputs stand already."""
    standing = torch.arange(scores.shape[1], device=scores.device)
    found = assigned(scores, dealt(scores, m), n, m)
    is_better = kept(scores, found, n, m) > kept(scores, standing, n, m)
    return found if is_better else standing
