"""The command line: each command parses, calls one library function, and prints.

Results go to standard output (`--json` for programs), progress and complaints to standard error. Exit codes: 0 done; 2 what was given can't be
used, in one sentence; 1 a fault of ours; 130 interrupted. The library is imported inside the commands, so that `--help` answers at once.
"""

import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, ParamSpec, TypeVar

import typer

from calibrant import __version__, screen
from calibrant.errors import InputError, OutputError

if TYPE_CHECKING:
    from rich.console import Console

    from calibrant.progress import Progress

P = ParamSpec("P")
T = TypeVar("T")

DEBUG: Final = "CALIBRANT_DEBUG"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face id, a folder, a .gguf file, or smollm2.", show_default=False)]


def _whole(text: str | int) -> int:
    """Read a whole number; what can't be one is named, which typer leaves out."""
    if not str(text).strip().lstrip("-").isdecimal():
        raise typer.BadParameter(f"{text!r} is no whole number")
    return int(text)


EXPRESSION: Final = "Calibration set: source\\[:format]\\[@packing], a file, or a weighted sum 0.3*gsm8k:cot + 0.7*wikitext."
Data = Annotated[str, typer.Option(metavar="EXPR", help=EXPRESSION, show_default=False)]
Samples = Annotated[int, typer.Option(parser=_whole, metavar="N", help="Windows to calibrate on.")]
Tokens = Annotated[
    int | None, typer.Option(parser=_whole, metavar="N", help="Real tokens to calibrate on, instead of --samples.", show_default=False)
]
Length = Annotated[int, typer.Option(parser=_whole, metavar="N", help="Tokens in a window.")]
Seed = Annotated[int, typer.Option(parser=_whole, metavar="N", help="Number of the draw: draws share no row until the source is used up.")]
Dtype = Annotated[str, typer.Option(metavar="TYPE", help="auto, bfloat16 or float32. auto takes bfloat16 where the processor computes in it.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or mps.")]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A local mirror of data sets, looked at before the hub; else the folder in CALIBRANT_DATA.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def main() -> None:
    """Run the command line and exit with its code."""
    sys.excepthook = _fault
    typer.main.get_command(app)(prog_name="calibrant")  # not app(): typer would put its own hook in place of ours


