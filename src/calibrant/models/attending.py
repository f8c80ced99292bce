"""Attention while a model writes: of the newest token of each row, on the processor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME: Final = "calibrant_newest"
"""What transformers calls this attention."""

BITS: Final = {torch.float32: (torch.int32, 0), torch.bfloat16: (torch.int16, 16)}
"""Types of keys and values that are read: the integers that have as many bits, and how far these
are moved up to be those of a float32.
"""


@contextmanager
def newest_attending(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, the newest token of each row attends by a compiled kernel: in models on the
    processor that go by torch's fused attention. Nothing changes for others.

    Several heads may share a key. Torch's fused attention is made for many queries of each.
    """
    config = model.config.get_text_config()
    fused = config._attn_implementation == "sdpa" and model._supports_attention_backend
    if not fused or model.device.type != "cpu" or model.dtype not in BITS:
        yield
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return what each query [row, head, token, feature] gets [row, token, head, feature]. Of
    several tokens a row it is torch's fused attention.
    """
    if not _is_simple(query, key, value, attention_mask, options):
        mixed, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return mixed, None
    rows, heads, _, features = query.shape
    scaling = options.get("scaling")
    if scaling is None:
        scaling = features**-0.5
    seen = torch.ones(rows, key.shape[2], dtype=torch.bool)
    if attention_mask is not None:
        seen = attention_mask[:, 0, 0].contiguous()
    integers, shift = BITS[key.dtype]
    scaled = query[:, :, 0].float() * scaling
    mixed = torch.empty(rows, heads, value.shape[3])
    arrays = [_with_room(part).view(integers).numpy() for part in (key, value)]
    _kernel()(scaled.numpy(), *arrays, shift, seen.numpy(), mixed.numpy())
    return mixed[:, None].to(query.dtype), None


def _with_room(part: Tensor) -> Tensor:
    """Return keys or values with the room behind them in each row and head: what has no gaps in
    memory is read with vector instructions.
    """
    rows, heads, columns, features = part.shape
    room = max(columns, part.stride(1) // features)
    strides = (heads * room * features, room * features, features, 1)
    if part.stride() != strides or part.storage_offset():
        return part.contiguous()
    return part.as_strided((rows, heads, room, features), strides)


def _is_simple(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> bool:
    """Return whether there is one token a row, and nothing but its mask beside it."""
    if query.shape[2] != 1 or options.get("dropout") or key.dtype not in BITS:
        return False
    if options.get("softcap") is not None or options.get("position_bias") is not None:
        return False
    if mask is None:
        return True
    return mask.dtype == torch.bool and mask.shape == (len(query), 1, 1, key.shape[2])


@cache
def _kernel() -> Callable[..., None]:
    """The kernel. Imported at the first use: numba takes longer to import than listing models
    may.
    """
    from calibrant.models.attending_kernel import attend as kernel

    return kernel
