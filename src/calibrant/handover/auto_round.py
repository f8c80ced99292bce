"""AutoRound's learned rounding."""

from dataclasses import dataclass
from typing import final

from calibrant.handover._base import IdsTool


@final
@dataclass(frozen=True, repr=False)
class LearnedRounding(IdsTool):
    """AutoRound: 4 bits in groups of 128."""

    summary = "AutoRound to 4 bits in groups of 128: pip install auto-round datasets"
    imports = """\
import torch
from auto_round import AutoRound"""
    # Windows that are shorter than `seqlen` would be left out; in batches of one, none is padded.
    steps = """\
windows = [torch.tensor([row["input_ids"]]) for row in rows]
rounding = AutoRound(
    MODEL,
    scheme="W4A16",
    dataset=[{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in windows],
    nsamples=len(windows),
    seqlen=min(ids.shape[1] for ids in windows),
    batch_size=1,
    gradient_accumulate_steps=8,
)
rounding.quantize_and_save(OUT, format="auto_round")"""
