"""A command about what a model forgot."""

from pathlib import Path
from typing import Annotated, Any

import typer

from calibrant.cli import completing
from calibrant.cli._frame import DataDir, Device, Dtype, Json, check_file, command, look_in, progress, show, whole, write
from calibrant.foreign import user_path
from calibrant.screen.words import explained, kept_by_sets


@command(
    "explain",
    "calibrant explain pruned --source wikitext",
    "calibrant explain pruned --source race --groups moods.txt",
    "calibrant explain pruned --against smollm2 --task \"words(source='gsm8k', groups='lemmas')\"",
    "calibrant explain results",
)
def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="PRUNED", help="A compressed model, or the folder of a study that measured words: which sets kept them.", show_default=False
        ),
    ],
    against: Annotated[
        str | None, typer.Option(metavar="DENSE", help="The dense model; of a folder that calibrant wrote it is known.", show_default=False)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Whose words. [default: wikitext]", autocompletion=completing.names_of("sources"), show_default=False),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="words, lemmas, clusters, or a file with a word in each line, in which [name] begins a group. [default: words]",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="The measurement in full: words(source='gsm8k', tokens=65536, least=20).", show_default=False),
    ] = None,
    tokens: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Tokens to read. [default: 16384]", show_default=False)] = None,
    most: Annotated[int, typer.Option(parser=whole, metavar="N", help="Words to show, those that lost most.")] = 20,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write all words here.", show_default=False)] = None,
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="Read even what the model was calibrated on.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say which words a compressed model forgot: whose neurons lost their response, and where. Of a study: which calibration set kept them."""
    from calibrant.store import MARKER

    look_in(data_dir)
    check_file(out)
    result: Any
    if (user_path(model) / MARKER).is_file():
        from calibrant.compare import kept_words

        result = [one.to_json() for one in kept_words(model)]
        show(result, as_json, lambda tables: kept_by_sets(tables, most))
    else:
        from calibrant.evaluators import explain as run

        options = {"against": against, "source": source, "groups": groups, "tokens": tokens, "allow_leak": allow_leak}
        with progress() as update:
            result = run(model, task, **options, dtype=dtype, device=device, progress=update).to_json()
        show(result, as_json, lambda explanation: explained(explanation, most))
    if out is not None:
        write(out, result)
