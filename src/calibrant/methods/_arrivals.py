"""What each matrix saw, with the calibration tokens shown as a method wants them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen
from calibrant.data import TokenBatch
from calibrant.job import Job
from calibrant.methods._base import MatrixMethod, Sources
from calibrant.methods._model_method import check_one_process
from calibrant.models import Weight
from calibrant.walk.attention import BlockCall, Weigh, attention_received
from calibrant.walk.walking import together


def arrivals(method: MatrixMethod, job: Job) -> Iterator[tuple[Weight, Seen]]:
    """Return the matrices that are still to be compressed, each with what it saw. Tokens are shown
    as the method's `token_use` says. Raises `SpecError` for a method that can't be shared by
    several processes.
    """
    token_use = method.token_use
    if token_use.one_process:
        check_one_process(method, job)
    if token_use.sources_apart:
        return _sources_apart(method, job)
    if token_use.sources_halved and job.batch is not None:
        parts = _added_parts(job.batch)
        if len(parts) > 1 and job.propagate == "arrival":
            return _sources_added(method, job, parts)
        if len(parts) > 1 and job.propagate == "dense":
            job = replace(job, batch=replace(job.batch, mixed=tuple(parts)))
    if token_use.turns > 1 and job.batch is not None:
        # Stored statistics are those of sequences that aren't turned.
        job = replace(job, batch=turned(job.batch, token_use.turns), statistics=None)
    weigh = _by_attention(method) if token_use.by_attention else None
    return job.walk(method.observes, weigh)


def weighted_batches(batch: TokenBatch) -> list[tuple[float, TokenBatch]]:
    """Return the tokens of each source of a batch, with its share: the parts of a mix or of a sum.
    A batch of one source is its only part.
    """
    parts: list[tuple[float, TokenBatch]] = []
    if batch.mixed:
        for facts, (_, part) in zip(batch.facts["mix"], batch.mixed, strict=True):
            parts.append((facts["weight"], part))
        return parts
    # Of a sum the sequences stand source by source, one after the other.
    start = 0
    for facts in batch.facts["parts"]:
        rows = slice(start, start + facts["sequences"])
        part = replace(
            batch,
            ids=batch.ids[rows],
            mask=batch.mask[rows],
            weights=batch.weights[rows],
            pads=None,
        )
        parts.append((facts["share"], part))
        start = rows.stop
    return parts


def _added_parts(batch: TokenBatch) -> list[tuple[float, TokenBatch]]:
    """Return the tokens of each source with the factor by which its sums are added to others."""
    if batch.mixed or len(batch.facts.get("parts", ())) < 2:
        return list(batch.mixed)
    return [(1.0, part) for _, part in weighted_batches(batch) if len(part.ids)]


def joined(seen: Sequence[Seen | None], shares: Sequence[float]) -> Seen:
    """Return what a matrix saw of all sources together, each counted by its share, and the Grams of
    the single ones in `Sources`. A source that didn't reach the matrix (None) isn't among them.
    """
    scaled: list[Seen] = []
    for source_seen, share in zip(seen, shares, strict=True):
        if source_seen is not None:
            # Divided by the mass that arrived: a source counts by its share, however many tokens
            # it has.
            scaled.append(source_seen * (share / source_seen[Gram].mass))
    total = reduce(add, scaled)
    grams = [source_seen[Gram] for source_seen in scaled]
    return Seen({**total, Sources: Sources(grams)})


def turned(batch: TokenBatch, times: int) -> TokenBatch:
    """Return the sequences `times` over. In each repetition the real tokens are moved on by another
    `times`-th of the sequence, and those that fall off its end come to its beginning.
    """
    lengths = batch.mask.sum(1, keepdim=True)
    # An order with the real tokens first; it is stable, so that they keep theirs.
    real_first = (~batch.mask).long().argsort(dim=1, stable=True)
    positions = torch.arange(batch.ids.shape[1])[None].expand_as(batch.ids)

    def all_turns(numbers: Tensor) -> Tensor:
        numbers = numbers.gather(1, real_first)
        turns: list[Tensor] = []
        for turn in range(times):
            # Where the token at each position comes from; padding stays where it is.
            origins = (positions - turn * lengths // times) % lengths.clamp_min(1)
            turns.append(numbers.gather(1, origins.where(positions < lengths, positions)))
        return torch.cat(turns)

    pads = None
    if batch.pads is not None:
        pads = all_turns(batch.pads)
    mixed: list[tuple[float, TokenBatch]] = []
    for factor, part in batch.mixed:
        mixed.append((factor / times, turned(part, times)))
    return replace(
        batch,
        ids=all_turns(batch.ids),
        mask=all_turns(batch.mask),
        weights=all_turns(batch.weights),
        pads=pads,
        mixed=tuple(mixed),
    )


def _sources_apart(method: MatrixMethod, job: Job) -> Iterator[tuple[Weight, Seen]]:
    """Walk through the model with each source by itself, but in step: a matrix is compressed when
    all sources have reached it, and so all go on with the same weights.
    """
    parts = weighted_batches(job.batch) if job.batch is not None else []
    shares = [share for share, _ in parts]
    batches = [part for _, part in parts]
    return _in_step(method, job, batches, partial(joined, shares=shares))


def _sources_added(
    method: MatrixMethod, job: Job, parts: Sequence[tuple[float, TokenBatch]]
) -> Iterator[tuple[Weight, Seen]]:
    """Yield each matrix with the sum of what it saw of the sources, each times its factor."""

    def added(seen: Sequence[Seen | None]) -> Seen:
        scaled: list[Seen] = []
        for source_seen, (factor, _) in zip(seen, parts, strict=True):
            if source_seen is not None:
                scaled.append(source_seen * factor)
        return reduce(add, scaled)

    return _in_step(method, job, [part for _, part in parts], added)


def _in_step(
    method: MatrixMethod,
    job: Job,
    batches: Sequence[TokenBatch],
    join: Callable[[Sequence[Seen | None]], Seen],
) -> Iterator[tuple[Weight, Seen]]:
    walks = [replace(job, batch=part, statistics=None).walk(method.observes) for part in batches]
    last: list[Seen | None] = []
    total = Seen({})
    for weight, by_source in together(job.view, walks):
        # Matrices that share their inputs are given one object, so it is joined once for them.
        if list(map(id, by_source)) != list(map(id, last)):
            last = by_source
            total = join(by_source)
        yield weight, total


def _by_attention(method: MatrixMethod) -> Weigh:
    """What weighs the tokens of a block by the attention that they receive, as the method says."""

    def weigh(call: BlockCall) -> Float[Tensor, "sample position"]:
        return method.token_weights(attention_received(call), call.real)

    return weigh
