"""Rows chosen or made with the help of a model; the list of selectors is the list of files."""

from calibrant.data import selectors
from calibrant.data.select._base import Context, Picking, Selection, Selector, resolved

__all__ = ["Context", "Picking", "Selection", "Selector", "resolved", "selectors"]
