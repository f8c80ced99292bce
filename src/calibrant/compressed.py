"""What a method makes of a matrix."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Compressed:
    """A new weight, and what the record should know about how it came about (a damping step that was needed, …)."""

    weight: Float[Tensor, "out in"]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
