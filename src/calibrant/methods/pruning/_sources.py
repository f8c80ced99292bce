"""What a matrix saw of each source of a mixture by itself."""

from collections.abc import Sequence
from dataclasses import replace

from calibrant.activations import Gram, Seen, Statistic
from calibrant.data import TokenBatch


class Sources(Statistic):
    """What a matrix saw of each source by itself: Grams whose masses are the sources' shares of
    the mixture.
    """

    def __init__(self, each: Sequence[Gram]) -> None:
        self.each, self.tokens, self.mass = (
            tuple(each),
            sum(gram.tokens for gram in each),
            sum(gram.mass for gram in each),
        )

    def __add__(self, other: "Sources") -> "Sources":
        return Sources([mine + theirs for mine, theirs in zip(self.each, other.each, strict=True)])

    def __mul__(self, factor: float) -> "Sources":
        return Sources([gram * factor for gram in self.each])


def parts_of(batch: TokenBatch) -> list[tuple[float, TokenBatch]]:
    """Return each source's tokens and its share of the mixture; a batch of one source is its
    only part.
    """
    if batch.mixed:
        return [
            (facts["weight"], part)
            for facts, (_, part) in zip(batch.facts["mix"], batch.mixed, strict=True)
        ]
    counts = [facts["sequences"] for facts in batch.facts["parts"]]
    cut = zip(
        *(tensor.split(counts) for tensor in (batch.ids, batch.mask, batch.weights)), strict=True
    )
    parts = [
        replace(batch, ids=ids, mask=mask, weights=weights, pads=None) for ids, mask, weights in cut
    ]
    return [(facts["share"], part) for facts, part in zip(batch.facts["parts"], parts, strict=True)]


def joined(seen: Sequence[Seen | None], shares: Sequence[float]) -> Seen:
    """Return what all sources together let a matrix see, each by its share, and what each did;
    of one that didn't reach it, nothing.
    """
    each = [
        one * (share / one[Gram].mass)
        for one, share in zip(seen, shares, strict=True)
        if one is not None
    ]
    total = each[0]
    for one in each[1:]:
        total = total + one
    return Seen({**total, Sources: Sources([one[Gram] for one in each])})


def weighed(grams: Sequence[Gram], factors: Sequence[float]) -> Gram:
    """Return the sum of Grams, each times its factor, as of inputs of mass 1."""
    matrices = [gram.matrix * factor for gram, factor in zip(grams, factors, strict=True)]
    return Gram(sum(matrices[1:], matrices[0]), sum(gram.tokens for gram in grams), 1.0)
