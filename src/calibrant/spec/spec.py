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
from numbers import Integral, Real
from types import UnionType
from typing import (
    Any,
    ClassVar,
    Final,
    Literal,
    TypeAlias,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from calibrant.errors import SpecError
from calibrant.spec.classes import foreign_name, is_foreign, qualified
from calibrant.spec.foreign import LARGEST, brief, did_you_mean, user_text

LITERALS: Final = "numbers, texts, true/false, none, lists, names and name(key=value)"
WORDS: Final = {
    "true": True,
    "false": False,
    "none": None,
    "True": True,
    "False": False,
    "None": None,
}

HYPHENED: Final = re.compile(r"[A-Za-z_]\w*(-\w+)+", re.ASCII)
"""A name that another package may have given, and Python would take for a difference."""
_PATH: Final = re.compile(r"[\w~.]*[a-zA-Z~][\w~./:+*-]*")
_DATA: Final = re.compile(r"[/:]|\.(txt|jsonl?|csv|tsv|parquet)$")
"""What only a source has in its text."""
"""What may be a path or an expression that isn't in quotes."""
DEEPEST: Final = 12
"""How deep a spec may be nested: what is within is read once more at each level."""
MOST_STEPS: Final = 100_000
"""The most steps, rounds or generations that a spec may ask for. More would never end."""
_ABOUT_KEYS: Final = ("spec", "class", "revision")
"""Keys of a canonical form that are no parameters: those of `about`."""


_PLAIN_TYPES: Final[Mapping[str, type[Any]]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "None": type(None),
}
"""Types of parameters that are checked, by how they are written."""

Parameter: TypeAlias = dataclasses.Field[Any]
"""A field of a spec's class."""


@dataclass(frozen=True)
class Call:
    """A parsed spec that isn't an object yet: a name with its arguments.

    A bare name is a call without arguments.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


_LATER: Final = "later"


def later(default: Any) -> Any:
    """Return a field for a parameter that came when results were stored already.

    At its default, identities leave it out, and stay what they were.
    """
    return field(default=default, metadata={_LATER: True})


class Spec:
    """Mixed into frozen dataclasses whose text is the call that makes them.

    The name is that of the file which defines the class: the folder is the registry. A class of
    another package is called as its entry point says, and has the class itself in its identity
    beside the name. `revision` is part of the identity too: raise it when the same configuration
    gives other numbers than before.
    """

    revision: ClassVar[int] = 1

    @classmethod
    def spec_name(cls) -> str:
        """Return the registered name: the defining file's, without its folder and ending.

        Of a class outside this package it is its entry point's, or its own.
        """
        if is_foreign(cls):
            return foreign_name(cls)
        return cls.__module__.rpartition(".")[2]

    def __repr__(self) -> str:
        """Return the shortest text that parses back into an equal object.

        Parameters at their default are left out.
        """
        changed: list[str] = []
        for parameter in _fields(self):
            value = getattr(self, parameter.name)
            if value != _default(parameter):
                changed.append(f"{parameter.name}={text_of(value)}")
        if not changed:
            return self.spec_name()
        return f"{self.spec_name()}({', '.join(changed)})"

    __str__ = __repr__


def parse(text: str) -> Any:
    """Read `text` as a spec: a `Call`, a literal, or a list of either.

    Raises `SpecError` for anything that isn't a literal, a name or a call of a name with keyword
    arguments.
    """
    stripped = user_text(text, SpecError).strip()
    try:
        with warnings.catch_warnings():
            # Python has a word to say about 1if and "\\d", which is no program here.
            warnings.simplefilter("ignore")
            tree = ast.parse(stripped, mode="eval")
        return _value_of(tree.body, stripped, 0)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        example = "for example wanda or sparsegpt(damp=0.02)"
        message = f"{text!r} can't be read as a spec; write a name or name(key=value), {example}"
        raise SpecError(message + _quoting(text), subject=text) from error


def _value_of(node: ast.expr, text: str, depth: int) -> Any:
    """The value of a node of Python's syntax tree; `text` is the whole spec."""
    if depth > DEEPEST:
        message = f"{text!r} is nested more than {DEEPEST} deep"
        raise SpecError(f"{message}; name the parts that are within less often", subject=text)
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return _checked_literal(value, text)
        case ast.Name(id=name):
            return WORDS[name] if name in WORDS else Call(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=bool())):
            # -True, which the next case would take for a number.
            pass
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            # There is one zero, not two.
            return -_checked_literal(value, text) if value else value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value_of(item, text, depth + 1) for item in items]
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            arguments: dict[str, Any] = {}
            for keyword in keywords:
                if keyword.arg is None:
                    raise _no_literal(node, text)
                if keyword.arg in arguments:
                    message = f"{text!r} gives {name} the parameter {keyword.arg!r} twice"
                    raise SpecError(f"{message}; give it once", subject=keyword.arg)
                arguments[keyword.arg] = _value_of(keyword.value, text, depth + 1)
            return Call(name, arguments)
        case ast.Call(func=ast.Name(id=name), args=[first, *_]):
            raise _unnamed(name, first, text)
        case _:
            pass
    raise _no_literal(node, text)


