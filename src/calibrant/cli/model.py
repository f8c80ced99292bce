"""Commands about one model: demo, prune, quantize, export, evaluate."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from calibrant.cli import completing, screen
from calibrant.cli._frame import (
    DataDir,
    Json,
    Model,
    PlanOnly,
    check_result_file,
    command,
    console,
    folder_to_write,
    look_in,
    progress,
    show,
    show_plan,
    warn,
    write,
)
from calibrant.cli.declared import with_options
from calibrant.options import EvaluateCommand, PruneOptions, QuantizeOptions

if TYPE_CHECKING:
    from calibrant.compress import Compression
    from calibrant.results.outcomes import Score


class WithMethods(TyperCommand):
    """A command whose help has the methods that remove something, a line each, before its
    examples.
    """

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
            help="Folder for results and report; what it already holds isn't computed again. "
            "[default: calibrant-demo]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prune SmolLM2 with six calibration sets, offline, and see which one kept it best. Takes a
    few minutes.
    """
    from calibrant.lab.demo import demo as run

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
    "calibrant prune smollm2 --data c4 --method sparsegpt --plan",
    cls=WithMethods,
)
@with_options(PruneOptions, unless_planned=["out"])
def prune(
    plan: PlanOnly = False, data_dir: DataDir = None, as_json: Json = False, **options: Any
) -> None:
    """Prune MODEL and save it as an ordinary Hugging Face folder. After a kill the same command
    continues.
    """
    from calibrant.compress import prune as run

    options["out"] = folder_to_write(options["out"], plan)
    if plan:
        show_plan(run, options, data_dir, as_json)
    else:
        _compress(run, options, data_dir, as_json)


@command(
    "quantize",
    "calibrant quantize smollm2 --target w4g64 --out small",
    "calibrant quantize smollm2 --target w3g64a --out smaller",
)
@with_options(QuantizeOptions, unless_planned=["out"])
def quantize(
    plan: PlanOnly = False, data_dir: DataDir = None, as_json: Json = False, **options: Any
) -> None:
    """Quantize MODEL and save what its codes stand for as an ordinary Hugging Face folder. After
    a kill the same command continues.
    """
    from calibrant.compress import quantize as run

    options["out"] = folder_to_write(options["out"], plan)
    if plan:
        show_plan(run, options, data_dir, as_json)
    else:
        _compress(run, options, data_dir, as_json)


def _compress(
    run: Callable[..., "Compression"],
    options: dict[str, Any],
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Call `prune` or `quantize` with the options of the command and show the result."""
    look_in(data_dir)
    with progress() as update:
        done = run(**options, progress=update)
    warn(done.record.provenance.get("few_tokens", ""))
    for part in done.record.data_facts.get("parts", ()):
        warn(part.get("lost", ""))
    facts = {
        **done.record.plain(),
        "out": str(done.out),
        "continued_from": done.continued_from,
        "already_done": done.already_done,
        "sizes": dict(done.sizes),
    }
    if done.costs is not None:
        facts["costs"] = asdict(done.costs)
    show(facts, as_json, screen.pruned)


@command(
    "export",
    "calibrant export pruned/sparse --to hf --out plain",
    "calibrant export pruned --to sparse --out small",
)
def export(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for what is written; it must not exist yet.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="hf, or sparse, which leaves out zeros.",
            autocompletion=completing.names_of("exports"),
        ),
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
    "calibrant evaluate small/compressed_tensors --task loss --engine vllm",
    "calibrant evaluate pruned --task agreement --task \"task(name='race', shots=5, limit=300)\" "
    "--out scores.json",
)
@with_options(EvaluateCommand, required=["tasks"])
def evaluate(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Also write scores and the outcome of every item here.",
            show_default=False,
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Also write the scores into the card (README.md) of a model that calibrant saved.",
        ),
    ] = False,
    plan: PlanOnly = False,
    data_dir: DataDir = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Measure MODEL on held-out data that no calibration set can hold."""
    from calibrant.evaluators import evaluate as run
    from calibrant.exports import add_scores, check_card

    if plan:
        show_plan(run, options, data_dir, as_json)
        return
    look_in(data_dir)
    check_result_file(out, ("score", "outcomes"))
    if card:
        check_card(options["model"])
    with progress() as update:
        measured = run(**options, progress=update)
    if out is not None:
        write(out, [asdict(measurement) for measurement in measured])
    rows: list[dict[str, Any]] = []
    scores: list[Score] = []
    for measurement in measured:
        scores += [measurement.score, *measurement.beside]
        row = asdict(measurement.score)
        row["beside"] = [asdict(score) for score in measurement.beside]
        row["provenance"] = dict(measurement.provenance)
        rows.append(row)
    show(rows, as_json, screen.scores)
    if card:
        add_scores(options["model"], scores)
