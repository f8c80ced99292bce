"""Permutation of inputs before N:M pruning, so that weights that matter don't stand in one
group.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen, Statistic, wide
from calibrant.errors import ModelError, SpecError
from calibrant.methods.pruning.ria import relative
from calibrant.models import Heads, ModelView, Stream, Weight
from calibrant.spec import check_most
from calibrant.transforms._base import Transform
from calibrant.transforms._dealing import kept, spread

MOST_GROUPED: Final = 65_536
"""Inputs of a group."""


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
            message = "n of m stay, so 1 <= n < m; write those of the target, as 2 and 4"
            raise SpecError(f"permute(n={self.n}, m={self.m}): {message}", subject="n")

    def apply(self, view: ModelView, seen: Mapping[str, Seen]) -> Mapping[str, Any]:
        """Permute, and note how many `networks` and groups of `heads` that share values were.

        Also noted is which share of the scores of their matrices N:M keeps, `before` and `after`.
        Raises `MissingPackageError` without SciPy.
        """
        counts = Counter[str]()
        before = 0.0
        after = 0.0
        whole = 0.0
        for kind, scores, permute in self._places(view, seen):
            order = spread(scores, self.n, self.m)
            permute(order)
            counts[kind] += 1
            before += kept(scores, torch.arange(len(order), device=scores.device), self.n, self.m)
            after += kept(scores, order, self.n, self.m)
            whole += float(scores.double().sum())
        if not counts:
            kind = type(view.model).__name__
            message = f"no inputs of a {kind} can be permuted in groups of {self.m}"
            raise ModelError(f"{message}; leave the transform out, or choose another m")
        notes: dict[str, Any] = {"networks": counts["networks"], "heads": counts["heads"]}
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
                # Heads that share values have one order.
                for place, sharing in heads.sharing().items():
                    scores = torch.cat([by_head[:, head] for head in sharing])
                    yield "heads", scores, partial(heads.permute, place)


def _scores(weight: Weight, seen: Mapping[str, Seen]) -> Float[Tensor, "out in"]:
    sizes = weight.get().abs().to(wide(weight.get().dtype))
    return relative(sizes) * seen[weight.name][FeatureNorms].norms().to(sizes.dtype).sqrt().sqrt()
