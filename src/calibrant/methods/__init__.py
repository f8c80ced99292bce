"""Compression methods, one file each; the list of names is the list of files."""

from calibrant.methods._base import BlockMethod, MatrixMethod, Method
from calibrant.packed import Compressed
from calibrant.registry import Registry

methods = Registry(__name__, "method")

__all__ = ["BlockMethod", "Compressed", "MatrixMethod", "Method", "methods"]
