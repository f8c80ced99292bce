"""Commands about importance matrices of llama.cpp: imatrix."""

from pathlib import Path
from typing import Annotated, Any

import typer

from calibrant import screen
from calibrant.cli._frame import (
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
    command,
    look_in,
    progress,
    show,
    warn,
)


@command(
    "imatrix",
    "calibrant imatrix smollm2 --data wikitext@imatrix --out smollm2.imatrix.gguf",
    "calibrant imatrix smollm2 --data notes.txt --samples 16 --out notes.dat",
)
def imatrix(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write: .gguf for llama.cpp, .dat for ik_llama.cpp.", show_default=False)],
    data: Data,
    samples: Samples = 128,
    tokens: Tokens = None,
    length: Length = 512,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    data_dir: DataDir = None,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Write an importance matrix of MODEL for llama.cpp's quantizers. @imatrix cuts data as llama.cpp does."""
    from calibrant.importance import compared
    from calibrant.importance import imatrix as run

    look_in(data_dir)
    job: dict[str, Any] = {"samples": samples, "tokens": tokens, "length": length, "seed": seed, "dtype": dtype, "device": device, "memory": memory}
    with progress() as update:
        made = run(model, data, out, **job, progress=update)
    warn(made.few_tokens)
    about = {"left_out": dict(made.left_out), "note": made.note, "few_tokens": made.few_tokens, "out": str(out)}
    show({**compared(made).to_json(), **about}, as_json, screen.gathered)
