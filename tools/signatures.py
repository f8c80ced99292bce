"""What griffe, which reads the source for the reference of Python, doesn't see by itself.

It runs nothing, so of `prune` it sees one parameter, `options`, in the place of those that the
options declare. And it takes the examples of a docstring for text.
"""

import importlib
from dataclasses import MISSING, Field
from typing import Any

import griffe

from calibrant.options import in_order


class DeclaredSignatures(griffe.Extension):
    """Puts the fields of the declaration in the place of the one parameter."""

    def on_function(
        self,
        *,
        func: griffe.Function,
        loader: griffe.GriffeLoader,
        **_: Any,
    ) -> None:
        """Look at a function that griffe has read."""
        for decorator in func.decorators:
            text = str(decorator.value)
            if text.startswith("with_fields_of("):
                given = text.removeprefix("with_fields_of(").removesuffix(")")
                # Behind the declaration stands what plans the verb.
                name = given.partition(",")[0]
                place = func.resolve(name)
                room = importlib.import_module(place.removesuffix(f".{name}"))
                func.parameters = parameters_of(getattr(room, name), loader)


class ExamplesAsCode(griffe.Extension):
    """Shows the examples in docstrings as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Look at whatever griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = with_fences(obj.docstring.value)


def with_fences(text: str) -> str:
    """Return a docstring with each example, up to the empty line behind it, as a block of code."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith(">>> ") and not inside:
            lines.append("```pycon")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    if inside:
        lines.append("```")
    return "\n".join(lines)


def parameters_of(declared: type[Any], loader: griffe.GriffeLoader) -> griffe.Parameters:
    """Return the options of a declaration as griffe has parameters."""
    parameters = griffe.Parameters()
    for option in in_order(declared):
        kind = griffe.ParameterKind.positional_or_keyword
        if option.kw_only:
            kind = griffe.ParameterKind.keyword_only
        default = None
        if option.default is not MISSING:
            default = getattr(option.default, "__name__", repr(option.default))
        annotation = written_type(declared, option, loader)
        parameter = griffe.Parameter(
            option.name,
            annotation=annotation,
            kind=kind,
            default=default,
        )
        parameters.add(parameter)
    return parameters


def written_type(declared: type[Any], option: Field[Any], loader: griffe.GriffeLoader) -> Any:
    """Return the type as it is written, which griffe makes links of."""
    for owner in declared.__mro__:
        if option.name in vars(owner).get("__annotations__", {}):
            place = f"{owner.__module__}.{owner.__name__}.{option.name}"
            return loader.modules_collection[place].annotation
    raise LookupError(f"no class declares {option.name}")
