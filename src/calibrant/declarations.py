"""Classes as their files declare them, read without importing the files: names can be listed without torch, which takes seconds to import.

A *sketch* is a class with the bases, docstring, dataclass fields and class variables of the one that a file declares, and without its methods.
It is built from the text of the file, of which only literals, names, plain classes and imports are read; nothing is run. Whatever else decides a
value makes it `UNREADABLE`, and who needs that value imports the class itself.
"""

import ast
import builtins
import dataclasses
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

from calibrant.spec import Call, later


class UnreadableError(Exception):
    """A declaration that only Python itself can read."""


class _Unreadable:
    """The value of a class variable that isn't declared as a literal."""

    def __repr__(self) -> str:
        return "UNREADABLE"


UNREADABLE: Final = _Unreadable()
_PLAIN: Final = ast.Expr | ast.AnnAssign | ast.Assign | ast.FunctionDef | ast.AsyncFunctionDef | ast.Pass


class Sketches:
    """Reads files as sketches of their classes, each file once: sketches of one reader inherit from one another as the classes do."""

    def __init__(self) -> None:
        self._bodies: dict[str, Mapping[str, ast.stmt]] = {}
        self._known: dict[tuple[str, str], Any] = {}

    def of(self, module: str, name: str) -> type[Any]:
        """Return the class `name` of `module` as it is declared there, or where that module has it from.

        Raises `UnreadableError` where it can't be known without importing the module.

        >>> from dataclasses import fields
        >>> [field.name for field in fields(Sketches().of("calibrant.methods.sparsegpt", "SparseGPT"))]
        ['damp', 'block', 'scales', 'order']
        """
        value = self._named(module, name)
        if not isinstance(value, type):
            raise UnreadableError(f"{module}.{name} is no class")
        return value

    def only_class(self, module: str) -> type[Any]:
        """Return the one public class that `module` itself declares. Raises `UnreadableError` if there are none or several."""
        names = [name for name, node in self._statements(module).items() if isinstance(node, ast.ClassDef) and not name.startswith("_")]
        if len(names) != 1:
            raise UnreadableError(f"{module} declares {len(names)} public classes")
        return self.of(module, names[0])

    def docstring(self, module: str) -> str:
        """Return the docstring of a file that was read; nothing if it has none."""
        match _body(module)[:1]:
            case [ast.Expr(value=ast.Constant(value=str(text)))]:
                return text
            case _:
                return ""

    def _statements(self, module: str) -> Mapping[str, ast.stmt]:
        """What a module's names are bound by; of several statements the last one."""
        if module not in self._bodies:
            self._bodies[module] = {name: node for node in _body(module) for name in _binds(node)}
        return self._bodies[module]

    def _named(self, module: str, name: str) -> Any:
        """What `name` stands for in `module`: a sketch, a literal, or what the standard library calls so."""
        if module.partition(".")[0] in sys.stdlib_module_names:
            return vars(importlib.import_module(module)).get(name, UNREADABLE)
        if (module, name) not in self._known:
            self._known[module, name] = UNREADABLE  # what is declared by itself isn't followed for ever
            self._known[module, name] = self._read(module, name)
        return self._known[module, name]

    def _read(self, module: str, name: str) -> Any:
        match self._statements(module).get(name):
            case ast.ClassDef() as node:
                return self._built(module, node)
            case ast.Assign() | ast.AnnAssign() as node:
                return self._value(module, dict(_assigned(node))[name])
            case ast.FunctionDef() if (module, name) == (later.__module__, later.__name__):
                return later
            case ast.ImportFrom() as node:
                return self._named(_imported(module, node), next(alias.name for alias in node.names if name in (alias.asname, alias.name)))
            case None if name in vars(builtins):
                return vars(builtins)[name]
            case _:
                raise UnreadableError(f"{module} doesn't say what {name} is")

    def _value(self, module: str, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Tuple(elts=items):
                return tuple(self._value(module, item) for item in items)
            case ast.List(elts=items):
                return [self._value(module, item) for item in items]
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.Name(id=name):
                return self._named(module, name)
            case ast.JoinedStr(values=parts):
                return "".join(str(self._value(module, part)) for part in parts)
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                return self._value(module, value)
            case ast.Subscript(value=value):  # dict[str, int] makes a dict
                return self._value(module, value)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                arguments = {str(each.arg): self._value(module, each.value) for each in keywords}
                return self._called(module, name, [self._value(module, each) for each in args], arguments)
            case _:
                raise UnreadableError(f"{module}: {ast.unparse(node)} is no literal")

    def _called(self, module: str, name: str, args: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
        """A default that is made by a call: of `field` or `later`, or of a class of ours, which a spec writes by the name of its file."""
        function = self._named(module, name)
        if function in (dataclasses.field, later):
            return function(*args, **arguments)
        if args or not isinstance(function, type) or function.__module__.partition(".")[0] in sys.stdlib_module_names:
            raise UnreadableError(f"{module} calls {name}")
        return Call(function.__module__.rpartition(".")[2], arguments)

    def _class_variable(self, module: str, node: ast.expr) -> Any:
        try:
            return self._value(module, node)
        except UnreadableError:
            return UNREADABLE

    def _built(self, module: str, node: ast.ClassDef) -> type[Any]:
        """The sketch of a class."""
        if any(not isinstance(statement, _PLAIN) for statement in node.body) or node.keywords:
            raise UnreadableError(f"{module}.{node.name} is more than a list of declarations")
        bases = [self._value(module, base) for base in node.bases]
        if not all(isinstance(base, type) for base in bases):
            raise UnreadableError(f"{module}.{node.name} inherits what can't be read")
        space: dict[str, Any] = {"__module__": module, "__qualname__": node.name, "__doc__": ast.get_docstring(node, clean=False)}
        fields: list[tuple[str, Any, Any]] = []
        properties: dict[str, ast.FunctionDef] = {}
        for statement in node.body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if not ast.unparse(annotation).startswith("ClassVar"):
                    default = self._value(module, statement.value) if statement.value else dataclasses.MISSING
                    fields.append((name, object, default if isinstance(default, dataclasses.Field) else dataclasses.field(default=default)))
                case ast.AnnAssign() | ast.Assign():
                    space |= {name: self._class_variable(module, value) for name, value in _assigned(statement)}
                case ast.FunctionDef(name=name, decorator_list=[ast.Name(id="property")]):
                    properties[name] = statement
                case _:
                    pass
        inherited = tuple(base for base in bases if base.__module__ not in ("abc", "typing"))
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            made = dataclasses.make_dataclass(node.name, fields, bases=inherited, namespace=space, repr=False, eq=False, kw_only=True)
            made.__doc__, made.__module__ = space["__doc__"], module  # which it sets itself
        else:
            made = types.new_class(node.name, inherited, exec_body=partial(_fill, space))
        for name, function in properties.items():
            setattr(made, name, self._property(module, made, function))
        return made

    def _property(self, module: str, cls: type[Any], function: ast.FunctionDef) -> Any:
        """What a property is for the defaults of all parameters, where it is one expression that compares one of them; else an empty property."""
        match function.body:
            case [
                *docstring,
                ast.Return(value=ast.IfExp(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]), body=body, orelse=orelse)),
            ]:
                wanted = self._class_variable(module, right)
            case [*docstring, ast.Return(value=ast.IfExp(test=ast.Attribute() as left, body=body, orelse=orelse))]:
                wanted = True
            case _:
                return property()
        default = vars(cls).get(ast.unparse(left).removeprefix("self."), UNREADABLE)
        if len(docstring) > (ast.get_docstring(function) is not None) or default is UNREADABLE or (wanted is True and not isinstance(default, bool)):
            return property()
        return self._class_variable(module, body if default == wanted else orelse)


