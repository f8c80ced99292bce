"""How likely a model finds continuations of contexts: the engine under every measure that ranks
answers.

What requests share is computed once. The tokens that all begin with (a few-shot prompt) are run
once into a key-value cache. Behind them, requests are laid out as a tree in one row: a context
stands there once, however many continuations it has, and so does whatever the contexts of
neighbours begin with. Each token sees its own ancestors and nothing else, by an explicit mask, and
stands at the position that it would have alone. Requests are taken in the order of their tokens, so
that those which share much stand together; nothing is padded. The head is applied only where
something is scored.

Where that isn't exact (`shares`), requests are padded into batches of like length, each with its
own forward from the first token.

Neither the order nor the company of a request changes its result beyond rounding; the same requests
in the same passes give it bit for bit.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol, final

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from calibrant.data import by_length
from calibrant.errors import DataError, NumericsError
from calibrant.evaluators._windows import ScoredWindow, accepted, predictions, wide
from calibrant.results.outcomes import Journal

LOGITS: Final = 2**25
"""Numbers that the head may give in one pass: what bounds the memory where the vocabulary is
large.
"""

SHORTEST_PREFIX: Final = 16
"""Tokens that all requests must begin with for a cache to be worth its forward; fewer stand in
the tree.
"""

_AT_ONCE: Final = 2**22
"""Logits that are held in float32 at once."""
_GROWING_ROPE: Final = ("dynamic", "longrope")
_ATTENDING: Final = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Request:
    """Token ids: what is shown, start token included, and what is scored; each at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """What a forward needs to see: the last token of the continuation predicts nothing."""
        return self.context + self.continuation[:-1]


@dataclass(frozen=True)
class Scored:
    """The negative log likelihood of a continuation, summed, in nats; its tokens; whether each
    of them is the model's first choice.
    """

    nats: float
    tokens: int
    greedy: bool


class _Passes(Protocol):
    """Divides requests, by their indices, into passes, and runs one."""

    def packs(self) -> list[list[int]]: ...

    def run(self, pack: Sequence[int]) -> dict[int, Scored]: ...


def score(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    tokens_per_pass: int = 512,
    on_results: Callable[[Mapping[int, Scored]], None] | None = None,
    known: Mapping[int, Scored] | None = None,
    measured: str = "a request",
) -> list[Scored]:
    """Return the score of each request, in their order. `on_results` hears of results by index as
    they come.

    `known` are results of an earlier call with the same requests: they are given back as they are,
    and only passes that hold others are run, with the same company as then. Raises `DataError` for
    a request that is empty or longer than the model has positions, `NumericsError`, which names
    what is `measured`, if the model's outputs aren't finite.
    """
    if not requests:
        return []
    distinct = list(dict.fromkeys(requests))
    results = {
        request: known[index] for index, request in enumerate(requests) if known and index in known
    }
    indices: dict[Request, list[int]] = {}
    for index, request in enumerate(requests):
        indices.setdefault(request, []).append(index)
    longest = _checked(model, distinct)
    passes: _Passes = (_Trees if shares(model, longest) else _PaddedRows)(
        model, distinct, tokens_per_pass
    )
    for pack in passes.packs():
        if all(distinct[i] in results for i in pack):
            continue
        new = {
            distinct[i]: scored
            for i, scored in passes.run(pack).items()
            if distinct[i] not in results
        }
        if not all(np.isfinite(scored.nats) for scored in new.values()):
            raise NumericsError(
                f"the log likelihood of {measured} isn't finite: the model's outputs aren't",
                subject=measured,
            )
        results |= new
        if on_results:
            on_results(
                {index: scored for request, scored in new.items() for index in indices[request]}
            )
    return [results[request] for request in requests]


def score_named(
    model: PreTrainedModel,
    requests: Mapping[str, Sequence[Request]],
    journal: Journal,
    *,
    tokens_per_pass: int = 512,
    on_count: Callable[[int], None] | None = None,
    measured: str = "a request",
) -> dict[str, list[Scored]]:
    """The scores of the requests of each name, which go into `journal` under that name once all of
    them are known; `on_count` hears how many came.

    What the journal has isn't scored again, unless it shares a pass with something that is: so a
    run that was killed ends as one that wasn't.
    """
    owners = [name for name, own in requests.items() for _ in own]
    ends = dict(zip(requests, itertools.accumulate(map(len, requests.values())), strict=True))
    spans = {name: range(end - len(requests[name]), end) for name, end in ends.items()}
    results = {
        i: Scored(*entry)
        for name in requests
        if name in journal
        for i, entry in zip(spans[name], journal[name], strict=True)
    }

    def keep(new: Mapping[int, Scored]) -> None:
        results.update(new)
        whole = [
            name
            for name in dict.fromkeys(owners[i] for i in new)
            if all(i in results for i in spans[name])
        ]
        journal.add(
            {
                name: [[s.nats, s.tokens, s.greedy] for s in map(results.__getitem__, spans[name])]
                for name in whole
            }
        )
        if on_count:
            on_count(len(new))

    if on_count:
        on_count(len(results))
    every = [request for own in requests.values() for request in own]
    scored = score(
        model,
        every,
        tokens_per_pass=tokens_per_pass,
        on_results=keep,
        known=dict(results),
        measured=measured,
    )
    return {name: [scored[i] for i in span] for name, span in spans.items()}


