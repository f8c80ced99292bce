"""A model whose files lack some numbers would get random ones in their place: it is refused."""

from typing import Any

from calibrant.errors import ModelError


def check_complete(loaded: Any, ref: str) -> None:
    """Raise `ModelError`, naming a parameter, if transformers' loading report says that it is missing or of another shape."""
    if loaded["mismatched_keys"]:
        name, held, asked = min(loaded["mismatched_keys"])
        raise ModelError(f"{ref}: {name} is {list(held)}, but the configuration asks for {list(asked)}; check config.json", subject=name)
    if loaded["missing_keys"]:
        name = min(loaded["missing_keys"])
        raise ModelError(f"{ref} has no numbers for {name}, which would be random; give a complete model with its head", subject=name)
