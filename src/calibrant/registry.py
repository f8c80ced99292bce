"""The folder is the registry: a name is a file, and the list of names is the list of files.

`Registry(package)` stands in the `__init__.py` of each folder that grows (`methods`, `allocations`, `data/sources`, `data/formats`, …).
A file defines exactly one public class. Other packages add names through an entry point in the group of the same name, for example
`calibrant.methods`. Listing names imports nothing; a broken file is an error when it is asked for, never a name that is missing.
"""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from calibrant.errors import SpecError
from calibrant.spec import Call, Spec, build, parse


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """`", did you mean 'wanda'?"` for a near miss, else nothing."""
    close = difflib.get_close_matches(given, list(names), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class Registry:
    """The names of one folder. `package` is its import path, `noun` what one of its things is called."""

    package: str
    noun: str

    def names(self) -> list[str]:
        """Every name, sorted; files that begin with an underscore are not things but what things share."""
        return sorted({*self._files, *self._foreign})

    def get(self, name: str) -> type[Any]:
        """The class called `name`; an unknown name is a `SpecError` with the nearest one and the whole list."""
        if name in self._files:
            return self._only_class(importlib.import_module(f"{self.package}.{name}"))
        if name in self._foreign:
            return self._foreign[name].load()
        raise SpecError(f"there is no {self.noun} called {name!r}{did_you_mean(name, self.names())} (known: {', '.join(self.names())})", subject=name)

    def build(self, spec: "str | Call | Spec") -> Any:
        """Make the object that a text such as `sparsegpt(damp=0.02)` describes; objects are passed through."""
        if isinstance(spec, Spec):
            return spec
        call = spec if isinstance(spec, Call) else Call(spec.strip()) if spec.strip() in self.names() else parse(spec)
        if not isinstance(call, Call):
            raise SpecError(f"{spec!r} is no {self.noun}; write one of {', '.join(self.names())}", subject=str(spec))
        inner = {k: self.build(v) if isinstance(v, Call) and v.name in self.names() else v for k, v in call.arguments.items()}
        return build(self.get(call.name), inner)

    @cached_property
    def _files(self) -> frozenset[str]:
        found = importlib.util.find_spec(self.package)
        paths = found.submodule_search_locations if found else None
        return frozenset(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_"))

    @cached_property
    def _foreign(self) -> dict[str, EntryPoint]:
        return {e.name: e for e in entry_points(group=self.package) if e.name not in self._files}

    def _only_class(self, module: ModuleType) -> type[Any]:
        found = [
            c
            for n, c in vars(module).items()
            if isinstance(c, type) and issubclass(c, Spec) and c.__module__ == module.__name__ and not n.startswith("_")
        ]
        if len(found) != 1:
            raise SpecError(f"{module.__name__} must define one public {self.noun}, not {len(found)}", subject=module.__name__)
        return found[0]
