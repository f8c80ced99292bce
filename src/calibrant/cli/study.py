"""Commands about many runs: studies, their reports, the store."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from calibrant.cli import completing, screen
from calibrant.cli._frame import (
    HELP,
    DataDir,
    Json,
    app,
    check_folder,
    check_page_file,
    command,
    console,
    folder_to_write,
    look_in,
    note,
    progress,
    show,
    warn,
)
from calibrant.cli.declared import whole
from calibrant.errors import SpecError

store = typer.Typer(
    no_args_is_help=True,
    help="Check a folder of results, unite several, or pack one.",
    rich_markup_mode=None,
    context_settings=HELP,
)
app.add_typer(store, name="store")


@command(
    "study",
    "calibrant study study.yaml --plan",
    "calibrant study study.yaml --out results --workers 2",
    "calibrant study study.yaml --out results --retry",
)
def study(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The study, in YAML: what to prune, with what, how, and what to measure.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for results; what it already holds isn't computed again. [required "
            "without --plan]",
            show_default=False,
        ),
    ] = None,
    only_plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Say what would be done and about how long it takes; write nothing."
        ),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --plan: open no model and measure nothing.")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE",
            help="local, or ray on several machines or GPUs.",
            autocompletion=completing.one_of("local", "ray"),
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of a Ray cluster. [default: one of its own]",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(parser=whole, metavar="N", help="Processes that share the work.")
    ] = 1,
    gpus: Annotated[float, typer.Option(metavar="N", help="With ray: GPUs of a worker.")] = 0.0,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Now only this group of the study; give it once for each. [default: all]",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run every cell of a study that DIR lacks. Killed or interrupted, the same command goes on."""
    from calibrant.lab.study import plan, read_study

    folder = folder_to_write(out, only_plan)
    if quick and not only_plan:
        raise SpecError("--quick is for a plan; add --plan, or leave it out", subject="--quick")
    look_in(data_dir)
    request = read_study(file)
    if only_plan:
        with progress() as update:
            planned = plan(request, folder, probed=not quick, progress=update, groups=group or ())
        show(planned.to_json(), as_json, screen.planned)
        return
    with progress() as update:
        finished = request.run(
            folder,
            update,
            engine=engine,
            workers=workers,
            retry=retry,
            address=address,
            gpus=gpus,
            groups=group or (),
        )
    for name, shortage in finished.few_tokens.items():
        warn(f"{name}: {shortage}")
    show(asdict(finished), as_json, screen.finished)
    if finished.failures:
        raise typer.Exit(1)


@command(
    "report",
    "calibrant report results",
    "calibrant report results --all",
    "calibrant report results --html report.html --plots figures",
    "calibrant report results --format csv --task gsm8k",
)
def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The folder that a study or demo wrote.", show_default=False
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="table, markdown, csv, latex or json.",
            autocompletion=completing.one_of("table", "markdown", "csv", "latex", "json"),
        ),
    ] = "table",
    way: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="WAY",
            help="Show the increase over dense, the loss itself, or the share of dense kept.",
            autocompletion=completing.one_of("increase", "loss", "kept"),
        ),
    ] = "increase",
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only what was measured on NAME; give it once for each. [default: all]",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only methods that begin so, as gptq or 'gptq w3g64'. [default: all]",
            show_default=False,
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Print every ranking, where there are several, and not the summary alone.",
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Also write the page, with plots, here.",
            show_default=False,
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots",
            metavar="DIR",
            help="Also write the plots as SVG, PNG and PDF into DIR.",
            show_default=False,
        ),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw the plots for a dark ground.")] = False,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="EXPR",
            help="The set that others are compared with. [default: the study's, else c4]",
            show_default=False,
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Compare what a study measured: which calibration sets are significantly different, and
    which cannot be distinguished.
    """
    from calibrant.lab.report import check_format
    from calibrant.lab.report import report as run

    if dark and plots is None:
        raise SpecError("--dark is for plots; give --plots DIR, or leave it out", subject="--dark")
    if as_json and format not in ("table", "json"):
        message = f"--json and --format {format} are two formats; leave one out"
        raise SpecError(message, subject="--json")
    format = "json" if as_json else format
    check_format(format)
    check_page_file(html)
    check_folder(plots)
    compared = run(folder, task or [], way, baseline, method or [])
    if html is not None:
        note(f"the page is {compared.write_html(html)}")
    if plots is not None:
        note(f"{len(compared.write_plots(plots, dark))} files of plots are in {plots}")
    if format == "table":
        everything = whole or bool(method)
        show(None, False, lambda _: compared.lines(console().width, everything))
    else:
        typer.echo(compared.text(format).encode(), nl=False)


@command(
    "verify", "calibrant store verify results", "calibrant store verify results --drop", group=store
)
def verify(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The folder that a study or demo wrote.", show_default=False
        ),
    ],
    drop: Annotated[
        bool,
        typer.Option(
            "--drop", help="Remove what is damaged, so that the same study computes it again."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Derive every hash in DIR again, and say what to do about what is damaged, missing or left
    over (exit code 1).
    """
    from calibrant.results import audit

    with progress() as update:
        audited = audit(folder, update, drop)
    show(audited.to_json(), as_json, screen.verified)
    if not audited.whole:
        raise typer.Exit(1)


@command("merge", "calibrant store merge results from-one-machine from-another", group=store)
def merge(
    into: Annotated[
        Path,
        typer.Argument(
            metavar="INTO",
            help="The folder that gets what it lacks; made if it isn't there.",
            show_default=False,
        ),
    ],
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FROM...",
            help="Folders of results, which stay as they are.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Copy into INTO the results that it lacks. Where two folders differ about the same run, what
    INTO holds stays; where they have two runs of one cell, both stay, and reports count the first.
    A line says so, and the exit code is 1.
    """
    from calibrant.results import merge as run

    with progress() as update:
        merged = run(into, sources, update)
    show(merged.to_json(), as_json, screen.merged)
    if merged.problems:
        raise typer.Exit(1)


@command("pack", "calibrant store pack results", group=store)
def pack(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The folder that a study or demo wrote.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Leave DIR as it is and pack into this new folder.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put the results in DIR into a few tables, which every command reads as before, and which
    are a data set for the Hugging Face hub.
    """
    from calibrant.results import pack as run

    with progress() as update:
        packed = run(folder, out, update)
    show(asdict(packed), as_json, screen.packed)
