"""The folder is the registry: checked on a package made for it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calibrant.errors import SpecError
from calibrant.registry import Registry, did_you_mean

FRUIT = """
from dataclasses import dataclass
from calibrant.spec import Spec

@dataclass(frozen=True, repr=False)
class {name}(Spec):
    weight: float = 1.0
    inside: object = None
"""


@pytest.fixture
def fruits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    folder = tmp_path / "fruit_shop"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "_base.py").touch()
    (folder / "apple.py").write_text(FRUIT.format(name="Apple"))
    (folder / "cherry.py").write_text(FRUIT.format(name="Cherry"))
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    (folder / "two.py").write_text(FRUIT.format(name="One") + FRUIT.format(name="Two"))
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry("fruit_shop", "fruit")
    for name in [n for n in sys.modules if n.startswith("fruit_shop")]:
        del sys.modules[name]


def test_names_are_files_and_listing_imports_nothing(fruits: Registry) -> None:
    assert fruits.names() == ["apple", "broken", "cherry", "two"]
    assert "fruit_shop.apple" not in sys.modules


def test_build_reads_a_text(fruits: Registry) -> None:
    apple = fruits.build("apple(weight=2)")
    assert repr(apple) == "apple(weight=2.0)"
    assert fruits.build(apple) is apple
    assert fruits.build(repr(apple)) == apple


def test_a_name_that_is_also_a_word_is_a_name_where_one_is_asked_for(fruits: Registry, tmp_path: Path) -> None:
    (tmp_path / "fruit_shop" / "none.py").write_text(FRUIT.format(name="Nothing"))
    assert repr(Registry("fruit_shop", "fruit").build(" none ")) == "none"


def test_specs_nest(fruits: Registry) -> None:
    outer = fruits.build("apple(inside=cherry(weight=3.0))")
    assert repr(outer) == "apple(inside=cherry(weight=3.0))"
    assert type(outer.inside).__name__ == "Cherry"


def test_an_unknown_name_gets_the_nearest(fruits: Registry) -> None:
    with pytest.raises(SpecError, match=r"no fruit called 'aple', did you mean 'apple'.*known: apple, broken, cherry"):
        fruits.build("aple")


def test_what_is_no_name_is_refused(fruits: Registry) -> None:
    with pytest.raises(SpecError, match=r"'0\.5' is no fruit; write one of apple"):
        fruits.build("0.5")


def test_a_broken_file_is_broken_and_not_unknown(fruits: Registry) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        fruits.get("broken")


def test_one_file_defines_one_thing(fruits: Registry) -> None:
    with pytest.raises(SpecError, match=r"fruit_shop.two must define one public fruit, not 2"):
        fruits.get("two")


def test_did_you_mean_keeps_silent_when_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["wanda"]) == ""
