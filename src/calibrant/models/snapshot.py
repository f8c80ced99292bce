"""Remembers a model's numbers, structure and configuration, and restores them bit for bit.

    snapshot = Snapshot.of(view)
    …                      # matrices set, blocks or experts dropped, norms folded, the head untied
    snapshot.restore()

Of the structure a snapshot keeps references: which module holds which parts, parameters, buffers
and plain values. A tensor's numbers are copied when they are about to be overwritten for the first
time (`changing.will_change`), and not before. So a snapshot of a model that nobody changes takes
next to no memory, and no snapshot takes more than a second copy of the model.

Numbers that are overwritten without that call can't be restored. PyTorch counts the changes of a
tensor, so this is noticed, and is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from torch import Tensor

from calibrant.errors import ModelError
from calibrant.models.changing import Listener, Structure, overwrite
from calibrant.models.viewing import ModelView, Weight


@final
class Snapshot(Listener):
    """What a model was when `Snapshot.of(view)` was called; `restore` makes it that again."""

    def __init__(self, view: ModelView) -> None:
        self._view = view
        self._structure = Structure.of(view.model)
        self._numbers: dict[int, _Numbers] = {}
        for named in (view.model.named_parameters(), view.model.named_buffers()):
            for name, tensor in named:
                self._numbers[id(tensor)] = _Numbers(name, tensor)
        self._in_memory: dict[int, list[_Numbers]] = {}
        for numbers in self._numbers.values():
            self._in_memory.setdefault(_memory_of(numbers.original), []).append(numbers)
        # Last, since from here on `will_change` may be called.
        super().__init__()

    @classmethod
    def of(cls, view: ModelView) -> "Snapshot":
        """Remember everything of the view's model that an edit or a transform can touch."""
        return cls(view)

    def will_change(self, tensor: Tensor) -> None:
        for numbers in self._in_memory.get(_memory_of(tensor), ()):
            numbers.keep()

    def restore(self) -> None:
        """Make the model, its configuration and the view what they were, to the bit.

        Raises `ModelError`, and changes nothing, if numbers were overwritten in place by somebody
        who didn't say so.
        """
        # All are looked at before any is put back: an error changes nothing.
        for numbers in self._numbers.values():
            numbers.check()
        for numbers in self._numbers.values():
            numbers.put_back()
        self._structure.put_back()
        self._view.refresh()

    def original(self, weight: Weight) -> Tensor:
        """Return the original numbers of a matrix as the model stores them, `[in, out]` if it is
        `transposed`. They must not be changed.

        Raises `ModelError` for a matrix of another model, or one that was made since.
        """
        numbers = self._numbers.get(id(getattr(weight.owner, weight.key)))
        if numbers is None:
            raise ModelError(
                f"the snapshot is of another model: it has no {weight.name}", subject=weight.name
            )
        numbers.check()
        kept = numbers.kept
        return kept if weight.expert is None else kept[weight.expert]

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """While it lasts, the model is what it was; afterwards it is again what it is now. Numbers
        are exchanged and not copied.

        Nothing may be overwritten meanwhile.
        """
        current_structure = Structure.of(self._view.model)
        for numbers in self._numbers.values():
            numbers.check()
        # Exchanging `data` writes nothing: both sets of numbers stay where they are, and only the
        # parameters point elsewhere for a while.
        current = [(numbers, numbers.tensor.data) for numbers in self._numbers.values()]
        try:
            for numbers in self._numbers.values():
                numbers.tensor.data = numbers.kept
            self._structure.put_back()
            yield
        finally:
            for numbers, data in current:
                numbers.tensor.data = data
            current_structure.put_back()

    def bytes(self) -> int:
        """Return the memory that the copies take."""
        copies = [numbers.copied for numbers in self._numbers.values()]
        return sum(copy.nbytes for copy in copies if copy is not None)


@final
class _Numbers:
    """One parameter or buffer, its original numbers, and a copy of them once they are
    overwritten.
    """

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self.tensor = tensor
        # An alias of the same memory. It still has these numbers when the parameter's `data` is
        # replaced.
        self.original = tensor.data
        self.copied: Tensor | None = None
        self._version = tensor._version

    @property
    def kept(self) -> Tensor:
        """The numbers that it held."""
        return self.original if self.copied is None else self.copied

    def keep(self) -> None:
        if self.copied is None:
            self.check()
            self.copied = self.original.clone()

    def check(self) -> None:
        # PyTorch raises `_version` with every write in place, also through a view. Where the
        # parameter was given other memory, the old numbers weren't overwritten.
        changed = self._is_in_place and self.tensor._version != self._version
        if self.copied is None and changed:
            raise ModelError(
                f"{self.name} was overwritten before the snapshot could copy it; whatever writes "
                "numbers in place says so first (will_change)",
                subject=self.name,
            )

    def put_back(self) -> None:
        if not self._is_in_place:
            self.tensor.data = self.original
        if self.copied is not None:
            overwrite(self.original, self.copied)
        self._version = self.tensor._version

    @property
    def _is_in_place(self) -> bool:
        return _layout(self.tensor) == _layout(self.original)


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
