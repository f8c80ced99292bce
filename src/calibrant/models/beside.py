"""A model whose blocks stay beside the device that computes: in the machine's memory, or on disk.
Each is copied to the device while it is worked on.

Embedding, norms outside the blocks, head and buffers are on the device. While a block is held its
modules have copies of its parameters there; afterwards they have the very parameters back that they
had before, with the numbers that the copies got meanwhile.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from transformers import PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models.changing import overwrite
from calibrant.models.on_disk import read_when_run
from calibrant.models.viewing import IN_MEMORY, Residence, block_list


@final
@dataclass(frozen=True)
class _Copy:
    """A parameter and its copy on the device; where the parameter's numbers were when the copy was
    made, and how often each of the two had been written to.
    """

    original: nn.Parameter
    copy: nn.Parameter
    address: int
    original_version: int
    copy_version: int

    @classmethod
    def of(cls, original: nn.Parameter, device: torch.device) -> "_Copy":
        """Copy a parameter to the device. From pinned memory that goes on while others compute."""
        numbers = original.detach().to(device, non_blocking=True, copy=True)
        copy = nn.Parameter(numbers, requires_grad=original.requires_grad)
        # `_version` grows with every write in place, also through a view.
        return cls(original, copy, original.data_ptr(), original._version, copy._version)

    def is_current(self) -> bool:
        """Return whether nobody changed the parameter since."""
        if self.original.data_ptr() != self.address:
            return False
        return self.original._version == self.original_version

    def keep_changes(self) -> None:
        """Write what became of the copy over the original, if it was changed."""
        if self.copy._version != self.copy_version:
            overwrite(self.original.detach(), self.copy.detach())


_Copies = Mapping[int, _Copy]
"""Copies by the `id` of their originals."""


@final
class BesideDevice(Residence):
    """The numbers of blocks are where `home` has them, and on `device` while their block is held.

    Making one moves everything else of the model to the device. From then on each block brings its
    numbers in when its forward is called, so any code can run the model. Raises `ModelError` for
    parameters that several blocks share.
    """

    elsewhere = True

    def __init__(
        self, model: PreTrainedModel, device: torch.device, home: Residence = IN_MEMORY
    ) -> None:
        self.on_disk = home.on_disk
        self.ahead = device.type == "cuda" and not home.on_disk
        self._device = device
        self._home = home
        self._blocks = model.get_submodule(block_list(model))
        self._holders: Counter[nn.Module] = Counter()
        self._homes: dict[nn.Module, ExitStack] = {}
        self._copies: dict[nn.Module, _Copies] = {}
        self._next: tuple[nn.Module, _Copies] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        _check_apart(self._blocks)
        self._shared = _moved_outside(model, self._blocks, device)
        if self.ahead:
            self._pin()
        read_when_run(model, self)

    @contextmanager
    def held(self, index: int) -> Iterator[None]:
        block = list(self._blocks.children())[index]
        self._holders[block] += 1
        try:
            if self._holders[block] == 1:
                self._bring(index, block)
            yield
        finally:
            self._holders[block] -= 1
            # A walk and the block's own forward may hold the same block at once.
            if not self._holders[block]:
                self._take_back(block)

    def absent(self) -> Mapping[int, Collection[str]]:
        return self._home.absent()

    def changed(self, index: int, change: Callable[[], None]) -> None:
        self._home.changed(index, change)

    def _bring(self, index: int, block: nn.Module) -> None:
        """Put copies on the device in the place of the block's parameters."""
        self._homes[block] = ExitStack()
        self._homes[block].enter_context(self._home.held(index))
        copies = self._fetched(block)
        self._copies[block] = copies
        for module, key, parameter in _places(block):
            if id(parameter) in copies:
                module.register_parameter(key, copies[id(parameter)].copy)
        if self.ahead:
            self._fetch_next(index + 1)

    def _take_back(self, block: nn.Module) -> None:
        """Put the block's own parameters back into their places, with what became of the copies."""
        copies = self._copies.pop(block, {})
        originals: dict[int, nn.Parameter] = {}
        for copy in copies.values():
            copy.keep_changes()
            originals[id(copy.copy)] = copy.original
        for module, key, parameter in _places(block):
            if id(parameter) in originals:
                module.register_parameter(key, originals[id(parameter)])
            elif parameter.device != torch.device("cpu") and id(parameter) not in self._shared:
                # It was made while the block was held, and stays with the others.
                original = nn.Parameter(parameter.detach().cpu(), parameter.requires_grad)
                originals[id(parameter)] = original
                module.register_parameter(key, original)
        self._homes.pop(block, ExitStack()).close()

    def _fetched(self, block: nn.Module) -> _Copies:
        """Copies of the block's parameters: those that were fetched ahead, if they are of it and
        nobody wrote to the originals since.
        """
        fetched = self._next
        self._next = None
        if fetched is None or fetched[0] is not block or not _is_current(fetched[1], block):
            return self._copied(block)
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return fetched[1]

    def _fetch_next(self, index: int) -> None:
        """Begin to copy the block `index`, if there is one, while the one before it computes."""
        blocks = list(self._blocks.children())
        if index == len(blocks) or self._holders[blocks[index]]:
            return
        with self._beside_computing():
            self._next = blocks[index], self._copied(blocks[index])

    def _beside_computing(self) -> AbstractContextManager[None]:
        """A context whose copies don't wait for what computes, where the device can do both."""
        if self._stream is None:
            return nullcontext()
        # The memory that the copies get may be that of a block which still computes.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def _copied(self, block: nn.Module) -> _Copies:
        copies: dict[int, _Copy] = {}
        for _, _, parameter in _places(block):
            if id(parameter) not in copies and id(parameter) not in self._shared:
                copies[id(parameter)] = _Copy.of(parameter, self._device)
        return copies

    def _pin(self) -> None:
        """Keep the blocks' numbers in memory that the device reads by itself."""
        for _, _, parameter in _places(self._blocks):
            if id(parameter) not in self._shared and not parameter.is_pinned():
                parameter.data = parameter.data.pin_memory()


