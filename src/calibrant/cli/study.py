"""Commands about many runs: studies, their reports, the store."""

from pathlib import Path
from typing import Annotated

import typer

from calibrant import screen
from calibrant.cli._frame import Json, app, check_file, command, console, progress, show

store = typer.Typer(no_args_is_help=True, help="Check a folder of results, or unite several.", rich_markup_mode="rich")
app.add_typer(store, name="store")


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
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page, with charts, here.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Compare what a study measured: which calibration set is really better, and which differences are noise."""
    from calibrant.report import check_format
    from calibrant.report import report as run

    format = "json" if as_json else format
    check_format(format)
    check_file(html)
    found = run(folder, measure or [], way)
    if html is not None:
        typer.echo(f"the page is {found.write_html(html)}", err=True)
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
