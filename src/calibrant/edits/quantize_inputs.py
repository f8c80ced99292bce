"""An edit by which a matrix gets rounded inputs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from calibrant.edits.kinds import Edit, StoredEdit
from calibrant.models import ModelView, Weight
from calibrant.models.rounded_inputs import has_inputs, round_inputs
from calibrant.targets import InputGrid


@dataclass(frozen=True)
class QuantizeInputs(Edit):
    """The inputs of a matrix are rounded to `grid` before the product; `static_scale` is None where
    all scales follow from the inputs. `notes` say how it was found.
    """

    kind: ClassVar[str] = "quantize_inputs"

    weight: Weight
    grid: InputGrid
    static_scale: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def block(self) -> int | None:
        return self.weight.block

    def apply(self, view: ModelView) -> None:
        round_inputs(self.weight.owner, self.grid, self.static_scale)

    def undo(self, view: ModelView) -> Callable[[], None]:
        module = self.weight.owner
        before = vars(module).get("forward")

        def put_back() -> None:
            vars(module).pop("forward", None)
            if before is not None:
                vars(module)["forward"] = before

        return put_back

    def report(self, view: ModelView) -> dict[str, Any]:
        """Return the line of the record: the matrix, and how its inputs are rounded."""
        line: dict[str, Any] = {"edit": self.kind, "name": self.weight.name}
        for name, value in asdict(self.grid).items():
            if value is not None:
                line[name] = value
        # A record calls `scales` how they are stored, and `scale` the static one.
        line["scales"] = line.pop("scale")
        if self.static_scale is not None:
            line["scale"] = self.static_scale
        line["notes"] = dict(self.notes)
        return line

    def stored(self) -> StoredEdit:
        facts = {
            "matrix": self.weight.name,
            "grid": asdict(self.grid),
            "scale": self.static_scale,
            "notes": dict(self.notes),
        }
        return StoredEdit(self.kind, facts)

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "QuantizeInputs":
        facts = stored.facts
        weight = view.named[facts["matrix"]]
        if not has_inputs(weight):
            raise ValueError(f"{weight.name} has no inputs of its own")
        return cls(weight, InputGrid.read(facts["grid"]), facts["scale"], facts["notes"])
