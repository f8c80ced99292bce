"""An edit that leaves what a block computes as it is: some of its parameters are multiplied by
factors, others divided by them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from calibrant.activations import wide
from calibrant.edits.kinds import Edit, StoredEdit
from calibrant.models import ModelView, overwrite


@final
@dataclass(frozen=True)
class Scaling:
    """The slices of a parameter along `axis`, counted from the end, are multiplied by `factors`.

    A norm may multiply by its weight plus an `offset`, such as 1: then the sum is multiplied.
    """

    name: str
    axis: int
    factors: Float[Tensor, "slice"] = field(repr=False, compare=False)
    offset: float = 0.0

    def scaled(self, parameter: Tensor) -> Tensor:
        """Return what becomes of the parameter, in float32 or wider."""
        dtype = wide(parameter.dtype)
        # The axes behind the one that is scaled.
        trailing = [1] * (-1 - self.axis)
        factors = self.factors.to(parameter.device, dtype).reshape([-1, *trailing])
        numbers = parameter.detach().to(dtype)
        return (numbers + self.offset) * factors - self.offset


@dataclass(frozen=True)
class Fold(Edit):
    """Scales move from one parameter of a block into others, so that the block computes what it
    did; `notes` say why these.
    """

    kind: ClassVar[str] = "fold"

    index: int
    scalings: tuple[Scaling, ...]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def block(self) -> int | None:
        return self.index

    def apply(self, view: ModelView) -> None:
        for scaling in self.scalings:
            parameter = view.model.get_parameter(scaling.name)
            overwrite(parameter, scaling.scaled(parameter))

    def undo(self, view: ModelView) -> Callable[[], None]:
        before: dict[nn.Parameter, Tensor] = {}
        for scaling in self.scalings:
            parameter = view.model.get_parameter(scaling.name)
            before[parameter] = parameter.detach().clone()

        def put_back() -> None:
            for parameter, numbers in before.items():
                overwrite(parameter, numbers)

        return put_back

    def report(self, view: ModelView) -> dict[str, Any]:
        return {
            "edit": self.kind,
            "block": self.index,
            "parameters": [scaling.name for scaling in self.scalings],
            "notes": dict(self.notes),
        }

    def stored(self) -> StoredEdit:
        scalings: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for number, scaling in enumerate(self.scalings):
            scalings.append({"name": scaling.name, "axis": scaling.axis, "offset": scaling.offset})
            # Cloned: several may be one tensor, which no file may hold.
            tensors[str(number)] = scaling.factors.clone()
        facts = {"block": self.index, "scalings": scalings, "notes": dict(self.notes)}
        return StoredEdit(self.kind, facts, tensors)

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Fold":
        known = dict(view.model.named_parameters())
        scalings: list[Scaling] = []
        for number, facts in enumerate(stored.facts["scalings"]):
            factors = stored.tensors[str(number)]
            scaling = Scaling(facts["name"], facts["axis"], factors, facts["offset"])
            # `KeyError` for a name that there isn't.
            slices = known[scaling.name].shape[scaling.axis]
            if slices != len(factors):
                raise ValueError(f"{scaling.name} has {slices} slices, not {len(factors)}")
            scalings.append(scaling)
        return cls(stored.facts["block"], tuple(scalings), stored.facts["notes"])
