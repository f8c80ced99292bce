"""Keeps what passes from block to block on disk, or beside a device in the machine's memory, while
it waits between two of them: for a walk that must keep to a limit.

Between two blocks a micro-batch's forward is a stack of Python frames that wait, and most of what
they hold is the input of the next block. Its numbers are kept elsewhere and let go; the tensor
itself stays, so that whoever holds it finds the same numbers in it afterwards. What else they hold
(masks, angles of positions, embeddings that a model keeps) stays in memory; `Alive` measures it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calibrant.errors import OutputError
from calibrant.system.clock import spent_on
from calibrant.system.durable import reason, short


@final
class OffloadFile:
    """A file in `folder` that has no name, so that it goes with the process, however that ends."""

    phase: ClassVar = "activations on disk"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._end = 0

    def close(self) -> None:
        """Give the room on the disk back."""
        if self._file is not None:
            with suppress(OSError):  # of what a full disk didn't take, and nobody needs
                self._file.close()
            self._file = None

    def reserve(self, size: int) -> int:
        """Return the offset in the file at which `size` bytes may be written."""
        place = self._end
        self._end += size
        return place

    def write(self, place: int, numbers: np.ndarray) -> None:
        """Write the bytes `numbers` at the offset `place`. Raises `OutputError` where the disk
        doesn't take them.
        """
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115  # the walk closes it
            self._file.seek(place)
            self._file.write(numbers.data)
            self._file.flush()
        except OSError as error:
            message = f"activations can't be kept in {self._name}: {reason(error)}"
            raise self._error(message) from error

    def read(self, place: int, numbers: np.ndarray) -> None:
        """Fill the bytes `numbers` with what was written at the offset `place`. Raises
        `OutputError` where the disk doesn't give it back.
        """
        assert self._file is not None
        try:
            self._file.seek(place)
            found = self._file.read(numbers.nbytes)
        except OSError as error:
            message = f"activations can't be read from {self._name}: {reason(error)}"
            raise self._error(message) from error
        if len(found) != numbers.nbytes:
            raise self._error(f"activations in {self._name} were cut; run the same command again")
        numbers[:] = np.frombuffer(found, np.uint8)

    @property
    def _name(self) -> str:
        return repr(short(self._folder))

    def _error(self, message: str) -> OutputError:
        return OutputError(message, subject=str(self._folder))


@final
class OffloadMemory:
    """The machine's memory, beside a device: it keeps bytes as an `OffloadFile` does."""

    phase: ClassVar = "activations beside the device"

    def __init__(self) -> None:
        self._kept: list[np.ndarray | None] = []

    def close(self) -> None:
        """Give the memory back."""
        self._kept.clear()

    def reserve(self, size: int) -> int:
        """Return the number of a new place."""
        self._kept.append(None)
        return len(self._kept) - 1

    def write(self, place: int, numbers: np.ndarray) -> None:
        """Keep these bytes. They are a copy already, as they came from a device."""
        self._kept[place] = numbers

    def read(self, place: int, numbers: np.ndarray) -> None:
        """Fill `numbers` with the bytes that are kept."""
        kept = self._kept[place]
        assert kept is not None
        numbers[:] = kept


@final
class Offloaded:
    """Keeps the numbers of one tensor at a time in a file or in the machine's memory, while nobody
    computes with it. Without either they stay where they are.
    """

    def __init__(self, file: OffloadFile | OffloadMemory | None) -> None:
        self._file = file
        self._place = 0
        self._size = 0
        self._empty: list[tuple[Tensor, torch.Size, tuple[int, ...]]] = []

    def offload(self, tensor: Tensor) -> None:
        """Keep the tensor's numbers elsewhere and free their memory. A tensor that is a part of
        a larger memory stays as it is.
        """
        if self._file is None or tensor.numel() == 0 or not _fills_its_memory(tensor):
            return
        with spent_on(self._file.phase):
            numbers = _bytes_of(tensor)
            # The same place serves from block to block, as long as it is large enough.
            if numbers.nbytes > self._size:
                self._size = numbers.nbytes
                self._place = self._file.reserve(numbers.nbytes)
            self._file.write(self._place, numbers)
            self._let_go(tensor)

    def fetch(self) -> None:
        """Give the tensor its numbers back, with the strides that it had."""
        empty = self._empty
        self._empty = []
        if self._file is None or not empty:
            return
        with spent_on(self._file.phase):
            tensor, shape, strides = empty[0]
            read = torch.empty_strided(shape, strides, dtype=tensor.dtype)
            self._file.read(self._place, _bytes_of(read))
            numbers = read.to(tensor.device)
            for alias, shape, strides in empty:
                alias.data = numbers.as_strided(shape, strides)

    @contextmanager
    def in_memory(self) -> Iterator[None]:
        """While it lasts, the tensor has its numbers. They aren't written again, so nobody may
        change them.
        """
        tensor = self._empty[0][0] if self._empty else None
        self.fetch()
        try:
            yield
        finally:
            if tensor is not None:
                self._let_go(tensor)

    def _let_go(self, tensor: Tensor) -> None:
        # Where the tensor is a view, its base holds the same memory, so both must let it go.
        aliases = [tensor] if tensor._base is None else [tensor, tensor._base]
        self._empty = [(alias, alias.shape, alias.stride()) for alias in aliases]
        for alias in aliases:
            alias.data = alias.new_empty(0)


@final
class Alive(TorchDispatchMode):
    """Notes the memory that operations make while it is entered, and counts afterwards how much of
    it is still held.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            # A view has the memory of an input, and makes none.
            if storage._cdata not in inputs:
                self._made.append((StorageWeakRef(storage), storage.nbytes()))
        return result

    def held(self) -> int:
        """Return how many bytes of the memory that was made are still held."""
        sizes = {memory.cdata: size for memory, size in self._made if not memory.expired()}
        return sum(sizes.values())


def _storages(values: Any) -> list[torch.UntypedStorage]:
    leaves = tree_leaves(values)
    return [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether the tensor's numbers lie without gaps, each once, in a memory with nothing else."""
    # From the fastest dimension on, each stride is the number of elements of those before it.
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _bytes_of(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as bytes, in the order in which it lies there."""
    return tensor.as_strided((tensor.numel(),), (1,)).cpu().view(torch.uint8).numpy()
