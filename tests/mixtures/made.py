"""Made-up inputs of made-up matrices, and slow references in float64 that share no code with
what they check.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen
from calibrant.lab.mixtures import Errors, SharedInput
from calibrant.methods import MatrixMethod
from calibrant.targets import Target, parse_target


@dataclass(frozen=True)
class World:
    """Two matrices that read one input, a third with an input of its own; for each source inputs
    to calibrate on and others to judge with.
    """

    weights: tuple[Tensor, ...]
    own: tuple[tuple[Tensor, Tensor], ...]
    held_out: tuple[tuple[Tensor, Tensor], ...]

    @property
    def masses(self) -> list[float]:
        return [float(len(x)) for x, _ in self.own]

    def errors(self, method: MatrixMethod, target: str = "0.5") -> Errors:
        return Errors(list(self.groups(target)), method, self.masses)

    def groups(self, target: str = "0.5") -> list[SharedInput]:
        seen = [tuple(both(x[place]) for x in self.own) for place in (0, 1)]
        judges = [tuple(Gram.of(x[place]) for x in self.held_out) for place in (0, 1)]
        asked = parse_target(target)
        return [
            SharedInput(("a", "b"), self.weights[:2], (asked, asked), seen[0], judges[0]),
            SharedInput(("c",), self.weights[2:], (asked,), seen[1], judges[1]),
        ]

    def slowly(
        self, method: MatrixMethod, shares: Sequence[float], target: str = "0.5"
    ) -> list[float]:
        """‖(W − Ŵ)X‖² / ‖WX‖² under each judge, mean over matrices; Ŵ from one set in which a
        source's tokens weigh share / tokens.
        """
        found = []
        for judge in self.held_out:
            each = []
            for place, weight in enumerate(self.weights):
                which = int(place == 2)
                changed = weight - pruned(
                    method, weight, [x[which] for x in self.own], shares, parse_target(target)
                )
                each.append(
                    float(
                        (judge[which] @ changed.T).square().sum()
                        / (judge[which] @ weight.T).square().sum()
                    )
                )
            found.append(sum(each) / len(each))
        return found


def pruned(
    method: MatrixMethod,
    weight: Tensor,
    inputs: Sequence[Tensor],
    shares: Sequence[float],
    target: Target,
) -> Tensor:
    """What the method makes of a matrix that saw all rows at once, each with the weight that its
    source has, a token.
    """
    x = torch.cat(list(inputs))
    w = torch.cat(
        [
            torch.full((len(part),), share / len(part), dtype=x.dtype)
            for part, share in zip(inputs, shares, strict=True)
        ]
    )
    return method.compress(weight, both(x[w > 0], w[w > 0]), target).weight


def both(x: Tensor, weights: Tensor | None = None) -> Seen:
    return Seen({FeatureNorms: FeatureNorms.of(x, weights), Gram: Gram.of(x, weights)})


def world(
    sources: int = 3,
    tokens: Sequence[int] = (40, 60, 90),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> World:
    """Sources with features of different sizes and correlations."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = (normal(6, 12), normal(4, 12), normal(5, 16))
    blends = [
        (normal(12, 12) * normal(12).exp(), normal(16, 16) * normal(16).exp())
        for _ in range(sources)
    ]
    own = [
        tuple(normal(tokens[place], len(b)) @ b for b in pair) for place, pair in enumerate(blends)
    ]
    held = [tuple(normal(50, len(b)) @ b for b in pair) for pair in blends]
    cast = [
        tuple((one.to(dtype), other.to(dtype)) for one, other in several) for several in (own, held)
    ]
    return World(tuple(w.to(dtype) for w in weights), *cast)
