"""How much attention each token of a micro-batch gets in a block: seen where the block computes
it, whatever its module is called.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calibrant.errors import ModelError
from calibrant.models import Block


@final
@dataclass(frozen=True)
class BlockCall:
    """A block that is about to run on a micro-batch; `real` says which tokens count. `aside` runs
    it under a mode, and throws away what it gives.

    `aside` is for now; `kept` gives one that copies what the block is called with, and can be used
    at any time.
    """

    block: Block
    real: Bool[Tensor, "sample position"]
    aside: Callable[[TorchFunctionMode], None] = field(repr=False)
    kept: Callable[[], Callable[[TorchFunctionMode], None]] = field(repr=False)


Weigh = Callable[[BlockCall], Float[Tensor, "sample position"] | None]
"""Says how much each token of a micro-batch counts for the matrices of a block; None where they
count as they are.
"""


def attention_received(call: BlockCall) -> Float[Tensor, "sample position"]:
    """Return the attention that each token gets from all real tokens of its sequence, itself
    included, summed over the heads of the block.

    Raises `ModelError` for a block in which no attention of every token to every other is computed.
    """
    watch = _Attention(call.real)
    call.aside(watch)
    if watch.received is None:
        name = call.block.name
        raise ModelError(
            f"no attention was seen in {name}, so its tokens can't be weighed by it; use a method that weighs all alike",
            subject=name,
        )
    return watch.received


@final
class _Attention(TorchFunctionMode):
    """Adds up attention probabilities: those of a softmax over positions, or of a fused
    attention, which are computed once more, head by head.
    """

    def __init__(self, real: Bool[Tensor, "sample position"]) -> None:
        super().__init__()
        self._real = real
        self.received: Tensor | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        samples, length = self._real.shape
        if name == "scaled_dot_product_attention":
            self._fused(*args, **(kwargs or {}))
        elif (
            name == "softmax"
            and result.dim() == 4
            and (result.shape[0], *result.shape[2:]) == (samples, length, length)
        ):
            for head in range(result.shape[1]):
                self._add(result[:, head])
        return result

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *_: Any,
        **how: Any,
    ) -> None:
        samples, length = self._real.shape
        if (query.shape[0], query.shape[-2], key.shape[-2]) != (samples, length, length):
            return
        scale, shared = how.get("scale") or query.shape[-1] ** -0.5, query.shape[1] // key.shape[1]
        later = (
            torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
            if how.get("is_causal")
            else None
        )
        mask = (
            None if attn_mask is None else attn_mask.expand(samples, query.shape[1], length, length)
        )
        for head in range(query.shape[1]):
            scores = (query[:, head].float() @ key[:, head // shared].float().mT) * scale
            if mask is not None:
                here = mask[:, head]
                scores = (
                    scores.masked_fill(~here, -torch.inf)
                    if here.dtype == torch.bool
                    else scores + here.float()
                )
            self._add(
                (scores if later is None else scores.masked_fill(later, -torch.inf)).softmax(-1)
            )

    def _add(self, probabilities: Float[Tensor, "sample query key"]) -> None:
        # What padding looks at is nobody's attention, and may be no number where it looks at
        # nothing.
        received = probabilities.float().masked_fill(~self._real[:, :, None], 0).sum(1)
        self.received = received if self.received is None else self.received + received
