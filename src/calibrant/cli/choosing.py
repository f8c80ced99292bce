"""Commands that choose calibration data."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from calibrant.cli._frame import DataDir, Device, Dtype, Json, Length, Model, Seed, check_file, command, look_in, progress, show, whole, write
from calibrant.screen.choosing import mixed, recommended


@command("mix")
def mix(
    model: Model,
    sources: Annotated[
        list[str],
        typer.Option(metavar="EXPR", help="A calibration set to mix, as in prune --data; give it once for each, two or more.", show_default=False),
    ],
    objective: Annotated[
        str, typer.Option(metavar="WHAT", help="mean or worst error over the sources, or target=EXPR: a source, or a file of your own.")
    ] = "mean",
    method: Annotated[str, typer.Option(metavar="SPEC", help="wanda, sparsegpt(damp=0.02), …: one that looks at data.")] = "wanda",
    sparsity: Annotated[str, typer.Option(metavar="S", help="The share of weights to remove, or N:M with N kept of every M.")] = "0.6",
    tokens: Annotated[int, typer.Option(parser=whole, metavar="N", help="Real tokens of each source.")] = 8192,
    length: Length = 512,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Also write the answer here: the same for the same question.", show_default=False)
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Find how to mix sources so that pruning does least damage, and print it as an expression for --data. A run that was killed continues."""
    from calibrant.mixtures import mix as run

    look_in(data_dir)
    check_file(out)
    budget = functools.partial(run, tokens=tokens, length=length, seed=seed, dtype=dtype, device=device)
    with progress() as told:
        found = budget(model, sources, method=method, sparsity=sparsity, objective=objective, progress=told)
    if out is not None:
        write(out, found.answer())
    show(found.to_json(), as_json, mixed)


@command("recommend")
def recommend(
    model: Model,
    target: Annotated[
        list[str],
        typer.Option(
            "--for", metavar="TARGET", help="A source, a file of your own, a measure such as task(name=race), or general; with a weight: 0.3*race."
        ),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="A candidate; give it once for each. \\[default: what can be read here]", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option(metavar="SPEC", help="wanda, sparsegpt(damp=0.02), …: one that looks at data.")] = "wanda",
    sparsity: Annotated[str, typer.Option(metavar="S", help="The share of weights to remove, or N:M with N kept of every M.")] = "0.6",
    budget: Annotated[float, typer.Option(metavar="MINUTES", help="Time for all of it; what is measured stays, and a later call goes on.")] = 30.0,
    tokens: Annotated[int, typer.Option(parser=whole, metavar="N", help="Real tokens of each source.")] = 8192,
    length: Length = 512,
    baseline: Annotated[
        str, typer.Option(metavar="EXPR", help="What others are compared with. \\[default: c4 where it is]", show_default=False)
    ] = "",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all that is measured.")] = Path("calibrant-recommendation"),
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say which calibration data to use for what MODEL is for: predicted for every candidate, measured for the best."""
    from calibrant.recommend import recommend as run

    look_in(data_dir)
    asked = functools.partial(run, method=method, sparsity=sparsity, minutes=budget, tokens=tokens, length=length, baseline=baseline)
    with progress() as told:
        found = asked(model, target, sources or (), folder=out, dtype=dtype, device=device, progress=told)
    show(found.to_json(), as_json, recommended)