def command(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function a command whose complaints about input are one sentence and exit code 2."""

    def register(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except InputError as error:
                _stop(str(error), 2, error)
            except KeyboardInterrupt as error:
                _stop("interrupted; run the same command again to continue", 130, error)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                _stop("the disk is full; free some space and run the same command again", 2, error)

        app.command(name)(wrapped)
        return wrapped

    return register


def _print_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"calibrant {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.", envvar=DEBUG)] = False,
) -> None:
    """Prune language models with the calibration data you choose, and see which differences are real."""
    if debug:
        os.environ[DEBUG] = "1"


@command("demo")
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for results and report; what it already holds isn't computed again. \\[default: calibrant-demo]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prune SmolLM2 with six calibration sets, offline, and see which one kept it best. Takes a few minutes."""
    from calibrant.demo import demo as run

    with progress() as told:
        found = run(out, told)
    _show(found.to_json(), as_json, lambda _: found.lines(_console().width))
    if found.finished.failures:
        raise typer.Exit(1)


@command("prune")
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pruned model; it must not exist yet.", show_default=False)],
    data: Data,
    method: Annotated[str, typer.Option(metavar="SPEC", help="magnitude, wanda, sparsegpt(damp=0.02), …")] = "wanda",
    sparsity: Annotated[str, typer.Option(metavar="S", help="The share of weights to remove, or N:M with N kept of every M.")] = "0.5",
    samples: Samples = 128,
    tokens: Tokens = None,
    length: Length = 2048,
    seed: Seed = 0,
    propagate: Annotated[str, typer.Option(metavar="WAY", help="arrival, reference or dense: whose errors a matrix's inputs carry.")] = "arrival",
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Prune MODEL and save it as an ordinary Hugging Face folder. A run that was killed continues when asked again."""
    from calibrant.compress import prune as run

    _look_in(data_dir)
    asked = functools.partial(run, samples=samples, tokens=tokens, length=length, seed=seed, propagate=propagate, dtype=dtype, device=device)
    with progress() as told:
        done = asked(model, data, method, sparsity, out, progress=told)
    found = {**asdict(done.record), "out": str(done.out), "continued_from": done.continued_from, "already_done": done.already_done}
    _show(found, as_json, screen.pruned)


@command("evaluate")
def evaluate(
    model: Model,
    task: Annotated[list[str], typer.Option(metavar="SPEC", help="What to measure, such as loss(source='gsm8k'); give it once for each task.")],
    limit: Annotated[
        int | None,
        typer.Option(parser=_whole, metavar="N", help="Items of each task, or tokens of a loss, in place of its own budget.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Also write scores and the outcome of every item here.", show_default=False)
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The untouched model, for tasks that compare with it; of a pruned folder it is known.", show_default=False
        ),
    ] = None,
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="Measure even what the model was calibrated on; the result says so.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL on held-out data that no calibration set can hold."""
    from calibrant.evaluators import evaluate as run

    _look_in(data_dir)
    _check_file(out)
    with progress() as told:
        measured = run(model, task, dtype=dtype, device=device, limit=limit, reference=reference, allow_leak=allow_leak, progress=told)
    if out is not None:
        _write(out, [asdict(m) for m in measured])
    _show([{**asdict(m.score), "beside": [asdict(s) for s in m.beside], "provenance": dict(m.provenance)} for m in measured], as_json, screen.scores)


@command("inspect")
def inspect(
    data: Annotated[str, typer.Argument(metavar="EXPR", help="A calibration set, as in prune --data.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Run MODEL on a part of the set too: its loss, and which tokens fill its statistics. \\[default: the tokenizer of smollm2 alone]",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Also compare with what SOURCE measures on; give it once for each source.", show_default=False),
    ] = None,
    samples: Samples = 128,
    tokens: Tokens = None,
    length: Length = 2048,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Examine a calibration set before it is used, and say what to fix."""
    from calibrant.inspection import inspect as run

    _look_in(data_dir)
    asked = functools.partial(run, against=against or [], samples=samples, tokens=tokens, length=length, seed=seed, dtype=dtype, device=device)
    with progress() as told:
        found = asked(data, model, progress=told)
    _show(found.to_json(), as_json, screen.inspected)


@command("survey")
def survey(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCE]...", help="Sources; all of them if none is given.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Whose tokenizer reads them.")] = "smollm2",
    tokens: Annotated[int, typer.Option(parser=_whole, metavar="N", help="Real tokens in a draw.")] = 8192,
    length: Length = 512,
    data_dir: DataDir = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Try every source in every format: which work here, how many disjoint draws they hold, and why the others don't."""
    from calibrant.data.survey import as_markdown
    from calibrant.inspection import survey as run

    _look_in(data_dir)
    with progress() as told:
        found = [one.to_json() for one in run(names or [], model, tokens=tokens, length=length, progress=told)]
    if markdown:
        typer.echo(as_markdown(found), nl=False)
    else:
        _show(found, as_json, screen.surveyed)


@command("list")
def catalogue(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="models, sources, formats, packings, methods, allocations, selectors or tasks.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """List what can be named, with parameters and their defaults."""
    from calibrant.names import catalogue as run

    _show([asdict(entry) for entry in run(kind)], as_json, screen.catalogued)


@contextmanager
def progress() -> Iterator["Progress"]:
    """A progress function that draws bars with the time left on standard error; silent where that is no terminal."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    columns = (bars.TextColumn("{task.description}", markup=False), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
    shown = bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks: dict[str, bars.TaskID] = {}

    def told(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = shown.add_task(what, total=total)
        shown.update(tasks[what], completed=done, total=total)

    with shown:
        yield told


def _look_in(data_dir: Path | None) -> None:
    if data_dir is not None:
        from calibrant.data import mirror

        mirror(data_dir)


def _check_file(path: Path | None) -> None:
    """An output file that can't be written is said before the work, not after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise OutputError(f"{str(path)!r} can't be written; name a file in a folder that exists", subject=str(path))


def _write(path: Path, found: Any) -> None:
    from calibrant.durable import text_of_json

    half = path.with_name(f".{path.name}.unfinished")
    try:
        half.write_text(text_of_json(found), encoding="utf-8")
        half.replace(path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} can't be written ({error.strerror}); name another file", subject=str(path)) from error
    finally:
        half.unlink(missing_ok=True)


def _show(found: Any, as_json: bool, lines: Callable[[Any], Any]) -> None:
    """Print a result: as JSON, or what `lines` makes of it for people."""
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, default=str))
        return
    from rich.text import Text

    console = _console()
    for line in lines(found):
        console.print(line, soft_wrap=isinstance(line, str | Text) and not console.is_terminal)


def _console() -> "Console":
    """Where results go. What is no terminal is nobody's window: there lines stay whole."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    return console


def _stop(message: str, code: int, error: BaseException) -> NoReturn:
    """One line on standard error and an exit code; the traceback only for those who ask for it."""
    if os.environ.get(DEBUG):
        sys.__excepthook__(type(error), error, error.__traceback__)
    typer.echo(" ".join(message.split("\n")), err=True)
    raise typer.Exit(code)


def _fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is said of an exception that nobody expected; Python then exits with 1."""
    if os.environ.get(DEBUG):
        sys.__excepthook__(kind, error, trace)
        return
    what = " ".join(str(error).split()) or "no message"
    print(f"{kind.__name__}: {what}. This is a fault of ours, not of your input; {DEBUG}=1 shows where it happened.", file=sys.stderr)  # noqa: T201
