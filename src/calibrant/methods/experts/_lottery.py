"""The short training after each round of MC-Suite's lottery, as an edit: what it makes of the
parameters is kept, so a kill loses one at most.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from calibrant.edits import Edit, StoredEdit
from calibrant.job import Job
from calibrant.methods.experts._tuning import train
from calibrant.models import ModelView, overwrite
from calibrant.models.changing import will_change


@dataclass(frozen=True)
class Tuned(Edit):
    """Parameters get other numbers, of the same shapes. `notes` say how they came about."""

    kind: ClassVar[str] = "tuned"

    numbers: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def apply(self, view: ModelView) -> None:
        for name, numbers in self.numbers.items():
            overwrite(view.model.get_parameter(name).detach(), numbers)

    def undo(self, view: ModelView) -> Callable[[], None]:
        before = Tuned(
            {name: view.model.get_parameter(name).detach().clone() for name in self.numbers}
        )
        return lambda: before.apply(view)

    def report(self, view: ModelView) -> dict[str, Any]:
        return {
            "edit": self.kind,
            "parameters": sum(numbers.numel() for numbers in self.numbers.values()),
            "notes": dict(self.notes),
        }

    def stored(self) -> StoredEdit:
        # Names of parameters have dots, and a kept edit's tensors are named by number, so that they
        # can't be mistaken for others.
        return StoredEdit(
            self.kind,
            {"names": list(self.numbers), "notes": dict(self.notes)},
            dict(_numbered(self.numbers)),
        )

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Tuned":
        return cls(
            {
                name: stored.tensors[str(number)]
                for number, name in enumerate(stored.facts["names"])
            },
            stored.facts["notes"],
        )


def tuned(job: Job, steps: int, rate: float, seed: int) -> Tuned:
    """Train all parameters for `steps`, as `train` does, and return what became of them; the model
    is left as it was.

    The notes say what the model loses on the calibration tokens before and after.
    """
    parameters = dict(job.view.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    losses = [job.loss()]
    for parameter in parameters.values():
        will_change(parameter)
    try:
        train(job.view, job.tokens(), list(parameters.values()), steps, rate, seed)
        numbers = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        losses.append(job.loss())
    finally:
        for name, parameter in parameters.items():
            overwrite(parameter.detach(), before[name])
    return Tuned(
        numbers,
        {
            "steps": steps,
            "rate": rate,
            "seed": seed,
            "loss": [float(f"{loss:.6g}") for loss in losses],
        },
    )


def _numbered(numbers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {str(number): tensor for number, tensor in enumerate(numbers.values())}
