"""What an open model is, for whoever opens one and whoever saves one."""

from dataclasses import dataclass
from typing import Any, final

import torch
from transformers import PreTrainedModel


@final
@dataclass
class Opened:
    """A model ready to be used. `digest` is that of the weights' bytes, `note` what results of it must say, such as "dequantized from Q4_1"."""

    model: PreTrainedModel
    tokenizer: Any
    name: str
    digest: str
    note: str
    dtype: torch.dtype
