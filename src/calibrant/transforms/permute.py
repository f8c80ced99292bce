"""Permutation of inputs before N:M pruning, so that weights that matter don't stand in one
group.

The order is to be one in which the N best of every M consecutive inputs keep as much as they can.
The search is RIA's (Zhang et al. 2024): inputs are dealt to groups as cards are. Then the inputs at
the first place of all groups are assigned to the groups anew, in the best way there is while the
others stay; then those at the second place, and so on.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen, Statistic, wide
from calibrant.errors import ModelError, SpecError, TargetError
from calibrant.methods.pruning.ria import relative
from calibrant.models import Heads, ModelView, Stream, Weight
from calibrant.numerics import six_digits
from calibrant.spec import check_most
from calibrant.system.extras import needed_for
from calibrant.system.products import exact
from calibrant.targets import NofM, SparseGrid, Target
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
    is from, with the inputs' sizes in the dense model. `n` and `m` must be those of the target.
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

    def check(self, target: Target) -> None:
        removal = target.weights
        if isinstance(removal, SparseGrid):
            removal = removal.removal
        if removal == NofM(self.n, self.m):
            return
        advice = "leave the transform out"
        if isinstance(removal, NofM):
            advice = f"write permute(n={removal.n}, m={removal.m})"
        problem = f"{self} orders inputs for {self.n}:{self.m}, and {target} was asked for"
        raise TargetError(f"{problem}; {advice}", subject=str(target))

    def apply(self, view: ModelView, seen: Mapping[str, Seen]) -> Mapping[str, Any]:
        """Permute, and return notes: how many `networks` and groups of `heads` that share values
        were permuted, and which share of the scores of their matrices N:M keeps, `before` and
        `after`. Raises `MissingPackageError` without SciPy.
        """
        counts = {"networks": 0, "heads": 0}
        before = 0.0
        after = 0.0
        total = 0.0
        for kind, scores, permute in self._places(view, seen):
            order = best_order(scores, self.n, self.m)
            permute(order)
            counts[kind] += 1
            # `scores` are those of before, so the order that was is 0, 1, 2, …
            current = torch.arange(len(order), device=scores.device)
            before += kept(scores, current, self.n, self.m)
            after += kept(scores, order, self.n, self.m)
            total += float(exact(scores).sum())
        if not any(counts.values()):
            raise ModelError(
                f"no inputs of a {type(view.model).__name__} can be permuted in groups of "
                f"{self.m}; leave the transform out, or choose another m"
            )
        notes: dict[str, Any] = dict(counts)
        if total:
            notes["before"] = six_digits(before / total)
            notes["after"] = six_digits(after / total)
        return notes

    def _places(
        self, view: ModelView, seen: Mapping[str, Seen]
    ) -> Iterator[tuple[str, Tensor, Callable[[Tensor], None]]]:
        """Yield what can be permuted: its kind, its scores [out, in], and what permutes it."""
        networks = Stream.of(view).hidden
        found: Mapping[int, Heads] = {}
        # Looked for before the first is permuted: a refusal leaves the model as it was.
        if self.heads:
            found = Heads.of(view)
        for network in networks:
            if network.down.name in seen and network.units % self.m == 0:
                yield "networks", _scores(network.down, seen), network.permute
        for heads in found.values():
            if heads.output.name not in seen or heads.width % self.m:
                continue
            by_head = _scores(heads.output, seen).unflatten(1, (-1, heads.width))
            # Heads that share values must have them in one order: their rows are one matrix.
            for first_row, sharing in heads.sharing().items():
                scores = torch.cat([by_head[:, head] for head in sharing])
                yield "heads", scores, partial(heads.permute, first_row)


def _scores(weight: Weight, seen: Mapping[str, Seen]) -> Float[Tensor, "out in"]:
    """RIA's scores."""
    matrix = weight.get()
    sizes = matrix.abs().to(wide(matrix.dtype))
    norms = seen[weight.name][FeatureNorms].norms().to(sizes)
    # The paper has the square root of the norm; these norms are squared.
    return relative(sizes) * norms.sqrt().sqrt()


def kept(scores: Float[Tensor, "out in"], order: Int[Tensor, "in"], n: int, m: int) -> float:
    """Return the sum of the scores that stay if of every `m` inputs in this order the `n` highest
    stay, row by row.
    """
    grouped = scores[:, order].unflatten(1, (-1, m))
    # In float64: two orders differ by little, and their sums are compared.
    return float(exact(grouped.topk(n, dim=2).values).sum())


def dealt(scores: Float[Tensor, "out in"], m: int) -> Int[Tensor, "in"]:
    """Return an order of the inputs, group after group: by falling sum of their scores they are
    dealt to the groups, one to each from the first to the last, then from the last back to the
    first, and so on.

    >>> dealt(torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]), 3).tolist()
    [0, 3, 4, 1, 2, 5]
    """
    falling = exact(scores).sum(0).argsort(descending=True, stable=True)
    # A row for each round, in which every group gets one input.
    rounds = falling.reshape(m, -1)
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.flatten()


def assigned(
    scores: Float[Tensor, "out in"], order: Int[Tensor, "in"], n: int, m: int
) -> Int[Tensor, "in"]:
    """Return an order that keeps no less: for each place in turn, the inputs that stand there in
    all groups are assigned to the groups anew, in the best way.

    With one more input a group keeps more by what the input's score lies above the `n`-th highest
    score of the others, in each row. Raises `MissingPackageError` without SciPy.
    """
    with needed_for("the transform permute"):
        from scipy.optimize import linear_sum_assignment
    groups = order.reshape(-1, m).clone()
    for place in range(m):
        other_places = [other for other in range(m) if other != place]
        others = groups[:, other_places]
        thresholds = scores[:, others].topk(n, dim=2).values[:, :, -1]
        inputs = groups[:, place]
        input_scores = scores[:, inputs]
        # What each group (a row) gains by each of the inputs (a column).
        gains: list[Tensor] = []
        for threshold in thresholds.unbind(1):
            above = (input_scores - threshold[:, None]).clamp_min(0)
            gains.append(above.sum(0))
        gain_table = torch.stack(gains).cpu().double().numpy()
        _, best = linear_sum_assignment(gain_table, maximize=True)
        groups[:, place] = inputs[torch.from_numpy(best).to(groups.device)]
    return groups.flatten()


def best_order(scores: Float[Tensor, "out in"], n: int, m: int) -> Int[Tensor, "in"]:
    """Return the order that the search comes to, or the current one where that keeps as much."""
    current = torch.arange(scores.shape[1], device=scores.device)
    reassigned = assigned(scores, dealt(scores, m), n, m)
    if kept(scores, reassigned, n, m) > kept(scores, current, n, m):
        return reassigned
    return current