def _unnamed(name: str, argument: ast.expr, text: str) -> SpecError:
    """What is said of an argument that stands in brackets without the name of its parameter."""
    piece = ast.get_source_segment(text, argument) or text
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        piece = argument.value
    example = "sparsegpt(damp=0.02)"
    if _DATA.search(piece):
        example = f"{name}(source={piece!r})"
    message = f"{piece!r} stands without its parameter; write name=value, as in {example}"
    return SpecError(f"{text!r}: {message}", subject=text)


def _no_literal(node: ast.expr, text: str) -> SpecError:
    piece = ast.get_source_segment(text, node) or text
    if _PATH.fullmatch(piece):
        message = "isn't in quotes; a path or an expression in brackets stands in quotes"
        example = "as in source='my/file.jsonl'"
        return SpecError(f"{text!r}: {piece!r} {message}, {example}", subject=text)
    allowed = f"a spec may hold {LITERALS}, and is never evaluated"
    return SpecError(f"{text!r}: {piece!r} is no literal; {allowed}", subject=text)


def _quoting(text: str) -> str:
    """What is said where a path or an expression stands in brackets, as it may without quotes
    elsewhere.
    """
    if not re.search(r"(=\s*[\w~./]|\(\s*[a-zA-Z~./])[\w~]*[./:~+*-]", text):
        return ""
    return ", and what has other signs stands in quotes, as in source='my/file.jsonl'"


def _checked_literal(value: Any, text: str) -> Any:
    """A literal, if it is one that a record can hold: a number that is finite and no larger than
    budgets are, a text of whole characters.
    """
    if isinstance(value, str):
        return user_text(value, SpecError)
    if isinstance(value, int) and abs(value) > LARGEST:
        message = f"{brief(value)} is too large; a whole number is at most {LARGEST:,}"
        raise SpecError(f"{text!r}: {message}", subject=text)
    if isinstance(value, float) and not math.isfinite(value):
        message = "a number in it is infinite; write one that is at most 1e308"
        raise SpecError(f"{text!r}: {message}", subject=text)
    return value


def build(cls: type[Any], arguments: Mapping[str, Any]) -> Any:
    """Make a `cls` from parsed arguments.

    Raises `SpecError` for an unknown, missing or mistyped parameter, and says which are allowed.
    """
    name = cls.spec_name()
    fields = {parameter.name: parameter for parameter in dataclasses.fields(cls) if parameter.init}
    # In the order in which they were given, so that the first wrong one is named.
    checked: dict[str, Any] = {}
    for argument, value in arguments.items():
        if argument not in fields:
            meant = did_you_mean(argument, fields)
            allowed = f"it takes {', '.join(fields)}" if fields else "it takes no parameters"
            message = f"{name} has no parameter {argument!r}{meant}; {allowed}"
            raise SpecError(message, subject=argument)
        checked[argument] = _typed(cls, fields[argument], value)
    missing: list[str] = []
    for parameter_name, parameter in fields.items():
        if parameter_name not in arguments and _is_needed(parameter):
            missing.append(parameter_name)
    if missing:
        example = f"{name}({missing[0]}=…)"
        message = f"{name} needs {', '.join(missing)}, as in {example}"
        raise SpecError(message, subject=missing[0])
    return cls(**checked)


