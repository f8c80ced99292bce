"""Compression methods, one file each; the list of names is the list of files."""

from calibrant.methods._base import (
    BlockMethod,
    ExpertMethod,
    MatrixMethod,
    Method,
    StandIn,
    grid,
    removal,
)
from calibrant.packed import Compressed
from calibrant.spec.registry import Registry

methods = Registry(__name__, "method")

__all__ = [
    "BlockMethod",
    "Compressed",
    "ExpertMethod",
    "MatrixMethod",
    "Method",
    "StandIn",
    "grid",
    "methods",
    "removal",
]
