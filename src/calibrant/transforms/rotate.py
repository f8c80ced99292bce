"""Rotation of the residual stream, after which no feature stands out (QuaRot, Ashkboos et al.
2024, arXiv 2404.00456; RSQ, arXiv 2503.01820).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibrant.activations import Seen
from calibrant.errors import ModelError, SpecError
from calibrant.models import Heads, ModelView, Stream, overwrite
from calibrant.models.stream import Reader, Writer
from calibrant.spec import check_most
from calibrant.spec.foreign import LARGEST
from calibrant.transforms._base import Transform
from calibrant.transforms._orthogonal import orthogonal


@dataclass(frozen=True, repr=False)
class Rotate(Transform):
    """Rotates the residual stream, and each head's values, by Hadamard matrices with random signs;
    the logits stay what they were.

    The gains of norms move into the matrices that read them, the head gets numbers of its own where
    it was the embedding (the model grows by vocabulary · hidden), and then what reads the stream is
    multiplied by Q and what writes to it by Qᵀ. Sizes without a known Hadamard matrix get a random
    orthogonal one. `heads` rotates values too, where attention does nothing but average them. All
    is folded into weights, so an ordinary model of the same architecture comes of it; rotations at
    run time, which the papers add before the down and output matrices, can't be stored so, and are
    left out. Embeddings aren't centred: that would be right for a LayerNorm, and changes the
    function of an RMSNorm.

    Refused, by name, are norms that subtract the mean, and norms between a matrix and the stream: a
    rotation doesn't pass through them.
    """

    seed: int = 0
    heads: bool = True

    def __post_init__(self) -> None:
        check_most(self, seed=LARGEST)
        if self.seed < 0:
            raise SpecError(f"rotate(seed={self.seed}): seed must be 0 or more", subject="seed")

    def apply(self, view: ModelView, seen: Mapping[str, Seen]) -> Mapping[str, Any]:
        """Rotate, and note the `kind` and `size` of the rotation.

        Also noted are whether the head was `untied`, and in how many blocks `heads` were rotated.
        """
        _check(Stream.of(view), view)
        untied = view.untie()
        stream = Stream.of(view)
        chance = torch.Generator().manual_seed(self.seed)
        for norm in stream.norms:
            scale = norm.scale
            if scale is not None:
                for weight in _distinct(stream.readers_of(norm)):
                    weight.set(weight.get().double() * scale.double())
                overwrite(norm.module.weight, torch.ones_like(scale) - norm.offset)  # pyright: ignore[reportArgumentType]  # a parameter
        size = stream.readers[0].weight.shape[1]
        q, kind = orthogonal(size, chance)
        q = q.to(stream.readers[0].weight.stored.device)
        for weight in _distinct(stream.readers):
            weight.set(weight.get().double() @ q)
        for weight in _distinct(stream.writers):
            numbers = weight.get().double()
            # A row of an embedding is a vector of the stream; so is a column of any other matrix.
            in_rows = isinstance(weight.owner, torch.nn.Embedding)
            weight.set(numbers @ q if in_rows else q.T @ numbers)
        for _, vector in stream.vectors:
            overwrite(vector, vector.detach().double() @ q)
        return {
            "kind": kind,
            "size": size,
            "untied": untied,
            "heads": self._rotate_heads(view, chance, q),
        }

    def _rotate_heads(self, view: ModelView, chance: torch.Generator, like: Tensor) -> int:
        if not self.heads:
            return 0
        blocks = Heads.of(view).values()
        for heads in blocks:
            rotation, _ = orthogonal(heads.width, chance)
            heads.multiply(rotation.to(like.device))
        return len(blocks)


def _distinct(roles: tuple[Reader, ...] | tuple[Writer, ...]) -> Any:
    """Each matrix once, in order: one that reads in two ways is one matrix all the same."""
    return {role.weight.address: role.weight for role in roles}.values()


def _check(stream: Stream, view: ModelView) -> None:
    """Raise `ModelError`, naming the norm, for a stream that can't be rotated."""
    kind = type(view.model).__name__
    for norm in stream.norms:
        if norm.centres:
            message = f"{norm.name} of a {kind} subtracts the mean, so its stream can't be rotated"
            raise ModelError(f"{message}; choose a model of RMSNorms", subject=norm.name)
        if norm.others:
            message = f"what {norm.name} gives also goes into {norm.others[0]}"
            remedy = "so its gain can't be moved into matrices"
            raise ModelError(f"{message}, {remedy}", subject=norm.name)
    for writer in stream.writers:
        if writer.norm is not None:
            place = f"stands between {writer.weight.name} and the stream"
            message = f"{writer.norm.name} of a {kind} {place}, and no rotation passes through it"
            remedy = "choose a model whose matrices write to the stream themselves"
            raise ModelError(f"{message}; {remedy}", subject=writer.norm.name)
