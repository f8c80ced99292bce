"""Commands that choose calibration data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from calibrant.cli import completing
from calibrant.cli._frame import (
    DataDir,
    Json,
    Length,
    Model,
    Seed,
    check_file,
    command,
    look_in,
    note,
    progress,
    show,
    write,
)
from calibrant.cli.declared import whole, with_options
from calibrant.options import MachineOptions
from calibrant.screen.choosing import mixed, recommended

AnyMethod = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="wanda, gptq, awq, …: one that looks at data. [default: wanda; gptq for grids, llama.cpp's quantizers for its kinds and recipes]",
        autocompletion=completing.names_of("methods"),
        show_default=False,
    ),
]
AnyTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        "--sparsity",
        metavar="TARGET",
        help="A share of weights to remove, N:M, a grid (w4g64), a kind of blocks (q4_k) or a recipe (Q4_K_M) of llama.cpp. [default: 0.6]",
        show_default=False,
    ),
]


@command(
    "mix",
    "calibrant mix smollm2 --sources c4 --sources pile --sources gsm8k:cot --objective worst",
    "calibrant mix smollm2 --sources c4 --sources gsm8k:cot --objective target=notes.jsonl --out mixture.json",
    "calibrant mix smollm2 --sources c4 --sources gsm8k:cot --target Q4_K_M --imatrix mixed.gguf",
)
@with_options(MachineOptions)
def mix(
    model: Model,
    sources: Annotated[
        list[str],
        typer.Option(
            metavar="EXPR",
            help="A calibration set to mix, as in prune --data; give it once for each, two or more.",
            autocompletion=completing.expression,
            show_default=False,
        ),
    ],
    objective: Annotated[
        str, typer.Option(metavar="WHAT", help="mean or worst error over the sources, or target=EXPR: a source, or a file of your own.")
    ] = "mean",
    method: AnyMethod = None,
    target: AnyTarget = None,
    tokens: Annotated[int, typer.Option(parser=whole, metavar="N", help="Real tokens of each source.")] = 8192,
    length: Length = 512,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Also write the answer here: the same for the same question.", show_default=False)
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the mixture's imatrix: .gguf for llama.cpp, .dat for ik_llama.cpp.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """Find how to mix sources so that pruning or rounding does least damage, as an expression for --data. After a kill the same command continues."""
    from calibrant.mixtures import mix as run

    look_in(data_dir)
    check_file(out)
    asked = {"method": method, "target": target, "objective": objective, "imatrix": imatrix}
    budget = {"tokens": tokens, "length": length, "seed": seed}
    with progress() as update:
        mixture = run(model, sources, **asked, **budget, **machine, progress=update)
    if out is not None:
        write(out, mixture.answer())
    show(mixture.to_json(), as_json, mixed)


@command(
    "recommend",
    "calibrant recommend smollm2 --for gsm8k --budget 30",
    "calibrant recommend smollm2 --for mine.jsonl --budget 4",
    "calibrant recommend smollm2 --for mine.jsonl --target w4g64 --method gptq",
    "calibrant recommend smollm2 --for mine.jsonl --target Q4_K_M",
    "calibrant recommend smollm2 --for 0.7*race --for 0.3*general --sources c4 --sources race",
)
@with_options(MachineOptions)
def recommend(
    model: Model,
    goal: Annotated[
        list[str],
        typer.Option(
            "--for", metavar="TARGET", help="A source, a file of your own, a measure such as task(name=race), or general; with a weight: 0.3*race."
        ),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPR",
            help="A candidate; give it once for each. [default: what can be read here]",
            autocompletion=completing.expression,
            show_default=False,
        ),
    ] = None,
    method: AnyMethod = None,
    target: AnyTarget = None,
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            "--minutes",
            metavar="MINUTES",
            help="Time for all of it, such as 30 or 2.5; what is measured stays, and a later call goes on.",
        ),
    ] = 30.0,
    tokens: Annotated[
        int | None,
        typer.Option(parser=whole, metavar="N", help="Real tokens of each source. [default: 8192, or what the files hold]", show_default=False),
    ] = None,
    length: Length = 512,
    sibling: Annotated[
        bool, typer.Option("--sibling/--no-sibling", help="Divide your own file by template, calibrate on one half and judge by the other.")
    ] = True,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="EXPR", help="What others are compared with. [default: c4 where it is]", autocompletion=completing.expression, show_default=False
        ),
    ] = "",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all that is measured.")] = Path("calibrant-recommendation"),
    data_dir: DataDir = None,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """Say which calibration data to use for what MODEL is for: predicted for every candidate, measured for the best."""
    from calibrant.advice import recommend as run

    look_in(data_dir)
    how = {"method": method, "sparsity": target, "minutes": budget, "tokens": tokens, "length": length, "baseline": baseline}
    beside = {"sibling": sibling, "say": note}
    with progress() as update:
        advice = run(model, goal, sources or (), **how, **beside, folder=out, **machine, progress=update)
    show(advice.to_json(), as_json, recommended)
