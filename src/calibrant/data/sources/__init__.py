"""Where rows come from, one file each; the list of names is the list of files."""

from calibrant.spec.registry import Registry

sources = Registry(__name__, "source")

__all__ = ["sources"]
