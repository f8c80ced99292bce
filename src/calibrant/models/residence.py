"""Where the numbers of a model's blocks are: in memory all the time, or on disk while nobody
works on their block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, final

from torch import Tensor

from calibrant.errors import ModelError


class Residence(ABC):
    """Says when the numbers of a block are there: while the block is `held`. The embedding,
    norms outside the blocks and the head always are.
    """

    on_disk: ClassVar[bool]
    """Whether the numbers of a block that isn't held are on disk."""

    @abstractmethod
    def held(self, index: int) -> AbstractContextManager[None]:
        """Return a context in which the numbers of the block `index` are in memory. Whoever
        overwrites them keeps them where `changed` finds them.
        """

    @abstractmethod
    def absent(self) -> Mapping[int, Collection[str]]:
        """Return the names of the parameters that are on disk while their block isn't held, by
        the block's index.
        """

    @abstractmethod
    def changed(self, index: int, change: Callable[[], None]) -> None:
        """Have `change` done to the block `index`, after those before it, whenever its numbers
        are read from disk again.
        """


@final
class InMemory(Residence):
    """All numbers are in memory."""

    on_disk: ClassVar[bool] = False

    def held(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def absent(self) -> Mapping[int, Collection[str]]:
        return {}

    def changed(self, index: int, change: Callable[[], None]) -> None:
        """Nothing is read again."""


IN_MEMORY = InMemory()


@final
class WithoutNumbers(Residence):
    """There are no numbers: of a model's outline only names and shapes are looked at."""

    on_disk: ClassVar[bool] = True

    def held(self, index: int) -> AbstractContextManager[None]:
        raise ModelError(
            f"block {index} is asked for its numbers, and the model was opened for its shapes alone",
            subject=str(index),
        )

    def absent(self) -> Mapping[int, Collection[str]]:
        return {}

    def changed(self, index: int, change: Callable[[], None]) -> None:
        """Nothing is read."""


WITHOUT_NUMBERS = WithoutNumbers()


def place_of(tensor: Tensor) -> int:
    """Return where a parameter's numbers are: the same for two that are one, also where neither
    has numbers now.
    """
    return id(tensor) if tensor.is_meta else tensor.data_ptr()
