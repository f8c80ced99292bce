"""Rotation of the residual stream, after which no feature stands out (QuaRot, Ashkboos et al.
2024, arXiv 2404.00456; RSQ, arXiv 2503.01820).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Seen
from calibrant.errors import ModelError, SpecError
from calibrant.models import Heads, ModelView, Stream, Weight, overwrite
from calibrant.models.stream import Reader, Writer
from calibrant.spec import check_most
from calibrant.spec.foreign import LARGEST
from calibrant.system.products import exact, exact_type
from calibrant.transforms._base import Transform


@dataclass(frozen=True, repr=False)
class Rotate(Transform):
    """Rotates the residual stream, and each head's values, by Hadamard matrices with random signs;
    the logits stay what they were.

    The gains of norms move into the matrices that read them. A head that was the embedding gets
    numbers of its own: the model grows by vocabulary · hidden. Then what reads the stream is
    multiplied by Q and what writes to it by Qᵀ. Sizes without a known Hadamard matrix get a random
    orthogonal one. `heads` rotates values too, where attention does nothing but average them. All
    is folded into weights, so an ordinary model of the same architecture comes of it. The papers
    add rotations at run time before the down and output matrices: these can't be stored so, and are
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
        """Rotate, and return notes: the `kind` and `size` of the rotation, whether the head was
        `untied`, and in how many blocks `heads` were rotated.
        """
        _check(Stream.of(view), view)
        untied = view.untie()
        # Once more: an untied head is a matrix of its own, which the first didn't have.
        stream = Stream.of(view)
        generator = torch.Generator().manual_seed(self.seed)
        # Each of these steps computes in float64 and stores a matrix once: gains, the rotation of
        # the stream, and that of heads.
        _move_gains(stream)
        size = stream.readers[0].weight.shape[1]
        rotation, kind = orthogonal(size, generator)
        _rotate_stream(stream, rotation)
        rotated = 0
        if self.heads:
            for heads in Heads.of(view).values():
                head_rotation, _ = orthogonal(heads.width, generator)
                device = heads.values.stored.device
                heads.multiply(head_rotation.to(device, exact_type(device)))
                rotated += 1
        return {"kind": kind, "size": size, "untied": untied, "heads": rotated}


def _move_gains(stream: Stream) -> None:
    """Multiply the matrices that read a norm by the norm's gain, which becomes 1."""
    for norm in stream.norms:
        scale = norm.scale
        if scale is None:
            continue
        for weight in _distinct(stream.readers_of(norm)):
            weight.set(exact(weight.get()) * exact(scale))
        # A norm that adds an offset to what is stored gets 1 less it.
        overwrite(norm.module.weight, torch.ones_like(scale) - norm.offset)  # pyright: ignore[reportArgumentType]  # a parameter


def _rotate_stream(stream: Stream, rotation: Float[Tensor, "hidden hidden"]) -> None:
    """Multiply what reads the stream and what writes to it, so that the stream is rotated."""
    for weight in _distinct(stream.readers):
        numbers = exact(weight.get())
        weight.set(numbers @ rotation.to(numbers))
    for weight in _distinct(stream.writers):
        numbers = exact(weight.get())
        # The rows of an embedding are written to the stream, of a matrix its outputs.
        if isinstance(weight.owner, torch.nn.Embedding):
            weight.set(numbers @ rotation.to(numbers))
        else:
            weight.set(rotation.T.to(numbers) @ numbers)
    for _, vector in stream.vectors:
        numbers = exact(vector.detach())
        overwrite(vector, numbers @ rotation.to(numbers))


def _distinct(roles: Iterable[Reader] | Iterable[Writer]) -> list[Weight]:
    """Return each matrix once, in order: one that reads at two places would be changed twice."""
    weights = {role.weight.address: role.weight for role in roles}
    return list(weights.values())


def _check(stream: Stream, view: ModelView) -> None:
    """Raise `ModelError`, naming the norm, for a stream that can't be rotated."""
    kind = type(view.model).__name__
    for norm in stream.norms:
        if norm.centres:
            raise ModelError(
                f"{norm.name} of a {kind} subtracts the mean, so its stream can't be rotated; "
                f"choose a model of RMSNorms",
                subject=norm.name,
            )
        if norm.others:
            raise ModelError(
                f"what {norm.name} gives also goes into {norm.others[0]}, "
                f"so its gain can't be moved into matrices",
                subject=norm.name,
            )
    for writer in stream.writers:
        if writer.norm is not None:
            raise ModelError(
                f"{writer.norm.name} of a {kind} stands between {writer.weight.name} and the "
                f"stream, and no rotation passes through it; "
                f"choose a model whose matrices write to the stream themselves",
                subject=writer.norm.name,
            )


def orthogonal(size: int, generator: torch.Generator) -> tuple[Float[Tensor, "size size"], str]:
    """Return an orthogonal matrix in float64 that spreads every feature over all others, and its
    kind: `hadamard` times random signs, or `random` (of normal numbers, by QR).
    """
    matrix = hadamard(size)
    # Drawn also where they aren't used: else the random numbers after them would be others.
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    if matrix is not None:
        return signs[:, None] * matrix / math.sqrt(size), "hadamard"
    normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
    rotation, triangle = torch.linalg.qr(normal)
    # QR leaves signs undecided: with those of the triangle the rotation is uniformly distributed.
    return rotation * triangle.diagonal().sign(), "random"


def hadamard(size: int) -> Float[Tensor, "size size"] | None:
    """Return a matrix of ±1 with orthogonal rows: one of Paley's, doubled as often as it takes;
    None where none of these has this size.

    >>> hadamard(576).shape[0], hadamard(52) is None
    (576, True)
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    paley = _paley(size)
    if paley is not None or size % 2:
        return paley
    half = hadamard(size // 2)
    if half is None:
        return None
    return torch.kron(_matrix([[1, 1], [1, -1]]), half)


def _matrix(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _paley(size: int) -> Tensor | None:
    """Return Paley's first construction, for a prime size - 1 = 3 mod 4, or his second, for a prime
    size / 2 - 1 = 1 mod 4; None for other sizes.
    """
    if size % 4:
        return None
    if _is_prime(size - 1):
        return torch.eye(size, dtype=torch.float64) + _conference(size - 1, -1)
    prime = size // 2 - 1
    if prime % 4 != 1 or not _is_prime(prime):
        return None
    crossed = torch.kron(_conference(prime, 1), _matrix([[1, 1], [1, -1]]))
    straight = torch.eye(size // 2, dtype=torch.float64)
    return crossed + torch.kron(straight, _matrix([[1, -1], [-1, -1]]))


def _conference(prime: int, sign: int) -> Tensor:
    """Return a conference matrix, [prime + 1, prime + 1]: zeros on the diagonal, else ±1, and
    orthogonal rows.

    It has the quadratic characters of the differences of all residues, and a border of ones; `sign`
    is that of the first column.
    """
    squares = [number * number % prime for number in range(1, prime)]
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[squares] = 1.0
    character[0] = 0.0
    places = torch.arange(prime)
    bordered = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    bordered[1:, 1:] = character[(places[:, None] - places[None, :]) % prime]
    bordered[0, 1:] = 1
    bordered[1:, 0] = sign
    return bordered


def _is_prime(number: int) -> bool:
    divisors = range(2, math.isqrt(number) + 1)
    return number > 1 and all(number % divisor for divisor in divisors)
