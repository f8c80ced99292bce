"""Commands that choose calibration data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from calibrant.cli._frame import (
    DataDir,
    Json,
    PlanOnly,
    check_result_file,
    command,
    look_in,
    note,
    progress,
    show,
    show_plan,
    write,
)
from calibrant.cli.declared import with_options
from calibrant.cli.screen.choosing import mixed, recommended
from calibrant.options import MixCommand, RecommendCommand


@command(
    "mix",
    "calibrant mix smollm2 --sources c4 --sources pile --sources gsm8k:cot --objective worst",
    "calibrant mix smollm2 --sources c4 --sources gsm8k:cot --objective target=notes.jsonl --out "
    "mixture.json",
    "calibrant mix smollm2 --sources c4 --sources gsm8k:cot --target Q4_K_M --imatrix mixed.gguf",
)
@with_options(MixCommand, required=["sources"])
def mix(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Also write the answer here: the same for the same question.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Find how to mix sources so that pruning or rounding does least damage, as an expression
    for --data. After a kill the same command continues.
    """
    from calibrant.lab.mixtures import mix as run

    look_in(data_dir)
    check_result_file(out, ("expr", "judges"))
    with progress() as update:
        mixture = run(**options, progress=update)
    if out is not None:
        write(out, mixture.answer())
    show(mixture.to_json(), as_json, mixed)


@command(
    "recommend",
    "calibrant recommend smollm2 --for gsm8k --budget 30",
    "calibrant recommend smollm2 --for mine.jsonl --budget 4",
    "calibrant recommend smollm2 --for mine.jsonl --target w4g64",
    "calibrant recommend smollm2 --for mine.jsonl --target Q4_K_M",
    "calibrant recommend my-model --for mine.jsonl --target w4g128 --tool llm-compressor",
    'calibrant recommend smollm2 --for "0.7*race" --for "0.3*general" --sources c4 --sources race',
)
@with_options(RecommendCommand, required=["goal"])
def recommend(
    plan: PlanOnly = False, data_dir: DataDir = None, as_json: Json = False, **options: Any
) -> None:
    """Say which calibration data to use for what MODEL is for: predicted for every candidate,
    measured for the best.
    """
    from calibrant.lab.choose import recommend as run

    if plan:
        show_plan(run, options, data_dir, as_json)
        return
    look_in(data_dir)
    with progress() as update:
        advice = run(**options, say=note, progress=update)
    show(advice.to_json(), as_json, recommended)
