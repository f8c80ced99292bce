"""A KV cache that a folder in a format of compressed-tensors says is quantized: in its
configuration how, and in its files with which scales.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from calibrant.errors import ModelError, NumericsError
from calibrant.models.complete import StoredTensor
from calibrant.models.configuring import opening_by_transformers
from calibrant.models.declared_inputs import quantization_settings
from calibrant.models.rounded_cache import RoundedCache, attends, round_cache
from calibrant.spec.foreign import brief
from calibrant.targets import CacheGrid

SCHEME: Final = "kv_cache_scheme"
"""What the configuration says of the cache."""
KEYS: Final = "k_scale"
VALUES: Final = "v_scale"
"""What the scales of an attention are called, behind the name of its module."""
KNOWN: Final = (
    CacheGrid("e4m3"),
    CacheGrid("e4m3", "head"),
    CacheGrid("int8"),
    CacheGrid("int8", "head"),
)
"""The ways to round a cache that are computed here."""


def cache_settings(caches: Mapping[str, RoundedCache]) -> dict[str, Any] | None:
    """Return what the library's configuration says of caches, which have the same grid; None where
    there are none.
    """
    for rounding in caches.values():
        return _settings(rounding.grid)
    return None


def cache_tensors(caches: Mapping[str, RoundedCache], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the scales of caches as the library stores them, by name: one, or [head, 1, 1]. They
    are in `dtype`, or in float32 where that doesn't hold them to the bit.
    """
    tensors: dict[str, Tensor] = {}
    for name, rounding in caches.items():
        for part, scales in ((KEYS, rounding.keys), (VALUES, rounding.values)):
            stored = torch.tensor(scales, dtype=dtype)
            # Scales that were found for another type aren't rounded once more.
            if stored.tolist() != list(scales):
                stored = torch.tensor(scales, dtype=torch.float32)
            if rounding.grid.per == "head":
                stored = stored[:, None, None]
            tensors[f"{name}.{part}"] = stored
    return tensors


@final
@dataclass(frozen=True)
class DeclaredCache:
    """How attentions round keys and values, by name; `tensors` are the names of all that the files
    say of it.
    """

    caches: Mapping[str, RoundedCache] = field(default_factory=dict[str, RoundedCache])
    tensors: frozenset[str] = frozenset()

    def apply(self, model: nn.Module, ref: str) -> None:
        """Let the attentions of `model` round keys and values. Raises `ModelError` for one that
        can't, and for one without scales where others have some.
        """
        known = dict(model.named_modules())
        for name, rounding in self.caches.items():
            module = known.get(name)
            if module is None or not attends(module):
                raise ModelError(
                    f"{ref} rounds the KV cache of {brief(name)}, which is no attention of this "
                    "model that can; check its configuration",
                    subject=name,
                )
            round_cache(module, rounding)
        for name, module in known.items():
            if self.caches and attends(module) and name not in self.caches:
                raise ModelError(
                    f"{ref} quantizes its KV cache and holds no {KEYS} of {name}; save it again",
                    subject=name,
                )


def declared_cache(
    folder: Path, ref: str, weights: Sequence[Path], stored: Mapping[str, StoredTensor]
) -> DeclaredCache:
    """Return how a folder says its KV cache is rounded. Raises `ModelError` for a way that isn't
    known here, and for scales that are missing or can't be used.
    """
    given = quantization_settings(folder).get(SCHEME)
    if not given:
        return DeclaredCache()
    grid = _grid_of(given, ref)
    scales: dict[str, dict[str, list[float]]] = {}
    tensors: set[str] = set()
    for path in weights:
        with opening_by_transformers(ref), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                module, _, part = name.rpartition(".")
                if part in (KEYS, VALUES):
                    tensors.add(name)
                    numbers = file.get_tensor(name).double().flatten().tolist()
                    scales.setdefault(module, {})[part] = numbers
    if not scales:
        raise ModelError(
            f"{ref} quantizes its KV cache and holds no {KEYS}; save it again", subject=ref
        )
    caches: dict[str, RoundedCache] = {}
    for module, parts in scales.items():
        keys = parts.get(KEYS, [])
        values = parts.get(VALUES, [])
        try:
            caches[module] = RoundedCache(grid, tuple(keys), tuple(values))
        except (NumericsError, ValueError) as error:
            raise ModelError(f"{ref}: {module}: {error}", subject=module) from error
    return DeclaredCache(caches, frozenset(tensors))


def _settings(grid: CacheGrid) -> dict[str, Any]:
    return {
        "num_bits": 8,
        "type": "int" if grid.element == "int8" else "float",
        "symmetric": True,
        "strategy": "attn_head" if grid.per == "head" else "tensor",
        "dynamic": False,
    }


def _grid_of(given: Any, ref: str) -> CacheGrid:
    for grid in KNOWN:
        expected = _settings(grid).items()
        if isinstance(given, dict) and all(given.get(key) == value for key, value in expected):
            return grid
    raise ModelError(
        f"{ref} quantizes its KV cache in a way that isn't computed here ({brief(given)}); 8 bits "
        "with symmetric static scales, one for a layer or for a head, are; save it with these",
        subject=ref,
    )
