"""What can be named: sources, methods and the like, each with what it is. Nothing is imported to say it but what can't be read off a file."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calibrant.declarations import UNREADABLE, Sketches, UnreadableError
from calibrant.errors import SpecError
from calibrant.families import family_of_kind
from calibrant.named import NAMED
from calibrant.registry import Registry, did_you_mean
from calibrant.spec import is_foreign, qualified, text_of

FOLDERS: Final = {
    "sources": ("calibrant.data.sources", "source"),
    "formats": ("calibrant.data.formats", "format"),
    "packings": ("calibrant.data.packings", "packing"),
    "methods": ("calibrant.methods", "method"),
    "targets": ("calibrant.targets", "target"),
    "allocations": ("calibrant.allocations", "allocation"),
    "transforms": ("calibrant.transforms", "transform"),
    "exports": ("calibrant.exports", "export"),
    "selectors": ("calibrant.select", "selector"),
    "tasks": ("calibrant.evaluators", "task"),
}
"""Each kind of names: the package whose files they are, and what one of them is."""
KINDS: Final = ("models", *FOLDERS)

REMOVING: Final = ("sparsity", "share")
"""Targets of which a method takes one if it removes something."""

_MODELS: Final = {
    **{model.name: model.summary for model in NAMED.values()},
    "FILE.gguf": "a GGUF file, dequantized",
    "FOLDER": "a folder that transformers or calibrant saved, with safetensors",
    "ORGANISATION/NAME": "a model of the Hugging Face hub",
}


@dataclass(frozen=True)
class Named:
    """One name: what its class does in a line, its parameters with their defaults, further facts such as a licence, and what its file says it is.

    A thing of another package has its `class` among the facts.
    """

    name: str
    summary: str
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    title: str = ""


def catalogue(kind: str) -> list[Named]:
    """List what can be named of one kind (`models`, `sources`, `methods`, …). Raises `SpecError` for a kind that doesn't exist.

    >>> [entry.name for entry in catalogue("packings")]
    ['crop', 'imatrix', 'legacy', 'many', 'one']
    >>> next(entry for entry in catalogue("methods") if entry.name == "sparsegpt").facts
    {'accepts': '0.5, 2:4 or 2:4+w4g64', 'looks_at': 'gram'}
    """
    if kind not in KINDS:
        raise SpecError(f"there is nothing called {kind!r} to list{did_you_mean(kind, KINDS)}; choose one of {', '.join(KINDS)}", subject=kind)
    if kind == "models":
        return [Named(name, summary) for name, summary in _MODELS.items()]
    registry, sketches = Registry(*FOLDERS[kind]), Sketches()
    entries = [_entry(registry, name, sketches) for name in registry.names()]
    return sorted(entries, key=lambda entry: entry.name)


def names(kind: str) -> list[str]:
    """List the names alone of one of `KINDS`; not even the files are read.

    >>> names("packings")
    ['crop', 'imatrix', 'legacy', 'many', 'one']
    """
    return list(_MODELS) if kind == "models" else Registry(*FOLDERS[kind]).names()


def removing() -> list[Named]:
    """List the methods that remove weights, blocks or experts, with their titles alone; those of other packages too.

    >>> [entry.name for entry in removing() if entry.name.startswith("s")]
    ['short_gpt', 'sparsegpt', 'svd']
    """
    registry, targets, sketches = Registry(*FOLDERS["methods"]), Registry(*FOLDERS["targets"]), Sketches()
    entries = list[Named]()
    for name in sorted(registry.names()):
        try:
            cls = registry.sketch(name, sketches)
            removes, title = _removes(cls, [targets.sketch(kind, sketches) for kind in REMOVING]), sketches.docstring(cls.__module__)
        except UnreadableError:
            cls = registry.get(name)
            removes, title = _removes(cls, [targets.get(kind) for kind in REMOVING]), sys.modules[cls.__module__].__doc__
        if removes:
            entries.append(Named(name, _summary(cls), title=(title or "").strip().partition("\n")[0]))
    return entries


def _removes(method: type[Any], kinds: Sequence[type[Any]]) -> bool:
    return _fact(method, "prunes") is not False and any(issubclass(kind, _fact(method, "accepts")) for kind in kinds)


def _entry(registry: Registry, name: str, sketches: Sketches) -> Named:
    """Return a name with what its file declares; where that takes more than reading, the class is imported, and so is what it is compared with."""
    targets = Registry(*FOLDERS["targets"])
    try:
        sketch = registry.sketch(name, sketches)
        entry = _described(name, sketch, [targets.sketch(target, sketches) for target in targets.names()])
        title = sketches.docstring(sketch.__module__)
    except UnreadableError:
        cls = registry.get(name)
        entry = _described(name, cls, [targets.get(target) for target in targets.names()])
        title = sys.modules[cls.__module__].__doc__ or ""
    return dataclasses.replace(entry, title=title.strip().partition("\n")[0])


def _described(name: str, cls: type[Any], targets: Sequence[type[Any]]) -> Named:
    """Return what a class, or its sketch, says of itself. Raises `UnreadableError` where a sketch lacks what is needed."""
    if cls in targets:
        return Named(_fact(cls, "example"), _summary(cls), facts={"written": _fact(cls, "written")})
    parameters = {f.name: _default(f) for f in dataclasses.fields(cls) if f.init} if dataclasses.is_dataclass(cls) else {}
    facts = {fact: value for fact in ("kind", "licence", "homepage", "after") if isinstance(value := _fact(cls, fact), str) and value}
    if (family := _fact(cls, "family")) is not None:  # so it is a source
        facts["family"] = family or family_of_kind(cls.kind)
    facts |= {"class": qualified(cls)} if is_foreign(cls) else {}
    if (accepts := _fact(cls, "accepts")) is not None:  # so it is a method
        facts |= {"accepts": _accepted(accepts, targets), "looks_at": _looks(cls)}
    return Named(name, _summary(cls), parameters, facts)


def _fact(cls: type[Any], name: str) -> Any:
    """Return a class variable, None where there is none."""
    value = getattr(cls, name, None)
    if value is UNREADABLE:
        raise UnreadableError(f"{qualified(cls)}.{name} is no literal")
    return value


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else text_of(field.default)


def _summary(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _accepted(accepts: tuple[type[Any], ...], targets: Sequence[type[Any]]) -> str:
    """Return an example of each kind of target that a method accepts, the shortest first."""
    *most, last = sorted((target.example for target in targets if issubclass(target, accepts)), key=lambda example: (len(example), example))
    return f"{', '.join(most)} or {last}" if most else last


def _looks(method: type[Any]) -> str:
    """Return what a method looks at, in words: `FeatureNorms` is feature norms."""
    observes = _fact(method, "observes")
    if isinstance(observes, property):  # parameters decide, and their defaults are meant
        if observes.fget is None:
            raise UnreadableError(f"{qualified(method)}.observes is more than can be read")
        observes = method().observes
    statistics = [re.sub("(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower() for kind in observes]
    return ", ".join([*statistics, *(["the loss"] if _fact(method, "tries") else [])]) or "no data"
