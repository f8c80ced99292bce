"""How far predictions are from those of another model: KL(old ‖ new) of each token, in nats."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.system.products import exact_type


def divergences(
    old: Float[Tensor, "token word"], new: Float[Tensor, "token word"]
) -> Float[Tensor, "token"]:
    """Return KL(old ‖ new) of each row of logits, as float64 on the processor; NaN where a logit of
    the row isn't finite.

    Σp(log p - log q) is a small difference of large terms. So Σ(q - p) is added, which is zero but
    for rounding. Then each summand is p(e^d - 1 - d) with d = log q - log p. It is at least zero.
    Float32 on the processor has it from a series, which keeps its digits where d is small.
    Elsewhere it is expm1(d) - d, which loses some. For large d it is q - p - p·d, which can't
    overflow. Logits of two bytes are widened to float32, others keep their type.

    Examples
    --------
    >>> # log((1 + e) / 2) - 1/2
    >>> divergences(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([0.1201], dtype=torch.float64)
    """
    old = _wide(old)
    new = _wide(new).to(old.device)
    # One NaN or infinity makes the whole sum NaN or infinite; looking at each logit is slow.
    broken = ~(old.sum(-1) + new.sum(-1)).isfinite()
    compiles = old.dtype == new.dtype == torch.float32 and old.device.type == "cpu"
    found = _compiled(old, new) if compiles else _in_torch(old, new)
    return found.masked_fill_(broken.cpu(), torch.nan)


def top(logits: Float[Tensor, "token word"]) -> Int[Tensor, "token"]:
    """Return each token's most probable word; of equally probable ones the first."""
    # On the processor numpy takes a tenth of torch's time.
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def _compiled(
    old: Float[Tensor, "token word"], new: Float[Tensor, "token word"]
) -> Float[Tensor, "token"]:
    # Imported here, since importing numba takes a second.
    from calibrant.models.divergence_kernel import nats

    before = old.numpy()
    after = new.numpy()
    out = np.empty(len(before))
    nats(before, after, np.stack([before.max(-1), after.max(-1)], 1), out)
    return torch.from_numpy(out)


def _in_torch(
    old: Float[Tensor, "token word"], new: Float[Tensor, "token word"]
) -> Float[Tensor, "token"]:
    before = old.log_softmax(-1)
    after = new.log_softmax(-1)
    p = before.exp()
    d = after - before
    near = p * (d.expm1() - d)
    far = after.exp() - p - p * d
    terms = torch.where(d.abs() < 1, near, far)
    return terms.sum(-1, dtype=exact_type(terms.device)).cpu().double()


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
