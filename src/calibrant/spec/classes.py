"""Whose class it is, and what it is called: that of another package as its entry point says."""

import sys
from functools import cache
from importlib.metadata import EntryPoint, distributions
from operator import attrgetter
from typing import Any, Final

from calibrant.errors import SpecError

NAMING_PACKAGES: Final = set[str]()
"""The packages whose files are names, ours and others'. Each registry adds its own."""


def is_foreign(cls: type[Any]) -> bool:
    """Whether a class belongs to another package."""
    return cls.__module__.partition(".")[0] != "calibrant"


def qualified(cls: type[Any]) -> str:
    """Return what tells a class apart from every other: `mymethod:WandaPow`.

    An entry point writes it so too.
    """
    return f"{cls.__module__}:{cls.__qualname__}"


def foreign_name(cls: type[Any]) -> str:
    """Return what a class of another package is called.

    That is what its entry point says, else the name of its file where a registry has that file,
    else its own name.
    """
    entries = _entries()
    named_entry = entries.get(qualified(cls))
    if named_entry is not None:
        return named_entry.name
    # An entry point may name another module, which only hands the class on.
    for entry in entries.values():
        if entry.module in sys.modules and _loaded(entry) is cls:
            return entry.name
    folder, _, file = cls.__module__.rpartition(".")
    return file if folder in NAMING_PACKAGES else cls.__name__


def keep_class(classes: dict[str, type[Any]], word: str, cls: type[Any]) -> None:
    """Keep a class under the word that it alone has. Raises `SpecError` where another has it.

    A class that is defined once more, as in a notebook, takes the place of the earlier one.
    """
    other = classes.get(word, cls)
    if qualified(other) != qualified(cls):
        message = f"{qualified(cls)} is called {word!r}, as {qualified(other)} is"
        raise SpecError(f"{message}; choose another word", subject=word)
    classes[word] = cls


@cache
def _entries() -> dict[str, EntryPoint]:
    """Every entry point for Calibrant, by what it points to.

    Of several names for one class the first of the alphabet stays, since it comes last.
    """
    our_entries = list[EntryPoint]()
    for package in distributions():
        ours = [entry for entry in package.entry_points if entry.group.startswith("calibrant.")]
        our_entries += [entry for entry in ours if _names_a_class(entry)]
    our_entries.sort(key=attrgetter("name", "group"), reverse=True)
    entries = dict[str, EntryPoint]()
    for entry in our_entries:
        entries[entry.value.replace(" ", "")] = entry
    return entries


def _names_a_class(entry: EntryPoint) -> bool:
    """Whether an entry point is written as `module:class`; others fail where they are used."""
    try:
        return bool(entry.module and entry.attr)
    except AttributeError:
        return False


def _loaded(entry: EntryPoint) -> object:
    """What an entry point names in a module that is loaded, which may have it from elsewhere.

    None while the module is still being read.
    """
    try:
        return attrgetter(entry.attr)(sys.modules[entry.module])
    except AttributeError:
        return None
