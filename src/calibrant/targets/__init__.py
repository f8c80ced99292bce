"""Targets: what a matrix is to become, one kind a file: a sparsity (`0.5`), N kept of every M
(`2:4`), a grid of few values (`w4g64`, `NVFP4A16`), both (`2:4+w4g64`), a share of the blocks, the
experts or the numbers of feed-forward networks (`blocks 0.25`), bytes of a file (`gguf 90MB`), or
what becomes of the KV cache (`w4g64+kv_fp8`, `kv_int8`).

Targets are small values. A removal is exact: the count is the one that was asked for, to the
weight, and where scores tie the lowest index goes first. So a mask depends on nothing but the
scores: not on the device, the threads, or how a sort happens to break ties.
"""

from calibrant.targets._base import Group, Removal, Target, Verb, keep_highest
from calibrant.targets._cache import CacheGrid
from calibrant.targets._elements import E2M1, E4M3, Element
from calibrant.targets._inputs import InputGrid, Range
from calibrant.targets._kinds import accepted, allowed, examples, kinds, parse_target, targets
from calibrant.targets.float_grid import FloatGrid
from calibrant.targets.ggml_kind import GgmlKind
from calibrant.targets.gguf_budget import GgufBudget
from calibrant.targets.gguf_recipe import GgufRecipe
from calibrant.targets.grid import Grid
from calibrant.targets.n_of_m import NofM
from calibrant.targets.scheme import Scheme
from calibrant.targets.share import Parts, Share
from calibrant.targets.sparse_grid import SparseGrid
from calibrant.targets.sparsity import Sparsity
from calibrant.targets.with_cache import WithCache

__all__ = [
    "E2M1",
    "E4M3",
    "CacheGrid",
    "Element",
    "FloatGrid",
    "GgmlKind",
    "GgufBudget",
    "GgufRecipe",
    "Grid",
    "Group",
    "InputGrid",
    "NofM",
    "Parts",
    "Range",
    "Removal",
    "Scheme",
    "Share",
    "SparseGrid",
    "Sparsity",
    "Target",
    "Verb",
    "WithCache",
    "accepted",
    "allowed",
    "examples",
    "keep_highest",
    "kinds",
    "parse_target",
    "targets",
]
