"""The folder is the registry: a name is a file, and the list of names is the list of files.

`Registry(package)` stands in the `__init__.py` of each folder that grows (`methods`, `allocations`,
`data/sources`, `data/formats`, …). A file defines exactly one public class. Files may lie in
folders of families, such as `methods/pruning`; the name doesn't say which. Other packages add
names through an entry point in the group of the same name, for example `calibrant.methods`.
Listing names imports nothing; a broken file is an error when its name is used, never a name that
is missing.

An object of a class that no name leads to may stand where a name stands. `text` gives its text, and
from then on this process reads that back.
"""

import dataclasses
import importlib
import importlib.util
import logging
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from calibrant.errors import SpecError
from calibrant.spec.classes import NAMING_PACKAGES, is_foreign, qualified
from calibrant.spec.foreign import brief, did_you_mean
from calibrant.spec.spec import HYPHENED, Call, Spec, build, check_identity, parse, reads_back

_LOGGER: Final = logging.getLogger("calibrant")


def _folder_of(package: str) -> Path | None:
    """The folder of a package, without importing it or the packages that it lies in."""
    root, *inner = package.split(".")
    found = importlib.util.find_spec(root)
    if found is None:
        return None
    for place in found.submodule_search_locations or ():
        folder = Path(place, *inner)
        if folder.is_dir():
            return folder
    return None


def _packages_with_families(package: str) -> list[str]:
    """A package and the folders of families in it; none where there is no such folder."""
    folder = _folder_of(package)
    if folder is None:
        return []
    families = list[str]()
    for inner in sorted(folder.iterdir()):
        if (inner / "__init__.py").is_file() and not inner.name.startswith("_"):
            families.append(f"{package}.{inner.name}")
    return [package, *families]


def _frozen_class(thing: Spec) -> type[Any]:
    """Return the class of an object. Raises `SpecError` where it is no frozen dataclass."""
    cls = type(thing)
    # One that may change has no hash.
    if not dataclasses.is_dataclass(cls) or cls.__hash__ is None:
        name = cls.__name__
        remedy = "write @dataclass(frozen=True, repr=False) above it"
        raise SpecError(f"{name} is no frozen dataclass; {remedy}", subject=name)
    return cls


@cache
def _every_entry() -> Any:
    """The entry points of all packages, which take long to read."""
    return entry_points()


@cache
def _warn(sentence: str) -> None:
    """Say a sentence, once in a process."""
    _LOGGER.warning(sentence)


