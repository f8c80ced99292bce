"""llm-compressor's GPTQ."""

from dataclasses import dataclass
from typing import final

from calibrant.handover._base import IdsTool


@final
@dataclass(frozen=True, repr=False)
class LlmCompressor(IdsTool):
    """GPTQ of llm-compressor: 4 bits in groups of 128."""

    summary = "GPTQ to 4 bits in groups of 128: pip install llmcompressor"
    imports = """\
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier"""
    steps = """\
oneshot(
    model=MODEL,
    dataset=Dataset.from_list(rows),
    recipe=GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"]),
    num_calibration_samples=len(rows),
    shuffle_calibration_samples=False,
    output_dir=OUT,
)"""
