"""Which module of a model holds which parts, and what its configurations say: references, no numbers."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from transformers import PreTrainedConfig


@final
@dataclass(frozen=True)
class Structure:
    """Which module holds what, and what the configurations say."""

    modules: tuple[tuple[nn.Module, Mapping[str, Any]], ...]
    configs: tuple[tuple[PreTrainedConfig, Mapping[str, Any]], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Structure":
        """Remember it."""
        modules = tuple((module, {name: _shallow(value) for name, value in vars(module).items()}) for module in model.modules())
        found: dict[int, PreTrainedConfig] = {}
        for module in model.modules():
            _configs(vars(module).values(), found)
        return cls(modules, tuple((config, _deep(vars(config))) for config in found.values()))

    def put_back(self) -> None:
        """Make it that again."""
        for module, held in self.modules:
            now = vars(module)
            for name in [name for name in now if name not in held]:
                del now[name]
            for name, value in held.items():
                # A hook's handle knows the very dictionary that it stands in.
                if "hook" not in name:
                    now[name] = _shallow(value)
        for config, said in self.configs:
            vars(config).clear()
            vars(config).update(_deep(said))


def _shallow(value: Any) -> Any:
    return copy.copy(value) if type(value) in (dict, OrderedDict, list, set) else value


def _configs(values: Iterable[Any], found: dict[int, PreTrainedConfig]) -> None:
    """All configurations among `values` and in those, by address: a model's parts hold the same few objects."""
    for value in values:
        if isinstance(value, PreTrainedConfig) and id(value) not in found:
            found[id(value)] = value
            _configs(vars(value).values(), found)


def _deep(said: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what a configuration says; the configurations in it stay the objects that the model's parts hold."""
    return {name: value if isinstance(value, PreTrainedConfig) else copy.deepcopy(value) for name, value in said.items()}
