"""Compressing a model: `prune` and `quantize` do the whole job, files included; `compress` is
the loop that they and studies share.
"""

# First: it imports transformers without collecting garbage meanwhile, which is faster.
import calibrant.models  # pyright: ignore[reportUnusedImport]  # noqa: F401
from calibrant.compress.compression import Compression
from calibrant.compress.exporting import Exported, export
from calibrant.compress.loop import UntouchedModel, compress, put_back, stored_edits, transformed
from calibrant.compress.matrices import check_model, edits_of
from calibrant.compress.planning import JobPlan, plan
from calibrant.compress.prune_quantize import prune, quantize
from calibrant.compress.recipe import PROPAGATIONS, Recipe
from calibrant.compress.room import fitting

__all__ = [
    "PROPAGATIONS",
    "Compression",
    "Exported",
    "JobPlan",
    "Recipe",
    "UntouchedModel",
    "check_model",
    "compress",
    "edits_of",
    "export",
    "fitting",
    "plan",
    "prune",
    "put_back",
    "quantize",
    "stored_edits",
    "transformed",
]
