"""What a snapshot stands on: who hears before numbers of a model are overwritten, and which module
holds which parts.

    will_change(parameter)
    parameter.detach().mul_(2)

Whatever writes a model's numbers in place says so first. `Weight.set` does; an edit or a transform
that writes elsewhere (a norm, an embedding) does it itself, or uses `overwrite`. Replacing a
parameter by another, or its `data`, needs no word: what was there is still there.
"""

import copy
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


class Listener(ABC):
    """Is told before numbers change, for as long as somebody holds it."""

    def __init__(self) -> None:
        _LISTENERS.add(self)

    @abstractmethod
    def will_change(self, tensor: Tensor) -> None:
        """`tensor`, or a part of it, is about to be overwritten."""


_LISTENERS: weakref.WeakSet[Listener] = weakref.WeakSet()


def will_change(tensor: Tensor) -> None:
    """Say that the numbers of `tensor` (or of what it is a view of) are about to be overwritten
    in place.
    """
    for listener in list(_LISTENERS):
        listener.will_change(tensor)


def overwrite(tensor: Tensor, numbers: Tensor) -> None:
    """Copy `numbers`, of the same shape, over those of `tensor`, in its own type, having said
    so.
    """
    will_change(tensor)
    with torch.no_grad():
        tensor.copy_(numbers)


@final
@dataclass(frozen=True)
class Structure:
    """Which module holds what, and what the configurations say."""

    modules: tuple[tuple[nn.Module, Mapping[str, Any]], ...]
    configs: tuple[tuple[PreTrainedConfig, Mapping[str, Any]], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Structure":
        """Remember it."""
        modules = tuple(
            (module, {name: _shallow(value) for name, value in vars(module).items()})
            for module in model.modules()
        )
        configs: dict[int, PreTrainedConfig] = {}
        for module in model.modules():
            _configs(vars(module).values(), configs)
        return cls(modules, tuple((config, _deep(vars(config))) for config in configs.values()))

    def put_back(self) -> None:
        """Make it that again."""
        for module, parts in self.modules:
            now = vars(module)
            for name in [name for name in now if name not in parts]:
                del now[name]
            for name, value in parts.items():
                # A hook's handle knows the very dictionary that it stands in.
                if "hook" not in name:
                    now[name] = _shallow(value)
        for config, entries in self.configs:
            vars(config).clear()
            vars(config).update(_deep(entries))


def _shallow(value: Any) -> Any:
    return copy.copy(value) if type(value) in (dict, OrderedDict, list, set) else value


def _configs(values: Iterable[Any], configs: dict[int, PreTrainedConfig]) -> None:
    """All configurations among `values` and in those, by address: a model's parts hold the same
    few objects.
    """
    for value in values:
        if isinstance(value, PreTrainedConfig) and id(value) not in configs:
            configs[id(value)] = value
            _configs(vars(value).values(), configs)


def _deep(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what a configuration says; the configurations in it stay the objects that the
    model's parts hold.
    """
    return {
        name: value if isinstance(value, PreTrainedConfig) else copy.deepcopy(value)
        for name, value in entries.items()
    }
