"""Windows of like length together, for whoever runs them through a model."""

from collections.abc import Iterator

from torch import Tensor

from calibrant.data.calibration import TokenBatch


def micro_batches(batch: TokenBatch, tokens_per_pass: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Samples of like length together, real tokens first, cut to the longest of them: (ids, mask, weights), each [sample, position].

    A causal model's real tokens don't look at what follows them, so moving padding behind them changes nothing that counts.
    """
    lengths = batch.mask.sum(1)
    order = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
    front = (~batch.mask).long().argsort(dim=1, stable=True)
    ids, mask, weights = (t.gather(1, front) for t in (batch.ids, batch.mask, batch.weights))
    while len(order):
        longest = int(lengths[order[0]])
        samples = max(1, tokens_per_pass // longest)
        here, order = order[:samples], order[samples:]
        yield ids[here, :longest], mask[here, :longest], weights[here, :longest] * mask[here, :longest]
