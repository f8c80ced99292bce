"""How a row becomes text, one file each; the list of names is the list of files."""

from calibrant.spec.registry import Registry

formats = Registry(__name__, "format")

__all__ = ["formats"]
