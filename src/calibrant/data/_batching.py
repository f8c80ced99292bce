"""Sequences of like length together, and how they are padded: for whoever runs texts through a
model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from calibrant.data.calibration import TokenBatch


def by_length(lengths: Sequence[int], tokens_per_pass: int) -> Iterator[list[int]]:
    """Yield the places of sequences of like length, as many as have `tokens_per_pass` tokens,
    padding included, and at least one.

    The longest come first, so that memory runs out at once or never; of equals the earlier.
    Sequences without a token are left out.

    >>> list(by_length([2, 5, 0, 4, 3], 8))
    [[1], [3, 4], [0]]
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    while order:
        size = max(1, tokens_per_pass // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def padded(
    sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return `input_ids` [sequence, position], padded with zeros on the right, and an
    `attention_mask` where there is any padding.

    >>> sorted(padded([[7, 8], [9]]))
    ['attention_mask', 'input_ids']
    """
    longest = max(map(len, sequences))
    inputs = {
        "input_ids": torch.tensor(
            [[*one, *[0] * (longest - len(one))] for one in sequences], device=device
        )
    }
    # Without a mask a model takes its fastest attention.
    if any(len(one) < longest for one in sequences):
        inputs["attention_mask"] = torch.tensor(
            [[1] * len(one) + [0] * (longest - len(one)) for one in sequences], device=device
        )
    return inputs


def micro_batches(
    batch: TokenBatch, tokens_per_pass: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield samples of like length together, real tokens first, cut to the longest of them: (ids,
    mask, weights), each [sample, position].

    A causal model's real tokens don't look at what follows them, so moving padding behind them
    changes nothing that counts.
    """
    front = (~batch.mask).long().argsort(dim=1, stable=True)
    ids, mask, weights = (t.gather(1, front) for t in (batch.ids, batch.mask, batch.weights))
    lengths = batch.mask.sum(1).tolist()
    for places in by_length(lengths, tokens_per_pass):
        rows, longest = torch.tensor(places), lengths[places[0]]
        yield (
            ids[rows, :longest],
            mask[rows, :longest],
            weights[rows, :longest] * mask[rows, :longest],
        )


def divided(batch: TokenBatch, tokens: int) -> tuple[TokenBatch, TokenBatch | None]:
    """Return sequences of a batch that have about `tokens` real tokens together, at equal distances
    and at least one, and all others.

    None in the place of the others where there are none. One sequence that is longer alone is cut,
    unless it has padding. Of a mix, each part gives an equal share. No fingerprint goes with what
    is chosen.
    """
    if batch.mixed:
        pairs = [divided(part, max(1, tokens // len(batch.mixed))) for _, part in batch.mixed]
        shares, rests = (
            [share for share, _ in batch.mixed],
            [rest for _, rest in pairs if rest is not None],
        )
        few = _joined(batch, shares, [chosen for chosen, _ in pairs])
        return few, _joined(batch, shares, rests) if len(rests) == len(pairs) else None
    count, whole = len(batch.ids), int(batch.mask.sum())
    wanted = min(count, max(1, round(count * tokens / max(whole, 1))))
    places = torch.arange(wanted) * count // wanted
    left = torch.ones(count, dtype=torch.bool)
    left[places] = False
    few = _picked(batch, places)
    if wanted == 1 and few.ids.shape[1] > tokens and bool(few.mask.all()):
        few = replace(
            few, ids=few.ids[:, :tokens], mask=few.mask[:, :tokens], weights=few.weights[:, :tokens]
        )
    return few, _picked(batch, left.nonzero().flatten()) if bool(left.any()) else None


def _picked(batch: TokenBatch, places: Tensor) -> TokenBatch:
    return replace(
        batch,
        ids=batch.ids[places],
        mask=batch.mask[places],
        weights=batch.weights[places],
        fingerprint="",
        pads=None,
    )


def _joined(batch: TokenBatch, shares: Sequence[float], parts: Sequence[TokenBatch]) -> TokenBatch:
    """Parts of a mix as one batch, all as wide as the narrowest."""
    width = min(part.ids.shape[1] for part in parts)
    ids, mask, weights = (
        torch.cat([getattr(part, name)[:, :width] for part in parts])
        for name in ("ids", "mask", "weights")
    )
    return replace(
        batch,
        ids=ids,
        mask=mask,
        weights=weights,
        fingerprint="",
        pads=None,
        mixed=tuple(zip(shares, parts, strict=True)),
    )