def _is_needed(parameter: Parameter) -> bool:
    nothing = dataclasses.MISSING
    return parameter.default is nothing and parameter.default_factory is nothing


def _typed(cls: type[Any], parameter: Parameter, value: Any) -> Any:
    """Check a value against a parameter of plain types, such as `float | None`, of literals, or of
    texts.

    Other annotations are the class's own business.
    """
    if str(parameter.type) == "tuple[str, ...]":
        return _texts(cls, parameter, value)
    types = _written_types(cls, parameter)
    if not _PLAIN_TYPES.keys() >= set(types):
        # A list would leave the object without a hash.
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, Call) and "str" in types and not value.arguments:
        value = value.name
    if _stands_for_float(value, types):
        return float(value)
    plain_types = [_PLAIN_TYPES[word] for word in types]
    if type(value) not in plain_types:
        value = _literal_meant(value, _literals(cls, parameter, str))
    fits = type(value) in plain_types
    literals = _literals(cls, parameter, type(value))
    if not fits or (literals and value not in literals):
        given = f"{cls.spec_name()}({parameter.name}={text_of(value)})"
        allowed = " or ".join(_allowed(cls, parameter))
        message = f"{given}: {parameter.name} must be {allowed}"
        raise SpecError(message, subject=parameter.name)
    return value


def _literal_meant(value: Any, texts: Sequence[str]) -> Any:
    """The first of these texts that without quotes is read as `value`, as `none` is read as None;
    the value itself where there is no such text.
    """
    for text in texts:
        try:
            read = parse(text)
        except SpecError:
            continue
        if type(read) is type(value) and read == value:
            return text
    return value


def _written_types(cls: type[Any], parameter: Parameter) -> list[str]:
    """The types that a parameter may have, as they are written: `["float", "None"]`. A literal
    stands for its type.
    """
    types: list[str] = []
    for member in _members(_annotation(cls, parameter)):
        if get_origin(member) is Literal:
            types += [_written_type(type(value)) for value in get_args(member)]
        else:
            types.append(_written_type(member))
    return types


def _allowed(cls: type[Any], parameter: Parameter) -> list[str]:
    """What a parameter may be, as a message says it: types, and literals as a spec has them."""
    allowed: list[str] = []
    for member in _members(_annotation(cls, parameter)):
        if get_origin(member) is Literal:
            allowed += map(text_of, get_args(member))
        else:
            allowed.append(_written_type(member))
    return allowed


def _written_type(member: Any) -> str:
    if isinstance(member, str):
        return member
    if member is type(None):
        return "None"
    return getattr(member, "__name__", str(member))


def _literals(cls: type[Any], parameter: Parameter, kind: type[Any]) -> list[Any]:
    """The literals of one type that a parameter may be; none where it may be any of that type."""
    literals: list[Any] = []
    for member in _members(_annotation(cls, parameter)):
        if _written_type(member) == kind.__name__:
            return []
        if get_origin(member) is Literal:
            literals += [value for value in get_args(member) if type(value) is kind]
    return literals


def _annotation(cls: type[Any], parameter: Parameter) -> Any:
    """What a parameter is annotated with; a text where nothing tells what it stands for."""
    if not isinstance(parameter.type, str):
        return parameter.type
    # A file that postpones its annotations may name what is there only for a type checker.
    try:
        return get_type_hints(cls)[parameter.name]
    except (NameError, AttributeError, SyntaxError, TypeError):
        return parameter.type


