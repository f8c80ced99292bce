"""How the values of a study travel to its workers: as their classes and fields, in msgpack.

Nothing is pickled. What arrives is checked by its types. An object of a class that no name leads to
is known there by its name, since texts within other objects may name it.
"""

import importlib
from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from operator import attrgetter
from typing import Annotated, Any, Final, get_type_hints

import msgspec

from calibrant.allocations import allocations
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet, selectors, sources
from calibrant.errors import DataError, SpecError
from calibrant.evaluators import evaluators
from calibrant.lab.study.request import RunRequest, Workload
from calibrant.methods import methods
from calibrant.spec import Spec, build, classes_in, qualified
from calibrant.spec.foreign import brief
from calibrant.spec.registry import Registry
from calibrant.transforms import transforms

_EVERY: Final = (methods, evaluators, allocations, transforms, sources, selectors)
REGISTRIES: Final[dict[str, Registry]] = {registry.package: registry for registry in _EVERY}
"""Where a study looks names up, by the folder of each."""
Number = Annotated[int, msgspec.Meta(ge=0)]


def packed(work: Workload) -> bytes:
    """Return a workload as bytes for other processes: each set and recipe once.

    Raises `SpecError` for a class that they can't import.
    """
    sets, recipes = work.calibrations, work.recipes
    set_numbers = {name: number for number, name in enumerate(sets)}
    recipe_numbers = {recipe: number for number, recipe in enumerate(recipes)}
    requests: list[tuple[str, int | None, int]] = []
    for request in work.requests:
        number = set_numbers.get(repr(request.calibration))
        requests.append((request.model, number, recipe_numbers[request.recipe]))
    message = {
        "classes": _travelling(work),
        "sets": [_plain(calibration) for calibration in sets.values()],
        "recipes": [_plain(recipe) for recipe in recipes],
        "requests": requests,
        "settings": {name: _plain(getattr(work, name)) for name in _settings()},
    }
    return msgspec.msgpack.encode(message)


def unpacked(message: bytes) -> Workload:
    """Return the workload that `packed` wrote.

    Raises `DataError` for other bytes, and the `InputError` of something that is named in it and
    isn't there any more.
    """
    try:
        sent = msgspec.msgpack.decode(message)
        _learn(msgspec.convert(sent["classes"], dict[str, list[str]]))
        arrived = _Arrived()
        sets = [arrived.calibration(each) for each in sent["sets"]]
        recipes = [arrived.typed(each, Recipe) for each in sent["recipes"]]
        numbers = arrived.typed(sent["requests"], list[tuple[str, Number | None, Number]])
        requests: list[RunRequest] = []
        for model, number, recipe in numbers:
            calibration = None if number is None else sets[number]
            requests.append(RunRequest(model, calibration, recipes[recipe]))
        settings: dict[str, Any] = {}
        for name, kind in _settings().items():
            settings[name] = arrived.typed(sent["settings"][name], kind)
        return Workload(requests=tuple(requests), **settings)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        said = f"{brief(message)} is no work of a study ({error}); start the study again"
        raise DataError(said) from error


def _settings() -> dict[str, Any]:
    """The types of what a workload holds beside its requests, by name."""
    hints = get_type_hints(Workload)
    return {field.name: hints[field.name] for field in fields(Workload) if field.name != "requests"}


def _plain(value: Any) -> Any:
    """A value as plain data, with the class of what isn't known by its place."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Fraction():
            return {"fraction": str(value)}
        case list() | tuple() | frozenset():
            return [_plain(item) for item in value]
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case _:
            given = [field.name for field in fields(value) if field.init]
            inside = {name: _plain(getattr(value, name)) for name in given}
            if isinstance(value, Spec):
                return {"class": qualified(type(value)), "fields": inside}
            return inside


class _Arrived:
    """Makes values of plain data; of equal specs one, since a user's file looks into its rows."""

    def __init__(self) -> None:
        self._specs: dict[bytes, Spec] = {}

    def typed(self, plain: Any, kind: Any) -> Any:
        """The value of this type."""
        return msgspec.convert(plain, kind, dec_hook=self._special)

    def calibration(self, plain: Any) -> CalibrationSet:
        """The calibration set, which isn't read from its text again."""
        hints = get_type_hints(CalibrationSet)
        made = object.__new__(CalibrationSet)
        for field in fields(CalibrationSet):
            inside = plain[field.name]
            if field.name == "mixed":
                object.__setattr__(made, "mixed", tuple(map(self.calibration, inside)))
                continue
            object.__setattr__(made, field.name, self.typed(inside, hints[field.name]))
        return made

    def _special(self, kind: type[Any], plain: Any) -> Any:
        """What msgspec knows no type for: fractions, and specs of any class that is a `kind`."""
        return Fraction(plain["fraction"]) if kind is Fraction else self._of_class(plain, kind)

    def _of_class(self, plain: Any, kind: type[Any]) -> Any:
        value = self._value(plain)
        if not isinstance(value, kind):
            raise TypeError(f"{brief(value)} stands where a {kind.__name__} should")
        return value

    def _value(self, plain: Any) -> Any:
        """A value whose class stands in the message. A list is a tuple in whatever has a hash."""
        match plain:
            case {"class": str(name), "fields": dict(inside)}:
                return self._object(name, inside)
            case {"fraction": str(text)}:
                return Fraction(text)
            case dict():
                return {key: self._value(item) for key, item in plain.items()}
            case list():
                return tuple(self._value(item) for item in plain)
            case _:
                return plain

    def _object(self, name: str, inside: Mapping[str, Any]) -> Any:
        kind = _imported(name)
        values = {field: self._value(item) for field, item in inside.items()}
        if not (isinstance(kind, type) and issubclass(kind, Spec)):
            raise TypeError(f"{name} is no class that is sent to workers")
        key = msgspec.msgpack.encode([name, inside])
        if key not in self._specs:
            self._specs[key] = build(kind, values)
        return self._specs[key]


def _travelling(work: Workload) -> dict[str, list[str]]:
    """The classes that no name leads to, as `module:Class` by the folder of their registry."""
    used = {kind for spec in work.specs() for kind in classes_in(spec)}
    sent: dict[str, list[str]] = {}
    for package, registry in REGISTRIES.items():
        for kind in registry.learned():
            if kind in used:
                _check_importable(kind)
                sent.setdefault(package, []).append(qualified(kind))
    return sent


def _check_importable(kind: type[Any]) -> None:
    """Raise `SpecError` for a class of a notebook, the script itself, or a function."""
    if kind.__module__ == "__main__":
        where = "in a notebook or the script itself"
    elif "<locals>" in kind.__qualname__:
        where = "within a function"
    else:
        return
    raise SpecError(
        f"{kind.__name__} is defined {where}, where other processes can't import it; put it at the "
        "top of a file of its own and import it from there, or run the study without workers",
        subject=kind.__name__,
    )


def _learn(classes: Mapping[str, list[str]]) -> None:
    """Have the classes known by their names that were known so where the message comes from."""
    for package, names in classes.items():
        for name in names:
            REGISTRIES[package].learn(_imported(name))


def _imported(name: str) -> Any:
    """The class called `module:Class`. Raises `SpecError` for one that isn't there."""
    module, _, path = name.partition(":")
    try:
        return attrgetter(path)(importlib.import_module(module))
    except Exception as error:  # a file may raise anything while it is imported
        raise SpecError(
            f"{name} can't be imported here ({error}); put its file where every worker finds it",
            subject=name,
        ) from error
