"""Parameters of commands, made from the declared options of the verbs (`calibrant.options`)."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, replace
from typing import Annotated, Any, Final, TypeVar, get_args

import typer

from calibrant.cli import completing
from calibrant.errors import SpecError
from calibrant.options import MACHINE, SETS, OnCommandLine, in_order, on_command_line
from calibrant.spec.foreign import LARGEST, brief, whole_number

Command = TypeVar("Command", bound=Callable[..., Any])

LAST: Final = ("data_dir", "as_json")
"""What every command ends with."""


def whole(text: str | int) -> int:
    """Read a whole number; what can't be one is named, which typer leaves out."""
    number = whole_number(str(text))
    if number is None:
        raise typer.BadParameter(f"{brief(text)} is no whole number of at most {LARGEST:,}")
    return number


def number(text: str | float) -> float:
    """Read a number; what can't be one is named, with what most often is beside it."""
    try:
        return float(text)
    except ValueError as error:
        message = f"{brief(text)} is no number; write one without a unit, such as 8"
        raise typer.BadParameter(message) from error


def with_options(
    declared: type[Any],
    *,
    required: Collection[str] = (),
    unless_planned: Collection[str] = (),
) -> Callable[[Command], Command]:
    """Give a command the declared options, which it gets as `**options`.

    Those that only the command line requires stand first. So do those that it requires
    `unless_planned`, which the command checks itself. The command's own stand in front of where the
    work is done, and last what every command ends with. Raises `LookupError` for a required option
    that isn't shown.
    """
    for name in (*required, *unless_planned):
        _shown_field(declared, name)

    def decorated(command: Command) -> Command:
        first: list[inspect.Parameter] = []
        given: list[inspect.Parameter] = []
        machine: list[inspect.Parameter] = []
        for declared_field in in_order(declared):
            shown = on_command_line(declared_field)
            if shown is None:
                continue
            if declared_field.name in required:
                first.append(_parameter(declared_field, shown, inspect.Parameter.empty))
            elif declared_field.name in unless_planned:
                help_text = f"{shown.help} [required without --plan]"
                first.append(_parameter(declared_field, replace(shown, help=help_text), None))
            elif declared_field.name in MACHINE:
                machine.append(_parameter(declared_field, shown, _default(declared_field)))
            else:
                given.append(_parameter(declared_field, shown, _default(declared_field)))
        command_only: list[inspect.Parameter] = []
        last: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            by_name = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            if parameter.name in LAST:
                last.append(by_name)
            else:
                command_only.append(by_name)
        signature = inspect.Signature([*first, *given, *command_only, *machine, *last])
        command.__signature__ = signature
        return command

    return decorated


def refuse_options(
    declared: type[Any], options: Mapping[str, Any], what: str, taken: Collection[str] = ()
) -> None:
    """Raise `SpecError` for an option that `what` doesn't take and that isn't its default."""
    for declared_field in in_order(declared):
        shown = on_command_line(declared_field)
        if shown is None or shown.argument or declared_field.name in taken:
            continue
        given = options[declared_field.name] or None
        if given != (declared_field.default or None):
            flag = _flags(declared_field, shown)[0]
            raise SpecError(f"{what} takes no {flag}; leave it out", subject=flag)


def shown_alone(declared: type[Any], name: str) -> Any:
    """Return how typer shows one declared option, for a command that has few of them."""
    declared_field, shown = _shown_field(declared, name)
    return _info(declared_field, shown, _default(declared_field))


def _shown_field(declared: type[Any], name: str) -> tuple[Field[Any], OnCommandLine]:
    for declared_field in in_order(declared):
        shown = on_command_line(declared_field)
        if declared_field.name == name and shown is not None:
            return declared_field, shown
    raise LookupError(f"{declared.__name__} shows no {name}")


def _default(declared_field: Field[Any]) -> Any:
    return inspect.Parameter.empty if declared_field.default is MISSING else declared_field.default


def _parameter(declared_field: Field[Any], shown: OnCommandLine, default: Any) -> inspect.Parameter:
    kind: Any = list[str] if shown.several else _type_of(declared_field)
    if default is None:
        kind = kind | None
    return inspect.Parameter(
        declared_field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, _info(declared_field, shown, default)],
    )


def _type_of(declared_field: Field[Any]) -> type[Any]:
    """What the command line reads: numbers and switches as they are, and all else as text."""
    for plain in (int, float, bool):
        if declared_field.type is plain or plain in get_args(declared_field.type):
            return plain
    return str


def _info(declared_field: Field[Any], shown: OnCommandLine, default: Any) -> Any:
    says_default = default not in (None, (), "", inspect.Parameter.empty)
    parsers = {int: whole, float: number}
    settings: dict[str, Any] = {
        "metavar": shown.metavar or None,
        "help": shown.help,
        "parser": parsers.get(_type_of(declared_field)),
        "autocompletion": _completer(shown.offers),
        "show_default": says_default,
    }
    if shown.argument:
        return typer.Argument(**settings)
    return typer.Option(*_flags(declared_field, shown), **settings)


def _flags(declared_field: Field[Any], shown: OnCommandLine) -> tuple[str, ...]:
    return shown.flags or ("--" + declared_field.name.replace("_", "-"),)


def _completer(offers: str | tuple[str, ...]) -> completing.Completer | None:
    if offers == SETS:
        return completing.expression
    if isinstance(offers, str):
        return completing.names_of(offers)
    return completing.one_of(*offers) if offers else None
