"""An edit by which layers of experts become plain feed-forward networks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from calibrant.edits.kinds import Edit, StoredEdit
from calibrant.models import Condensed, ModelView, condense, expert_layers, overwrite


@dataclass(frozen=True)
class Condense(Edit):
    """Layers of experts become plain feed-forward networks, by block: all in one edit, since a
    configuration has one width for all of them.

    `tuned` are numbers that parameters of these networks get, by name, in the place of those that
    the kept experts had. `notes` say how the experts were chosen.
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
        # What goes is measured on the model: it is condensed, and undone at once.
        undo = self.undo(view)
        weights = _weight_count(view)
        size = _saved_bytes(view.model)
        condense(view, self.layers)
        removed = weights - _weight_count(view)
        freed = size - _saved_bytes(view.model)
        undo()
        layers = expert_layers(view)
        experts = layers[0].count if layers else 0
        return {
            "edit": self.kind,
            "layers": {str(block): entry for block, entry in self._entries()},
            "of": experts,
            "removed": removed,
            "bytes": freed,
            "tuned": len(self.tuned),
            "notes": dict(self.notes),
        }

    def stored(self) -> StoredEdit:
        layers = [{"block": block, **entry} for block, entry in self._entries()]
        facts = {"layers": layers, "notes": dict(self.notes)}
        tensors = {name: numbers.clone() for name, numbers in self.tuned.items()}
        return StoredEdit(self.kind, facts, tensors)

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Condense":
        known = {layer.block for layer in expert_layers(view)}
        layers: dict[int, Condensed] = {}
        for entry in stored.facts["layers"]:
            block = int(entry["block"])
            if block not in known:
                raise ValueError(f"block {block} has no layer of experts")
            gates: dict[int, float] = {}
            for expert, gate in zip(entry["experts"], entry["gates"], strict=True):
                gates[int(expert)] = float(gate)
            layers[block] = Condensed(gates, float(entry["shared"]))
        device = view.device
        tuned = {name: numbers.to(device) for name, numbers in stored.tensors.items()}
        return cls(layers, stored.facts["notes"], tuned)

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield what a record and a file say of each layer, by block."""
        for block, kept in self.layers.items():
            entry = {
                "experts": list(kept.gates),
                "gates": list(kept.gates.values()),
                "shared": kept.shared,
            }
            yield block, entry


def _weight_count(view: ModelView) -> int:
    """Return how many numbers the matrices of a model have."""
    return sum(weight.shape[0] * weight.shape[1] for weight in view.weights)


def _saved_bytes(model: nn.Module) -> int:
    """Return how many bytes a saved model has; tensors that are one count once."""
    sizes: dict[tuple[int, torch.Size], int] = {}
    for tensor in model.state_dict().values():
        sizes[tensor.data_ptr(), tensor.shape] = tensor.nbytes
    return sum(sizes.values())
