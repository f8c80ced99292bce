"""Compression methods, one file each; the list of names is the list of files.

What compresses one matrix at a time inherits `MatrixMethod`, and knows tensors alone. What makes
edits of other kinds inherits `ModelMethod`, or `BlockMethod` or `ExpertMethod`. These import models
and the walk, and so are imported only when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from calibrant.methods._base import MatrixMethod, Method, StandIn, TokenUse, grid, removal
from calibrant.packed import Compressed
from calibrant.spec.registry import Registry

if TYPE_CHECKING:
    from calibrant.methods._model_method import BlockMethod, ExpertMethod, ModelMethod

methods = Registry(__name__, "method")

__all__ = [
    "BlockMethod",
    "Compressed",
    "ExpertMethod",
    "MatrixMethod",
    "Method",
    "ModelMethod",
    "StandIn",
    "TokenUse",
    "grid",
    "methods",
    "removal",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("calibrant.methods._model_method"), name)
