"""A device that is pretended: it computes on the processor, and behaves as a GPU does where code
could mistake one device for another.

What runs in every operation of torch isn't type-checked while it runs: that would take most of the
time of a test.
"""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, final, no_type_check

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from calibrant.errors import CalibrantError
from calibrant.system.products import LACKING

KIND: Final = "pretended"
NAME: Final = f"{KIND}:0"

_INDEXING: Final = frozenset(
    ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
)
"""Operators whose indices may be on the processor while the numbers are on a device."""
_LACKED: Final = frozenset(("frexp", "_linalg_eigh", "_linalg_svd", "linalg_lstsq"))
"""Operators that Apple's GPUs don't have."""
_TRANSFERS: Final = frozenset(("copy_", "copy", "_copy_from", "_copy_from_and_resize"))
"""Operators that take numbers from one device to another."""


@final
class PretendedDevice:
    """What is known of the pretended device: `name`, for `device=`; its `limit` in bytes, or None;
    `alive`, the bytes of the tensors on it; and `peak`, the most that were alive at once.

    Views share their bytes. What a kernel takes for itself while it runs isn't counted.
    """

    name: Final = NAME

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.alive = 0
        self.peak = 0
        self._storages: dict[int, int] = {}
        # A finalizer may run inside of `hold`, in the same thread.
        self._lock = threading.RLock()

    def hold(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed. Raises `torch.OutOfMemoryError` where it goes over the
        limit.
        """
        key = storage._cdata
        size = storage.nbytes()
        with self._lock:
            more = size - self._storages.get(key, 0)
            if self.limit is not None and self.alive + more > self.limit:
                raise torch.OutOfMemoryError(
                    f"{NAME} is out of memory: {more} bytes were asked for, {self.alive} of "
                    f"{self.limit} are in use"
                )
            if key not in self._storages:
                weakref.finalize(storage, self._free, key).atexit = False
            self._storages[key] = size
            self.alive += more
            self.peak = max(self.peak, self.alive)

    def _free(self, key: int) -> None:
        with self._lock:
            self.alive -= self._storages.pop(key)


_active: PretendedDevice | None = None
"""The device of the context that is entered; None where there is none."""


@contextmanager
def pretended_device(limit: int | None = None, lacking: bool = False) -> Iterator[PretendedDevice]:
    """Return a context in which there is one more device, for tests of code that shall run on GPUs.

    Give its `name` wherever a device is named. It computes on the processor, with the processor's
    results. As on a GPU, an operation whose tensors are on several devices raises `RuntimeError`,
    but for tensors without dimensions and for indices, which may be on the processor; `.numpy()`
    raises `TypeError`. Where more than `limit` bytes would be alive, `torch.OutOfMemoryError` is
    raised. If `lacking`, it has no float64, `frexp` or decompositions of matrices, as Apple's GPUs.

    torch computes gradients only on devices that were there at the first backward pass of the
    process: enter such a context before. Kernels, streams and pinned memory aren't pretended: see
    docs/gpu.md. Needs torch 2.9; raises `CalibrantError` for an older one, and where a device is
    pretended already.

    >>> with pretended_device() as device:
    ...     numbers = torch.ones(2, 3, device=device.name)
    ...     device.alive
    24
    """
    global _active
    if _active is not None:
        raise CalibrantError("a device is pretended already; leave its context first", subject=KIND)
    _register()
    # torch moves a parameter to a device that isn't its own by a new parameter, which unties tied
    # ones. Swapped, it stays the same object, as on CUDA.
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    _active = PretendedDevice(limit)
    if lacking:
        LACKING.add(KIND)
    try:
        yield _active
    finally:
        LACKING.discard(KIND)
        _active = None
        torch.__future__.set_swap_module_params_on_conversion(swaps)


class PretendedTensor(Tensor):
    """A tensor whose numbers are in the processor's memory and which says that it is on the
    pretended device.
    """

    holds_plain_numbers: ClassVar = True
    """Asked by `calibrant.view`, which refuses other classes of tensors."""

    # torch's own way to say so, which its types don't know.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    @no_type_check
    def __torch_dispatch__(
        cls, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if operator is torch.ops.prim.device.default:
            return torch.device(NAME)
        # What is done here for the device is nothing that a mode of the caller's should see.
        with torch._C.DisableTorchFunction():
            return _computed(operator, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]  # torch's types say that it is no property
        """Where it says it is. Asked of torch, it would be an operation that the caller's modes
        see.
        """
        return torch.device(NAME)

    def numpy(self, *, force: bool = False) -> Any:
        """Return the numbers with `force`; else raise `TypeError`, as a tensor on a GPU does."""
        if force:
            return self.detach().cpu().resolve_conj().resolve_neg().numpy()
        raise TypeError(
            f"can't convert a tensor on {NAME} to numpy; use Tensor.cpu() to copy it to the "
            "processor first"
        )

    def tolist(self) -> Any:
        """Return the numbers as lists, by way of the processor."""
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        numbers = repr(self.detach().cpu()).removesuffix(")")
        return f"{numbers}, device='{NAME}')"


@no_type_check
def _computed(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operator gives, computed on the processor, on the device where it belongs."""
    _refuse_mixture(operator, args, kwargs)
    if KIND in LACKING and operator.overloadpacket.__name__ in _LACKED:
        raise NotImplementedError(f"{NAME} has no {operator}")
    on_device: dict[int, PretendedTensor] = {}
    """What was given of the device's, by the `id` of the same memory on the processor."""
    elsewhere: set[int] = set()

    def moved_here(value: Any) -> Any:
        if isinstance(value, PretendedTensor):
            numbers = _on_processor(value)
            on_device[id(numbers)] = value
            return numbers
        if isinstance(value, Tensor):
            elsewhere.add(id(value))
        return value

    def moved_back(value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) in elsewhere:
            return value
        if id(value) in on_device:
            return on_device[id(value)]
        return _on_device(value) if stays else value

    given = tree_map(moved_here, (tuple(args), dict(kwargs)))
    plain_args, plain_kwargs = given
    asked_for = plain_kwargs.get("device")
    stays = asked_for is None or torch.device(asked_for).type == KIND
    if asked_for is not None and stays:
        plain_kwargs["device"] = "cpu"
    result = operator(*plain_args, **plain_kwargs)
    # An operator may give what it writes to another shape.
    for value in tree_leaves(given):
        if id(value) in on_device:
            _reshaped(on_device[id(value)], value)
    return tree_map(moved_back, result)


@no_type_check
def _refuse_mixture(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `RuntimeError` where a GPU's operator would: for tensors on several devices."""
    name = operator.overloadpacket.__name__
    if name in _TRANSFERS:
        return
    for place, argument in enumerate(operator._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if name in _INDEXING and argument.name == "indices":
            continue
        written = argument.alias_info is not None and argument.alias_info.is_write
        for leaf in tree_leaves(value):
            if _belongs(leaf, written):
                continue
            raise RuntimeError(
                f"{operator}: expected everything to be on the same device, but found at least "
                f"two devices, {NAME} and {leaf.device} ({argument.name})"
            )


@no_type_check
def _belongs(value: Any, written: bool) -> bool:
    """Whether an operator on the device takes a value, which it may write to."""
    if isinstance(value, torch.Generator):
        return False
    if isinstance(value, PretendedTensor) or not isinstance(value, Tensor):
        return True
    # A number of the processor's goes along with any operation.
    return value.dim() == 0 and not written


@no_type_check
def _on_processor(tensor: PretendedTensor) -> Tensor:
    """The same memory as a tensor of the processor's."""
    empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return empty.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


@no_type_check
def _on_device(numbers: Tensor) -> PretendedTensor:
    """The same memory as a tensor of the device's. Raises `torch.OutOfMemoryError` where the device
    has no room for it.
    """
    if _active is None:
        raise RuntimeError(f"{NAME} is there no more: its context was left")
    if KIND in LACKING and numbers.dtype == torch.float64:
        raise TypeError(f"{NAME} has no float64")
    _active.hold(numbers.untyped_storage())
    return torch.Tensor._make_subclass(
        PretendedTensor,
        numbers,
        False,
        dispatch_device=True,
        device_for_backend_keys=torch.device(NAME),
    )


@no_type_check
def _reshaped(tensor: PretendedTensor, numbers: Tensor) -> None:
    """Give a tensor of the device's the shape and memory that its numbers have by now."""
    if _place(numbers) != _place(tensor):
        tensor.data = _on_device(numbers)


@no_type_check
def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where in memory a tensor's numbers are."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.size(), tensor.stride()


class _Module:
    """What torch asks of the module `torch.pretended`."""

    def is_available(self) -> bool:
        return _active is not None

    def device_count(self) -> int:
        return int(self.is_available())

    def synchronize(self, device: torch.device | None = None) -> None:
        pass

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_library: torch.library.Library | None = None
"""What was registered with torch, which stays so as long as the process."""


def _register() -> None:
    """Tell torch of the device, once in a process."""
    global _library
    if _library is not None:
        return
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        raise CalibrantError(
            f"a pretended device needs torch 2.9, and this is {torch.__version__}; install a "
            "newer one",
            subject=torch.__version__,
        )
    setup(KIND, _Module())
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
    _library = library


def _empty(
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    return _on_device(torch.empty(size, dtype=dtype, device="cpu", memory_format=memory_format))


def _empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
) -> Tensor:
    return _on_device(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy numbers where torch itself does, without asking the tensors' class."""
    from_where = _on_processor(source) if isinstance(source, PretendedTensor) else source
    to_where = _on_processor(to) if isinstance(to, PretendedTensor) else to
    to_where.copy_(from_where)
    return to


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    """Attention by the processor's own kernel, which torch takes for no other device; by plain
    products where there are gradients.
    """
    wants_gradients = any(tensor.requires_grad for tensor in args if isinstance(tensor, Tensor))
    if wants_gradients and torch.is_grad_enabled():
        result, _ = torch.ops.aten._scaled_dot_product_attention_math.default(*args, **kwargs)
        return result
    # As one operation, which modes of the caller's see.
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.aten.scaled_dot_product_attention.default(*args, **kwargs)
