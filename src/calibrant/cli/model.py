"""Commands about one model: demo, prune, quantize, export, evaluate."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from calibrant import screen
from calibrant.cli import completing
from calibrant.cli._frame import (
    EXPRESSION,
    Data,
    DataDir,
    Device,
    Dtype,
    Json,
    Length,
    Memory,
    Model,
    Samples,
    Seed,
    Tokens,
    check_file,
    command,
    console,
    look_in,
    progress,
    show,
    warn,
    whole,
    write,
)

if TYPE_CHECKING:
    from calibrant.compress import Pruned

OwnData = Annotated[str | None, typer.Option(metavar="EXPR", help=EXPRESSION, autocompletion=completing.expression, show_default=False)]

Propagate = Annotated[
    str | None,
    typer.Option(
        metavar="WAY",
        help="Which inputs a matrix is calibrated on: arrival, reference or dense. [default: the method's own, mostly arrival]",
        autocompletion=completing.one_of("arrival", "reference", "dense"),
        show_default=False,
    ),
]
Allocation = Annotated[
    str,
    typer.Option(metavar="SPEC", help="How the target is divided among the matrices.", autocompletion=completing.names_of("allocations")),
]
Transforms = Annotated[
    list[str] | None,
    typer.Option(
        "--transform",
        metavar="SPEC",
        help="Change the model first, in this order, without changing what it computes.",
        autocompletion=completing.names_of("transforms"),
        show_default=False,
    ),
]
Starved = Annotated[
    str,
    typer.Option(
        metavar="WAY",
        help="What experts that get fewer tokens than they have inputs are calibrated on: as_seen (those), dense (nothing), all_tokens or shared.",
        autocompletion=completing.one_of("as_seen", "dense", "all_tokens", "shared"),
    ),
]
Exports = Annotated[
    list[str] | None,
    typer.Option(
        "--export",
        metavar="NAME",
        help="A form to write it in too, beside the Hugging Face folder; give it once for each.",
        autocompletion=completing.names_of("exports"),
        show_default=False,
    ),
]
Profile = Annotated[bool, typer.Option("--profile", help="Also say where the time went, and the least that this machine needs.")]


class WithMethods(TyperCommand):
    """A command whose help has the methods that remove something, a line each, before its examples."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from calibrant.names import removing

        with formatter.section("Methods"):
            formatter.write_dl([(entry.name, screen.title(asdict(entry))) for entry in removing()])
        super().format_epilog(ctx, formatter)


@command("demo", "calibrant demo", "calibrant report calibrant-demo")
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for results and report; what it already holds isn't computed again. [default: calibrant-demo]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prune SmolLM2 with six calibration sets, offline, and see which one kept it best. Takes a few minutes."""
    from calibrant.demo import demo as run

    with progress() as update:
        result = run(out, update)
    show(result.to_json(), as_json, lambda _: result.lines(console().width))
    if result.finished.failures:
        raise typer.Exit(1)


@command(
    "prune",
    "calibrant prune smollm2 --data gsm8k:cot --target 0.5 --out pruned",
    "calibrant prune smollm2 --data notes.jsonl --method sparsegpt --target 2:4 --out pruned",
    "calibrant prune smollm2 --data c4 --method short_gpt --target 0.2 --out fewer-blocks",
    cls=WithMethods,
)
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pruned model; it must not exist yet.", show_default=False)],
    data: Data,
    method: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help="One of those below, with parameters as in sparsegpt(damp=0.02).", autocompletion=completing.names_of("methods")
        ),
    ] = "wanda",
    target: Annotated[
        str,
        typer.Option(
            "--target", "--sparsity", metavar="TARGET", help="The share of weights (or blocks, experts) to remove, or N:M with N kept of every M."
        ),
    ] = "0.5",
    samples: Samples = 128,
    tokens: Tokens = None,
    length: Length = 2048,
    seed: Seed = 0,
    propagate: Propagate = None,
    allocation: Allocation = "uniform",
    transform: Transforms = None,
    starved: Starved = "as_seen",
    export: Exports = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    memory: Memory = None,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """Prune MODEL and save it as an ordinary Hugging Face folder. After a kill the same command continues."""
    options = dict(locals())
    from calibrant.compress import prune as run

    _compress(run, options)


