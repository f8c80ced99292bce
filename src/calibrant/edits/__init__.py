"""Edits: the changes that a method yields, what a record says of them, and the file that carries
them.
"""

from calibrant.edits.condensing import Condense
from calibrant.edits.folding import Fold, Scaling
from calibrant.edits.kinds import (
    DropBlocks,
    DropExperts,
    Edit,
    Replace,
    ReplaceParameters,
    StoredEdit,
    as_tensors,
    from_tensors,
    read_edit,
)
from calibrant.edits.quantize_cache import QuantizeCache
from calibrant.edits.quantize_inputs import QuantizeInputs

__all__ = [
    "Condense",
    "DropBlocks",
    "DropExperts",
    "Edit",
    "Fold",
    "QuantizeCache",
    "QuantizeInputs",
    "Replace",
    "ReplaceParameters",
    "Scaling",
    "StoredEdit",
    "as_tensors",
    "from_tensors",
    "read_edit",
]
