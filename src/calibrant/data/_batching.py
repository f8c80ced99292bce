"""Groups sequences of like length into micro-batches and pads them, for whoever runs texts through
a model.
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
    filled = [place for place, length in enumerate(lengths) if length]
    order = sorted(filled, key=lambda place: -lengths[place])
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
    ids: list[list[int]] = []
    mask: list[list[int]] = []
    for sequence in sequences:
        padding = [0] * (longest - len(sequence))
        ids.append([*sequence, *padding])
        mask.append([1] * len(sequence) + padding)
    inputs = {"input_ids": torch.tensor(ids, device=device)}
    # Without a mask a model takes its fastest attention.
    if any(len(sequence) < longest for sequence in sequences):
        inputs["attention_mask"] = torch.tensor(mask, device=device)
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
    ids = batch.ids.gather(1, front)
    mask = batch.mask.gather(1, front)
    weights = batch.weights.gather(1, front) * mask
    lengths = batch.mask.sum(1).tolist()
    for places in by_length(lengths, tokens_per_pass):
        rows = torch.tensor(places)
        longest = lengths[places[0]]
        yield ids[rows, :longest], mask[rows, :longest], weights[rows, :longest]


def divided(batch: TokenBatch, tokens: int) -> tuple[TokenBatch, TokenBatch | None]:
    """Return sequences of a batch that have about `tokens` real tokens together, at equal distances
    and at least one, and all others.

    None in the place of the others where there are none. One sequence that is longer alone is cut,
    unless it has padding. Of a mix, each part gives an equal share. No fingerprint goes with what
    is chosen.
    """
    if batch.mixed:
        return _divided_mix(batch, tokens)
    count = len(batch.ids)
    total = int(batch.mask.sum())
    wanted = min(count, max(1, round(count * tokens / max(total, 1))))
    places = torch.arange(wanted) * count // wanted
    others = torch.ones(count, dtype=torch.bool)
    others[places] = False
    few = _picked(batch, places)
    if wanted == 1 and few.ids.shape[1] > tokens and bool(few.mask.all()):
        few = _cut(few, tokens)
    if not bool(others.any()):
        return few, None
    return few, _picked(batch, others.nonzero().flatten())


def _divided_mix(batch: TokenBatch, tokens: int) -> tuple[TokenBatch, TokenBatch | None]:
    each = max(1, tokens // len(batch.mixed))
    shares: list[float] = []
    chosen: list[TokenBatch] = []
    rests: list[TokenBatch] = []
    for share, part in batch.mixed:
        few, rest = divided(part, each)
        shares.append(share)
        chosen.append(few)
        if rest is not None:
            rests.append(rest)
    few = _joined(batch, shares, chosen)
    if len(rests) < len(chosen):
        return few, None
    return few, _joined(batch, shares, rests)


def _cut(batch: TokenBatch, width: int) -> TokenBatch:
    return replace(
        batch,
        ids=batch.ids[:, :width],
        mask=batch.mask[:, :width],
        weights=batch.weights[:, :width],
    )


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
    """Return parts of a mix as one batch, all as wide as the narrowest."""
    width = min(part.ids.shape[1] for part in parts)
    narrow = [_cut(part, width) for part in parts]
    return replace(
        batch,
        ids=torch.cat([part.ids for part in narrow]),
        mask=torch.cat([part.mask for part in narrow]),
        weights=torch.cat([part.weights for part in narrow]),
        fingerprint="",
        pads=None,
        mixed=tuple(zip(shares, parts, strict=True)),
    )
