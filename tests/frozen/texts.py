"""What texts mean: of calibration data and specs of every kind the canonical text and the identity,
or the class of the error.

A text of a name is made from its class alone, with a seed of its own, so that a new name adds texts
and changes none.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from calibrant.allocations import allocations
from calibrant.data import CalibrationSet
from calibrant.data.expression import parse_format, parse_packing, parse_source
from calibrant.data.formats import formats
from calibrant.data.packings import packings
from calibrant.data.select import selectors
from calibrant.data.sources import sources
from calibrant.errors import InputError
from calibrant.evaluators import evaluators
from calibrant.exports import exports
from calibrant.methods import methods
from calibrant.spec import canonical, identity, is_foreign, text_of
from calibrant.spec.registry import Registry
from calibrant.targets import parse_target, targets
from calibrant.transforms import transforms

from tests.frozen.odd import ODD

REGISTRIES: Final[dict[str, Registry]] = {
    "source": sources,
    "selector": selectors,
    "format": formats,
    "packing": packings,
    "method": methods,
    "allocation": allocations,
    "transform": transforms,
    "export": exports,
    "evaluator": evaluators,
    "target": targets,
}
NEEDED: Final = {"source": "'wikitext'", "to": "'c4'", "task": "piqa"}
"""What stands where a parameter has no default."""
MISTYPED: Final = {int: "1.5", float: "'much'", bool: "3", str: "7"}
"""For a parameter of each type a value of another one."""
UNKNOWN: Final = 0.25
"""The share of names without parameters that are given one."""


def _format(text: str) -> Any:
    return parse_format(text)[0]


READERS: Final[dict[str, Callable[[str], Any]]] = {
    "data": CalibrationSet,
    "source": parse_source,
    "selector": parse_source,
    "format": _format,
    "packing": parse_packing,
    "method": methods.build,
    "allocation": allocations.build,
    "transform": transforms.build,
    "export": exports.build,
    "evaluator": evaluators.build,
    "target": parse_target,
}


def meaning(key: str) -> Any:
    """Return the canonical text and the identity of what a key names, `method wanda`, or the class
    of the error that its text gives."""
    kind, _, text = key.partition(" ")
    try:
        thing = READERS[kind](text)
    except InputError as error:
        return type(error).__name__
    return [str(thing), identity(_parts(thing))]


def _parts(thing: Any) -> Any:
    """What identifies a calibration set: its parts with all defaults written out. Any other thing
    identifies itself."""
    if not isinstance(thing, CalibrationSet):
        return thing
    parts = list[Any]()
    for term in thing.parts:
        names = [canonical(term.source), canonical(term.format), canonical(term.packing)]
        parts.append([*names, str(term.share)])
    return [str(thing), parts]


def names(kind: str) -> list[str]:
    """List the names of one kind that are this package's own."""
    registry = REGISTRIES[kind]
    return [name for name in registry.names() if not is_foreign(registry.get(name))]


def corpus() -> list[str]:
    """List all keys: those made of each name, and those written by hand."""
    made = list[str]()
    for kind in REGISTRIES:
        for name in names(kind):
            made += [f"{kind} {text}" for text in _texts(kind, name)]
    made += [f"data {text}" for text in _sets()]
    for kind, texts in ODD.items():
        made += [f"{kind} {text}" for text in texts]
    return list(dict.fromkeys(made))


def read() -> Iterator[tuple[str, Any]]:
    """Yield what every text means."""
    for key in corpus():
        yield key, meaning(key)


def _texts(kind: str, name: str) -> list[str]:
    """Texts of one name: as it is, with a parameter that isn't its default, with one of another
    type, and with one that it hasn't."""
    chance = random.Random(f"{kind} {name}")
    cls = REGISTRIES[kind].get(name)
    if kind == "target":
        return [cls.example, f"{cls.example}0", f" {cls.example} "]
    fields = [field for field in dataclasses.fields(cls) if field.init and field.repr]
    needed = [f"{field.name}={NEEDED.get(field.name, 1)}" for field in fields if _no_default(field)]
    texts = [_called(name, needed)]
    others = [field for field in fields if not _no_default(field) and field.type is not Any]
    if others:
        changed = chance.choice(others)
        texts.append(_called(name, [*needed, f"{changed.name}={_other(changed)}"]))
    elif chance.random() < UNKNOWN:
        texts.append(_called(name, [*needed, "nonesuch=1"]))
    # What is in a list is checked by the class alone, and by the types of signatures in some tests.
    checked = [field for field in others if not isinstance(field.default, tuple)]
    if checked:
        mistyped = chance.choice(checked)
        wrong = MISTYPED.get(type(mistyped.default), "[1]")
        texts.append(_called(name, [*needed, f"{mistyped.name}={wrong}"]))
    return texts


def _no_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _called(name: str, arguments: list[str]) -> str:
    if not arguments:
        return name
    return f"{name}({', '.join(arguments)})"


def _other(field: "dataclasses.Field[Any]") -> str:
    """Another value than a parameter's default, of the same type."""
    default: Any = field.default
    if isinstance(default, bool):
        return text_of(not default)
    if isinstance(default, int):
        return text_of(default + 1)
    if isinstance(default, float):
        return text_of(default / 2)
    if default is None:
        return "7"
    return text_of(default)


def _sets() -> Iterator[str]:
    """Yield calibration sets, sums and mixes of names drawn with a seed of their own. The names are
    a list, so that a new one changes no text."""
    chance = random.Random("calibration sets")
    for _ in range(20):
        yield _part(chance)
    for _ in range(12):
        parts = [_part(chance) for _ in range(chance.randint(2, 3))]
        weights = [chance.choice(("", "0.3*", "2*", "25 %*", "1e-2*")) for _ in parts]
        yield " + ".join(weight + part for weight, part in zip(weights, parts, strict=True))
    for _ in range(8):
        one, other = _part(chance), _part(chance)
        weight = chance.choice(("0", "0.25", "1", "1.5"))
        yield f"mix(one={one}, other={other}, weight={weight})"


SOURCES: Final = (
    "c4",
    "gsm8k",
    "wikitext",
    "esnli",
    "random_tokens",
    "ultrachat",
    "flores(language=de)",
    "commonsense_qa",
    "python_docs",
)
FORMATS: Final = (
    "",
    "",
    ":text",
    ":qa",
    ":cot",
    ":question",
    ":chat",
    ":icl",
    ":single",
    ":zero",
    ":cot(steps=2)",
)
PACKINGS: Final = (
    "",
    "",
    "",
    "@one",
    "@many",
    "@crop",
    "@legacy",
    "@many(separator=' ')",
    "@imatrix",
)


def _part(chance: random.Random) -> str:
    return chance.choice(SOURCES) + chance.choice(FORMATS) + chance.choice(PACKINGS)
