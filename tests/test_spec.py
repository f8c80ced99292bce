"""Text, object and identity of a spec."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal, Optional, Union, cast

import numpy as np
import pytest

from calibrant.errors import SpecError
from calibrant.spec import Call, Spec, build, canonical, check_most, identity, parse, text_of


@dataclass(frozen=True, repr=False)
class Toy(Spec):
    damp: float = 0.01
    name: str | None = None
    inner: object = None

    @classmethod
    def spec_name(cls) -> str:
        return "toy"


@dataclass(frozen=True, repr=False)
class Needy(Spec):
    size: int


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wanda", Call("wanda")),
        ("wanda()", Call("wanda")),
        (" sparsegpt(damp=0.02) ", Call("sparsegpt", {"damp": 0.02})),
        ("dsnot(start=wanda(), rounds=-3)", Call("dsnot", {"start": Call("wanda"), "rounds": -3})),
        ("x(a=[1, 'two', true, none])", Call("x", {"a": [1, "two", True, None]})),
        ("0.5", 0.5),
        ("'text'", "text"),
    ],
)
def test_parse(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "wanda(x=__import__('os'))",
        "wanda(x=a.b)",
        "wanda(x=1+1)",
        "wanda(x=[i for i in y])",
        "(lambda: 1)()",
        "wanda(**x)",
        "wanda(x=f'{y}')",
        "wanda(x=a[0])",
        "wanda(x=b'1')",
        "wanda(x=1j)",
        "sparsegpt(0.02)",
    ],
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse(text)
    assert text.removeprefix("wanda(x=").removesuffix(")") in str(refused.value)


@pytest.mark.parametrize("text", ["wanda(", "", "a b", "((((" * 60])
def test_broken_text_is_one_sentence(text: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse(text)
    assert refused.value.subject == text
    assert "\n" not in str(refused.value)


def test_repr_leaves_defaults_out_and_parses_back() -> None:
    toy = Toy(damp=0.5, name="a b")
    assert repr(toy) == str(toy) == "toy(damp=0.5, name='a b')"
    assert build(Toy, parse(repr(toy)).arguments) == toy
    assert repr(Toy()) == "toy"
    text = "dsnot(start=wanda, list=[1, 'x'])"
    assert text_of(parse(text)) == text


@pytest.mark.parametrize(
    ("cls", "given", "subject"),
    [
        (Toy, {"dmap": 1.0}, "dmap"),
        (Toy, {"damp": "x"}, "damp"),
        (Toy, {"name": 3}, "name"),
        (Needy, {}, "size"),
        (Needy, {"size": True}, "size"),
    ],
)
def test_what_a_parameter_does_not_take_is_refused_by_its_name(
    cls: type[Spec], given: dict[str, object], subject: str
) -> None:
    with pytest.raises(SpecError) as refused:
        build(cls, given)
    assert refused.value.subject == subject


def test_a_value_becomes_what_is_wanted() -> None:
    built = build(Toy, {"damp": 1})
    assert isinstance(built.damp, float)
    assert identity(built) == identity(Toy(damp=1.0))
    assert build(Toy, {"name": Call("wikitext")}).name == "wikitext"


@pytest.mark.parametrize("damp", [1, 2])
def test_an_object_with_a_whole_number_is_what_its_text_is(damp: int) -> None:
    @dataclass(frozen=True, repr=False)
    class Damped(Spec):
        damp: float = 1.0

    assert identity(Damped(damp=damp)) == identity(build(Damped, {"damp": damp}))


def test_a_whole_number_of_numpy_is_a_plain_one() -> None:
    @dataclass(frozen=True, repr=False)
    class Limited(Spec):
        limit: int = 200

        def __post_init__(self) -> None:
            check_most(self, limit=1_000)

    limited = Limited(limit=cast("Any", np.int64(2)))
    assert repr(limited).endswith("(limit=2)")
    assert identity(limited) == identity(Limited(limit=2))


@dataclass(frozen=True, repr=False)
class Choosy(Spec):
    """Its annotations are written in the older ways."""

    per: Literal["row", "matrix"] = "row"
    cap: Optional[float] = None  # noqa: UP045
    rounds: Union[int, Literal["all"]] = 1  # noqa: UP007


@dataclass(frozen=True, repr=False)
class Postponed(Spec):
    per: "Literal['row', 'matrix']" = "row"
    cap: "Optional[float]" = None  # noqa: UP045
    rounds: "int | Literal['all']" = 1


@pytest.mark.parametrize("cls", [Choosy, Postponed])
def test_literals_and_optional_types_are_read_as_plain_ones(cls: type[Any]) -> None:
    assert build(cls, {"per": Call("matrix")}) == cls(per="matrix")
    assert build(cls, {"rounds": Call("all")}) == cls(rounds="all")
    assert isinstance(build(cls, {"cap": 1}).cap, float)
    assert identity(cls(cap=1)) == identity(cls(cap=1.0))
    assert build(cls, {"cap": None, "rounds": 2}) == cls(rounds=2)
    wrong = [("per", Call("block"), "'row' or 'matrix'"), ("per", None, "'row' or 'matrix'")]
    wrong += [("rounds", Call("some"), "int or 'all'"), ("cap", "much", "float or None")]
    for name, value, allowed in wrong:
        with pytest.raises(SpecError, match=f"{name} must be {allowed}$") as refused:
            build(cls, {name: value})
        assert refused.value.subject == name


@dataclass(frozen=True, repr=False)
class Worded(Spec):
    """Its literals are read as other values where they stand without quotes."""

    kind: Literal["none", "null", "true", "False", "4", "0.50"] = "null"
    most: int | Literal["4", "none"] = 1


@pytest.mark.parametrize("word", ["none", "null", "true", "False", "4", "0.50"])
def test_a_literal_that_would_be_read_as_another_value_needs_no_quotes(word: str) -> None:
    for given in (word, repr(word)):
        assert build(Worded, parse(f"worded(kind={given})").arguments) == Worded(kind=word)
    assert build(Worded, parse("worded(most=none)").arguments) == Worded(most="none")
    assert build(Worded, parse("worded(most=4)").arguments) == Worded(most=4)
    for value in ("yes", "4.0", "5", "[none]"):
        with pytest.raises(SpecError, match="kind must be 'none' or 'null'"):
            build(Worded, parse(f"worded(kind={value})").arguments)


@pytest.mark.parametrize(
    ("key", "members"),
    [
        ("revision", {"__annotations__": {"revision": str}, "revision": "main"}),
        ("spec", {"__annotations__": {"spec": str}, "spec": "a"}),
        ("revision", {"revision": "main"}),
    ],
)
def test_a_class_whose_identity_would_be_wrong_is_refused(
    key: str, members: dict[str, Any]
) -> None:
    """A parameter is called as a part of every identity is, or the revision is a text."""
    from calibrant.methods import methods

    members["__module__"] = __name__
    diary = dataclass(frozen=True, repr=False)(type("Diary", (Spec,), members))
    for use in (identity, methods.build):
        with pytest.raises(SpecError, match="Diary") as refused:
            use(diary())
        assert refused.value.subject == key


def test_identity_writes_defaults_out() -> None:
    assert canonical(Toy()) == {
        "spec": "toy",
        "class": "tests.test_spec:Toy",
        "revision": 1,
        "damp": 0.01,
        "name": None,
        "inner": None,
    }
    assert identity(Toy()) == identity(Toy(damp=0.01))
    assert identity(Toy()) != identity(Toy(damp=0.02))
    assert identity({"b": 1, "a": 2}) == identity({"a": 2, "b": 1})


def test_identity_is_the_same_in_another_process() -> None:
    code = "from calibrant.spec import identity; print(identity({'b': [1, 0.1, None], 'a': 'ü'}))"
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert other.stdout.strip() == identity({"a": "ü", "b": [1, 0.1, None]})
    assert identity({"a": "ü", "b": [1, 0.1, None]}).startswith("sha256:")


def test_what_is_ours_has_the_identity_that_it_always_had() -> None:
    from calibrant.methods import methods

    assert canonical(methods.build("sparsegpt")) == {
        "spec": "sparsegpt",
        "revision": 1,
        "damp": 0.01,
        "block": 128,
    }
    assert (
        identity(methods.build("wanda"))
        == "sha256:8671f71f3864ffc02ca2d0ce770440ec144bd4b9dba14a53b9199b4e41e30b26"
    )


@pytest.mark.parametrize(
    "text",
    [
        "gptq(damp=0.01, damp=0.5)",
        "dsnot(start=wanda(damp=1, damp=1))",
        "[x(damp=1, size=2, damp=1)]",
    ],
)
def test_a_parameter_is_given_once(text: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse(text)
    assert refused.value.subject == "damp"
    assert "\n" not in str(refused.value)