def folder_of(package: str) -> Path | None:
    """Return the folder of a package, without importing it or the packages that it lies in; None where there is no such folder."""
    root, *inner = package.split(".")
    found = _spec(root)
    folders = (Path(place, *inner) for place in (found and found.submodule_search_locations) or ())
    return next((folder for folder in folders if folder.is_dir()), None)


def _body(module: str) -> list[ast.stmt]:
    """The statements of a module's file."""
    folder, _, file = module.rpartition(".")
    within = folder_of(module)
    around = folder_of(folder) if folder else None
    path = within / "__init__.py" if within else around / f"{file}.py" if around else _single_file(module)
    try:
        return ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"{module} can't be read: {error}") from error


def _spec(root: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(root)
    except ValueError:  # a module that was made and not found, such as __main__
        return None


def _single_file(module: str) -> Path:
    found = None if "." in module else _spec(module)
    if found is None or not (found.origin or "").endswith(".py"):
        raise UnreadableError(f"{module} is no Python file")
    return Path(str(found.origin))


def _binds(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            yield name
        case ast.AnnAssign() | ast.Assign():
            yield from (name for name, _ in _assigned(node))
        case ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name for alias in names)
        case _:
            return


def _assigned(node: ast.AnnAssign | ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    """Each name that an assignment binds, with its value: of `a, b = 1, 2` two."""
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        match target, node.value:
            case ast.Name(id=name), ast.expr() as value:
                yield name, value
            case ast.Tuple(elts=names), ast.Tuple(elts=values) if len(names) == len(values):
                yield from ((name.id, value) for name, value in zip(names, values, strict=True) if isinstance(name, ast.Name))
            case _:
                pass


def _imported(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".")
    above = package[: len(package) - node.level + (folder_of(module) is not None)]
    return ".".join([*above, *([node.module] if node.module else [])])


def _fill(space: Mapping[str, Any], namespace: dict[str, Any]) -> None:
    namespace.update(space)
