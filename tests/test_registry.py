"""The folder is the registry: checked on a package made for it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calibrant.data import CalibrationSet
from calibrant.errors import SpecError
from calibrant.methods import methods
from calibrant.names import catalogue
from calibrant.results import revisions
from calibrant.spec import canonical, identity
from calibrant.spec.foreign import did_you_mean
from calibrant.spec.registry import Registry

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


def test_a_text_is_built_and_written_back(fruits: Registry, tmp_path: Path) -> None:
    apple = fruits.build("apple(weight=2)")
    assert repr(apple) == "apple(weight=2.0)"
    assert fruits.build(apple) is apple
    assert fruits.build(repr(apple)) == apple
    outer = fruits.build("apple(inside=cherry(weight=3.0))")
    assert repr(outer) == "apple(inside=cherry(weight=3.0))"
    assert type(outer.inside).__name__ == "Cherry"
    (tmp_path / "fruit_shop" / "none.py").write_text(FRUIT.format(name="Nothing"))
    assert repr(Registry("fruit_shop", "fruit").build(" none ")) == "none", (
        "a name is wanted, and no word"
    )


def test_what_names_no_thing_is_refused(fruits: Registry) -> None:
    for given, near in (("aple", "'apple'"), ("0.5", "apple"), ("zzz", "'zzz'")):
        with pytest.raises(SpecError) as refused:
            fruits.build(given)
        assert refused.value.subject == given
        assert near in str(refused.value)
    assert did_you_mean("zzz", ["wanda"]) == ""
    assert did_you_mean("Textt", ["Text", "text"]) == ", perhaps you mean 'Text'"


def test_a_file_that_cannot_be_used_is_not_unknown(fruits: Registry) -> None:
    with pytest.raises(ModuleNotFoundError) as broken:
        fruits.get("broken")
    assert broken.value.name == "a_module_that_is_not_there"
    with pytest.raises(SpecError, match=r"fruit_shop\.two"):
        fruits.get("two")


PAIR = """
from dataclasses import dataclass
from calibrant.methods import Compressed, MatrixMethod

@dataclass(frozen=True, repr=False)
class Pow(MatrixMethod):
    power: float = 0.5

    def compress(self, weight, seen, target):
        return Compressed(weight)

class Other(Pow):
    pass
"""


def test_a_class_of_another_package_is_called_as_its_entry_point(
    plugged: Callable[..., None],
) -> None:
    plugged(
        {"calibrant.methods": {"wanda_pow": "mymethod:Pow", "other": "mymethod:Other"}},
        mymethod=PAIR,
    )
    one, other = methods.build("wanda_pow(power=2)"), methods.build("other")
    assert (repr(one), repr(other)) == ("wanda_pow(power=2.0)", "other")
    assert methods.build(repr(one)) == one
    assert canonical(one) == {
        "spec": "wanda_pow",
        "class": "mymethod:Pow",
        "revision": 1,
        "power": 2.0,
    }
    assert identity(methods.build("wanda_pow")) != identity(other)
    plugged(
        {"calibrant.methods": {"elsewhere": "door:Pow"}}, door="from room import Pow", room=PAIR
    )
    assert canonical(methods.build("elsewhere"))["class"] == "room:Pow"
    assert repr(methods.build("elsewhere")) == "elsewhere"


def test_entry_points_that_cannot_be_read_are_named_and_harm_no_other(
    plugged: Callable[..., None],
) -> None:
    points = {
        "raising": "raising:Pow",
        "gone": "nowhere:Pow",
        "malformed": "no class: at all!",
        "module": "mymethod",
        "fine": "door:Pow",
    }
    plugged(
        {"calibrant.methods": points},
        raising="1 / 0",
        door="from mymethod import Pow",
        mymethod=PAIR,
    )
    assert repr(methods.build("fine")) == "fine"
    for name in ("raising", "gone", "malformed", "module"):
        with pytest.raises(SpecError) as raised:
            methods.get(name)
        assert raised.value.subject == name


def test_a_name_that_is_taken_is_said(
    plugged: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    plugged({"calibrant.methods": {"ria": "shadow:Pow", "twin": "shadow:Pow"}}, shadow=PAIR)
    plugged({"calibrant.methods": {"twin": "second:Pow"}}, second=PAIR)
    for _ in range(2):
        plugged({"calibrant.methods": {"again": "third:Pow"}}, third=PAIR)
    methods.build("again")
    assert methods.build("ria").spec_name() == "ria"
    twin = methods.build("twin")
    methods.build("twin")
    other = {"second": "shadow", "shadow": "second"}[type(twin).__module__]
    assert caplog.messages == [
        "ria is calibrant's own method, and shadow:Pow has that name too: call one something else",
        f"twin is the method {type(twin).__module__}:Pow, and {other}:Pow has that name too: "
        "call one something else",
    ]


def test_a_class_without_an_entry_point_is_called_by_its_own_name_and_told_apart_by_its_module(
    plugged: Callable[..., None],
) -> None:
    plugged({}, one=PAIR, two=PAIR)
    import one  # pyright: ignore[reportMissingImports]
    import two  # pyright: ignore[reportMissingImports]

    assert repr(one.Pow()) == repr(two.Pow()) == "Pow"
    assert len({identity(thing) for thing in (one.Pow(), one.Other(), two.Pow(), two.Other())}) == 4
    assert revisions("method", canonical([one.Pow(), two.Pow()])) == {
        "method Pow (one:Pow)": 1,
        "method Pow (two:Pow)": 1,
    }


def test_formats_and_packings_of_others_are_used_and_written_by_their_names(
    plugged: Callable[..., None],
) -> None:
    code = """
from dataclasses import dataclass
from calibrant.data import Format, Packing

@dataclass(frozen=True, repr=False)
class Loud(Format):
    needs = ("text",)

    def render(self, row, tokenizer=None):
        return row.need("text").upper()

@dataclass(frozen=True, repr=False)
class Strewn(Packing):
    bos: str = "none"

    def windows(self, texts, sizes, frame):
        return iter(())

    def supply(self, lengths, frame):
        return "nothing"
"""
    plugged(
        {
            "calibrant.data.formats": {"shout": "plug:Loud"},
            "calibrant.data.packings": {"scatter": "plug:Strewn"},
        },
        plug=code,
    )
    assert (
        str(CalibrationSet("python_docs:shout@scatter(bos=window)"))
        == "python_docs:shout@scatter(bos='window')"
    )
    assert "scatter" in [entry.name for entry in catalogue("packings")]
    plugged({"calibrant.methods": {"pi": "math:pi"}})
    with pytest.raises(SpecError) as refused:
        methods.build("pi")
    assert refused.value.subject == "pi"
