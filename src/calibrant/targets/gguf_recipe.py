"""llama.cpp's recipes, such as `Q4_K_M`: which kind of blocks each tensor of a file gets."""

from dataclasses import dataclass
from typing import ClassVar, Final

from gguf import LlamaFileType

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.targets._base import Target
from calibrant.targets.ggml_kind import KINDS, UNWEIGHTED, GgmlKind

_MOSTLY: Final = "MOSTLY_"
"""What the library's names of recipes begin with."""
_PLAIN: Final = ("F16", "BF16")


def _recipes() -> tuple[str, ...]:
    """The file types of llama.cpp that its quantizer makes, without those of plain numbers."""
    names: list[str] = []
    for kind in LlamaFileType:
        name = kind.name.removeprefix(_MOSTLY)
        if name != kind.name and name not in _PLAIN:
            names.append(name)
    return tuple(names)


RECIPES: Final = _recipes()
"""The recipes that llama-quantize can be asked for."""
_MAIN: Final = {"IQ3_XS": "iq3_s", "IQ3_M": "iq3_s", "IQ2_S": "iq2_xs", "IQ2_M": "iq2_s"}
"""The kind that most matrices get, where the recipe's name doesn't begin with it."""
_UNWEIGHTED: Final = ("TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4")
"""Recipes for which an imatrix makes no difference, and whose kinds aren't among `KINDS`."""


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
        # Q8_0 is a kind and a recipe: as a target it is the kind.
        if name not in RECIPES or name.lower() in KINDS:
            return None
        return cls(name)

    @classmethod
    def of(cls, kind: GgmlKind) -> "GgufRecipe":
        """Return the recipe that has a kind's name. Raises `TargetError` for a kind whose recipes
        have longer names.
        """
        name = kind.name.upper()
        if name not in RECIPES:
            recipes = [recipe for recipe in RECIPES if recipe.startswith(f"{name}_")]
            message = f"{kind} is a kind of blocks, and llama.cpp has no recipe of that name"
            raise TargetError(f"{message}; write {' or '.join(recipes)}", subject=str(kind))
        return cls(name)

    def __str__(self) -> str:
        return self.name

    @property
    def kind(self) -> GgmlKind | None:
        """The kind that most matrices get, as far as it fits their rows; None for a recipe whose
        kind can't be made matrix by matrix here.

        >>> GgufRecipe("Q4_K_M").kind, GgufRecipe("IQ2_M").kind, GgufRecipe("TQ1_0").kind
        (GgmlKind(name='q4_k'), GgmlKind(name='iq2_s'), None)
        """
        # The longest kind that the name begins with: Q4_K_M is of q4_k.
        longest = ""
        for kind in KINDS:
            prefix = kind.upper()
            named = self.name == prefix or self.name.startswith(f"{prefix}_")
            if named and len(kind) > len(longest):
                longest = kind
        name = _MAIN.get(self.name) or longest
        return GgmlKind(name) if name else None

    @property
    def weighted(self) -> bool:
        """Whether an imatrix makes a difference to the file."""
        if self.name in _UNWEIGHTED:
            return False
        return self.kind is None or self.kind.name not in UNWEIGHTED
