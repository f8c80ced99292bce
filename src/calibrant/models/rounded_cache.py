"""Attention whose keys and values are rounded as a quantized KV cache holds them: behind rotary
embeddings, where transformers hands them to what computes attention. So a forward that reads a
cache sees the same numbers as one without.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, final

from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from calibrant.errors import ModelError
from calibrant.models.viewing import Block, ModelView
from calibrant.targets import CacheGrid

INTERFACE: Final = "ALL_ATTENTION_FUNCTIONS"
"""What modules of transformers call the table of ways to compute attention."""
CHANGED: Final = "calibrant|"
"""What the name of a way begins with that changes keys and values first. The rest is the way that
was there, since some modules look into the name.
"""
CHANGE: Final = "calibrant_cache"
"""The attribute of a module that changes its keys and values."""
SHARED: Final = "calibrant_shared_config"
"""The attribute of such a module that is the configuration which it had, the one that the model
makes its masks by.
"""

Cached = Float[Tensor, "sample head position width"]
"""Keys or values of a layer."""
Change = Callable[[Cached, Cached], tuple[Cached, Cached]]
"""Returns what attention gets in the place of keys and values."""


@final
@dataclass(frozen=True)
class RoundedCache:
    """Keys and values on a `grid`, each with scales of their own: one, or one for each head.

    It stands in the attention's own attributes. So it is a part of the model's structure: what
    restores that takes it away, and a copy of the model has one of its own.
    """

    grid: CacheGrid
    keys: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        self.grid.check(self.keys)
        self.grid.check(self.values)

    def __call__(self, keys: Cached, values: Cached) -> tuple[Cached, Cached]:
        return self.grid.rounded(keys, self.keys), self.grid.rounded(values, self.values)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> "RoundedCache":
        """Return what `facts` were made of. Raises `KeyError`, `TypeError` or `ValueError` for
        others.
        """
        return cls(CacheGrid.read(facts["grid"]), _scales(facts["keys"]), _scales(facts["values"]))

    def facts(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"grid": asdict(self.grid), "keys": list(self.keys), "values": list(self.values)}


def attention_names(view: ModelView) -> list[str]:
    """Return the name of each block's attention. Raises `ModelError` for a block whose keys and
    values can't be rounded as its cache holds them, with the reason.
    """
    return [_attention_name(block) for block in view.blocks]


def attends(module: nn.Module) -> bool:
    """Return whether a module hands keys and values to transformers' attention interface."""
    has_way = hasattr(vars(module).get("config"), "_attn_implementation")
    code = getattr(_forward_of(module), "__code__", None)
    return has_way and code is not None and INTERFACE in code.co_names


def round_cache(module: nn.Module, rounding: RoundedCache) -> None:
    """Let an attention round its keys and values, in place of how it did before."""
    _change(module, rounding)


def rounded_caches(model: nn.Module) -> dict[str, RoundedCache]:
    """Return the attentions of a model that round keys and values, by name."""
    found: dict[str, RoundedCache] = {}
    for name, module in model.named_modules():
        change = vars(module).get(CHANGE)
        if isinstance(change, RoundedCache):
            found[name] = change
    return found


def cache_as_it_is(module: nn.Module) -> Callable[[], None]:
    """Return what gives an attention back the way that it treats keys and values now."""
    attributes = vars(module)
    names = ("config", SHARED, CHANGE)
    before = {name: attributes[name] for name in names if name in attributes}

    def put_back() -> None:
        for name in names:
            attributes.pop(name, None)
        attributes.update(before)

    return put_back


@contextmanager
def watched(module: nn.Module, watch: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """While it lasts, an attention doesn't round, and `watch` is shown its keys and values."""

    def shown(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        watch(keys, values)
        return keys, values

    put_back = cache_as_it_is(module)
    _change(module, shown)
    try:
        yield
    finally:
        put_back()


def _change(module: nn.Module, change: Change) -> None:
    attributes = vars(module)
    if SHARED not in attributes:
        shared: Any = attributes["config"]
        # A copy, since all that isn't to be changed reads the shared one.
        own = copy.copy(shared)
        own._attn_implementation_internal = f"{CHANGED}{_way(shared)}"
        ALL_ATTENTION_FUNCTIONS.register(own._attn_implementation_internal, _attention)
        attributes[SHARED] = shared
        attributes["config"] = own
    attributes[CHANGE] = change


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Attention of keys and values that the module changes, computed as the model's configuration
    says by now: the masks are made for that.
    """
    attributes = vars(module)
    key, value = attributes[CHANGE](key, value)
    # The way as the module itself would find it: `eager` is a function beside its class.
    known = _forward_of(module).__globals__
    eager = known.get("eager_attention_forward")
    interface = known[INTERFACE].get_interface(_way(attributes[SHARED]), eager)
    return interface(module, query, key, value, *args, **kwargs)


def _way(config: Any) -> str:
    """The way to compute attention that a configuration names."""
    return config._attn_implementation or "eager"


def _attention_name(block: Block) -> str:
    found = {name: module for name, module in block.module.named_modules() if attends(module)}
    if len(found) != 1:
        raise _refusal(
            block.name, f"{len(found)} modules in it use transformers' attention interface"
        )
    ((name, module),) = found.items()
    if getattr(vars(module)["config"], "kv_lora_rank", None) is not None:
        raise _refusal(block.name, "its cache holds a compressed form of them")
    constants = _forward_of(module).__code__.co_consts
    if "sdpa" in constants or ("eager", "sdpa") in constants:
        raise _refusal(block.name, "its attention does something else in each way to compute it")
    return f"{block.name}.{name}"


def _refusal(name: str, reason: str) -> ModelError:
    return ModelError(
        f"keys and values of {name} can't be rounded as its cache holds them: {reason}; leave its "
        "KV cache as it is",
        subject=name,
    )


def _forward_of(module: nn.Module) -> Any:
    """The forward of a module's class, without what is around it."""
    return inspect.unwrap(type(module).forward)


def _scales(numbers: Any) -> tuple[float, ...]:
    for number in numbers:
        if type(number) is not float:
            raise TypeError
    return tuple(numbers)
