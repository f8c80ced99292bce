"""The command line: each command parses, calls one library function, and prints.

Results go to standard output (`--json` for programs), progress and complaints to standard error. Exit codes: 0 done; 2 what was given can't be
used, in one sentence; 1 a fault of ours; 130 interrupted. The library is imported inside the commands, so that `--help` answers at once.
"""

import errno
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, ParamSpec, TypeVar

import typer

from calibrant import __version__
from calibrant.errors import InputError, OutputError

if TYPE_CHECKING:
    from calibrant.compress import Progress
    from calibrant.store import Measurement

P = ParamSpec("P")
T = TypeVar("T")

DEBUG: Final = "CALIBRANT_DEBUG"
SPEC: Final = "Names are listed by calibrant list; parameters are written name(key=value)."

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face id, a folder, a .gguf file, or smollm2.", show_default=False)]
Samples = Annotated[int, typer.Option(help="Windows to calibrate on.")]
Tokens = Annotated[int | None, typer.Option(metavar="N", help="Real tokens to calibrate on, instead of --samples.", show_default=False)]
Length = Annotated[int, typer.Option(help="Tokens in a window.")]
Seed = Annotated[int, typer.Option(help="Number of the draw: draws share no row until the source is used up.")]
Dtype = Annotated[str, typer.Option(metavar="TYPE", help="auto, bfloat16 or float32. auto takes bfloat16 where the processor computes in it.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or mps.")]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="A local mirror of data sets, looked at before the hub.", envvar="CALIBRANT_DATA", show_default=False)]
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


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"calibrant {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.", envvar=DEBUG)] = False,
) -> None:
    """Prune language models with the calibration data you choose, and see which differences are real."""
    if debug:
        os.environ[DEBUG] = "1"


@command("prune")
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pruned model; it must not exist yet.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="EXPR", help="Calibration set: source\\[:format]\\[@packing], a file, or a weighted sum 0.3*gsm8k:cot + 0.7*c4.")] = "wikitext",
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
    with progress() as told:
        done = run(model, data, method, sparsity, out, samples=samples, tokens=tokens, length=length, seed=seed, propagate=propagate, dtype=dtype, device=device, progress=told)
    found = {**asdict(done.record), "out": str(done.out), "continued_from": done.continued_from, "already_done": done.already_done}
    _show(found, as_json, _pruned_lines)


@command("evaluate")
def evaluate(
    model: Model,
    task: Annotated[list[str], typer.Option(metavar="SPEC", help="What to measure, such as loss(source='gsm8k'); give it once for each task.")],
    limit: Annotated[int | None, typer.Option(metavar="N", help="Tokens to score for each task, in place of its own budget.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write scores and the outcome of every item here.", show_default=False)] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL on held-out data that no calibration set can hold."""
    from calibrant.evaluate import evaluate as run

    _look_in(data_dir)
    _check_file(out)
    measured = run(model, task, dtype=dtype, device=device, limit=limit)
    if out is not None:
        _write(out, [asdict(m) for m in measured])
    _show([{**asdict(m.score), "provenance": dict(m.provenance)} for m in measured], as_json, _score_table)


@command("inspect")
def inspect(
    data: Annotated[str, typer.Argument(metavar="EXPR", help="A calibration set, as in prune --data.", show_default=False)],
    model: Annotated[str, typer.Option(metavar="MODEL", help="Whose tokenizer reads it.")] = "smollm2",
    samples: Samples = 128,
    tokens: Tokens = None,
    length: Length = 2048,
    seed: Seed = 0,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what a calibration set holds, before it is used."""
    from calibrant.inspection import inspect as run

    _look_in(data_dir)
    _show(run(data, model, samples=samples, tokens=tokens, length=length, seed=seed).to_json(), as_json, _inspection_lines)


@command("list")
def catalogue(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="models, sources, formats, packings, methods, allocations, selectors or tasks.", show_default=False)],
    as_json: Json = False,
) -> None:
    """List what can be named, with parameters and their defaults."""
    from calibrant.catalogue import catalogue as run

    _show([asdict(entry) for entry in run(kind)], as_json, _catalogue_table)


