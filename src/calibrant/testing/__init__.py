"""Shipped with the library, for its own tests and for those of others' methods, sources and architectures."""

from calibrant.testing.architectures import check_architecture
from calibrant.testing.tiny import FAMILIES, tiny_folder, tiny_gguf, tiny_model, tiny_tokenizer

__all__ = ["FAMILIES", "check_architecture", "tiny_folder", "tiny_gguf", "tiny_model", "tiny_tokenizer"]
