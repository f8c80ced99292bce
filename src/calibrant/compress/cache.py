"""How keys and values come to be rounded, once all else is: block by block, so that those behind a
block already see what its rounded ones lead to.
"""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calibrant.activations import FeatureNorms, Propagation
from calibrant.edits import Edit, QuantizeCache
from calibrant.errors import ModelError
from calibrant.job import Job
from calibrant.models.rounded_cache import RoundedCache, attention_names, watched
from calibrant.targets import CacheGrid
from calibrant.walk import walk
from calibrant.walk.attention import BlockCall


def quantized_cache(job: Job, grid: CacheGrid, propagate: Propagation) -> Iterator[Edit]:
    """Yield for each block the edit that rounds its keys and values. Scales reach as far as those
    of tokens that count; how a model rounded its cache before makes no difference to them. Edits of
    before an interruption are in `job.done`; each is applied before the next is asked for.

    Raises `ModelError` for a block that can't be seen, `NumericsError` for one without scales.
    """
    names = attention_names(job.view)
    done = {edit.index for edit in job.done if isinstance(edit, QuantizeCache)}
    start = max(done, default=-1) + 1
    seen = _Largest(job.view.model, names)
    # A walk stops where something is observed, so it is asked for the least that there is.
    arrivals = walk(
        job.view,
        job.batch,
        (FeatureNorms,),
        propagate,
        start=start,
        ranks=job.ranks,
        weigh=seen.look,
    )
    for weight, _ in arrivals:
        if weight.block in done:
            continue
        # At the first product of a block, so its attention hasn't run yet.
        pairs = job.ranks.gathered(seen.taken())
        if not pairs:
            continue
        done.add(weight.block)
        name = names[weight.block]
        # By micro-batch, keys or values, and head.
        largest = torch.tensor(pairs, dtype=torch.float64).amax(0)
        dtype = weight.stored.dtype
        keys = grid.scales_of(largest[0], dtype, f"the keys of {name}")
        values = grid.scales_of(largest[1], dtype, f"the values of {name}")
        yield QuantizeCache(name, weight.block, RoundedCache(grid, keys, values))
    for block, name in enumerate(names):
        if block not in done:
            raise ModelError(
                f"no calibration token showed the keys and values of {name}, so they have no "
                "scales; leave its KV cache as it is",
                subject=name,
            )


@final
class _Largest:
    """Looks at how large keys and values of each head become, for tokens that count, where a block
    is about to run.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._names = names
        self._pairs: list[list[list[float]]] = []

    def look(self, call: BlockCall) -> None:
        """Note what the attention of a block gets for a micro-batch."""
        name = self._names[call.block.index]

        def watch(keys: Tensor, values: Tensor) -> None:
            for numbers in (keys, values):
                if (numbers.shape[0], numbers.shape[2]) != tuple(call.real.shape):
                    raise ModelError(
                        f"{name} has keys and values of other than the tokens that it is shown, "
                        "so they have no scales; leave its KV cache as it is",
                        subject=name,
                    )
            pair = [_largest(keys, call.real).tolist(), _largest(values, call.real).tolist()]
            self._pairs.append(pair)

        call.aside(watched(self._model.get_submodule(name), watch))

    def taken(self) -> list[list[list[float]]]:
        """Return what was noted, and forget it: for each micro-batch the largest key of each head,
        and the largest value.
        """
        pairs = self._pairs
        self._pairs = []
        return pairs


def _largest(
    numbers: Float[Tensor, "sample head position width"], real: Bool[Tensor, "sample position"]
) -> Float[Tensor, "head"]:
    """The largest magnitude of each head, where tokens count."""
    sizes = numbers.abs().amax(-1)
    return sizes.masked_fill(~real[:, None], 0).amax((0, 2))
