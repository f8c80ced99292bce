"""A model as it was, to be brought back bit for bit: numbers, structure and configuration.

    snapshot = Snapshot.of(view)
    …                      # matrices set, blocks or experts dropped, norms folded, the head untied
    snapshot.restore()

Of the structure it keeps references: which module holds which parts, parameters, buffers and plain
values. Of numbers it keeps nothing until they are about to be overwritten (`changing.will_change`):
then it copies that tensor, once, however often it is overwritten later. So a snapshot of a model
that nobody touches takes next to no memory, and at most it takes a second copy of the model.

What was overwritten without a word can't be brought back. PyTorch counts the changes of a tensor,
so that is found, and is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from calibrant.errors import ModelError
from calibrant.models.changing import Listener, Structure, overwrite
from calibrant.models.viewing import ModelView, Weight


@final
class Snapshot(Listener):
    """What a model was when `Snapshot.of(view)` was called; `restore` makes it that again."""

    def __init__(self, view: ModelView) -> None:
        self._view = view
        self._structure = Structure.of(view.model)
        self._numbers = {
            id(tensor): _Numbers(name, tensor) for name, tensor in _tensors(view.model)
        }
        self._places: dict[int, list[_Numbers]] = {}
        for numbers in self._numbers.values():
            self._places.setdefault(_storage(numbers.original), []).append(numbers)
        super().__init__()

    @classmethod
    def of(cls, view: ModelView) -> "Snapshot":
        """Remember everything of the view's model that an edit or a transform can touch."""
        return cls(view)

    def will_change(self, tensor: Tensor) -> None:
        for numbers in self._places.get(_storage(tensor), ()):
            numbers.keep()

    def restore(self) -> None:
        """Make the model, its configuration and the view what they were, to the bit.

        Raises `ModelError`, and changes nothing, if numbers were overwritten in place by somebody
        who didn't say so.
        """
        for numbers in self._numbers.values():
            numbers.check()
        for numbers in self._numbers.values():
            numbers.put_back()
        self._structure.put_back()
        self._view.refresh()

    def original(self, weight: Weight) -> Tensor:
        """Return the numbers of a matrix of the untouched model as it stores them, to be left as
        they are; `[in, out]` if `transposed`.

        Raises `ModelError` for a matrix of another model, or one that was made since.
        """
        parameter = getattr(weight.owner, weight.key)
        numbers = self._numbers.get(id(parameter))
        if numbers is None:
            raise ModelError(
                f"the snapshot is of another model: it has no {weight.name}", subject=weight.name
            )
        numbers.check()
        original = numbers.original if numbers.copied is None else numbers.copied
        return original if weight.expert is None else original[weight.expert]

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """While it is entered, the model is what it was; then it is again what it had become.
        Numbers are exchanged and not copied.

        Nothing may be overwritten meanwhile.
        """
        now = Structure.of(self._view.model)
        for numbers in self._numbers.values():
            numbers.check()
        # Exchanging `data` writes nothing: both sets of numbers stay where they are, and only the
        # parameters point elsewhere for a while.
        become = [(numbers, numbers.tensor.data) for numbers in self._numbers.values()]
        try:
            for numbers in self._numbers.values():
                numbers.tensor.data = numbers.original if numbers.copied is None else numbers.copied
            self._structure.put_back()
            yield
        finally:
            for numbers, data in become:
                numbers.tensor.data = data
            now.put_back()

    def bytes(self) -> int:
        """Return the memory that the copies take."""
        return sum(
            n.copied.numel() * n.copied.element_size()
            for n in self._numbers.values()
            if n.copied is not None
        )


@dataclass(eq=False)
class _Numbers:
    """One parameter or buffer, what it held, and a copy of that from the moment on at which it
    is overwritten.
    """

    name: str
    tensor: Tensor
    original: Tensor = field(init=False)
    copied: Tensor | None = None
    version: int = field(init=False)

    def __post_init__(self) -> None:
        # An alias with a count of changes of its own: it keeps these numbers also when the
        # parameter is given others.
        self.original, self.version = self.tensor.data, self.tensor._version

    def keep(self) -> None:
        if self.copied is None:
            self.check()
            self.copied = self.original.clone()

    def check(self) -> None:
        # PyTorch raises `_version` with every write in place, also through a view. A parameter that
        # was given other memory kept its old numbers.
        if self.copied is None and self._is_in_place and self.tensor._version != self.version:
            raise ModelError(
                f"{self.name} was overwritten before the snapshot could copy it; whatever writes numbers in place says so first (will_change)",
                subject=self.name,
            )

    def put_back(self) -> None:
        if not self._is_in_place:
            self.tensor.data = self.original
        if self.copied is not None:
            overwrite(self.original, self.copied)
        self.version = self.tensor._version

    @property
    def _is_in_place(self) -> bool:
        now, then = self.tensor, self.original
        return (now.data_ptr(), now.shape, now.stride(), now.dtype) == (
            then.data_ptr(),
            then.shape,
            then.stride(),
            then.dtype,
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
