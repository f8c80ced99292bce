"""Commands about what a model forgot: its words, and its languages."""

import math
from collections.abc import Mapping
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
    check_result_file,
    command,
    look_in,
    progress,
    show,
    write,
)
from calibrant.cli.declared import refuse_options, whole, with_options
from calibrant.cli.screen.words import explained, kept_by_sets, language_neurons
from calibrant.errors import SpecError
from calibrant.options import ExplainCommand, MachineOptions
from calibrant.spec.foreign import user_path


@command(
    "explain",
    "calibrant explain pruned --source wikitext",
    "calibrant explain pruned --source race --groups moods.txt",
    "calibrant explain pruned --against smollm2 --task \"words(source='gsm8k', groups='lemmas')\"",
    "calibrant explain results",
)
@with_options(ExplainCommand)
def explain(
    most: Annotated[
        int,
        typer.Option(parser=whole, metavar="N", help="Words to show, those that lost most."),
    ] = 20,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Also write all words here.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Say which words a compressed model forgot: whose neurons lost their response, and where.
    Of a study: which calibration set kept them.
    """
    from calibrant.results import is_store

    if most < 1:
        raise SpecError(f"--most is {most}; it must be at least 1", subject="--most")
    look_in(data_dir)
    check_result_file(out, ("model", "words"))
    result: Any
    if is_store(user_path(options["model"])):
        from calibrant.lab.stats import kept_words

        refuse_options(ExplainCommand, options, "a folder of results")
        result = [kept.to_json() for kept in kept_words(options["model"])]
        shown = kept_by_sets
    else:
        from calibrant.evaluators import explain as run

        with progress() as update:
            result = run(**options, progress=update).to_json()
        shown = explained
    if out is not None:
        write(out, result)
    show(result, as_json, lambda found: shown(found, most))


@command(
    "lape",
    'calibrant lape gemma3-270m --language "flores(language=en)" --language "flores(language=de)" '
    "--tokens 16384",
    "calibrant lape gemma3-270m --language english.txt --language german.txt --pruned pruned",
)
@with_options(MachineOptions)
def lape(
    model: Model,
    language: Annotated[
        list[str],
        typer.Option(
            metavar="EXPR",
            help="Text in a language; give it once for each.",
            autocompletion=completing.expression,
            show_default=False,
        ),
    ],
    pruned: Annotated[
        str | None,
        typer.Option(
            metavar="PRUNED",
            help="A compressed model: how many of these neurons stay specific in it.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(parser=whole, metavar="N", help="Real tokens of each language.")
    ] = 65_536,
    length: Length = 512,
    seed: Seed = 0,
    lowest: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="The share of all neurons that are chosen, by the lowest entropy."
        ),
    ] = 0.01,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="Also write each specific neuron here.", show_default=False
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """Say which neurons of MODEL answer to one language and not to others, and how many of them
    a compressed model keeps.
    """
    from calibrant.evaluators.lape import lape as read
    from calibrant.models import open_model

    look_in(data_dir)
    check_result_file(out, ("pruned", "staying"))
    with progress() as update:
        options: dict[str, Any] = {
            "tokens": tokens,
            "length": length,
            "seed": seed,
            "lowest": lowest,
            "progress": update,
        }
        found = read(open_model(model, **machine), language, **options)
        shares: Mapping[str, float] = {}
        if pruned is not None:
            found_in_pruned = read(open_model(pruned, **machine), language, **options)
            shares = found.staying(found_in_pruned)
    staying: dict[str, float | None] = {}
    for name, share in shares.items():
        # JSON has no NaN, which is the share of a language without specific neurons.
        staying[name] = None if math.isnan(share) else share
    result = {**found.to_json(), "pruned": pruned, "staying": staying}
    if out is not None:
        write(out, result)
    show(result, as_json, language_neurons)
