"""A thing is its own configuration: text, object and canonical JSON are three forms of one spec.

`sparsegpt(damp=0.02)` is what a user types, what a study file holds, what `str` and `repr` of the
object give back and, with every default written out and as canonical JSON, what an identity is the
hash of. The grammar is literals, bare names and calls of names with keyword arguments, nested up to
`DEEPEST` deep (`dsnot(start=wanda())`). It is read with Python's own parser and never evaluated.
"""

import ast
import dataclasses
import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

from calibrant.errors import SpecError
from calibrant.spec.classes import foreign_name, is_foreign, qualified
from calibrant.spec.foreign import LARGEST, brief, did_you_mean, user_text

LITERALS: Final = "numbers, texts, true/false, none, lists, names and name(key=value)"
_WORDS: Final = {
    "true": True,
    "false": False,
    "none": None,
    "True": True,
    "False": False,
    "None": None,
}

DEEPEST: Final = 12
"""How deep a spec may be nested: what is within is read once more at each level."""
_ABOUT: Final = ("spec", "class", "revision")
"""Keys of a canonical form that are no parameters: those of `about`."""


@dataclass(frozen=True)
class Call:
    """A parsed spec that isn't an object yet: a name with its arguments. A bare name is a call
    without arguments.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


_LATER: Final = "later"


def later(default: Any) -> Any:
    """Return a field for a parameter that came when results were stored already: at its default
    identities leave it out, and stay what they were.
    """
    return field(default=default, metadata={_LATER: True})


class Spec:
    """Mixed into frozen dataclasses whose constructor call is their name.

    The name is that of the file which defines the class: the folder is the registry. A class of
    another package is called as its entry point says, and has the class itself in its identity
    beside the name. `revision` is part of the identity too: raise it when the same configuration
    gives other numbers than before.
    """

    revision: ClassVar[int] = 1

    @classmethod
    def spec_name(cls) -> str:
        """The registered name: the defining file's, without its folder and ending; of a class
        outside this package its entry point's, or its own.
        """
        return foreign_name(cls) if is_foreign(cls) else cls.__module__.rpartition(".")[2]

    def __repr__(self) -> str:
        """The shortest text that parses back into an equal object: parameters at their default
        are left out.
        """
        changed = [
            f"{f.name}={text_of(getattr(self, f.name))}"
            for f in _fields(self)
            if getattr(self, f.name) != _default(f)
        ]
        return f"{self.spec_name()}({', '.join(changed)})" if changed else self.spec_name()

    __str__ = __repr__


def parse(text: str) -> Any:
    """Read `text` as a spec: a `Call`, a literal, or a list of either.

    Raises `SpecError` for anything that isn't a literal, a name or a call of a name with keyword
    arguments.
    """
    read = user_text(text, SpecError).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Python has a word to say about 1if and "\\d", which is no program here
            tree = ast.parse(read, mode="eval")
        return _read(tree.body, read, 0)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise SpecError(
            f"{text!r} can't be read as a spec; write a name or name(key=value), for example wanda or sparsegpt(damp=0.02){_quoting(text)}",
            subject=text,
        ) from error


def _read(node: ast.expr, text: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise SpecError(
            f"{text!r} is nested more than {DEEPEST} deep; name the parts that are within less often",
            subject=text,
        )
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return _literal(value, text)
        case ast.Name(id=name):
            return _WORDS[name] if name in _WORDS else Call(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if (
            not isinstance(value, bool)
        ):
            return -_literal(value, text) if value else value  # one zero, not two
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_read(item, text, depth + 1) for item in items]
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if all(
            k.arg for k in keywords
        ):
            _check_once([str(keyword.arg) for keyword in keywords], name, text)
            return Call(name, {str(k.arg): _read(k.value, text, depth + 1) for k in keywords})
        case _:
            piece = ast.get_source_segment(text, node) or text
            raise SpecError(
                f"{text!r}: {piece!r} is no literal; a spec may hold {LITERALS}, and is never evaluated{_quoting(text)}",
                subject=text,
            )


def _check_once(given: Sequence[str], name: str, text: str) -> None:
    """Raise `SpecError` for a parameter that is given twice: which of the two is meant can't be
    known.
    """
    for place, parameter in enumerate(given):
        if parameter in given[:place]:
            raise SpecError(
                f"{text!r} gives {name} the parameter {parameter!r} twice; give it once",
                subject=parameter,
            )


def _quoting(text: str) -> str:
    """What is said where a path or an expression stands in brackets, as it may without quotes
    elsewhere.
    """
    return (
        ", and what has other signs stands in quotes, as in source='my/file.jsonl'"
        if re.search(r"=\s*[\w~.][\w~]*[./:~+*-]", text)
        else ""
    )


def _literal(value: Any, text: str) -> Any:
    """A literal, if it is one that a record can hold: a number that is finite and no larger than
    budgets are, a text of whole characters.
    """
    if isinstance(value, str):
        return user_text(value, SpecError)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise SpecError(
            f"{text!r}: {brief(value)} is too large; a whole number is at most {LARGEST:,}",
            subject=text,
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(
            f"{text!r}: a number in it is infinite; write one that is at most 1e308", subject=text
        )
    return value


def build(cls: type[Any], arguments: Mapping[str, Any]) -> Any:
    """Make a `cls` from parsed arguments; an unknown, missing or mistyped parameter is a
    `SpecError` that says which are allowed.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in arguments:
        if name not in fields:
            allowed = f"it takes {', '.join(fields)}" if fields else "it takes no parameters"
            raise SpecError(
                f"{cls.spec_name()} has no parameter {name!r}{did_you_mean(name, fields)}; {allowed}",
                subject=name,
            )
    missing = [
        n
        for n, f in fields.items()
        if n not in arguments
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SpecError(
            f"{cls.spec_name()} needs {', '.join(missing)}, as in {cls.spec_name()}({missing[0]}=…)",
            subject=missing[0],
        )
    checked = {name: _typed(cls, fields[name], value) for name, value in arguments.items()}
    return cls(**checked)


def _typed(cls: type[Any], f: dataclasses.Field[Any], value: Any) -> Any:
    """Check a value against a field of plain types (`int`, `float | None`, …) or of texts
    (`tuple[str, ...]`).

    Other annotations are the class's own business.
    """
    if str(f.type) == "tuple[str, ...]":
        return _texts(cls, f, value)
    plain: dict[str, type[Any]] = {
        "int": int,
        "float": float,
        "str": str,
        "bool": bool,
        "None": type(None),
    }
    words = [
        w.strip()
        for w in (
            f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        ).split("|")
    ]
    if not all(w in plain for w in words):
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, Call) and "str" in words and not value.arguments:
        return value.name
    if type(value) is int and "float" in words and "int" not in words:
        return float(value)
    if type(value) not in [plain[w] for w in words]:
        raise SpecError(
            f"{cls.spec_name()}({f.name}={text_of(value)}): {f.name} must be {' or '.join(words)}",
            subject=f.name,
        )
    return value