def _members(annotation: Any) -> list[Any]:
    """The members of a union, as types or as they are written, or what is annotated itself."""
    if isinstance(annotation, str):
        return [word.strip() for word in annotation.split("|")]
    if get_origin(annotation) in (Union, UnionType):
        return list(get_args(annotation))
    return [annotation]


def _stands_for_float(value: Any, types: Sequence[str]) -> TypeGuard[int]:
    """Whether `value` is a whole number where one of another type is wanted."""
    # `type` and not `isinstance`: True is an int too.
    return type(value) is int and "float" in types and "int" not in types


def _texts(cls: type[Any], parameter: Parameter, value: Any) -> tuple[str, ...]:
    """Check a list of texts, or one text that stands for a list of one.

    Names need no quotes, as elsewhere.
    """
    entries = value if isinstance(value, list | tuple) else [value]
    texts: list[str] = []
    for entry in entries:
        if isinstance(entry, Call) and not entry.arguments:
            entry = entry.name
        if not isinstance(entry, str):
            given = f"{cls.spec_name()}({parameter.name}={text_of(value)})"
            allowed = "must be a list of names or of texts in quotes"
            raise SpecError(f"{given}: {parameter.name} {allowed}", subject=parameter.name)
        texts.append(entry)
    return tuple(texts)


def check_most(spec: "Spec", **most: int | float) -> None:
    """Raise `SpecError` for the first of these parameters that is no number, or above its largest.

    A larger one would overflow, or never come to an end. One that is None is left to the class. A
    number of another type, such as numpy's, becomes one of Python's.
    """
    for name, highest in most.items():
        value = getattr(spec, name)
        if value is None:
            continue
        if type(value) not in (bool, int, float) and isinstance(value, Real):
            value = int(value) if isinstance(value, Integral) else float(value)
            # The class is frozen for its users; a frozen dataclass has no other way to set a field.
            object.__setattr__(spec, name, value)
        given = f"{spec.spec_name()}({name}={brief(value)})"
        if not isinstance(value, int | float):
            message = f"{given}: {name} must be a number, and at most {highest:,}"
            raise SpecError(message, subject=name)
        # Not `value > highest`, which is false for NaN.
        if not value <= highest:
            raise SpecError(f"{given}: {name} must be at most {highest:,}", subject=name)


def text_of(value: Any) -> str:
    """Return how a value is written in a spec."""
    if isinstance(value, Call):
        arguments = [f"{name}={text_of(given)}" for name, given in value.arguments.items()]
        return _written_call(value.name, arguments)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text_of, value))}]"
    return repr(value)


def written_form(form: Mapping[str, Any]) -> str:
    """Return how a canonical form is written in a spec, with all its parameters."""
    arguments: list[str] = []
    for name, value in parameters(form).items():
        text = written_form(value) if isinstance(value, Mapping) else text_of(value)
        arguments.append(f"{name}={text}")
    return _written_call(str(form.get("spec", "")), arguments)


def _written_call(name: str, arguments: Sequence[str]) -> str:
    if not arguments:
        return name
    return f"{name}({', '.join(arguments)})"


SpecT = TypeVar("SpecT", bound=Spec)


def with_parameters(spec: SpecT, **arguments: Any) -> SpecT | None:
    """Return the same spec with these parameters; None if it hasn't all of them."""
    names = {parameter.name for parameter in _fields(spec)}
    if not arguments.keys() <= names:
        return None
    return dataclasses.replace(spec, **arguments)  # pyright: ignore[reportArgumentType]  # a dataclass


