"""An edit by which an attention gets rounded keys and values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrant.edits.kinds import Edit, StoredEdit
from calibrant.models import ModelView
from calibrant.models.rounded_cache import (
    RoundedCache,
    attends,
    cache_as_it_is,
    round_cache,
)


@dataclass(frozen=True)
class QuantizeCache(Edit):
    """Keys and values of the module `attention`, in the block `index`, are rounded as `rounding`
    says, as a quantized KV cache holds them.
    """

    kind: ClassVar[str] = "quantize_cache"

    attention: str
    index: int
    rounding: RoundedCache

    @property
    def block(self) -> int | None:
        return self.index

    def apply(self, view: ModelView) -> None:
        round_cache(view.model.get_submodule(self.attention), self.rounding)

    def undo(self, view: ModelView) -> Callable[[], None]:
        return cache_as_it_is(view.model.get_submodule(self.attention))

    def report(self, view: ModelView) -> dict[str, Any]:
        """Return the line of the record: the attention, and how its keys and values are rounded."""
        return {"edit": self.kind, "name": self.attention, **self.rounding.facts()}

    def stored(self) -> StoredEdit:
        facts = {"attention": self.attention, "index": self.index, **self.rounding.facts()}
        return StoredEdit(self.kind, facts)

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "QuantizeCache":
        facts = stored.facts
        name = facts["attention"]
        module = dict(view.model.named_modules()).get(name)
        if module is None or not attends(module):
            raise ValueError(f"{name} is no attention")
        return cls(name, facts["index"], RoundedCache.read(facts))
