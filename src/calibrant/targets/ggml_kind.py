"""llama.cpp's kinds of blocks, such as `q4_k`: what one matrix is stored as in a GGUF file."""

from dataclasses import dataclass
from typing import ClassVar, Final

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.targets._base import Target

FALLBACK: Final = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "iq1_s": "iq4_nl",
    "iq1_m": "iq4_nl",
    "iq2_xxs": "iq4_nl",
    "iq2_xs": "iq4_nl",
    "iq2_s": "iq4_nl",
    "iq3_xxs": "iq4_nl",
    "iq3_s": "iq4_nl",
    "iq4_xs": "iq4_nl",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}
"""The kind that llama.cpp takes for a matrix whose rows aren't multiples of 256."""
KINDS: Final = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", *FALLBACK)
"""The kinds that ggml makes of a matrix."""
UNWEIGHTED: Final = ("q8_0",)
"""Kinds that are the same whatever the inputs' importance."""


@dataclass(frozen=True)
class GgmlKind(Target):
    """Blocks of a kind of llama.cpp's: 32 inputs of a row share a scale, or 256 in kinds whose
    scales have scales.

    >>> GgmlKind("q4_k").amount
    4.5
    """

    written: ClassVar[str] = "one of llama.cpp's kinds of blocks"
    example: ClassVar[str] = "q4_k"

    name: str

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise TargetError(
                f"{brief(self.name)} is no kind of llama.cpp's blocks; "
                f"write one of {', '.join(KINDS)}",
                subject=str(self.name),
            )

    @classmethod
    def read(cls, value: str | float | int) -> "GgmlKind | None":
        name = value.strip().lower() if isinstance(value, str) else ""
        return cls(name) if name in KINDS else None

    def __str__(self) -> str:
        return self.name

    @property
    def amount(self) -> float:
        inputs, size = self._block
        return size * 8 / inputs

    def fitting(self, inputs: int) -> "GgmlKind | None":
        """Return the kind that llama.cpp takes for rows of so many inputs: this one if it fits,
        else its fallback if that fits, else None (plain numbers).

        >>> GgmlKind("q4_k").fitting(576), GgmlKind("q4_k").fitting(100)
        (GgmlKind(name='q5_0'), None)
        """
        for name in (self.name, FALLBACK.get(self.name, self.name)):
            if inputs % GgmlKind(name)._block[0] == 0:
                return GgmlKind(name)
        return None

    @property
    def _block(self) -> tuple[int, int]:
        """How many inputs a block has, and how many bytes."""
        return GGML_QUANT_SIZES[GGMLQuantizationType[self.name.upper()]]

    def check(self, shape: tuple[int, int], name: str) -> None:
        inputs = self._block[0]
        if shape[1] % inputs:
            fallback = FALLBACK.get(self.name, "")
            # All fallbacks have blocks of 32 inputs.
            instead = "choose a grid such as w4"
            if fallback and shape[1] % 32 == 0:
                instead = f"llama.cpp takes {fallback} there, so choose that"
            raise TargetError(
                f"{name} has {shape[1]} inputs, and {self} packs {inputs} at a time; {instead}",
                subject=name,
            )
