"""What all commands share: the app, options with their help, progress, and how results and
errors are shown.
"""

import codecs
import errno
import functools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, ParamSpec, TypeVar, cast

import typer
from typer.core import TyperCommand

from calibrant import __version__
from calibrant.cli.declared import shown_alone
from calibrant.errors import (
    INTERRUPTED,
    InputError,
    OutputError,
    RankError,
    StudyError,
    WorkerError,
    fitted,
)
from calibrant.options import RENAMED, DataOptions, PruneOptions
from calibrant.spec.foreign import (
    TRUST_REMOTE_CODE,
    switched_on,
    user_path,
    user_text,
    visible,
    visible_json,
    visible_name,
)
from calibrant.system.extras import missing
from calibrant.system.launch import launched
from calibrant.system.process import own_process

if TYPE_CHECKING:
    from rich.console import Console

    from calibrant.system.progress import Progress

P = ParamSpec("P")
T = TypeVar("T")

DEBUG: Final = "CALIBRANT_DEBUG"

OUT_OF_MEMORY: Final = (
    "the device ran out of memory; end what else runs there, or give fewer tokens, a smaller "
    "--device-memory where the command takes one, or --device cpu"
)

HELP: Final = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP,
)

Model = Annotated[str, shown_alone(PruneOptions, "model")]
Length = Annotated[int, shown_alone(DataOptions, "length")]
Seed = Annotated[int, shown_alone(DataOptions, "seed")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A local mirror of data sets, looked at before the hub; else the folder in "
        "CALIBRANT_DATA.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PlanOnly = Annotated[
    bool,
    typer.Option(
        "--plan", help="Only say what it would take: memory, disk and time. Nothing is loaded."
    ),
]


USAGE: Final = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""What is raised for words that make no command. Typer names only this one of its kin, and
brings its own copy of the library that has the others.
"""

ASSUMED_FOLDER: Final = ".calibrant-planned"
"""Where a plan assumes that results go if no folder is given; nobody makes it."""
IN_ASCII: Final = "calibrant.in_ascii"
PLAIN: Final = str.maketrans(
    {
        "±": "+-",
        "×": "x",
        "·": ",",
        "–": "-",
        "—": "-",
        "−": "-",
        "…": "...",
        "“": '"',
        "”": '"',
        "’": "'",
        "≤": "<=",
    }
)
"""What stands for signs that a console can't show."""

NARROWEST: Final = 20
"""Columns of results at least, whatever a terminal says of itself."""

PATIENCE: Final = 10
"""Seconds that a failed process waits before it ends: torchrun ends all when one has ended, and
the first one is to say why.
"""


def main() -> None:
    """Run the command line and exit with its code. Of several processes that torchrun started,
    only the first one writes.
    """
    sys.excepthook = fault
    own_process()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=IN_ASCII)
    try:
        launch = launched()
    except InputError as error:
        typer.echo(visible_name(str(error)), err=True)
        sys.exit(2)
    with _only_the_first_writes(launch is None or launch.rank == 0):
        try:
            # Not app(): typer would put its own hook in place of ours. Not standalone: what it says
            # of a mistake would repeat it raw.
            code = typer.main.get_command(app)(prog_name="calibrant", standalone_mode=False)
        except USAGE as error:
            code = _misused(error)
        except KeyboardInterrupt:
            # While the commands are put together, before any of them runs.
            typer.echo(INTERRUPTED, err=True)
            code = 130
        sys.exit(code if isinstance(code, int) else 0)


def _misused(error: Any) -> int:
    """Say in one sentence what is wrong with the words of a command, and return 2. Without any
    words, its help was shown already.
    """
    if type(error).__name__ != "NoArgsIsHelpError":
        path = error.ctx.command_path if error.ctx else "calibrant"
        _settings["json"] = "--json" in sys.argv[1:]
        option = getattr(error, "option_name", "")
        renamed = "--" + RENAMED.get(option.removeprefix("--"), "")
        message = fitted(error.format_message()).rstrip(".")
        if error.ctx and renamed in _options_of(error.ctx):
            message = f"{option} is called {renamed} now"
        elif error.ctx and option in _options_of(error.ctx.find_root()):
            message = f"{option} stands before the command, as in 'calibrant {option} …'"
        _complain(visible_name(f"{message}; '{path} --help' shows what it takes"), error)
    return 2


