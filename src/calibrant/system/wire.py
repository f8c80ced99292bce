"""Values as bytes and back, for processes that work together: plain data, tensors, and the classes
of a closed list. Nothing that is read is run.

    language = Language(fields_of(Score), Kind("method", Method, str, methods.build))
    language.unpack(language.pack({"score": score, "method": method}))

A message is a safetensors file in memory. Its text is JSON, in which everything but plain values
and lists is an object with one key that says what it is; tensors and bytes lie beside the text and
are named in it by number. Floats come back to the last bit.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from calibrant import errors
from calibrant.errors import CalibrantError, DataError, StudyError
from calibrant.spec.foreign import brief

_TEXT: Final = "text"
_UNREADABLE: Final = (
    SafetensorError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    RecursionError,
)
"""What reading bytes that are no message may raise."""
_TAGS: Final = ("tensor", "bytes", "float", "path", "tuple", "set", "map")
"""Names of what isn't plain JSON; no kind may have one of them."""


@dataclass(frozen=True)
class Kind:
    """A class that can be sent: the `name` it has in a message, what `write` makes of one of its
    objects, and what `read` makes of that.
    """

    name: str
    type: type[Any]
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def fields_of(kind: type[Any], without: Collection[str] = ()) -> Kind:
    """Return how a dataclass is sent: its fields by name, but for those that it arrives
    `without`.
    """
    names = [field.name for field in dataclasses.fields(kind) if field.name not in without]

    def write(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    def read(values: Mapping[str, Any]) -> Any:
        return kind(**values)

    return Kind(kind.__name__, kind, write, read)


class Language:
    """What processes can say to each other: plain data, tensors, and objects of these kinds.

    `pack` raises `DataError` for what can't be said, and `unpack` for bytes that are no message.
    """

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        names = {*self._kinds, *_TAGS}
        assert len(names) == len(kinds) + len(_TAGS), "two have the same name"

    def pack(self, value: Any) -> bytes:
        """Return `value` as bytes."""
        tensors: list[Tensor] = []
        try:
            text = json.dumps(self._written(value, tensors), allow_nan=False)
            numbered = {str(number): tensor for number, tensor in enumerate(tensors)}
            return save({_TEXT: _tensor(text.encode()), **numbered})
        except (TypeError, ValueError, RecursionError) as error:
            message = f"{brief(value)} can't be sent to another process ({error})"
            raise DataError(f"{message}; results are made of plain data") from error

    def unpack(self, message: bytes) -> Any:
        """Return the value that `pack` made `message` of."""
        try:
            tensors = load(message)
            text = _bytes(tensors.pop(_TEXT))
            return self._read(json.loads(text, parse_constant=_no_json), tensors)
        except _UNREADABLE as error:
            problem = f"{brief(message)} is no message of a process of this job ({error})"
            raise DataError(f"{problem}; start all processes anew") from error

    def _written(self, value: Any, tensors: list[Tensor]) -> Any:
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                # Also numpy's float64, whose `repr` is another.
                return float(value) if math.isfinite(value) else {"float": repr(float(value))}
            case list():
                return [self._written(item, tensors) for item in value]
            case tuple():
                return {"tuple": [self._written(item, tensors) for item in value]}
            case set() | frozenset():
                return {"set": [self._written(item, tensors) for item in value]}
            case bytes():
                tensors.append(_tensor(value))
                return {"bytes": str(len(tensors) - 1)}
            case Tensor():
                # A copy: a view would be sent with all that it is a view of.
                copy = value.detach().cpu().clone(memory_format=torch.contiguous_format)
                tensors.append(copy)
                return {"tensor": str(len(tensors) - 1)}
            case Path():
                return {"path": str(value)}
            case _:
                return self._written_object(value, tensors)

    def _written_object(self, value: Any, tensors: list[Tensor]) -> Any:
        for kind in self._kinds.values():
            if isinstance(value, kind.type):
                return {kind.name: self._written(kind.write(value), tensors)}
        if isinstance(value, Mapping):
            pairs: list[list[Any]] = []
            for key, inner in value.items():
                pairs.append([self._written(key, tensors), self._written(inner, tensors)])
            return {"map": pairs}
        raise TypeError(f"{type(value).__name__} is none of what can be")

    def _read(self, value: Any, tensors: Mapping[str, Tensor]) -> Any:
        if isinstance(value, list):
            return [self._read(item, tensors) for item in value]
        if not isinstance(value, dict):
            return value
        # An object with more than one key is no message, and raises a `ValueError`.
        ((name, inside),) = value.items()
        match name:
            case "tensor":
                return tensors[inside]
            case "bytes":
                return _bytes(tensors[inside])
            case "float":
                return float(inside)
            case "path":
                return Path(inside)
            case _:
                return self._read_content(name, inside, tensors)

    def _read_content(self, name: str, inside: Any, tensors: Mapping[str, Tensor]) -> Any:
        content = self._read(inside, tensors)
        match name:
            case "tuple":
                return tuple(content)
            case "set":
                return frozenset(content)
            case "map":
                return dict(content)
            case _:
                return self._kinds[name].read(content)


def kind_of(error: BaseException) -> str:
    """Return what an exception is called in a message.

    That is the nearest of its classes that every process knows: one of ours, or of Python.
    """
    for kind in type(error).__mro__:
        if kind in _OUR_ERRORS.values() or kind.__module__ == "builtins":
            return kind.__name__
    raise AssertionError("every exception is an `object`")


def raised(kind: str, text: str, subject: str = "") -> CalibrantError | None:
    """Return the error of ours that `kind` names; None where it is another's."""
    return _OUR_ERRORS[kind](text, subject=subject) if kind in _OUR_ERRORS else None


def _errors_of_ours() -> dict[str, type[CalibrantError]]:
    error_classes: dict[str, type[CalibrantError]] = {}
    for name, kind in vars(errors).items():
        # A `StudyError` carries more than its message.
        if isinstance(kind, type) and issubclass(kind, CalibrantError) and kind is not StudyError:
            error_classes[name] = kind
    return error_classes


_OUR_ERRORS: Final = _errors_of_ours()
"""What can be made again of its message alone."""


def _tensor(content: bytes) -> Tensor:
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise TypeError(f"{tensor.dtype} of shape {list(tensor.shape)} are no bytes")
    return tensor.numpy().tobytes()


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
