"""Where the blocks of a model are that is measured: in memory, or on disk until each is run, by a promise of memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from calibrant.compress.room import Needs
from calibrant.errors import SpecError
from calibrant.evaluators._base import Evaluator
from calibrant.models import outlined

TOKENS: Final = 2048
"""Tokens of the largest batch that a measure runs at once."""
WIDE: Final = 12
"""Bytes that a logit takes beside itself where its log-softmax is taken: three copies in float32, of one window at a time."""


def left_on_disk(ref: str, tasks: Sequence[Evaluator], dtype: str, device: str, promised: int | None) -> bool:
    """Return whether the blocks of the model `ref` stay on disk while `tasks` measure it, so that a promise of so many bytes is kept.

    Raises `SpecError` where it can't be: for tasks that look into the whole model, and for less memory than measuring takes with blocks on disk.
    """
    seen_by, kind = (None, None) if promised is None else outlined(ref, dtype, device)
    if promised is None or seen_by is None or kind is None:
        return False
    words, windows = seen_by.model.config.get_text_config(decoder=True).vocab_size, [getattr(task, "length", TOKENS) for task in tasks]
    logits = words * (TOKENS * kind.itemsize + min(TOKENS, max(windows)) * WIDE)
    models, one = 2 if any(task.compares for task in tasks) else 1, Needs.of(seen_by, TOKENS, (), kind)
    needs = replace(one, model=models * one.model, outside=models * one.outside, work=models * logits)
    if needs.in_memory <= promised:
        return False
    about = f"measuring {ref} takes about {needs.in_memory / 1e9:.1f} GB, and memory is {promised / 1e9:.1f}"
    for task in tasks:
        if task.looks_inside:
            raise SpecError(f"{about}; its blocks can't be left on disk, since {task} looks into the whole model; allow more memory", subject=ref)
    least = needs.on_disk("arrival")
    if least > promised:
        raise SpecError(f"{about}; with its blocks on disk it takes about {least / 1e9:.1f} GB; allow so much", subject=ref)
    return True