def _texts(cls: type[Any], f: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    """Check a list of texts, or one text that stands for a list of one; names need no quotes, as
    elsewhere.
    """
    entries = value if isinstance(value, list | tuple) else [value]
    texts: list[str] = []
    for entry in entries:
        if isinstance(entry, Call) and not entry.arguments:
            entry = entry.name
        if not isinstance(entry, str):
            message = f"{cls.spec_name()}({f.name}={text_of(value)}): {f.name} must be a list of names or of texts in quotes"
            raise SpecError(message, subject=f.name)
        texts.append(entry)
    return tuple(texts)


MOST_STEPS: Final = 100_000
"""Of steps, rounds and generations. More would never end."""


def check_most(spec: "Spec", **most: int | float) -> None:
    """Raise `SpecError` for the first of these parameters that is no number, or above its largest.

    A larger one would overflow, or never come to an end. One that is None is left to the class.
    """
    for name, highest in most.items():
        value = getattr(spec, name)
        if value is None:
            continue
        given = f"{spec.spec_name()}({name}={brief(value)})"
        if not isinstance(value, int | float):
            message = f"{given}: {name} must be a number, and at most {highest:,}"
            raise SpecError(message, subject=name)
        if not value <= highest:
            raise SpecError(f"{given}: {name} must be at most {highest:,}", subject=name)


def text_of(value: Any) -> str:
    """How a value is written in a spec."""
    if isinstance(value, Call):
        inside = ", ".join(f"{k}={text_of(v)}" for k, v in value.arguments.items())
        return f"{value.name}({inside})" if inside else value.name
    if isinstance(value, list | tuple):
        return f"[{', '.join(text_of(v) for v in value)}]"
    return repr(value)


def written_form(form: Mapping[str, Any]) -> str:
    """How a canonical form is written in a spec, with all its parameters."""
    values = parameters(form)
    inside = [
        f"{name}={written_form(value) if isinstance(value, Mapping) else text_of(value)}"
        for name, value in values.items()
    ]
    return f"{form.get('spec', '')}({', '.join(inside)})" if inside else str(form.get("spec", ""))


S = TypeVar("S", bound=Spec)


def with_parameters(spec: S, **arguments: Any) -> S | None:
    """Return the same spec with these parameters; None if it hasn't all of them."""
    known = {f.name for f in _fields(spec)}
    return dataclasses.replace(spec, **arguments) if arguments.keys() <= known else None  # pyright: ignore[reportArgumentType]  # a dataclass


def canonical(value: Any) -> Any:
    """`value` as plain JSON data with nothing left to defaults: what an identity is made from.

    Names of classes outside this package can change or meet, so their canonical form says which
    class it is: `mymethod:WandaPow`.
    """
    if isinstance(value, Spec):
        written = [
            f
            for f in _fields(value)
            if _LATER not in f.metadata or getattr(value, f.name) != _default(f)
        ]
        return {
            **about(type(value)),
            **{f.name: canonical(getattr(value, f.name)) for f in written},
        }
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def about(cls: type[Spec]) -> dict[str, Any]:
    """Return the part of a canonical form that says which spec it is, and is no parameter."""
    which = {"class": qualified(cls)} if is_foreign(cls) else {}
    return {"spec": cls.spec_name(), **which, "revision": cls.revision}


def parameters(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a spec's canonical form: all of it but what says which spec it
    is.
    """
    return {name: value for name, value in form.items() if name not in _ABOUT}


def identity(value: Any) -> str:
    """The tagged SHA-256 of `value`'s canonical JSON, `sha256:` and 64 digits: the same in every
    process and on every machine.
    """
    text = json.dumps(
        canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def reads_back(spec: Spec) -> bool:
    """Return whether the text of a spec is sure to say all of it: plain values of the types that
    its class names.

    It may be so for others too, such as one that holds another spec. Nothing is built.
    """
    if type(spec).__str__ is not Spec.__str__:
        return False
    given = [f for f in dataclasses.fields(spec) if f.init]  # pyright: ignore[reportArgumentType]  # a dataclass
    return all(_is_plain(type(spec), f, getattr(spec, f.name)) for f in given)


def _is_plain(cls: type[Spec], f: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field's value is just what reading its text would give."""
    default = _default(f)
    if not f.repr or (value == default and type(value) is not type(default)):
        return False
    try:
        for item in value if isinstance(value, tuple) else (value,):
            if type(item) not in (type(None), bool, int, float, str):
                return False
            _literal(item, "")
        return type(_typed(cls, f, value)) is type(value)
    except SpecError:
        return False


def classes_in(value: Any) -> Iterator[type[Spec]]:
    """Yield the class of a spec and those of the specs that are its parameters."""
    if isinstance(value, Spec):
        yield type(value)
        for f in _fields(value):
            yield from classes_in(getattr(value, f.name))


def _fields(value: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(value) if f.init and f.repr]


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
