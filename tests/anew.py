"""Calibrant imported anew within this process: from another folder, or where some packages can't
be found.
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

OURS = frozenset({"calibrant", "tools"})


class Hiding(MetaPathFinder):
    """A finder before all others, which finds none of these packages and ends the search."""

    def __init__(self, packages: Collection[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


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
        plain = [
            finder
            for finder in sys.meta_path
            if not type(finder).__module__.startswith("jaxtyping")
        ]
        patch.setattr(sys, "meta_path", [Hiding(hidden), *plain])
        if source is not None:
            patch.syspath_prepend(source)
        try:
            yield
        finally:
            take_out(OURS)
            sys.modules.update(before)  # pyright: ignore[reportArgumentType]
