"""An edit by which layers of experts become plain feed-forward networks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from calibrant.edits.kinds import Edit, StoredEdit
from calibrant.models import Condensed, ModelView, condense, expert_layers, overwrite


@dataclass(frozen=True)
class Condense(Edit):
    """Layers of experts become plain feed-forward networks, by block: all in one edit, since a
    configuration has one width for all of them.

    `tuned` are numbers that their parameters, by name, get in the place of those of the experts
    that were kept. `notes` say how these were chosen.
    """

    kind: ClassVar[str] = "condense"

    layers: Mapping[int, Condensed]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tuned: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)

    def apply(self, view: ModelView) -> None:
        condense(view, self.layers)
        for name, numbers in self.tuned.items():
            overwrite(view.model.get_parameter(name), numbers)

    def undo(self, view: ModelView) -> Callable[[], None]:
        return view.remembered()

    def report(self, view: ModelView) -> dict[str, Any]:
        """Return which experts stay, and what goes: `removed` weights of matrices, and `bytes`
        of all that is saved.
        """
        undo = self.undo(view)
        before = _matrices(view), _bytes(view.model)
        condense(view, self.layers)
        after = _matrices(view), _bytes(view.model)
        undo()
        count = next((layer.count for layer in expert_layers(view)), 0)
        removed, smaller = (there - here for there, here in zip(before, after, strict=True))
        entries = {str(block): dict(entry) for block, entry in self._entries()}
        return {"edit": self.kind, "layers": entries, "of": count, "removed": removed, "bytes": smaller, "tuned": len(self.tuned),
                "notes": dict(self.notes)}  # fmt: skip

    def stored(self) -> StoredEdit:
        layers = [{"block": block, **entry} for block, entry in self._entries()]
        return StoredEdit(
            self.kind,
            {"layers": layers, "notes": dict(self.notes)},
            {name: one.clone() for name, one in self.tuned.items()},
        )

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Condense":
        layers = {
            int(one["block"]): Condensed(
                dict(zip(map(int, one["experts"]), map(float, one["gates"]), strict=True)),
                float(one["shared"]),
            )
            for one in stored.facts["layers"]
        }
        if strangers := set(layers) - {layer.block for layer in expert_layers(view)}:
            raise ValueError(f"block {min(strangers)} has no layer of experts")
        device = next(view.model.parameters()).device
        return cls(
            layers,
            stored.facts["notes"],
            {name: one.to(device) for name, one in stored.tensors.items()},
        )

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for block, kept in self.layers.items():
            yield (
                block,
                {
                    "experts": list(kept.gates),
                    "gates": list(kept.gates.values()),
                    "shared": kept.shared,
                },
            )


def _matrices(view: ModelView) -> int:
    return sum(weight.shape[0] * weight.shape[1] for weight in view.weights)


def _bytes(model: nn.Module) -> int:
    """The numbers that are saved; of tensors that share them, once."""
    tensors = {(tensor.data_ptr(), tensor.shape): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
