"""The folder is the registry: a name is a file, and the list of names is the list of files.

`Registry(package)` stands in the `__init__.py` of each folder that grows (`methods`, `allocations`, `data/sources`, `data/formats`, …).
A file defines exactly one public class. Other packages add names through an entry point in the group of the same name, for example
`calibrant.methods`. Listing names imports nothing, nor does reading what their files declare; a broken file is an error when its name is used,
never a name that is missing.

An object of a class that no name leads to may stand where a name stands. `text` gives its text, and from then on this process reads that back.
"""

import dataclasses
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, distributions, entry_points
from operator import attrgetter
from types import ModuleType
from typing import Any, Final

from calibrant.declarations import Sketches, folder_of
from calibrant.errors import SpecError
from calibrant.foreign import brief
from calibrant.spec import Call, Spec, build, is_foreign, parse, qualified, reads_back

_MISSPELT: Final = 500
_REMEMBERED: Final = 2_000
_FOLDERS: Final = set[str]()
"""The packages whose files are names, ours and others'."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`", did you mean 'wanda'?"` for a near miss, else nothing; nobody misspells a text of many lines, or remembers thousands of names."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6) if len(name) <= _MISSPELT and len(known) <= _REMEMBERED else []
    return f", did you mean {close[0]!r}?" if close else ""


def foreign_name(cls: type[Any]) -> str:
    """What a class of another package is called: as its entry point says, as its file where a registry has that file, else by its own name."""
    written = _entries()
    entry = written.get(qualified(cls)) or next((e for e in written.values() if e.module in sys.modules and _loaded(e) is cls), None)
    if entry is not None:
        return entry.name
    folder, _, file = cls.__module__.rpartition(".")
    return file if folder in _FOLDERS else cls.__name__


@cache
def _entries() -> dict[str, EntryPoint]:
    """Every entry point for Calibrant, by what it points to; of several names for one class the first of the alphabet."""
    everything = (e for package in distributions() for e in package.entry_points if e.group.startswith("calibrant."))
    return {e.value.replace(" ", ""): e for e in sorted(everything, key=lambda e: (e.name, e.group), reverse=True)}


def _loaded(entry: EntryPoint) -> object:
    """What an entry point names in a module that is loaded, which may have it from elsewhere; None while the module is still being read."""
    try:
        return attrgetter(entry.attr)(sys.modules[entry.module])
    except AttributeError:
        return None


@dataclass(frozen=True)
class Registry:
    """The names of one folder. `package` is its import path, `noun` what one of its things is called."""

    package: str
    noun: str

    def __post_init__(self) -> None:
        _FOLDERS.add(self.package)

    def names(self) -> list[str]:
        """Every name, sorted; files that begin with an underscore are not things but what things share."""
        return sorted({*self._own, *self._foreign})

    def text(self, thing: Spec) -> str:
        """The text of an object, which `build` reads back as an equal one from now on, also where nothing but the object leads to its class.

        Raises `SpecError` for a class that is no frozen dataclass or has another's name, and for an object that its text doesn't say whole.
        """
        self._learn_all(thing)
        text, name = str(thing), type(thing).__name__
        try:
            whole = reads_back(thing) or self.build(text) == thing
        except SpecError:
            whole = False
        if not whole:
            raise SpecError(
                f"{text} doesn't read back as the {self.noun} that it is written for; let {name} have numbers, texts and lists of them as its fields",
                subject=text,
            )
        return text

    def learn(self, cls: type[Any]) -> None:
        """Know a class by its name from now on, in this process; one that was defined anew takes the place of the old one. Raises `SpecError`."""
        name, holder = cls.spec_name(), None
        if name in self._own or name in self._foreign:
            holder = self.get(name)
        elif (other := self._learned.get(name)) is not None and qualified(other) != qualified(cls):
            holder = other
        if holder not in (None, cls):
            raise SpecError(f"{qualified(cls)} has the name of another {self.noun}, {qualified(holder)}; call it something else", subject=name)
        if holder is None:
            self._learned[name] = cls

    def knows(self, name: str) -> bool:
        """Whether there is a class called so: in the folder, by an entry point, or because an object of it was given."""
        return name in self._own or name in self._foreign or name in self._learned

    def learned(self) -> list[type[Any]]:
        """The classes that only objects led to."""
        return list(self._learned.values())

    def get(self, name: str) -> type[Any]:
        """The class called `name`; an unknown name is a `SpecError` with the nearest one and the whole list."""
        if name in self._learned:
            return self._learned[name]
        if name in self._own:
            return self._only_class(importlib.import_module(f"{self.package}.{name}"))
        if name in self._foreign:
            return self._a_class(self._foreign[name])
        known = ", ".join(self.names()) or "none yet"
        raise SpecError(f"there is no {self.noun} called {name!r}{did_you_mean(name, self.names())} (known: {known})", subject=name)

    def build(self, spec: Any) -> Any:
        """Make the object that a text such as `sparsegpt(damp=0.02)` describes; objects are passed through."""
        if isinstance(spec, Spec):
            return spec
        if not isinstance(spec, str | Call):
            raise SpecError(f"{brief(spec)} is no {self.noun}; write one of {', '.join(self.names())}", subject=brief(spec))
        call = spec if isinstance(spec, Call) else Call(spec.strip()) if self.knows(spec.strip()) else parse(spec)
        if not isinstance(call, Call):
            raise SpecError(f"{spec!r} is no {self.noun}; write one of {', '.join(self.names())}", subject=str(spec))
        inner = {k: self.build(v) if isinstance(v, Call) and self.knows(v.name) else v for k, v in call.arguments.items()}
        return build(self.get(call.name), inner)

    def sketch(self, name: str, sketches: Sketches) -> type[Any]:
        """Return the class behind a name as its file declares it, importing nothing. Raises `UnreadableError` where it takes an import to know."""
        if name in self._own:
            return sketches.only_class(f"{self.package}.{name}")
        return sketches.of(self._foreign[name].module, self._foreign[name].attr)

    @cached_property
    def _own(self) -> frozenset[str]:
        folder = folder_of(self.package)
        return frozenset(m.name for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_")) if folder else frozenset()

    @cached_property
    def _foreign(self) -> dict[str, EntryPoint]:
        return {e.name: e for e in entry_points(group=self.package) if e.name not in self._own}

    @cached_property
    def _learned(self) -> dict[str, type[Any]]:
        return {}

    def _learn_all(self, thing: Spec) -> None:
        """Learn the class of an object, and those of the objects in it."""
        cls = type(thing)
        if not dataclasses.is_dataclass(cls) or cls.__hash__ is None:  # one that may change has no hash
            raise SpecError(f"{cls.__name__} is no frozen dataclass; write @dataclass(frozen=True, repr=False) above it", subject=cls.__name__)
        if is_foreign(cls):
            self.learn(cls)
        for field in dataclasses.fields(cls):
            if isinstance(inner := getattr(thing, field.name, None), Spec):
                self._learn_all(inner)

    def _a_class(self, entry: EntryPoint) -> type[Any]:
        named: object = entry.load()
        if not isinstance(named, type) or not issubclass(named, Spec):
            raise SpecError(
                f"the entry point {entry.name} = {entry.value!r} names no class of a {self.noun}; point it to one that inherits ours",
                subject=entry.name,
            )
        return named

    def _only_class(self, module: ModuleType) -> type[Any]:
        classes = [
            c
            for n, c in vars(module).items()
            if isinstance(c, type) and issubclass(c, Spec) and c.__module__ == module.__name__ and not n.startswith("_")
        ]
        if len(classes) != 1:
            raise SpecError(f"{module.__name__} must define one public {self.noun}, not {len(classes)}", subject=module.__name__)
        return classes[0]