@contextmanager
def progress() -> Iterator["Progress"]:
    """A progress function that draws bars with the time left on standard error; silent where that is no terminal."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
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
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # nobody's window: lines stay whole
        console.width = max(console.width, 160)
    for line in lines(found):
        console.print(line, soft_wrap=isinstance(line, str | Text))


def _facts(facts: Sequence[tuple[str, str]]) -> Iterator[Any]:
    from rich.text import Text

    for name, value in facts:
        if value:
            yield Text.assemble((f"{name:<15}", "bold"), value)


def _pruned_lines(found: Mapping[str, Any]) -> Iterator[Any]:
    run, how = found["run"], found["provenance"]
    name, call, note = run["model_name"], _call(run["method"]), how.get("model_note", "")
    budget = found["data_facts"]
    matrices, weights = len(found["weights"]), sum(w["shape"][0] * w["shape"][1] for w in found["weights"])
    if found["already_done"]:
        yield f"{found['out']} already holds exactly this; nothing was done."
    if found["continued_from"]:
        yield f"continued from block {found['continued_from']}, where an earlier run was interrupted."
    yield from _facts(
        [
            ("model", f"{name} ({note})" if note else name),
            ("method", f"{call} to {run['target']}, {run['dtype']}" + (f", {run['propagate']}" if run["propagate"] else "")),
            ("calibrated on", run["data"] and f"{run['data']}, draw {run['seed']}: {budget['tokens']:,} real tokens in {budget['windows']:,} × {budget['length']:,}"),
            ("fingerprint", run["tokens"]),
            ("sparsity", f"{found['sparsity']:.4%} of {weights:,} weights in {matrices} matrices"),
            ("left dense", _dense_summary(found["dense"])),
            ("time", " · ".join(f"{phase} {seconds:.1f} s" for phase, seconds in how.get("seconds", {}).items())),
            ("peak memory", f"{how.get('peak_memory_bytes', 0) / 1e9:.2f} GB"),
            ("note", how.get("note", "")),
            ("saved to", found["out"]),
        ]
    )


def _call(method: Mapping[str, Any]) -> str:
    """A method's canonical form as text, without its revision."""
    given = ", ".join(f"{k}={_call(v) if isinstance(v, Mapping) else v}" for k, v in method.items() if k not in ("spec", "revision"))
    return f"{method['spec']}({given})" if given else str(method["spec"])


def _dense_summary(dense: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(d["reason"] for d in dense)
    return "; ".join(f"{count} × {reason}" if count > 1 else f"{next(d['name'] for d in dense if d['reason'] == reason)} ({reason})" for reason, count in counts.items())


def _score_table(scores: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    table = _table("measured", "metric", "value", "perplexity", "bits/byte", "tokens", "documents", "context")
    for score in scores:
        facts = score["facts"]
        stderr = "" if score["stderr"] is None else f" ± {score['stderr']:.4f}"
        numbers = (f"{facts['perplexity']:.3f}", f"{facts['bits_per_byte']:.4f}", f"{facts['tokens']:,}", f"{facts['documents']:,}", f"{facts['length']:,}")
        table.add_row(score["measured"], score["metric"], f"{score['value']:.4f}{stderr}", *numbers)
    yield table
    model, note = (scores[0]["provenance"].get(key, "") for key in ("model", "note"))
    yield f"{model}{f' ({note})' if note else ''}; value in {scores[0]['unit']} ± one standard error over documents, context in tokens"


def _inspection_lines(found: Mapping[str, Any]) -> Iterator[Any]:
    from rich.text import Text

    yield from _facts(
        [
            ("set", found["data"]),
            ("windows", f"{found['windows']:,} × {found['length']:,}; {found['padding']:.1%} padding; {found['repeated_windows']} repeated"),
            ("real tokens", f"{found['tokens']:,} of {found['rows']:,} rows"),
            ("draws", "no end of disjoint ones" if found["disjoint_draws"] is None else f"{found['disjoint_draws']} disjoint ones of this size"),
            ("overlap", f"{found['overlap']:.1%} of the rows are in earlier draws" if found["overlap"] else ""),
            ("fingerprint", found["fingerprint"]),
        ]
    )
    for part in found["parts"]:
        yield ""
        yield from _facts(
            [
                (part["data"], f"{part['tokens']:,} tokens, {part['rows']:,} rows, share {part['share']:.1%}, weight {part['weight']:.4f}"),
                ("row lengths", " ≤ ".join(str(n) for n in part["row_lengths"]) + " tokens (least, quarters, most)"),
                ("source", f"{part['origin']}; {part['licence']}; {part['digest']}"),
                ("left out", f"{part['duplicates_dropped']} duplicates, {part['overlapping_dropped']} rows that are also measured"),
            ]
        )
        for text in part["texts"]:
            yield Text("  │ " + text.replace("\n", "\n  │ "), style="dim")


def _catalogue_table(entries: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    table = _table("name", "what", "parameters")
    for entry in entries:
        given = ", ".join(f"{name}={default}" if default else name for name, default in entry["parameters"].items())
        table.add_row(entry["name"], "\n".join(filter(None, [entry["summary"], ", ".join(map(str, entry["facts"].values()))])), given)
    yield table if entries else "none yet"


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


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
