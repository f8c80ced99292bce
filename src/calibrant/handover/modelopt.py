"""Model-Optimizer's AWQ."""

from dataclasses import dataclass
from typing import final

from calibrant.handover._base import IdsTool


@final
@dataclass(frozen=True, repr=False)
class ModelOptimizer(IdsTool):
    """AWQ of Model-Optimizer: 4 bits in groups of 128. Its GPTQ has no such export."""

    summary = "AWQ to 4 bits in groups of 128: pip install 'nvidia-modelopt[hf]'"
    imports = """\
import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer"""
    steps = """\
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", device_map="auto")


def show_windows(model):
    for row in rows:
        model(torch.tensor([row["input_ids"]], device=model.device))


with torch.no_grad():
    model = mtq.quantize(model, mtq.INT4_AWQ_CFG, show_windows)
export_hf_checkpoint(model, export_dir=OUT)
AutoTokenizer.from_pretrained(MODEL).save_pretrained(OUT)"""
