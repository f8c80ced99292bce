"""The KV cache rounded too, beside weights or alone: `w4g64+kv_fp8`, `kv_int8`."""

from dataclasses import dataclass
from typing import ClassVar, Final

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.targets._base import Target, name_and_word
from calibrant.targets._cache import WAYS, WORDS, CacheElement, CacheGrid, CacheScales
from calibrant.targets._inputs import InputGrid
from calibrant.targets.float_grid import FloatGrid
from calibrant.targets.grid import Grid
from calibrant.targets.scheme import Scheme
from calibrant.targets.sparse_grid import SparseGrid

BEFORE: Final = "kv_"
"""What the name of an element is written behind."""


@dataclass(frozen=True)
class WithCache(Target):
    """Keys and values of attention become values of an `element`, as a quantized KV cache holds
    them, with scales `per` tensor or head. All else becomes what `rest` says; without it, all else
    stays.

    >>> target = WithCache.read("w4g64+kv_int8(per=head)")
    >>> str(target.weights), target.cache
    ('w4g64', CacheGrid(element='int8', per='head'))
    """

    written: ClassVar[str] = "a grid or a scheme, and the KV cache rounded too"
    example: ClassVar[str] = "w4g64+kv_fp8"

    rest: Target | None
    element: CacheElement
    per: CacheScales = "tensor"

    @classmethod
    def read(cls, value: str | float | int) -> "WithCache | None":
        if not isinstance(value, str):
            return None
        before, plus, last = value.strip().rpartition("+")
        last = last.strip().lower()
        if not last.startswith(BEFORE):
            return None
        cache = _read_cache(last)
        if not plus:
            return cls(None, cache.element, cache.per)
        return cls(_read_rest(before.strip(), value), cache.element, cache.per)

    def __str__(self) -> str:
        words = {element: word for word, element in WORDS.items()}
        text = f"{BEFORE}{words[self.element]}"
        if self.per != "tensor":
            text += f"(per={self.per})"
        return text if self.rest is None else f"{self.rest}+{text}"

    @property
    def weights(self) -> Target:
        return self if self.rest is None else self.rest.weights

    @property
    def cache(self) -> CacheGrid:
        """What becomes of keys and values."""
        return CacheGrid(self.element, self.per)

    @property
    def inputs(self) -> InputGrid | None:
        """What becomes of the inputs of a matrix; None where they stay as they are."""
        return self.rest.inputs if isinstance(self.rest, Scheme) else None

    @property
    def looks(self) -> bool:
        return True

    @property
    def amount(self) -> float | None:
        return None if self.rest is None else self.rest.amount

    @property
    def revised(self) -> int:
        return 0 if self.rest is None else self.rest.revised

    def check(self, shape: tuple[int, int], name: str) -> None:
        if self.rest is not None:
            self.rest.check(shape, name)


def _read_cache(text: str) -> CacheGrid:
    read = name_and_word(text, "per", "tensor")
    if read is None:
        raise _unreadable(text)
    name, per = read
    element = WORDS.get(name.removeprefix(BEFORE))
    if element is None or per not in WAYS:
        raise _unreadable(text)
    return CacheGrid(element, per)


def _read_rest(text: str, whole: str) -> Target:
    """What is written before the KV cache, in the `whole` text of a target. Raises `TargetError`
    for what can't stand there.
    """
    if text.rpartition("+")[2].strip().lower().startswith(BEFORE):
        raise TargetError(
            f"{brief(whole)} rounds the KV cache twice; leave one of them out (--kv writes one "
            "behind the target)",
            subject=whole,
        )
    # By itself that is llama.cpp's recipe.
    if text.upper() == "NVFP4":
        return Scheme("NVFP4")
    for kind in (Grid, FloatGrid, SparseGrid, Scheme):
        rest = kind.read(text)
        if rest is not None:
            return rest
    raise TargetError(
        f"{brief(whole)} rounds the KV cache beside {brief(text)}, which is no grid and no scheme; "
        "write w4g64+kv_fp8 or W8A8+kv_fp8 (llama.cpp chooses its cache where a model runs)",
        subject=whole,
    )


def _unreadable(text: str) -> TargetError:
    return TargetError(
        f"{brief(text)} is no way to round the KV cache; write kv_int8 or kv_fp8, or "
        "kv_int8(per=head) for a scale for each head",
        subject=text,
    )
