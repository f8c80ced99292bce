"""Parameters of commands, made from the declared options of the verbs (`calibrant.options`)."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field
from typing import Annotated, Any, Final, TypeVar, get_args

import typer

from calibrant.cli import completing
from calibrant.foreign import LARGEST, brief, whole_number
from calibrant.options import MACHINE, SETS, OnCommandLine, in_order, on_command_line

Command = TypeVar("Command", bound=Callable[..., Any])

LAST: Final = ("data_dir", "as_json")
"""What every command ends with."""


def whole(text: str | int) -> int:
    """Read a whole number; what can't be one is named, which typer leaves out."""
    number = whole_number(str(text))
    if number is None:
        raise typer.BadParameter(f"{brief(text)} is no whole number of at most {LARGEST:,}")
    return number


def with_options(
    declared: type[Any],
    *,
    required: Collection[str] = (),
) -> Callable[[Command], Command]:
    """Give a command the declared options, which it gets as `**options`.

    Those that only the command line requires stand first. The command's own stand in front of
    where the work is done, and last what every command ends with.
    """

    def decorated(command: Command) -> Command:
        first: list[inspect.Parameter] = []
        given: list[inspect.Parameter] = []
        machine: list[inspect.Parameter] = []
        for option in in_order(declared):
            there = on_command_line(option)
            if there is None:
                continue
            if option.name in required:
                first.append(_parameter(option, there, inspect.Parameter.empty))
            elif option.name in MACHINE:
                machine.append(_parameter(option, there, _default(option)))
            else:
                given.append(_parameter(option, there, _default(option)))
        own: list[inspect.Parameter] = []
        last: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            by_name = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            if parameter.name in LAST:
                last.append(by_name)
            else:
                own.append(by_name)
        signature = inspect.Signature([*first, *given, *own, *machine, *last])
        command.__signature__ = signature
        return command

    return decorated


def alone(declared: type[Any], name: str) -> Any:
    """Return how typer shows one declared option, for a command that has few of them."""
    for option in in_order(declared):
        there = on_command_line(option)
        if option.name == name and there is not None:
            return _info(option, there, _default(option))
    raise LookupError(f"{declared.__name__} shows no {name}")


def _default(option: Field[Any]) -> Any:
    return inspect.Parameter.empty if option.default is MISSING else option.default


def _parameter(option: Field[Any], there: OnCommandLine, default: Any) -> inspect.Parameter:
    kind: Any = list[str] if there.several else _type_of(option)
    if default is None:
        kind = kind | None
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, _info(option, there, default)],
    )


def _type_of(option: Field[Any]) -> type[Any]:
    """What the command line reads: numbers and switches as they are, and all else as text."""
    for plain in (int, float, bool):
        if option.type is plain or plain in get_args(option.type):
            return plain
    return str


def _info(option: Field[Any], there: OnCommandLine, default: Any) -> Any:
    says_default = default not in (None, (), "", inspect.Parameter.empty)
    told: dict[str, Any] = {
        "metavar": there.metavar or None,
        "help": there.help,
        "parser": whole if _type_of(option) is int else None,
        "autocompletion": _completer(there.offers),
        "show_default": says_default,
    }
    if there.argument:
        return typer.Argument(**told)
    flags = there.flags or ("--" + option.name.replace("_", "-"),)
    return typer.Option(*flags, **told)


def _completer(offers: str | tuple[str, ...]) -> completing.Completer | None:
    if offers == SETS:
        return completing.expression
    if isinstance(offers, str):
        return completing.names_of(offers)
    return completing.one_of(*offers) if offers else None
