"""Where the blocks of models are that are measured: in memory, or on disk until each is run, by
a promise of memory; and the room that is left.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import psutil
import torch

from calibrant.compress.room import Needs
from calibrant.errors import SpecError
from calibrant.evaluators._base import Evaluator
from calibrant.models import outlined

ROOM: Final = 0.5
"""The share of the free memory that a second copy of a model may take."""
TOKENS: Final = 2048
"""Tokens of the largest batch that a measure runs at once, unless a single window has more."""
WIDE: Final = 12
"""Bytes that a logit takes beside itself where its log-softmax is taken: three copies in
float32, of one window at a time.
"""


def left_on_disk(
    models: Sequence[str], tasks: Sequence[Evaluator], dtype: str, device: str, promised: int
) -> bool:
    """Return whether the blocks of `models` stay on disk while `tasks` measure the first, so that a
    promise of so many bytes is kept.

    The others are what it is compared with. False where that can't be said beforehand, since one of
    them isn't a folder of plain safetensors. Raises `SpecError` where the promise can't be kept:
    for tasks that look into the whole model, and for less memory than is taken with blocks on disk.
    """
    windows = [getattr(task, "length", TOKENS) for task in tasks]
    tokens, needs, logits = max([TOKENS, *windows]), list[Needs](), 0
    for model in models:
        seen_by, kind = outlined(model, dtype, device)
        if seen_by is None:
            return False
        needs.append(Needs.of(seen_by, tokens, kind))
        logits += seen_by.model.config.get_text_config(decoder=True).vocab_size * (
            tokens * kind.itemsize + max(windows, default=tokens) * WIDE
        )
    first, *_ = needs
    whole, outside = sum(one.model for one in needs), sum(one.outside for one in needs)
    block, arrival = (
        max(one.block for one in needs),
        max(one.arrival for one in needs),
    )  # one model runs after the other
    # All that is shown at once is one batch, so none goes on beside others that wait.
    together = replace(
        first, model=whole, outside=outside, block=block, arrival=arrival, in_a_pass=0, work=logits
    )
    if together.in_memory("arrival") <= promised:
        return False
    about = f"measuring {models[0]} takes about {together.in_memory('arrival') / 1e9:.1f} GB, and memory is {promised / 1e9:.1f}"
    if inside := next((task for task in tasks if task.looks_inside), None):
        raise SpecError(
            f"{about}; blocks can't be left on disk, since {inside} looks into the whole model; allow more memory",
            subject=models[0],
        )
    least = together.on_disk("arrival")
    if least > promised:
        raise SpecError(
            f"{about}; with its blocks on disk it takes about {least / 1e9:.1f} GB; allow so much",
            subject=models[0],
        )
    return True


def room(device: torch.device | str) -> int:
    """Return the bytes that a second copy of a model may take on a device."""
    free = (
        torch.cuda.mem_get_info(device)[0]
        if torch.device(device).type == "cuda"
        else psutil.virtual_memory().available
    )
    return int(ROOM * free)
