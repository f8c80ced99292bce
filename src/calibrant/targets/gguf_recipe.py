"""llama.cpp's recipes, such as `Q4_K_M`: which kind of blocks each tensor of a file gets."""

from dataclasses import dataclass
from typing import ClassVar, Final

from gguf import LlamaFileType

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.targets._base import Target
from calibrant.targets.ggml_kind import KINDS, UNWEIGHTED, GgmlKind

_PLAIN: Final = ("F16", "BF16")
RECIPES: Final = tuple(
    name
    for one in LlamaFileType
    if (name := one.name.removeprefix("MOSTLY_")) != one.name and name not in _PLAIN
)
"""What llama-quantize can be asked for."""
_MAIN: Final = {"IQ3_XS": "iq3_s", "IQ3_M": "iq3_s", "IQ2_S": "iq2_xs", "IQ2_M": "iq2_s"}
"""The kind that most matrices get, where the recipe's name doesn't begin with it."""
_UNWEIGHTED: Final = ("TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4")
"""Recipes whose kinds are the same with an imatrix as without, beside those of unweighted kinds
that `KINDS` has.
"""


@dataclass(frozen=True)
class GgufRecipe(Target):
    """A recipe of llama-quantize's. It chooses each tensor's kind itself, that of embedding and
    head too, and chooses otherwise with an imatrix.
    """

    written: ClassVar[str] = "one of llama.cpp's recipes"
    example: ClassVar[str] = "Q4_K_M"

    name: str

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise TargetError(
                f"{brief(self.name)} is no recipe of llama.cpp; write one of {', '.join(RECIPES)}",
                subject=str(self.name),
            )

    @classmethod
    def read(cls, value: str | float | int) -> "GgufRecipe | None":
        name = value.strip().upper() if isinstance(value, str) else ""
        return cls(name) if name in RECIPES and name.lower() not in KINDS else None

    def __str__(self) -> str:
        return self.name

    @property
    def kind(self) -> GgmlKind | None:
        """The kind that most matrices get whose rows it fits; None for a recipe whose kind isn't
        made matrix by matrix here.

        >>> GgufRecipe("Q4_K_M").kind, GgufRecipe("IQ2_M").kind, GgufRecipe("TQ1_0").kind
        (GgmlKind(name='q4_k'), GgmlKind(name='iq2_s'), None)
        """
        begins = [
            kind
            for kind in KINDS
            if self.name == kind.upper() or self.name.startswith(f"{kind.upper()}_")
        ]
        name = _MAIN.get(self.name) or max(begins, key=len, default="")
        return GgmlKind(name) if name else None

    @property
    def weighted(self) -> bool:
        """Whether an imatrix makes a difference to the file."""
        return self.name not in _UNWEIGHTED and (
            self.kind is None or self.kind.name not in UNWEIGHTED
        )