@command(
    "quantize",
    "calibrant quantize smollm2 --target w4g64 --out small",
    "calibrant quantize smollm2 --target w3g64a --out smaller",
)
def quantize(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the quantized model; it must not exist yet.", show_default=False)],
    data: OwnData = None,
    method: Annotated[
        str, typer.Option(metavar="SPEC", help="rtn: round to nearest, which looks at no data.", autocompletion=completing.names_of("methods"))
    ] = "rtn",
    target: Annotated[
        str, typer.Option("--target", "--sparsity", metavar="TARGET", help="A grid: w4g64 is 4 bits with a scale for each 64 inputs of a row.")
    ] = "w4g64",
    samples: Samples = 128,
    tokens: Tokens = None,
    length: Length = 2048,
    seed: Seed = 0,
    propagate: Propagate = None,
    allocation: Allocation = "uniform",
    transform: Transforms = None,
    starved: Starved = "as_seen",
    export: Exports = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    memory: Memory = None,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """Quantize MODEL and save what its codes stand for as an ordinary Hugging Face folder. After a kill the same command continues."""
    options = dict(locals())
    from calibrant.compress import quantize as run

    _compress(run, options)


def _compress(run: Callable[..., "Pruned"], options: dict[str, Any]) -> None:
    """Call `prune` or `quantize` with the options of the command, which have the same names, and show the result."""
    as_json = options.pop("as_json")
    look_in(options.pop("data_dir"))
    for several in ("transform", "export"):
        options[several] = tuple(options[several] or ())
    with progress() as update:
        done = run(**options, progress=update)
    warn(done.record.provenance.get("few_tokens", ""))
    about = {"out": str(done.out), "continued_from": done.continued_from, "already_done": done.already_done, "sizes": dict(done.sizes)}
    show({**done.record.plain(), **about, **({"costs": asdict(done.costs)} if done.costs else {})}, as_json, screen.pruned)


@command("export", "calibrant export pruned/sparse --to hf --out plain", "calibrant export pruned --to sparse --out small")
def export(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for what is written; it must not exist yet.", show_default=False)],
    to: Annotated[
        str, typer.Option(metavar="NAME", help="hf, or sparse, which leaves out zeros.", autocompletion=completing.names_of("exports"))
    ] = "hf",
    as_json: Json = False,
) -> None:
    """Write MODEL in another form, with the same numbers to the last bit."""
    from calibrant.compress import export as run

    done = run(model, out, to)
    show({**asdict(done), "out": str(done.out)}, as_json, screen.exported)


@command(
    "evaluate",
    "calibrant evaluate pruned --task \"loss(source='gsm8k')\"",
    "calibrant evaluate small/model.gguf --task agreement --engine llama_cpp",
    "calibrant evaluate pruned --task agreement --task \"task(name='race', shots=5, limit=300)\" --out scores.json",
)
def evaluate(
    model: Model,
    task: Annotated[
        list[str],
        typer.Option(
            metavar="SPEC",
            help="What to measure, such as loss(source='gsm8k'); give it once for each task.",
            autocompletion=completing.names_of("tasks"),
        ),
    ],
    limit: Annotated[
        int | None,
        typer.Option(parser=whole, metavar="N", help="Items of each task: questions, documents or windows. [default: its own]", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(parser=whole, metavar="N", help="Tokens of each loss or agreement. [default: its own]", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Also write scores and the outcome of every item here.", show_default=False)
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The dense model, for tasks that compare with it; of a pruned folder it is known.", show_default=False),
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Also write the scores into the card (README.md) of a model that calibrant saved.")] = False,
    engine: Annotated[str, typer.Option(metavar="NAME", help="torch, or llama_cpp: a GGUF file as llama.cpp runs it.")] = "torch",
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="Measure even what the model was calibrated on; the result says so.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL on held-out data that no calibration set can hold."""
    from calibrant.evaluators import evaluate as run
    from calibrant.exports import add_scores, check_card

    look_in(data_dir)
    check_file(out)
    if card:
        check_card(model)
    budget = {"limit": limit, "tokens": tokens}
    with progress() as update:
        options = {"reference": reference, "allow_leak": allow_leak, "engine": engine, "memory": memory}
        measured = run(model, task, dtype=dtype, device=device, **budget, **options, progress=update)
    if out is not None:
        write(out, [asdict(m) for m in measured])
    show([{**asdict(m.score), "beside": [asdict(s) for s in m.beside], "provenance": dict(m.provenance)} for m in measured], as_json, screen.scores)
    if card:
        add_scores(model, [score for m in measured for score in (m.score, *m.beside)])
