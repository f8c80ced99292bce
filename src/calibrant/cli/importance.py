"""Commands about importance matrices of llama.cpp: imatrix."""

from typing import Any

from calibrant.cli import screen
from calibrant.cli._frame import DataDir, Json, command, look_in, progress, show, warn
from calibrant.cli.declared import with_options
from calibrant.options import ImatrixOptions


@command(
    "imatrix",
    "calibrant imatrix smollm2 --data wikitext@imatrix --out smollm2.imatrix.gguf",
    "calibrant imatrix smollm2 --data notes.txt --samples 16 --out notes.dat",
)
@with_options(ImatrixOptions, required=["data", "out"])
def imatrix(data_dir: DataDir = None, as_json: Json = False, **options: Any) -> None:
    """Write an importance matrix of MODEL for llama.cpp's quantizers. @imatrix cuts data as
    llama.cpp does.
    """
    from calibrant.compress.importance import compared
    from calibrant.compress.importance import imatrix as run

    look_in(data_dir)
    with progress() as update:
        made = run(**options, progress=update)
    warn(made.few_tokens)
    about = {
        "left_out": dict(made.left_out),
        "note": made.note,
        "few_tokens": made.few_tokens,
        "out": options["out"],
    }
    show({**compared(made).to_json(), **about}, as_json, screen.gathered)
