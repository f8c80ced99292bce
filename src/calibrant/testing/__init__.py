"""Shipped with the library, for its own tests and for those of others' methods, sources and
architectures.
"""

from calibrant.testing.architectures import check_architecture
from calibrant.testing.device import PretendedDevice, pretended_device
from calibrant.testing.edits import check_edits
from calibrant.testing.methods import check_method
from calibrant.testing.sources import check_source
from calibrant.testing.tiny import FAMILIES, tiny_folder, tiny_gguf, tiny_model, tiny_tokenizer

__all__ = [
    "FAMILIES",
    "PretendedDevice",
    "check_architecture",
    "check_edits",
    "check_method",
    "check_source",
    "pretended_device",
    "tiny_folder",
    "tiny_gguf",
    "tiny_model",
    "tiny_tokenizer",
]