@dataclass(frozen=True)
class Registry:
    """The names of one folder.

    `package` is its import path, `noun` what one of its things is called.
    """

    package: str
    noun: str

    def __post_init__(self) -> None:
        NAMING_PACKAGES.update(_packages_with_families(self.package))

    def names(self) -> list[str]:
        """List every name in order.

        Files that begin with an underscore are not things but what things share.
        """
        return sorted(self.own.union(self._foreign))

    def text(self, thing: Spec) -> str:
        """Return the text of an object, which `build` reads back as an equal one from now on.

        So it does where nothing but the object leads to its class. Raises `SpecError` for a class
        that is no frozen dataclass or has another's name, and for an object that its text doesn't
        say whole.
        """
        self._learn_all(thing)
        text = str(thing)
        try:
            # The first is sure where it is true, and builds nothing; else the text is tried.
            is_whole = reads_back(thing) or self.build(text) == thing
        except SpecError:
            is_whole = False
        if not is_whole:
            name = type(thing).__name__
            remedy = f"let {name} have numbers, texts and lists of them as its fields"
            problem = f"doesn't read back as the {self.noun} that it is written for"
            raise SpecError(f"{text} {problem}; {remedy}", subject=text)
        return text

    def learn(self, cls: type[Any]) -> None:
        """Know a class by its name from now on, in this process.

        One that was defined anew takes the place of the old one. Raises `SpecError` for a name that
        another class has.
        """
        name = cls.spec_name()
        if self._is_listed(name):
            holder = self.get(name)
            taken = holder is not cls
        else:
            # A class that a notebook's cell defines anew is another object with the same path.
            holder = self._learned.get(name, cls)
            taken = qualified(holder) != qualified(cls)
        if taken:
            which = f"another {self.noun}, {qualified(holder)}"
            message = f"{qualified(cls)} has the name of {which}; call it something else"
            raise SpecError(message, subject=name)
        if not self._is_listed(name):
            self._learned[name] = cls

    def knows(self, name: str) -> bool:
        """Return whether there is a class called so.

        It may be in the folder, have an entry point, or be that of an object that was given.
        """
        return self._is_listed(name) or name in self._learned

    def warn_of_shared_name(self, name: str) -> None:
        """Warn, once, that several classes have this name, and say which one is used."""
        others = [entry.value for entry in self._entries if entry.name == name]
        used = f"calibrant's own {self.noun}"
        if name in self._foreign:
            last = self._foreign[name].value
            used = f"the {self.noun} {last}"
            # A package that is installed twice is no other one.
            others = [other for other in others if other != last]
        for other in others:
            _warn(f"{name} is {used}, and {other} has that name too: call one something else")

    def learned(self) -> list[type[Any]]:
        """Return the classes that only objects led to."""
        return list(self._learned.values())

    def get(self, name: str) -> type[Any]:
        """Return the class called `name`.

        Raises `SpecError` for an unknown name, with the nearest one and the whole list.
        """
        self.warn_of_shared_name(name)
        if name in self._learned:
            return self._learned[name]
        if name in self.own:
            return self._only_class(importlib.import_module(self._modules[name]))
        if name in self._foreign:
            return self._class_of_entry(self._foreign[name])
        near = did_you_mean(name, self.names())
        known = ", ".join(self.names()) or "none yet"
        message = f"there is no {self.noun} called {name!r}{near} (known: {known})"
        raise SpecError(message, subject=name)

    def build(self, spec: Any) -> Any:
        """Make the object that a text such as `sparsegpt(damp=0.02)` describes.

        Objects are passed through. Raises `SpecError` for what describes none, and for an object
        whose class is no frozen dataclass or can't have an identity.
        """
        if isinstance(spec, Spec):
            check_identity(_frozen_class(spec))
            return spec
        call = spec
        if isinstance(spec, str):
            # A name may be a word that means a value in a spec, such as `none`.
            bare = spec.strip()
            is_name = self.knows(bare) or HYPHENED.fullmatch(bare)
            call = Call(bare) if is_name else parse(spec)
        if not isinstance(call, Call):
            known = ", ".join(self.names())
            if isinstance(spec, str):
                given = repr(spec)
                subject = spec
            else:
                given = brief(spec)
                subject = given
            raise SpecError(f"{given} is no {self.noun}; write one of {known}", subject=subject)
        arguments = dict[str, Any]()
        for name, value in call.arguments.items():
            if isinstance(value, Call) and self.knows(value.name):
                arguments[name] = self.build(value)
            else:
                arguments[name] = value
        return build(self.get(call.name), arguments)

    @cached_property
    def own(self) -> frozenset[str]:
        """The names of the folder's files; those of other packages aren't among them."""
        return frozenset(self._modules)

    @cached_property
    def _modules(self) -> Mapping[str, str]:
        """The import path of each file that is a name."""
        modules = dict[str, str]()
        for package in _packages_with_families(self.package):
            for module in pkgutil.iter_modules([str(_folder_of(package))]):
                if not module.ispkg and not module.name.startswith("_"):
                    modules[module.name] = f"{package}.{module.name}"
        return modules

    @cached_property
    def _foreign(self) -> dict[str, EntryPoint]:
        """The names of other packages. Of several with one name the last is used."""
        return {entry.name: entry for entry in self._entries if entry.name not in self.own}

    @cached_property
    def _entries(self) -> Sequence[EntryPoint]:
        """The entry points of other packages, those too whose name is taken."""
        return tuple(_every_entry().select(group=self.package))

    @cached_property
    def _learned(self) -> dict[str, type[Any]]:
        """The classes that `learn` was given, by name; it fills this dictionary."""
        return {}

    def _is_listed(self, name: str) -> bool:
        """Whether a file or an entry point has this name."""
        return name in self.own or name in self._foreign

    def _learn_all(self, thing: Spec) -> None:
        """Learn the class of an object, and those of the objects in it."""
        cls = _frozen_class(thing)
        if is_foreign(cls):
            self.learn(cls)
        for field in dataclasses.fields(cls):
            inner = getattr(thing, field.name, None)
            if isinstance(inner, Spec):
                self._learn_all(inner)

    def _class_of_entry(self, entry: EntryPoint) -> type[Any]:
        """The class that an entry point names."""
        place = f"the entry point {entry.name} = {entry.value!r}"
        try:
            thing: object = entry.load()
        except Exception as error:  # a file may raise anything while it is imported
            why = f"{type(error).__name__}: {error}"
            message = f"{place} can't be read ({why}); mend its package, or remove it"
            raise SpecError(message, subject=entry.name) from error
        if isinstance(thing, type) and issubclass(thing, Spec):
            check_identity(thing)
            return thing
        message = f"{place} names no class of a {self.noun}; point it to one that inherits ours"
        raise SpecError(message, subject=entry.name)

    def _only_class(self, module: ModuleType) -> type[Any]:
        """The one public class that a file defines."""
        classes = list[type[Any]]()
        for name, value in vars(module).items():
            if name.startswith("_") or not isinstance(value, type):
                continue
            # A class that the file imports is another file's.
            if issubclass(value, Spec) and value.__module__ == module.__name__:
                classes.append(value)
        if len(classes) != 1:
            name = module.__name__
            message = f"{name} must define one public {self.noun}, not {len(classes)}"
            raise SpecError(message, subject=name)
        return classes[0]