def shares(model: PreTrainedModel, longest: int) -> bool:
    """Return whether requests of up to `longest` tokens can share what they begin with, by a cache
    and a mask of their own, and nothing else changes.

    Not where a layer attends through a window or a chunk that is shorter, is recurrent, places
    tokens by their distance in the row (ALiBi), turns positions by the length of the whole, or
    where the attention takes no mask (flash, flex).
    """
    config: Any = model.config.get_text_config()
    within = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    kinds = getattr(config, "layer_types", None) or ()
    rope: Any = getattr(config, "rope_parameters", None) or {}
    grows = any(
        r.get("rope_type") in _GROWING_ROPE for r in (rope, *rope.values()) if isinstance(r, dict)
    )
    room = (
        getattr(config, "original_max_position_embeddings", None)
        or rope.get("original_max_position_embeddings")
        or _positions(model)
    )
    return (
        len(accepted(model, attention_mask=0, position_ids=0, cache=0, use_cache=0)) == 4
        and not getattr(model, "_is_stateful", False)
        and getattr(config, "_attn_implementation", None) in ("eager", "sdpa")
        and not getattr(config, "alibi", False)
        and set(kinds) <= _ATTENDING
        and all(size is None or longest <= size for size in within)
        and not (grows and room is not None and longest > room)
    )


