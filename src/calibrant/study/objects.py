"""Objects where a study's file has names: their texts, and how their classes come to workers."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final

from calibrant.allocations import Allocation, allocations
from calibrant.data import CalibrationSet, Source, selectors, sources
from calibrant.errors import SpecError
from calibrant.evaluators import Evaluator, evaluators
from calibrant.methods import Method, methods
from calibrant.registry import Registry
from calibrant.spec import Spec, classes_in, qualified
from calibrant.study.checking import MOST_VALUES, Mistakes, Path
from calibrant.targets import Target
from calibrant.transforms import Transform, transforms

REGISTRIES: Final = {registry.package: registry for registry in (methods, evaluators, allocations, transforms, sources, selectors)}
"""Where a study looks names up, by the folder of each."""
_OF: Final[tuple[tuple[type[Spec], Registry], ...]] = ((Method, methods), (Evaluator, evaluators), (Allocation, allocations), (Transform, transforms))
BUDGET: Final = ("samples", "length", "tokens")


def as_file(value: Any, path: Path, budget: Sequence[Any], mistakes: Mistakes) -> Any:
    """Return a value as a study file would hold it: objects as their texts, any sequence as a list, and of what has no end enough to see that.

    `budget` are the study's samples, length and tokens, which are also those of its calibration sets.
    """
    if isinstance(value, Mapping):
        return {key: as_file(item, (*path, key), budget, mistakes) for key, item in value.items()}
    if isinstance(value, CalibrationSet):
        return _text_of_set(value, path, budget, mistakes)
    if isinstance(value, Source):
        return mistakes.tried(path, lambda source: str(CalibrationSet(source)), value)
    if isinstance(value, Target):
        return str(value)
    if isinstance(value, Spec):
        registry = next((registry for kind, registry in _OF if isinstance(value, kind)), None)
        return value if registry is None else mistakes.tried(path, registry.text, value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [as_file(item, (*path, at), budget, mistakes) for at, item in enumerate(islice(value, MOST_VALUES + 1))]


def _text_of_set(value: CalibrationSet, path: Path, budget: Sequence[Any], mistakes: Mistakes) -> str:
    """Return the text of a set; one whose budget or draw isn't the study's is a mistake, since a study has one for all its sets."""
    samples, length, tokens = budget
    own = (value.length, value.budget) if tokens is not None or value.budget is not None else (value.length, value.samples)
    asked = (length, tokens) if tokens is not None or value.budget is not None else (length, samples)
    if own != asked or value.seed or value.part != "calibrate":
        said = ", ".join(f"{name}={number}" for name, number in zip(BUDGET, budget, strict=True) if number is not None)
        mistakes.add(
            path, f"{value!r} has a budget or a draw of its own, and in a study all sets have the study's, {said}; give its text, {value.expr!r}"
        )
    return value.expr


def travelling(things: Iterable[Any]) -> dict[str, list[str]]:
    """Return the classes in `things` that no name leads to, as `module:Class` by the folder of their registry, for another process to import.

    Raises `SpecError` for one that can't be imported: defined in a notebook, in the script itself, or in a function.
    """
    used = {cls for thing in things for cls in classes_in(thing)}
    classes = {package: [cls for cls in registry.learned() if cls in used] for package, registry in REGISTRIES.items()}
    for cls in (cls for several in classes.values() for cls in several):
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            where = "in a notebook or the script itself" if cls.__module__ == "__main__" else "within a function"
            raise SpecError(
                f"{cls.__name__} is defined {where}, where other processes can't import it; put it at the top of a file of its own and import it "
                "from there, or run the study without workers",
                subject=cls.__name__,
            )
    return {package: [qualified(cls) for cls in several] for package, several in classes.items() if several}


def arrived(classes: Mapping[str, Sequence[str]]) -> None:
    """Import the classes that `travelling` wrote in another process. Raises `SpecError` for one that isn't there."""
    for package, several in classes.items():
        for name in several:
            module, _, path = name.partition(":")
            try:
                cls = attrgetter(path)(importlib.import_module(module))
            except (ImportError, AttributeError) as error:
                raise SpecError(f"{name} can't be imported here ({error}); put its file where every worker finds it", subject=name) from error
            REGISTRIES[package].learn(cls)
