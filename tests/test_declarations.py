"""What files declare of their classes is read without importing them, and is what Python makes of it."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.declarations import UNREADABLE, Sketches, UnreadableError
from calibrant.names import FOLDERS, Named, catalogue
from calibrant.registry import Registry
from calibrant.spec import text_of

REGISTRIES = [Registry(package, noun) for package, noun in FOLDERS.values()]


@pytest.mark.parametrize("registry", REGISTRIES, ids=[registry.package for registry in REGISTRIES])
def test_a_sketch_says_what_the_class_says(registry: Registry):
    sketches = Sketches()
    for name in registry.names():
        cls, sketch = registry.get(name), registry.sketch(name, sketches)
        assert (sketch.__name__, sketch.__module__, sketch.__doc__) == (cls.__name__, cls.__module__, cls.__doc__)
        assert [base.__name__ for base in sketch.__mro__] == [base.__name__ for base in cls.__mro__ if base.__module__ not in ("abc", "typing")]
        assert _parameters(sketch) == _parameters(cls)
        for fact in ("kind", "licence", "homepage", "after", "family", "written", "example", "tries", "revision"):
            if isinstance(value := getattr(sketch, fact, None), str | bool | int):
                assert value == getattr(cls, fact, None), (name, fact)


def _parameters(cls: type) -> list[tuple[str, str]]:
    return [(field.name, text_of(field.default)) for field in dataclasses.fields(cls) if field.init]


MINE = """
from dataclasses import dataclass, field
from calibrant.methods import Compressed, MatrixMethod

@dataclass(frozen=True, repr=False)
class Mine(MatrixMethod):
    \"\"\"Does what I do.\"\"\"

    power: float = {default}
    parts: tuple = field(default=(1, 2))

    def compress(self, weight, seen, target):
        return Compressed(weight)
"""


@pytest.mark.parametrize(("default", "imported"), [("0.5", False), ("max(0.5, 0.25)", True)])
def test_a_method_of_another_package_is_read_and_imported_only_if_it_must_be(plugged: Callable[..., None], default: str, imported: bool):
    plugged({"calibrant.methods": {"mine": "mine:Mine"}}, mine=MINE.format(default=default))
    entry = next(entry for entry in catalogue("methods") if entry.name == "mine")
    facts = {"class": "mine:Mine", "accepts": "0.5 or 2:4", "looks_at": "no data"}
    assert entry == Named("mine", "Does what I do.", {"power": "0.5", "parts": "[1, 2]"}, facts)
    assert ("mine" in sys.modules) == imported


@pytest.mark.parametrize(
    "code",
    [
        "from nowhere_at_all import Base\nclass Mine(Base): ...",
        "Mine = type('Mine', (), {})",
        "class Mine(Mine): ...",
        "class Mine:\n    if True:\n        power: float = 1.0",
        "class Mine(",
    ],
)
def test_what_only_python_can_read_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str):
    (tmp_path / "my_own_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnreadableError):
        Sketches().of("my_own_module", "Mine")


def test_a_name_of_a_package_is_followed_to_where_it_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "my_own_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\nfrom .inner import Inner as Outer")
    (folder / "inner.py").write_text(
        'SIZE = 3\nclass Inner:\n    "Says it."\n    size = SIZE\n    name, more = f"of {SIZE}", (-1, [True])\n    other = open("a")'
    )
    monkeypatch.syspath_prepend(tmp_path)
    sketch = Sketches().of("my_own_package", "Outer")
    assert (sketch.__doc__, sketch.size, sketch.name, sketch.more, sketch.other) == ("Says it.", 3, "of 3", (-1, [True]), UNREADABLE)
    assert Sketches().only_class("my_own_package.inner").__name__ == "Inner"
