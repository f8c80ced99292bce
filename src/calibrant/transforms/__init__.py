"""What is done to a model before it is compressed, one file each; the list of names is the list
of files.
"""

from calibrant.spec.registry import Registry
from calibrant.transforms._base import Transform

transforms = Registry(__name__, "transform")

__all__ = ["Transform", "transforms"]
