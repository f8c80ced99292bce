"""The dense Hugging Face folder: whatever was done, `AutoModelForCausalLM.from_pretrained` opens
it and gives what was measured, but for inputs that are rounded.
"""

from dataclasses import dataclass
from pathlib import Path

from calibrant.exports._base import CompressedModel, Export
from calibrant.models import Opened
from calibrant.models.saving import write_model


@dataclass(frozen=True, repr=False)
class HuggingFace(Export):
    """Writes configuration, weights as dense safetensors in the working type, and tokenizer. It
    is always written; naming it adds nothing.
    """

    def write(self, compressed: CompressedModel, folder: Path) -> None:
        write_model(compressed.opened, folder)

    def convert(self, opened: Opened, folder: Path) -> None:
        write_model(opened, folder)
