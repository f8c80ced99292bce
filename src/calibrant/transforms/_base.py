"""What a transform is: a frozen dataclass that changes a model's numbers and not its function."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from calibrant.activations import Seen, Statistic
from calibrant.models import ModelView
from calibrant.spec import Spec
from calibrant.targets import Target


class Transform(Spec, ABC):
    """Changes a model so that it computes the same and is easier to compress.

    `observes` says which statistics of the untouched model's matrices it needs; one that looks at
    nothing leaves it empty and costs no forward. The same model and statistics give the same
    numbers: a killed job applies it again.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = ()

    @property
    def by_block(self) -> bool:
        """Whether it changes each block by itself, so that the others may be on disk meanwhile. It
        holds the block then (`view.held`), and says how to change it again
        (`view.residence.changed`).
        """
        return False

    def check(self, target: Target) -> None:
        """Raise `TargetError` for a target that it does nothing for; most go with every target."""

    @abstractmethod
    def apply(self, view: ModelView, seen: Mapping[str, Seen]) -> Mapping[str, Any]:
        """Change the model in place, and say in plain JSON data what the record should know.

        `seen` has what each matrix saw, by name: nothing without `observes`, and nothing of a
        matrix that no token reached. Raises `ModelError` for a model whose parts it doesn't
        understand, before anything is changed.
        """
