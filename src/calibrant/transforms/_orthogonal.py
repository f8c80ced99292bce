"""Orthogonal matrices that spread every feature over all others: Hadamard matrices where one is
known, else random ones.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def orthogonal(size: int, chance: torch.Generator) -> tuple[Float[Tensor, "size size"], str]:
    """Return an orthogonal matrix in float64, and its kind: `hadamard` times random signs, or
    `random` (of normal numbers, by QR).
    """
    known = hadamard(size)
    signs = torch.randint(0, 2, (size,), generator=chance).double() * 2 - 1
    if known is not None:
        return signs[:, None] * known / math.sqrt(size), "hadamard"
    q, r = torch.linalg.qr(torch.randn(size, size, generator=chance, dtype=torch.float64))
    # With the signs of R the matrix is uniformly distributed.
    return q * r.diagonal().sign(), "random"


def hadamard(size: int) -> Float[Tensor, "size size"] | None:
    """Return a matrix of ±1 with orthogonal rows: one of Paley's, doubled as often as it takes;
    None where none of these has this size.

    >>> hadamard(576).shape[0], hadamard(52) is None
    (576, True)
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    paley = _paley(size)
    if paley is not None:
        return paley
    half = hadamard(size // 2) if size % 2 == 0 else None
    if half is None:
        return None
    doubling = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return torch.kron(doubling, half)


def _paley(size: int) -> Tensor | None:
    """Paley's first construction, for a prime size - 1 = 3 mod 4, or his second, for a prime
    size / 2 - 1 = 1 mod 4.
    """
    if size % 4 == 0 and _is_prime(size - 1):
        return torch.eye(size, dtype=torch.float64) + _conference(size - 1, -1)
    prime = size // 2 - 1
    if size % 4 == 0 and prime % 4 == 1 and _is_prime(prime):
        crossed = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        straight = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        diagonal = torch.eye(size // 2, dtype=torch.float64)
        return torch.kron(_conference(prime, 1), crossed) + torch.kron(diagonal, straight)
    return None


def _conference(prime: int, sign: int) -> Tensor:
    """The quadratic characters of all differences of two residues, bordered with ones: zeros on
    the diagonal, else ±1, orthogonal rows.
    """
    residues = torch.arange(1, prime)
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[residues.square() % prime] = 1.0
    character[0] = 0.0
    places = torch.arange(prime)
    bordered = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    bordered[1:, 1:] = character[(places[:, None] - places[None, :]) % prime]
    bordered[0, 1:] = 1
    bordered[1:, 0] = sign
    return bordered


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
