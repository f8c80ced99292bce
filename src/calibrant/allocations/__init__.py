"""How a target is shared among blocks, one file each; the list of names is the list of files."""

from calibrant.allocations._base import Allocation
from calibrant.allocations._sharing import to_the_weight
from calibrant.spec.registry import Registry

allocations = Registry(__name__, "allocation")

__all__ = ["Allocation", "allocations", "to_the_weight"]
