"""How texts become windows of tokens, one file each; the list of names is the list of files."""

from calibrant.spec.registry import Registry

packings = Registry(__name__, "packing")

__all__ = ["packings"]