def _positions(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _checked(model: PreTrainedModel, requests: Sequence[Request]) -> int:
    """The tokens of the longest request as a model sees it; `DataError` for one that can't be
    scored.
    """
    room = _positions(model)
    for request in requests:
        if not request.context or not request.continuation:
            empty = "context" if not request.context else "continuation"
            raise DataError(
                f"{request} has no {empty}; a likelihood needs a token to begin with and one to score",
                subject=empty,
            )
        if room is not None and len(request.inputs) > room:
            size = len(request.inputs)
            raise DataError(
                f"a text to score has {size} tokens, and the model has {room} positions; show fewer examples",
                subject=str(size),
            )
    return max(len(request.inputs) for request in requests)


@final
class _Trees:
    """Passes of one row each: a cache of what all begin with, and behind it a tree."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], tokens: int) -> None:
        self._model, self._requests, self._tokens = model, requests, tokens
        begin = _begin(requests)
        self._begin = begin if begin >= SHORTEST_PREFIX else 0

    def packs(self) -> list[list[int]]:
        """In the order of their tokens; the requests of a context stay together if one pass can
        hold them.
        """
        order = sorted(
            range(len(self._requests)),
            key=lambda i: (self._requests[i].context, self._requests[i].continuation),
        )
        packs: list[list[int]] = []
        size = most = (0, 0)
        for _, members in itertools.groupby(order, key=lambda i: self._requests[i].context):
            group = list(members)
            apart = (
                packs
                and not _fits(most, size, self._size(group, packs[-1][-1]))
                and _fits(self._most(group[0]), self._size(group))
            )
            for at, index in enumerate(group):
                added = self._size([index], packs[-1][-1]) if packs else (0, 0)
                if not packs or (apart and at == 0) or not _fits(most, size, added):
                    packs.append([])
                    size, most, added = (0, 0), self._most(index), self._size([index])
                packs[-1].append(index)
                size = size[0] + added[0], size[1] + added[1]
        return packs

    def _most(self, first: int) -> tuple[int, int]:
        """Tokens and predictions of a pass that begins with this request: a long context needs
        room for what belongs to it, too.
        """
        return max(self._tokens, 2 * self._size([first])[0]), max(
            1, LOGITS // self._model.config.get_text_config().vocab_size
        )

    @torch.no_grad()
    def run(self, pack: Sequence[int]) -> dict[int, Scored]:
        """Run one forward over the tree of these requests."""
        requests = [self._requests[i] for i in pack]
        tree = _grow(requests, self._begin)
        rows = sorted(set(itertools.chain.from_iterable(tree.predicting)))
        device = self._model.device
        limits = accepted(self._model, logits_to_keep=torch.tensor(rows, device=device))
        cached = {"cache": self._cache, "use_cache": True} if self._begin else {"use_cache": False}
        logits: Tensor = self._model(
            input_ids=torch.tensor([tree.ids], device=device),
            position_ids=torch.tensor([tree.positions], device=device),
            attention_mask=_additive(tree, self._begin, self._model),
            **cached,
            **limits,
        ).logits[0]
        if self._begin:
            self._cache.crop(
                -len(tree.ids)
            )  # the shared beginning stays, this pass's own tokens go
        place = {row: at if limits else row for at, row in enumerate(rows)}
        return dict(
            zip(
                pack,
                _read(logits, requests, [[place[row] for row in rows] for rows in tree.predicting]),
                strict=True,
            )
        )

    @cached_property
    def _cache(self) -> DynamicCache:
        """The keys and values of what all requests begin with. Not made for the configuration:
        no layer of it may forget anything.
        """
        cache = DynamicCache()
        prefix = torch.tensor([self._requests[0].context[: self._begin]], device=self._model.device)
        self._model(
            input_ids=prefix, cache=cache, use_cache=True, **accepted(self._model, logits_to_keep=1)
        )
        return cache

    def _size(self, members: Sequence[int], after: int | None = None) -> tuple[int, int]:
        """Tokens that these add to a tree in which `after` was the last, and about how many of
        the tree's tokens they want a prediction from.
        """
        tokens = scored = 0
        last = () if after is None else self._requests[after].inputs
        for index in members:
            request = self._requests[index]
            new = len(request.inputs) - max(_common(last, request.inputs), self._begin)
            tokens, scored, last = (
                tokens + new,
                scored + min(len(request.continuation), new + 1),
                request.inputs,
            )
        return tokens, scored


def _fits(most: tuple[int, int], *sizes: tuple[int, int]) -> bool:
    return all(
        sum(parts) <= limit for parts, limit in zip(zip(*sizes, strict=True), most, strict=True)
    )


@dataclass
class _Tree:
    """Tokens in a row, each after its parent; `predicting` are, for each request, the tokens
    that its continuation is predicted from.
    """

    ids: list[int] = field(default_factory=list[int])
    parents: list[int] = field(default_factory=list[int])
    positions: list[int] = field(default_factory=list[int])
    predicting: list[list[int]] = field(default_factory=list[list[int]])


def _grow(requests: Sequence[Request], begin: int) -> _Tree:
    """The tree of these requests without their first `begin` tokens: each shares what it begins
    with with the one before it.
    """
    tree, path, last = _Tree(), list[int](), ()
    for request in requests:
        path = path[: max(0, _common(last, request.inputs) - begin)]
        for position in range(begin + len(path), len(request.inputs)):
            tree.parents.append(path[-1] if path else -1)
            path.append(len(tree.ids))
            tree.ids.append(request.inputs[position])
            tree.positions.append(position)
        tree.predicting.append(path[len(request.context) - 1 - begin :])
        last = request.inputs
    return tree


def _additive(tree: _Tree, begin: int, model: PreTrainedModel) -> Tensor:
    """The mask `[1, 1, token, cached and token]`: 0 where a token sees, the most negative number
    elsewhere.
    """
    size = len(tree.ids)
    sees = np.zeros((size, begin + size), dtype=bool)
    sees[:, :begin] = True
    for at, parent in enumerate(tree.parents):
        if parent >= 0:
            sees[at] = sees[parent]
        sees[at, begin + at] = True
    # Additive, as attention takes it; the most negative number and not -inf, of which a softmax
    # over nothing else would be NaN.
    hidden = torch.from_numpy(~sees).to(model.device)
    return torch.zeros(hidden.shape, dtype=model.dtype, device=model.device).masked_fill_(
        hidden, torch.finfo(model.dtype).min
    )[None, None]


@final
class _PaddedRows:
    """Passes of requests of like length, padded on the right, each seen from its first token."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], tokens: int) -> None:
        self._model, self._requests, self._tokens = model, requests, tokens

    def packs(self) -> list[list[int]]:
        """Return the longest first, each with the last token of its continuation."""
        return list(by_length([len(r.inputs) + 1 for r in self._requests], self._tokens))

    @torch.no_grad()
    def run(self, pack: Sequence[int]) -> dict[int, Scored]:
        """Run one padded forward."""
        requests = [self._requests[i] for i in pack]
        windows = [
            ScoredWindow("", 0, [*r.context, *r.continuation], len(r.context), 0) for r in requests
        ]
        scored = [
            _read(logits, [request], [list(range(len(request.continuation)))])[0]
            for request, logits in zip(requests, predictions(self._model, windows), strict=True)
        ]
        return dict(zip(pack, scored, strict=True))


def _read(
    logits: Tensor, requests: Sequence[Request], rows: Sequence[Sequence[int]]
) -> list[Scored]:
    """Of logits `[row, vocabulary]` what each request's continuation got, whose tokens are
    predicted from its `rows`.
    """
    size = max(1, _AT_ONCE // logits.shape[1])
    totals = torch.cat([wide(part).logsumexp(-1) for part in logits.split(size)])
    first = torch.cat([part.argmax(-1) for part in logits.split(size)])
    at = torch.tensor(list(itertools.chain.from_iterable(rows)), device=logits.device)
    targets = torch.tensor(
        list(itertools.chain.from_iterable(r.continuation for r in requests)), device=logits.device
    )
    nats = (
        (totals[at] - wide(logits[at, targets]))
        .double()
        .cpu()
        .split([len(r.continuation) for r in requests])
    )
    hits = (first[at] == targets).cpu().split([len(r.continuation) for r in requests])
    return [Scored(float(n.sum()), len(n), bool(h.all())) for n, h in zip(nats, hits, strict=True)]


def _begin(requests: Sequence[Request]) -> int:
    """How many tokens all begin with, leaving out the last of each context: that one predicts."""
    first, last = min(r.context for r in requests), max(r.context for r in requests)
    return min(_common(first, last), min(len(r.context) for r in requests) - 1)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two requests both begin with."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
