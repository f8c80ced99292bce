"""How much attention each token of a micro-batch gets in a block: seen where the block computes
it, whatever its module is called.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
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
class KeptCall:
    """What a block was called with, to run it again later: `hidden` states, and all else."""

    hidden: Tensor
    _run: Callable[[AbstractContextManager[Any], Tensor], Tensor] = field(repr=False)

    def __call__(self, mode: AbstractContextManager[Any], hidden: Tensor | None = None) -> Tensor:
        """Run the block within `mode`, and return the hidden states that it gives. It is shown
        `hidden`, or what it was called with.
        """
        return self._run(mode, self.hidden if hidden is None else hidden)


@final
@dataclass(frozen=True)
class BlockCall:
    """A block that is about to run on a micro-batch.

    `real` says which tokens count, and `weights` how much each of these does (None: 1).
    `aside(mode)` runs the block under a mode and throws away what it gives; it must be called now.
    `kept()` copies what the block is called with, and returns the same function for later.
    `rows` takes from hidden states the rows of tokens that count.
    """

    block: Block
    real: Bool[Tensor, "sample position"]
    weights: Float[Tensor, "token"] | None
    aside: Callable[[AbstractContextManager[Any]], object] = field(repr=False)
    kept: Callable[[], KeptCall] = field(repr=False)
    rows: Callable[[Tensor], Float[Tensor, "token feature"]] = field(repr=False)


Weigh = Callable[[BlockCall], Float[Tensor, "sample position"] | None]
"""Says how much each token of a micro-batch counts for the matrices of a block; None where all
keep the weight that they have.
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
            f"no attention was seen in {name}, so its tokens can't be weighed by it; "
            "use a method that weighs all alike",
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
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self._fused(*args, **kwargs)
        elif name == "softmax" and result.dim() == 4:
            samples, heads, queries, keys = result.shape
            if self._is_square(samples, queries, keys):
                # Head by head, in the order in which a fused attention is summed.
                for head in range(heads):
                    self._add(result[:, head])
        return result

    def _is_square(self, samples: int, queries: int, keys: int) -> bool:
        """Whether every token of the micro-batch looks at every other."""
        rows, length = self._real.shape
        return (samples, queries, keys) == (rows, length, length)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        """Add the probabilities of a fused attention; parameters are named as torch has them."""
        if query.dim() != 4:
            return
        samples, heads, length, width = query.shape
        if not self._is_square(samples, length, key.shape[-2]):
            return
        factor = width**-0.5 if scale is None else scale
        # Where queries are grouped, several of their heads share one of the keys.
        queries_per_key = heads // key.shape[1]
        future: Tensor | None = None
        if is_causal:
            pairs = torch.ones(length, length, dtype=torch.bool, device=query.device)
            future = pairs.triu(1)
        mask: Tensor | None = None
        if attn_mask is not None:
            mask = attn_mask.expand(samples, heads, length, length)
        # Head by head, since the probabilities of all heads are what a fused operation saves.
        for head in range(heads):
            keys = key[:, head // queries_per_key].float()
            scores = (query[:, head].float() @ keys.mT) * factor
            if mask is not None and mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask[:, head], -torch.inf)
            elif mask is not None:
                scores = scores + mask[:, head].float()
            if future is not None:
                scores = scores.masked_fill(future, -torch.inf)
            self._add(scores.softmax(-1))

    def _add(self, probabilities: Float[Tensor, "sample query key"]) -> None:
        # Padding's own attention counts for nobody. Where padding looks at nothing, it is NaN.
        received = probabilities.float().masked_fill(~self._real[:, :, None], 0).sum(1)
        self.received = received if self.received is None else self.received + received
