"""An edit that leaves the function of a block as it is: what one parameter is multiplied with,
others are divided by.
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
    """The slices of a parameter along `axis`, counted from the end, are multiplied by `factors`;
    of a norm that adds `offset`, with it added.
    """

    name: str
    axis: int
    factors: Float[Tensor, "slice"] = field(repr=False, compare=False)
    offset: float = 0.0

    def of(self, parameter: Tensor) -> Tensor:
        """Return what becomes of the parameter, in float32 or wider."""
        kind = wide(parameter.dtype)
        shape = [-1, *[1] * (-1 - self.axis)]
        return (parameter.detach().to(kind) + self.offset) * self.factors.to(
            parameter.device, kind
        ).reshape(shape) - self.offset


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
            overwrite(parameter, scaling.of(parameter))

    def undo(self, view: ModelView) -> Callable[[], None]:
        before: dict[nn.Parameter, Tensor] = {}
        for scaling in self.scalings:
            parameter = view.model.get_parameter(scaling.name)
            before[parameter] = parameter.detach().clone()

        def undo() -> None:
            for parameter, numbers in before.items():
                overwrite(parameter, numbers)

        return undo

    def report(self, view: ModelView) -> dict[str, Any]:
        return {
            "edit": self.kind,
            "block": self.index,
            "parameters": [scaling.name for scaling in self.scalings],
            "notes": dict(self.notes),
        }

    def stored(self) -> StoredEdit:
        scalings = [
            {"name": one.name, "axis": one.axis, "offset": one.offset} for one in self.scalings
        ]
        tensors = {
            str(number): one.factors.clone() for number, one in enumerate(self.scalings)
        }  # several may be one tensor, which no file may hold
        return StoredEdit(
            self.kind,
            {"block": self.index, "scalings": scalings, "notes": dict(self.notes)},
            tensors,
        )

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Fold":
        parts = enumerate(stored.facts["scalings"])
        scalings = tuple(
            Scaling(one["name"], one["axis"], stored.tensors[str(number)], one["offset"])
            for number, one in parts
        )
        known = dict(view.model.named_parameters())
        for one in scalings:
            if known[one.name].shape[one.axis] != len(
                one.factors
            ):  # KeyError for a name that there isn't
                raise ValueError(
                    f"{one.name} has {known[one.name].shape[one.axis]} slices, not {len(one.factors)}"
                )
        return cls(stored.facts["block"], scalings, stored.facts["notes"])
