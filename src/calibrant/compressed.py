"""What a method makes of a matrix."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from calibrant.packed import Packed


@dataclass(frozen=True)
class Compressed:
    """A new weight, and what the record should know about how it came about (a damping step that was needed, …).

    `packed` is the same weight as it is stored, where that isn't the dense matrix: `packed.dense()` equals `weight` bit for bit.
    """

    weight: Float[Tensor, "out in"]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    packed: Packed | None = None
