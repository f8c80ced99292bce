"""Calibrant imported anew within this process: from another folder, or where some packages can't
be found.
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

OURS = frozenset({"calibrant", "tools"})


class Hiding:
    """A finder of modules that finds none of some packages, and else what another one finds.

    As where these aren't installed, `import` raises and `importlib.util.find_spec` returns None.
    """

    def __init__(self, finder: MetaPathFinder, packages: Collection[str]) -> None:
        self._finder = finder
        self._packages = packages

    def find_spec(self, name: str, *others: Any) -> ModuleSpec | None:
        if name.partition(".")[0] in self._packages:
            return None
        return self._finder.find_spec(name, *others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def take_out(packages: Collection[str]) -> dict[str, object]:
    """Forget the modules of these packages, and return them."""
    names = [name for name in sys.modules if name.partition(".")[0] in packages]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def imported_anew(source: Path | None = None, hidden: Collection[str] = ()) -> Iterator[None]:
    """While this is open, calibrant and tools are imported afresh (from `source`, if given), and
    the packages in `hidden` can't be found.
    """
    before = take_out(OURS.union(hidden))
    with pytest.MonkeyPatch.context() as patch:
        # jaxtyping's import hook finds classes by their names, and would take the old modules' for
        # the new ones'; so it is left out.
        finders: list[Hiding] = []
        for finder in sys.meta_path:
            if not type(finder).__module__.startswith("jaxtyping"):
                finders.append(Hiding(finder, hidden))
        patch.setattr(sys, "meta_path", finders)
        if source is not None:
            patch.syspath_prepend(source)
        try:
            yield
        finally:
            take_out(OURS)
            sys.modules.update(before)  # pyright: ignore[reportArgumentType]