def _options_of(context: Any) -> set[str]:
    """Return the options of a command, as they are written."""
    options: set[str] = set()
    for parameter in context.command.params:
        options.update(parameter.opts)
    return options


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return what a console gets in place of characters that it can't show: the nearest plain
    signs, else the character's number.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = ""
    for character in error.object[error.start : error.end]:
        escaped = character.encode("ascii", "backslashreplace").decode()
        plain += PLAIN.get(ord(character)) or escaped
    return plain, error.end


codecs.register_error(IN_ASCII, _in_ascii)


@contextmanager
def _only_the_first_writes(first: bool) -> Iterator[None]:
    """Silence in every process but the first; with `CALIBRANT_DEBUG`, all speak."""
    if switched_on(DEBUG) or first:
        yield
        return
    ended = False
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            yield
        except SystemExit as stopped:
            ended = stopped.code in (None, 0, 130)  # an interrupt reaches all at once
            raise
        finally:
            if not ended:
                time.sleep(PATIENCE)


def command(
    name: str, *examples: str, group: typer.Typer = app, cls: type[TyperCommand] = TyperCommand
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function a command of `group`. What it raises about input is one sentence and exit
    code 2; its help ends with `examples`.
    """
    epilog = "\n".join(
        ["\b", "Examples:", *(f"  {example}" for example in examples)]
    )  # \b: click leaves the lines that follow as they are

    def register(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            _settings["json"] = bool(kwargs.get("as_json")) or kwargs.get("format") == "json"
            try:
                _check_texts([*args, *kwargs.values()])
                return function(*args, **kwargs)
            except InputError as error:
                stop(str(error), 2, error)
            except ModuleNotFoundError as error:
                clear = missing(error, f"calibrant {name}")
                if clear is None:
                    raise
                stop(str(clear), 2, error)
            except (RankError, WorkerError) as error:
                stop(str(error), 1, error)
            except KeyboardInterrupt as error:
                stop(INTERRUPTED, 130, error)
            except OSError as error:
                stop(_unusable(error), 2, error)
            except RuntimeError as error:
                # torch's error, by its name: what fails before torch is needed doesn't import it.
                if type(error).__name__ != "OutOfMemoryError":
                    raise
                stop(OUT_OF_MEMORY, 1, error)

        description = " ".join((function.__doc__ or "").split())
        first = description.partition(". ")[0].partition(": ")[0].rstrip(".")
        group.command(name, cls=cls, epilog=epilog, short_help=first, context_settings=HELP)(
            wrapped
        )
        return wrapped

    return register


def _unusable(error: OSError) -> str:
    """Return the sentence for a file that the system refuses; raise `error` again if it is about
    no file, which is a fault of ours.
    """
    from calibrant.system.durable import FULL_DISK

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FULL_DISK
    if error.errno == errno.ENOENT and _is_nowhere():
        return "the current folder was removed; change to one that is there, and run it again"
    if not isinstance(error.filename, str | bytes | os.PathLike):
        raise error
    return (
        f"{os.fsdecode(error.filename)!r} can't be used ({error.strerror}); look at its "
        "permissions, or give another"
    )


def _is_nowhere() -> bool:
    """Return whether the folder that this process works in was removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _check_texts(values: Iterable[object]) -> None:
    """Raise `InputError` for a text of the command line that isn't UTF-8: it couldn't be written
    to any result.
    """
    for value in values:
        if isinstance(value, str | Path):
            user_text(str(value))
        elif isinstance(value, list):
            _check_texts(value)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"calibrant {__version__}")
        raise typer.Exit
    return wanted


_settings = {"quiet": False, "json": False}
"""What the options before a command say, and whether its result is to be JSON; set anew for
each.
"""

clock: Callable[[], float] = time.monotonic
"""What progress is timed with; a test sets its own."""


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Show results and errors only: no progress, no notes.",
            envvar="CALIBRANT_QUIET",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from.", envvar=DEBUG)
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run code that comes with a model.",
            envvar=TRUST_REMOTE_CODE,
        ),
    ] = False,
) -> None:
    """Compress language models with the calibration data you choose, and see which differences
    are real.
    """
    _settings["quiet"] = quiet
    logging.getLogger("calibrant").addHandler(
        _HANDLER
    )  # one that is there already isn't added again
    if debug:
        os.environ[DEBUG] = "1"
    if trust:
        os.environ[TRUST_REMOTE_CODE] = "1"  # so that the processes of a study have it too


