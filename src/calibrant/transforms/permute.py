"""Permutation of inputs before N:M pruning, so that weights that matter don't stand in one
group.

The order is one in which N of every M consecutive inputs keep as much as they can. The search is
RIA's (Zhang et al. 2024): inputs are dealt to groups as cards are, and then the places of a group
are filled anew one after the other, each time in the best way there is while the others stay.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen, Statistic, wide
from calibrant.errors import ModelError, SpecError
from calibrant.methods.pruning.ria import relative
from calibrant.models import Heads, ModelView, Stream, Weight
from calibrant.spec import check_most
from calibrant.system.extras import needed_for
from calibrant.transforms._base import Transform

MOST_GROUPED: Final = 65_536
"""The most inputs of a group."""


@dataclass(frozen=True, repr=False)
class Permute(Transform):
    """Puts inputs into an order in which N of every M consecutive ones keep most of what matters;
    goes with every method and a target such as 2:4.

    Inputs are permuted where what makes them can be permuted too, so that the model computes what
    it did, and is an ordinary one: hidden units of feed-forward networks and of experts, and each
    head's values (`heads`). Matrices that read the residual stream stay as they are: one order
    would have to do for all of them. What matters is the score of RIA (see `ria`), whose paper this
    is from, with the inputs' sizes in the dense model. `n` and `m` are those of the target.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)

    n: int = 2
    m: int = 4
    heads: bool = True

    def __post_init__(self) -> None:
        check_most(self, m=MOST_GROUPED)
        if not 1 <= self.n < self.m:
            raise SpecError(
                f"permute(n={self.n}, m={self.m}): n of m stay, so 1 <= n < m; "
                f"write those of the target, as 2 and 4",
                subject="n",
            )

    def apply(self, view: ModelView, seen: Mapping[str, Seen]) -> Mapping[str, Any]:
        """Permute, and return notes: how many `networks` and groups of `heads` that share values
        were permuted, and which share of the scores of their matrices N:M keeps, `before` and
        `after`. Raises `MissingPackageError` without SciPy.
        """
        counts = {"networks": 0, "heads": 0}
        before = 0.0
        after = 0.0
        whole = 0.0
        for kind, scores, permute in self._places(view, seen):
            order = spread(scores, self.n, self.m)
            permute(order)
            counts[kind] += 1
            standing = torch.arange(len(order), device=scores.device)
            before += kept(scores, standing, self.n, self.m)
            after += kept(scores, order, self.n, self.m)
            whole += float(scores.double().sum())
        if not any(counts.values()):
            raise ModelError(
                f"no inputs of a {type(view.model).__name__} can be permuted in groups of "
                f"{self.m}; leave the transform out, or choose another m"
            )
        notes: dict[str, Any] = dict(counts)
        if whole:
            notes["before"] = float(f"{before / whole:.6g}")
            notes["after"] = float(f"{after / whole:.6g}")
        return notes

    def _places(
        self, view: ModelView, seen: Mapping[str, Seen]
    ) -> Iterator[tuple[str, Tensor, Callable[[Tensor], None]]]:
        """Yield what can be permuted: its kind, the scores by which, and what permutes it."""
        for network in Stream.of(view).hidden:
            if network.down.name in seen and network.units % self.m == 0:
                yield "networks", _scores(network.down, seen), network.permute
        if not self.heads:
            return
        for heads in Heads.of(view).values():
            if heads.output.name in seen and heads.width % self.m == 0:
                by_head = _scores(heads.output, seen).unflatten(1, (-1, heads.width))
                for place, sharing in heads.sharing().items():
                    scores = torch.cat([by_head[:, head] for head in sharing])
                    yield "heads", scores, partial(heads.permute, place)


def _scores(weight: Weight, seen: Mapping[str, Seen]) -> Float[Tensor, "out in"]:
    matrix = weight.get()
    sizes = matrix.abs().to(wide(matrix.dtype))
    norms = seen[weight.name][FeatureNorms].norms().to(sizes.dtype)
    # The square root of the norm, as in the paper; `norms` are squared.
    return relative(sizes) * norms.sqrt().sqrt()


def kept(scores: Float[Tensor, "out in"], order: Int[Tensor, "in"], n: int, m: int) -> float:
    """Return the sum of the scores that stay if of every `m` inputs in this order `n` do, in
    each row the highest.
    """
    grouped = scores[:, order].unflatten(1, (-1, m))
    # In float64: two orders differ by little, and their sums are compared.
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
        others = groups[:, [other for other in range(m) if other != place]]
        bars = scores[:, others].topk(n, dim=2).values[:, :, -1]
        standing = scores[:, groups[:, place]]
        gains = [(standing - bar[:, None]).clamp_min(0).sum(0) for bar in bars.unbind(1)]
        table = torch.stack(gains).cpu().double().numpy()
        _, best = linear_sum_assignment(table, maximize=True)
        groups[:, place] = groups[torch.from_numpy(best).to(groups.device), place]
    return groups.flatten()


def spread(scores: Float[Tensor, "out in"], n: int, m: int) -> Int[Tensor, "in"]:
    """Return the order that was found: that in which the inputs stand already, where it isn't
    bettered.
    """
    standing = torch.arange(scores.shape[1], device=scores.device)
    found = assigned(scores, dealt(scores, m), n, m)
    if kept(scores, found, n, m) > kept(scores, standing, n, m):
        return found
    return standing
