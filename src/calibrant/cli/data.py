"""Commands about data: what a calibration set holds, which sources work here, what can be named."""

from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from calibrant.cli import completing, screen
from calibrant.cli._frame import DataDir, Json, Length, command, look_in, progress, show, warn
from calibrant.cli.declared import refuse_options, whole, with_options
from calibrant.errors import SpecError
from calibrant.options import InspectOptions, WriteDataOptions

IMATRIX: Final = (".gguf", ".dat")
"""How the files of importance matrices end; no calibration data does."""


@command(
    "inspect",
    "calibrant inspect gsm8k:cot --samples 16 --length 512",
    "calibrant inspect notes.jsonl --against gsm8k --model smollm2",
    "calibrant inspect mine.imatrix.gguf --against theirs.imatrix.gguf",
)
@with_options(InspectOptions)
def inspect(data_dir: DataDir = None, as_json: Json = False, **options: Any) -> None:
    """Examine a calibration set before it is used, and say what to fix. Of an imatrix: what it
    covers.
    """
    from calibrant.data.inspect import inspect as run

    look_in(data_dir)
    if options["data"].endswith(IMATRIX):
        refuse_options(InspectOptions, options, "an imatrix", taken=["against"])
        covered = _imatrix(options["data"], options["against"])
        show(covered, as_json, screen.covered)
        return
    with progress() as update:
        facts = run(**options, progress=update)
    show(facts.to_json(), as_json, screen.inspected)


def _imatrix(path: str, against: list[str]) -> dict[str, Any]:
    """What an importance matrix covers, and how far another one is from it."""
    from calibrant.compress.importance import compared, read_imatrix

    if len(against) > 1:
        raise SpecError(
            f"an imatrix is compared with one other, and {len(against)} were given; give "
            "--against once",
            subject=against[1],
        )
    return compared(read_imatrix(path), *map(read_imatrix, against)).to_json()


@command(
    "data",
    "calibrant data c4 --model smollm2 --samples 128 --length 2048 --out windows.jsonl",
    "calibrant data gsm8k:chat --model smollm2 --as conversations --out talks.parquet",
    "calibrant data c4 --model my-model --tool llm-compressor --out windows.jsonl",
    "calibrant data c4@imatrix --model my-model.gguf --length 512 --tool llama.cpp --out "
    "windows.txt",
)
@with_options(WriteDataOptions)
def write_data(data_dir: DataDir = None, as_json: Json = False, **options: Any) -> None:
    """Write the tokens of a calibration set to a file for other tools, with a card and a script
    that runs one of them.
    """
    from calibrant.handover import write_data as run

    look_in(data_dir)
    with progress() as update:
        done = run(**options, progress=update)
    for note in done.notes:
        warn(note)
    show(done.to_json(), as_json, screen.written)


@command("survey", "calibrant survey", "calibrant survey gsm8k c4 --markdown")
def survey(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Sources; all of them if none is given.",
            autocompletion=completing.names_of("sources"),
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Whose tokenizer reads them.")
    ] = "smollm2",
    tokens: Annotated[
        int, typer.Option(parser=whole, metavar="N", help="Real tokens in a draw.")
    ] = 8192,
    length: Length = 512,
    data_dir: DataDir = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try every source in every format: which work here, how many disjoint draws they hold, and
    why the others don't.
    """
    from calibrant.data.inspect import survey as run
    from calibrant.data.inspect.surveying import as_markdown

    look_in(data_dir)
    with progress() as update:
        checks = run(names or [], model, tokens=tokens, length=length, progress=update)
        rows = [check.to_json() for check in checks]
    if markdown:
        typer.echo(as_markdown(rows), nl=False)
    else:
        show(rows, as_json, screen.surveyed)


@command(
    "list", "calibrant list sources", "calibrant list methods --long", "calibrant list tasks --json"
)
def catalogue(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="models, sources, formats, packings, methods, targets, allocations, transforms, "
            "exports, selectors, tasks or tools; all names without it.",
            autocompletion=completing.kind,
            show_default=False,
        ),
    ] = "",
    long: Annotated[
        bool,
        typer.Option(
            "--long",
            "-l",
            help="All that is known of each: parameters with their defaults, licences, sources.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List what can be named, a line each."""
    from calibrant.names import KINDS, names
    from calibrant.names import catalogue as run

    if not kind:
        show({kind: names(kind) for kind in KINDS}, as_json, screen.kinds)
        return
    show(
        [asdict(entry) for entry in run(kind)],
        as_json,
        lambda entries: screen.catalogued(entries, long),
    )