@contextmanager
def progress() -> Iterator["Progress"]:
    """Yield a progress function: with bars and the time left on standard error, or with lines where
    that is no terminal; silent with --quiet.

    Finished bars are removed when a new one begins: a long study has hundreds.
    """
    from calibrant.system.progress import ProgressLines, silent

    if _settings["quiet"]:
        yield silent
        return
    shown = _console(stderr=True)
    if not shown.is_terminal or shown.is_dumb_terminal:
        with ProgressLines(
            lambda line: typer.echo(visible_name(line), err=True), clock
        ).watching() as update:
            yield update
        return
    with _bars(shown) as update:
        yield update


@contextmanager
def _bars(shown: "Console") -> Iterator["Progress"]:
    from rich import progress as bars

    from calibrant.system.progress import stage_of

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    drawn = bars.Progress(*columns, console=shown, transient=True)
    tasks: dict[str, bars.TaskID] = {}

    def update(what: str, done: int, total: int) -> None:
        name = stage_of(what)
        if name not in tasks:
            for finished in [task for task in drawn.tasks if task.finished]:
                drawn.remove_task(finished.id)
            left = {task.id for task in drawn.tasks}
            for gone in [gone for gone, task in tasks.items() if task not in left]:
                del tasks[gone]
            tasks[name] = drawn.add_task(visible_name(what), total=total)
        drawn.update(tasks[name], completed=done, total=total, description=visible_name(what))

    with drawn:
        yield update


def note(text: str) -> None:
    """Say something beside the result, on standard error; nothing with --quiet."""
    if not _settings["quiet"]:
        typer.echo(text, err=True)


def warn(text: str) -> None:
    """Say what should be looked at before the result is used, on standard error as a note;
    nothing for an empty text.
    """
    if text:
        note(f"warning: {visible_name(text)}")


class _LinesOfTheLibrary(logging.Handler):
    """Shows what the library says beside a result, such as that a damaged file is made again."""

    def emit(self, record: logging.LogRecord) -> None:
        note(visible_name(self.format(record)))


_HANDLER: Final = _LinesOfTheLibrary()
_PAGE: Final = b"<!doctype html>"
"""How a page of ours begins, in small letters."""


def look_in(data_dir: Path | None) -> None:
    """Read data sets from this mirror first."""
    if data_dir is not None:
        from calibrant.data import mirror

        mirror(data_dir)


def check_result_file(path: Path | None, keys: Collection[str]) -> None:
    """Raise `OutputError` for a JSON file that can't be written, or that holds anything but an
    earlier result, which has these keys: before the work, not after it.
    """
    if path is None:
        return
    path = _writable_file(path)
    if _is_filled(path) and not _has_keys(path, keys):
        raise _of_someone_else(path)


def check_page_file(path: Path | None) -> None:
    """Raise `OutputError` for a page that can't be written, or in whose place stands anything but
    a page.
    """
    if path is None:
        return
    path = _writable_file(path)
    if _is_filled(path):
        with path.open("rb") as file:
            beginning = file.read(1000).lstrip().lower()
        if not beginning.startswith(_PAGE):
            raise _of_someone_else(path)


def _is_filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _has_keys(path: Path, keys: Collection[str]) -> bool:
    """Return whether a file is a JSON object with these keys, a list that begins with one, or an
    empty list, which is a result that says nothing.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    if content == []:
        return True
    if isinstance(content, list):
        content = content[0]
    return isinstance(content, dict) and set(keys) <= content.keys()


def _of_someone_else(path: Path) -> OutputError:
    message = f"{str(path)!r} exists already, and no earlier result is in it"
    return OutputError(f"{message}; name another file, or remove it", subject=str(path))


def _writable_file(path: Path) -> Path:
    """Return the path of an output file. Raises `OutputError` if it can't be written."""
    path = user_path(path, OutputError)
    folder = path.absolute().parent
    if path.is_dir() or (path.exists() and not path.is_file()) or not folder.is_dir():
        raise OutputError(
            f"{str(path)!r} can't be written; name a file in a folder that exists",
            subject=str(path),
        )
    # Permissions alone don't say it: root has them all, and some systems take no files.
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def check_folder(path: Path | None) -> None:
    """Raise `OutputError` for an output folder that is a file, or lies in one: before the work."""
    if path is None:
        return
    path = user_path(path, OutputError)
    nearest = path.absolute()
    # A drive of Windows that isn't there is its own parent.
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        message = f"{str(path)!r} is no folder; name one that is there, or a new one"
        raise OutputError(message, subject=str(path))