def _places(block: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """The parameters of a block, each with the module that it is in and its key there. One that is
    in two places comes twice.
    """
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in block.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                places.append((module, key, parameter))
    return places


def _check_apart(blocks: nn.Module) -> None:
    """Raise `ModelError` for a parameter that several blocks have: what one of them writes to its
    copy wouldn't reach the others.
    """
    users: dict[int, nn.Module] = {}
    for name, block in blocks.named_children():
        for _, key, parameter in _places(block):
            if users.setdefault(id(parameter), block) is not block:
                raise ModelError(
                    f"block {name} shares its {key} with a block before it, so the two can't go to "
                    "the device in turn; allow more device_memory",
                    subject=name,
                )


def _is_current(copies: _Copies, block: nn.Module) -> bool:
    """Whether these are still copies of what the block has."""
    current = {id(parameter): parameter for _, _, parameter in _places(block)}
    for original_id, copy in copies.items():
        if current.get(original_id) is not copy.original or not copy.is_current():
            return False
    return True


def _moved_outside(
    model: PreTrainedModel, blocks: nn.Module, device: torch.device
) -> Mapping[int, nn.Parameter]:
    """Move all buffers, and the parameters outside the blocks, to the device. Return those that
    blocks have too, by `id`: these stay there.
    """
    inside = set(blocks.modules())
    # Tied parameters stay one. The old ones are held, so that each keeps its `id`.
    moved: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)
        if module in inside:
            continue
        for key, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in moved:
                numbers = parameter.detach().to(device)
                moved[id(parameter)] = (parameter, nn.Parameter(numbers, parameter.requires_grad))
            module.register_parameter(key, moved[id(parameter)][1])
    shared: dict[int, nn.Parameter] = {}
    for module, key, parameter in _places(blocks):
        if id(parameter) in moved:
            _, on_device = moved[id(parameter)]
            module.register_parameter(key, on_device)
            shared[id(on_device)] = on_device
    return shared
