"""Who wants to hear before numbers of a model are overwritten: how a snapshot copies only what changes.

    will_change(parameter)
    parameter.detach().mul_(2)

Whatever writes a model's numbers in place says so first. `Weight.set` does; an edit or a transform that writes elsewhere (a norm, an
embedding) does it itself, or uses `overwrite`. Replacing a parameter by another, or its `data`, needs no word: what was there is still there.
"""

import weakref
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Listener(ABC):
    """Is told before numbers change, for as long as somebody holds it."""

    def __init__(self) -> None:
        _LISTENERS.add(self)

    @abstractmethod
    def will_change(self, tensor: Tensor) -> None:
        """`tensor`, or a part of it, is about to be overwritten."""


_LISTENERS: weakref.WeakSet[Listener] = weakref.WeakSet()


def will_change(tensor: Tensor) -> None:
    """Say that the numbers of `tensor` (or of what it is a view of) are about to be overwritten in place."""
    for listener in list(_LISTENERS):
        listener.will_change(tensor)


def overwrite(tensor: Tensor, numbers: Tensor) -> None:
    """Copy `numbers`, of the same shape, over those of `tensor`, in its own type, having said so."""
    will_change(tensor)
    with torch.no_grad():
        tensor.copy_(numbers)