def write(path: Path, result: Any) -> None:
    """Write a result as JSON, whole or not at all."""
    from calibrant.system.durable import put, text_of_json

    try:
        put(path, text_of_json(result).encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OutputError:
    message = f"{str(path)!r} can't be written ({error.strerror}); name another file"
    return OutputError(message, subject=str(path))


def show(result: Any, as_json: bool, lines: Callable[[Any], Any]) -> None:
    """Print a result: as JSON, or what `lines` makes of it for people."""
    if as_json:
        from calibrant.system.durable import plain_data

        text = json.dumps(plain_data(result), ensure_ascii=False, default=str, allow_nan=False)
        typer.echo(visible_json(text))
        return
    from rich.text import Text

    shown = console()
    for line in lines(result):
        shown.print(line, soft_wrap=isinstance(line, str | Text) and not _has_width(shown))


def folder_to_write(out: str | Path | None, planned: bool) -> str | Path:
    """Return the folder that a command writes to. Only a plan may be asked for without one: it
    assumes a new folder here. Raises `OutputError` where one is missing.
    """
    if out is not None:
        return out
    if not planned:
        raise OutputError(
            "there is no folder to write to; give one with --out, or ask for a --plan",
            subject="--out",
        )
    return Path(ASSUMED_FOLDER)


def show_plan(
    verb: Callable[..., Any], options: Mapping[str, Any], data_dir: Path | None, as_json: bool
) -> None:
    """Print what `verb` would take with the options of its command."""
    from calibrant.cli.screen.lines import labelled, listed
    from calibrant.compress import plan

    look_in(data_dir)
    planned = plan(verb, **options)

    def lines(_: Any) -> Iterator[Any]:
        yield from labelled(planned.facts())
        if planned.problems:
            yield from listed("What doesn't fit", planned.problems)
        if planned.notes:
            yield from listed("To know", planned.notes)

    show(planned.to_json(), as_json, lines)


def console() -> "Console":
    """Return where results go. What is no terminal has the width that COLUMNS says; without it,
    lines stay whole there.
    """
    out = _console()
    if not _has_width(out):
        out.width = max(out.width, 160)
    out.width = max(out.width, NARROWEST)
    return out


def _has_width(shown: "Console") -> bool:
    return shown.is_terminal or os.environ.get("COLUMNS", "").strip("0").isdecimal()


def _console(stderr: bool = False) -> "Console":
    """Return a console that writes texts as they are, and with NO_COLOR nothing but characters."""
    from rich.console import Console

    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


def stop(message: str, code: int, error: BaseException) -> NoReturn:
    """Write one line on standard error, or one for each mistake in a study, and exit with a
    code; a traceback only with --debug.
    """
    if switched_on(DEBUG):
        sys.__excepthook__(type(error), error, error.__traceback__)
    _complain(
        visible(message)
        if isinstance(error, StudyError)
        else visible_name(fitted(" ".join(message.split("\n")))),
        error,
    )
    raise typer.Exit(code)


def _complain(message: str, error: BaseException) -> None:
    """Write what is wrong on standard error, and with --json also as JSON on standard output:
    what it is about, and what to do.
    """
    if _settings["json"]:
        about: dict[str, Any] = {
            "message": message,
            "subject": getattr(error, "subject", ""),
            "hint": message.partition("; ")[2],
        }
        if isinstance(error, StudyError):
            about["problems"] = [asdict(problem) for problem in error.problems]
        typer.echo(visible_json(json.dumps({"error": about}, ensure_ascii=False, allow_nan=False)))
    typer.echo(message, err=True)


def fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line that an exception was not expected; Python then exits with 1."""
    if switched_on(DEBUG):
        sys.__excepthook__(kind, error, trace)
        return
    what = visible(fitted(" ".join(str(error).split()))) or "no message"
    _complain(
        f"{kind.__name__}: {what}. This is a fault of ours, not of your input; {DEBUG}=1 shows "
        "where it happened.",
        error,
    )
