"""Commands about many runs: studies, their reports, the store."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from calibrant import screen
from calibrant.cli._frame import DataDir, Json, app, check_file, command, console, look_in, progress, show, whole

store = typer.Typer(no_args_is_help=True, help="Check a folder of results, or unite several.", rich_markup_mode="rich")
app.add_typer(store, name="store")


@command("study")
def study(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The study, in YAML: what to prune, with what, how, and what to measure.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for results; what it already holds isn't computed again.", show_default=False)
    ],
    only_plan: Annotated[bool, typer.Option("--plan", help="Say what would be done and about how long it takes; write nothing.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="With --plan: open no model and measure nothing.")] = False,
    engine: Annotated[str, typer.Option(metavar="ENGINE", help="local, or ray on several machines or GPUs.")] = "local",
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of a Ray cluster. \\[default: one of its own]", show_default=False)] = None,
    workers: Annotated[int, typer.Option(parser=whole, metavar="N", help="Processes that share the work.")] = 1,
    gpus: Annotated[float, typer.Option(metavar="N", help="With ray: GPUs of a worker.")] = 0.0,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Now only this group of the study; give it once for each. \\[default: all]", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run every cell of a study that DIR lacks. Killed or interrupted, the same command goes on."""
    from calibrant.study import plan, read_study

    look_in(data_dir)
    asked = read_study(file)
    if only_plan:
        with progress() as told:
            planned = plan(asked, out, probed=not quick, progress=told, groups=group or ())
        show(planned.to_json(), as_json, screen.planned)
        return
    with progress() as told:
        finished = asked.run(out, told, engine=engine, workers=workers, retry=retry, address=address, gpus=gpus, groups=group or ())
    show(asdict(finished), as_json, screen.finished)
    if finished.failures:
        raise typer.Exit(1)


@command("report")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that a study or demo wrote.", show_default=False)],
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="table, markdown, csv, latex or json.")] = "table",
    way: Annotated[
        str, typer.Option("--as", metavar="WAY", help="Show the increase over dense, the loss itself, or the share of dense kept.")
    ] = "increase",
    measure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only what was measured on NAME; give it once for each. \\[default: all]", show_default=False),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page, with plots, here.", show_default=False)] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="Also write the plots as SVG, PNG and PDF into DIR.", show_default=False)
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw the plots for a dark ground.")] = False,
    baseline: Annotated[
        str, typer.Option(metavar="EXPR", help="The set that others are compared with. \\[default: the study's, else c4]", show_default=False)
    ] = "",
    as_json: Json = False,
) -> None:
    """Compare what a study measured: which calibration set is really better, and which differences are noise."""
    from calibrant.report import check_format
    from calibrant.report import report as run

    format = "json" if as_json else format
    check_format(format)
    check_file(html)
    found = run(folder, measure or [], way, baseline)
    if html is not None:
        typer.echo(f"the page is {found.write_html(html)}", err=True)
    if plots is not None:
        typer.echo(f"{len(found.write_plots(plots, dark))} files of plots are in {plots}", err=True)
    if format == "table":
        show(None, False, lambda _: found.lines(console().width))
    else:
        typer.echo(found.text(format).encode(), nl=False)


@command("verify", store)
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that a study or demo wrote.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Derive every hash in DIR again. Exits with 1 if something is damaged, lacks or is left over, and says what to do; changes nothing."""
    from calibrant.store import audit

    with progress() as told:
        found = audit(folder, told)
    show(found.to_json(), as_json, screen.verified)
    if not found.whole:
        raise typer.Exit(1)


@command("merge", store)
def merge(
    into: Annotated[Path, typer.Argument(metavar="INTO", help="The folder that gets what it lacks; made if it isn't there.", show_default=False)],
    sources: Annotated[list[Path], typer.Argument(metavar="FROM...", help="Folders of results, which stay as they are.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Copy into INTO the results that it lacks. Exits with 1 if two folders answer the same question differently; what INTO holds then stays."""
    from calibrant.store import merge as run

    with progress() as told:
        found = run(into, sources, told)
    show(found.to_json(), as_json, screen.merged)
    if found.problems:
        raise typer.Exit(1)
