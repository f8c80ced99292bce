"""Groups sequences of like length into micro-batches and pads them, for whoever runs texts through
a model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from calibrant.data.calibration import TokenBatch, factors_of


def by_length(lengths: Sequence[int], tokens_per_pass: int) -> Iterator[list[int]]:
    """Yield the places of sequences of like length, lot by lot. A lot has at most `tokens_per_pass`
    tokens, padding included, but at least one sequence.

    The longest come first, so that memory runs out at once or never; of equals the earlier.
    Sequences without a token are left out.

    >>> list(by_length([2, 5, 0, 4, 3], 8))
    [[1], [3, 4], [0]]
    """
    filled = [place for place, length in enumerate(lengths) if length]
    order = sorted(filled, key=lambda place: -lengths[place])
    while order:
        count = max(1, tokens_per_pass // lengths[order[0]])
        yield order[:count]
        order = order[count:]


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
    """Yield (ids, mask, weights), each [sample, position], of samples of like length. Real tokens
    come first, and what is behind those of the longest sample is cut off.

    A causal model's real tokens don't look at what follows them, so moving padding behind them
    changes nothing that counts.
    """
    # A stable sort keeps the real tokens of a sample in their order.
    real_first = (~batch.mask).long().argsort(dim=1, stable=True)
    ids = batch.ids.gather(1, real_first)
    mask = batch.mask.gather(1, real_first)
    weights = batch.weights.gather(1, real_first) * mask
    lengths = batch.mask.sum(1).tolist()
    for places in by_length(lengths, tokens_per_pass):
        rows = torch.tensor(places)
        longest = lengths[places[0]]
        yield ids[rows, :longest], mask[rows, :longest], weights[rows, :longest]


def counted_sequences(batch: TokenBatch) -> TokenBatch:
    """Return the batch without sequences whose tokens all weigh 0, such as a conversation that is
    cut before its answer. No statistic changes, so the fingerprint stays; and whoever looks at a
    few sequences finds tokens that count.
    """
    counts = (batch.weights > 0).any(dim=1)
    # A batch without any token that counts is refused where it is looked at.
    if bool(counts.all()) or not bool(counts.any()):
        return batch
    places = counts.nonzero().flatten()
    picked = _picked(batch, places)
    pads = None if batch.pads is None else batch.pads[places]
    parts: list[tuple[float, TokenBatch]] = []
    for factor, part in batch.mixed:
        parts.append((factor, counted_sequences(part)))
    return replace(picked, fingerprint=batch.fingerprint, pads=pads, mixed=tuple(parts))


def divided(batch: TokenBatch, tokens: int) -> tuple[TokenBatch, TokenBatch | None]:
    """Divide a batch: return sequences that have about `tokens` real tokens together, and all
    others, None where there are none. Of a mix it is None too where one of its sets has no others,
    because the rest would have other shares.

    At least one sequence is chosen; they stand at equal distances. A single one that has more
    tokens is cut, unless it has padding or nothing that counts would be left. Of a mix, each part
    gives as many tokens as any other. Neither batch has a fingerprint.
    """
    if batch.mixed:
        return _divided_mix(batch, tokens)
    count = len(batch.ids)
    total = int(batch.mask.sum())
    chosen_count = min(count, max(1, round(count * tokens / max(total, 1))))
    places = torch.arange(chosen_count) * count // chosen_count
    others = torch.ones(count, dtype=torch.bool)
    others[places] = False
    chosen = _picked(batch, places)
    if chosen_count == 1 and chosen.ids.shape[1] > tokens and bool(chosen.mask.all()):
        beginning = _cut(chosen, tokens)
        if beginning.mass > 0:
            chosen = beginning
    if not bool(others.any()):
        return chosen, None
    return chosen, _picked(batch, others.nonzero().flatten())


def _divided_mix(batch: TokenBatch, tokens: int) -> tuple[TokenBatch, TokenBatch | None]:
    tokens_of_part = max(1, tokens // len(batch.mixed))
    chosen_parts: list[TokenBatch] = []
    other_parts: list[TokenBatch] = []
    for _, part in batch.mixed:
        chosen, others = divided(part, tokens_of_part)
        chosen_parts.append(chosen)
        if others is not None:
            other_parts.append(others)
    chosen = _joined(batch, chosen_parts)
    if len(other_parts) < len(chosen_parts):
        return chosen, None
    return chosen, _joined(batch, other_parts)


def _cut(batch: TokenBatch, width: int) -> TokenBatch:
    return replace(
        batch,
        ids=batch.ids[:, :width],
        mask=batch.mask[:, :width],
        weights=batch.weights[:, :width],
    )


def _picked(batch: TokenBatch, places: Tensor) -> TokenBatch:
    """Return the sequences at these places; facts and rows stay those of the whole batch."""
    return replace(
        batch,
        ids=batch.ids[places],
        mask=batch.mask[places],
        weights=batch.weights[places],
        fingerprint="",
        pads=None,
    )


def _joined(batch: TokenBatch, parts: Sequence[TokenBatch]) -> TokenBatch:
    """Return parts of the sets of a mix as one batch. Each set keeps its share, and narrower parts
    are padded: no token is lost.
    """
    factors = factors_of((share for share, _ in batch.sets), parts)
    width = max(part.ids.shape[1] for part in parts)
    ids: list[Tensor] = []
    mask: list[Tensor] = []
    weights: list[Tensor] = []
    for part, factor in zip(parts, factors, strict=True):
        padding = (0, width - part.ids.shape[1])
        ids.append(pad(part.ids, padding))
        mask.append(pad(part.mask, padding))
        weights.append(pad(part.weights * factor, padding))
    return replace(
        batch,
        ids=torch.cat(ids),
        mask=torch.cat(mask),
        weights=torch.cat(weights),
        fingerprint="",
        pads=None,
        mixed=tuple(zip(factors, parts, strict=True)),
    )
