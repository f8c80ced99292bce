"""Types of calls, checked faster: where no shape stands in a signature, beartype checks it alone.

`--jaxtyping-packages` has jaxtyping wrap every function. Around the check of beartype it binds the
arguments of each call and remembers their shapes, which takes ten times as long as the check. Most
functions of a package have no shapes.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeException

_WITH_SHAPES = jaxtyping.jaxtyped
_ALONE: Callable[[Any], Any] = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def check_shapes_only_where_they_stand() -> None:
    """Have jaxtyping's import hook leave functions without shapes to beartype.

    Modules that are imported already stay as they are.
    """
    jaxtyping.jaxtyped = checked


def checked(function: Any = None, *, typechecker: Any) -> Any:
    """Stand for `jaxtyping.jaxtyped`, a decorator of functions and classes."""
    if function is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isclass(function):
        initializer = vars(function).get("__init__")
        # One that is written out is a function of its own, and wrapped already.
        if dataclasses.is_dataclass(function) and not hasattr(initializer, "__wrapped__"):
            function.__init__ = checked(function.__init__, typechecker=typechecker)
        return function
    if not inspect.isfunction(function) or _has_shapes(function):
        return _WITH_SHAPES(function, typechecker=typechecker)
    try:
        return _ALONE(function)
    except BeartypeException:
        # Such as `Self` outside of a class: jaxtyping writes the annotation anew.
        return _WITH_SHAPES(function, typechecker=typechecker)


def _has_shapes(function: Callable[..., Any]) -> bool:
    return any(_is_of_shapes(annotation) for annotation in function.__annotations__.values())


def _is_of_shapes(annotation: Any) -> bool:
    """Return whether a shape stands in an annotation; of a text it isn't known, and may."""
    if isinstance(annotation, str):
        return True
    if isinstance(annotation, list):
        parts = annotation
    else:
        parts = get_args(annotation)
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_is_of_shapes(part) for part in parts)
