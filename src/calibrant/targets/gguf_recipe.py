"""llama.cpp's recipes, such as `Q4_K_M`: which kind of blocks each tensor of a file gets."""

from dataclasses import dataclass
from typing import ClassVar, Final

from gguf import LlamaFileType

from calibrant.errors import TargetError
from calibrant.foreign import brief
from calibrant.targets._base import Target
from calibrant.targets.ggml_kind import KINDS

_PLAIN: Final = ("F16", "BF16")
RECIPES: Final = tuple(name for one in LlamaFileType if (name := one.name.removeprefix("MOSTLY_")) != one.name and name not in _PLAIN)
"""What llama-quantize can be asked for."""


@dataclass(frozen=True)
class GgufRecipe(Target):
    """A recipe of llama-quantize's. It chooses each tensor's kind itself, that of embedding and head too, and chooses otherwise with an imatrix."""

    written: ClassVar[str] = "one of llama.cpp's recipes"
    example: ClassVar[str] = "Q4_K_M"

    name: str

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise TargetError(f"{brief(self.name)} is no recipe of llama.cpp; write one of {', '.join(RECIPES)}", subject=str(self.name))

    @classmethod
    def read(cls, value: str | float | int) -> "GgufRecipe | None":
        name = value.strip().upper() if isinstance(value, str) else ""
        return cls(name) if name in RECIPES and name.lower() not in KINDS else None

    def __str__(self) -> str:
        return self.name