def canonical(value: Any) -> Any:
    """Return `value` as plain JSON data with nothing left to defaults.

    An identity is made from it. Names of classes outside this package can change or meet, so their
    canonical form says which class it is: `mymethod:WandaPow`.
    """
    if isinstance(value, Spec):
        form = about(type(value))
        for parameter in _fields(value):
            given = getattr(value, parameter.name)
            default = _default(parameter)
            if _LATER in parameter.metadata and given == default:
                continue
            # What a text is read as, so that both have the same identity. A default is never read.
            is_default = given == default and type(given) is type(default)
            if not is_default and _stands_for_float(given, _written_types(type(value), parameter)):
                given = float(given)
            form[parameter.name] = canonical(given)
        return form
    if isinstance(value, Mapping):
        return {str(name): canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # Whatever else a spec holds says in its text what it is.
    return str(value)


def check_identity(cls: type[Spec]) -> None:
    """Raise `SpecError` for a class whose identities would be wrong: one that has a parameter with
    the name of another part of the identity, or a revision that is no whole number.
    """
    if dataclasses.is_dataclass(cls):
        for parameter in dataclasses.fields(cls):
            if parameter.name in _ABOUT_KEYS:
                name = parameter.name
                problem = f"{qualified(cls)} has a parameter {name!r}, as identities call a part"
                message = f"{problem} of their own; call it something else"
                raise SpecError(message, subject=name)
    if type(cls.revision) is not int:
        problem = f"the revision of {qualified(cls)} is {brief(cls.revision)}"
        raise SpecError(f"{problem}; write a whole number, such as 2", subject="revision")


def about(cls: type[Spec]) -> dict[str, Any]:
    """Return the part of a canonical form that says which spec it is, and is no parameter. Raises
    `SpecError` as `check_identity` does.
    """
    check_identity(cls)
    form: dict[str, Any] = {"spec": cls.spec_name()}
    if is_foreign(cls):
        form["class"] = qualified(cls)
    form["revision"] = cls.revision
    return form


def parameters(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a canonical form: all of it but what says which spec it is."""
    return {name: value for name, value in form.items() if name not in _ABOUT_KEYS}


def identity(value: Any) -> str:
    """Return the SHA-256 of `value`'s canonical JSON: `sha256:` and 64 digits.

    It is the same in every process and on every machine.
    """
    form = canonical(value)
    compact = (",", ":")
    text = json.dumps(form, sort_keys=True, separators=compact, ensure_ascii=False, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def reads_back(spec: Spec) -> bool:
    """Return whether the text of a spec is sure to say all of it: plain values of the types that
    its class names.

    It may be so for others too, such as one that holds another spec. Nothing is built.
    """
    if type(spec).__str__ is not Spec.__str__:
        return False
    parameters_of_class = dataclasses.fields(spec)  # pyright: ignore[reportArgumentType]  # a dataclass
    for parameter in parameters_of_class:
        value = getattr(spec, parameter.name)
        if parameter.init and not _is_plain(type(spec), parameter, value):
            return False
    return True


def _is_plain(cls: type[Spec], parameter: Parameter, value: Any) -> bool:
    """Whether a parameter's value is exactly what its text is read as."""
    default = _default(parameter)
    if not parameter.repr:
        return False
    # 1 is equal to True and to 1.0, so the text leaves it out and reads back as the default.
    if value == default and type(value) is not type(default):
        return False
    items = value if isinstance(value, tuple) else (value,)
    try:
        for item in items:
            if type(item) not in _PLAIN_TYPES.values():
                return False
            _checked_literal(item, "")
        return type(_typed(cls, parameter, value)) is type(value)
    except SpecError:
        return False


def classes_in(value: Any) -> Iterator[type[Spec]]:
    """Yield the class of a spec and those of the specs that are its parameters."""
    if isinstance(value, Spec):
        yield type(value)
        for parameter in _fields(value):
            yield from classes_in(getattr(value, parameter.name))


def _fields(value: Any) -> list[Parameter]:
    """The parameters that the text of a spec has."""
    declared = dataclasses.fields(value)
    return [parameter for parameter in declared if parameter.init and parameter.repr]


def _default(parameter: Parameter) -> Any:
    if parameter.default_factory is not dataclasses.MISSING:
        return parameter.default_factory()
    return parameter.default
