"""Models whose matrices can't be seen or changed as plain numbers are refused, by name."""

from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibrant.errors import ModelError

PLAIN: Final = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def refuse(model: PreTrainedModel) -> None:
    """Raise `ModelError` if a module is compiled, or a weight is quantized or has no numbers; the message names it."""
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise ModelError(
                f"{name or 'the model'} is compiled, so its products can't be followed; open the model without torch.compile", subject=name
            )
        if _quantized(module):
            raise ModelError(f"{name} is quantized ({type(module).__name__}); give the model before its quantization", subject=name)
        for key, parameter in module.named_parameters(recurse=False):
            _refuse_parameter(f"{name}.{key}" if name else key, parameter)


def _quantized(module: nn.Module) -> bool:
    """Packed integers kept in place of weights: GPTQ and its relatives keep them in buffers, torch.ao in modules of its own."""
    packed = any(b.dim() >= 2 and not b.is_floating_point() and b.dtype != torch.bool for b in module.buffers(recurse=False))
    linear = not any(True for _ in module.children())
    return type(module).__module__.startswith("torch.ao.nn") or (packed and linear)


def _refuse_parameter(name: str, parameter: Tensor) -> None:
    if parameter.is_meta:
        raise ModelError(f"{name} is on the meta device and has no numbers; load the model whole (no offloading, no empty weights)", subject=name)
    if parameter.dtype not in PLAIN:
        raise ModelError(f"{name} is quantized ({parameter.dtype}); give the model before its quantization", subject=name)
    if type(parameter.data) is not Tensor:
        raise ModelError(f"{name} is a {type(parameter.data).__name__} and no plain tensor; give the model before its quantization", subject=name)
