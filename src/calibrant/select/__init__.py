"""Rows chosen or made with the help of a model; the list of selectors is the list of files."""

from typing import Final

from calibrant.registry import Registry

selectors: Final = Registry("calibrant.select", "selector")

__all__ = ["selectors"]
