"""How likely a model finds continuations of contexts: the engine under every measure that ranks
answers.

What requests share is computed once. The tokens that all begin with (a few-shot prompt) are run
once into a key-value cache. Behind them, requests are laid out as a tree in one row: a context
stands there once, however many continuations it has, and so does whatever the contexts of
neighbours begin with. An explicit mask lets each token see its own ancestors and nothing else, and
each token stands at the position that it would have alone. Requests are taken in the order of their
tokens, so that those which share much stand together; nothing is padded. The head is applied only
where something is scored.

Where that isn't exact (`shares`), requests are padded into batches of like length, each with its
own forward from the first token.

Neither the order nor the company of a request changes its result beyond rounding. The same requests
in the same passes give the same bits.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from calibrant.data import by_length
from calibrant.decoding import accepted, common_length, remembers
from calibrant.errors import DataError, NumericsError
from calibrant.evaluators._base import Steps
from calibrant.evaluators._windows import ScoredWindow, predictions, wide
from calibrant.models.readable import check_tokens, longest_text, rope_alike_up_to
from calibrant.results.outcomes import Journal

LOGITS: Final = 2**25
"""Numbers that the head may give in one pass: this bounds the memory where the vocabulary is
large.
"""
SHORTEST_PREFIX: Final = 16
"""Tokens that all requests must begin with for a cache to be worth its forward; fewer stand in
the tree.
"""
_SHORT_ROWS: Final = frozenset({"big_bird"})
"""Families that read no row longer than their table of positions, whatever positions it has."""
_LOGITS_AT_ONCE: Final = 2**22
"""Logits that are held in float32 at once."""


@dataclass(frozen=True)
class Request:
    """Token ids: what is shown, start token included, and what is scored; each at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """The tokens that a forward needs to see: the last token of the continuation predicts
        nothing.
        """
        return self.context + self.continuation[:-1]


@dataclass(frozen=True)
class Scored:
    """The negative log likelihood of a continuation, summed, in nats; its tokens; whether each
    of them is the model's first choice.
    """

    nats: float
    tokens: int
    greedy: bool

    def entry(self) -> list[Any]:
        """Return what a journal keeps of it."""
        return [self.nats, self.tokens, self.greedy]


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

    `known` are results of an earlier call with the same requests. They are given back as they are,
    and only passes that hold others are run, with the same company as then. Raises `DataError` for
    a request that is empty or longer than the model has positions, `NumericsError`, which names
    what is `measured`, if the model's outputs aren't finite.
    """
    if not requests:
        return []
    indices: dict[Request, list[int]] = {}
    results: dict[Request, Scored] = {}
    for index, request in enumerate(requests):
        indices.setdefault(request, []).append(index)
        if known and index in known:
            results[request] = known[index]
    distinct = list(indices)
    longest = _checked(model, distinct)
    division = _Trees if shares(model, longest) else _PaddedRows
    passes: _Passes = division(model, distinct, tokens_per_pass)
    for pack in passes.packs():
        # The others are run as company; what is known of them stays.
        missing = [place for place in pack if distinct[place] not in results]
        if not missing:
            continue
        scored_pack = passes.run(pack)
        new: dict[int, Scored] = {}
        for place in missing:
            request = distinct[place]
            scored = _finite(scored_pack[place], measured)
            results[request] = scored
            new.update(dict.fromkeys(indices[request], scored))
        if on_results:
            on_results(new)
    return [results[request] for request in requests]


def _finite(scored: Scored, measured: str) -> Scored:
    """Return a score. `NumericsError` if it isn't finite."""
    if not np.isfinite(scored.nats):
        raise NumericsError(
            f"the log likelihood of {measured} isn't finite: the model's outputs aren't",
            subject=measured,
        )
    return scored


def score_named(
    model: PreTrainedModel,
    requests: Mapping[str, Sequence[Request]],
    journal: Journal,
    *,
    steps: Steps,
    tokens_per_pass: int = 512,
    measured: str = "a request",
) -> dict[str, list[Scored]]:
    """Return the scores of the requests of each name. They go into `journal` under that name once
    all of them are known; `steps` hears how many came.

    What the journal has isn't scored again, unless it shares a pass with something that is: so a
    run that was killed ends as one that wasn't.
    """
    # All requests in one row: `owners` has the name of each, `spans` the places of each name's.
    requests_in_row: list[Request] = []
    owners: list[str] = []
    spans: dict[str, range] = {}
    results: dict[int, Scored] = {}
    for name, wanted in requests.items():
        spans[name] = range(len(owners), len(owners) + len(wanted))
        owners += [name] * len(wanted)
        requests_in_row += wanted
        if name in journal:
            known = [Scored(*entry) for entry in journal[name]]
            results.update(zip(spans[name], known, strict=True))

    def keep(new: Mapping[int, Scored]) -> None:
        results.update(new)
        entries: dict[str, list[Any]] = {}
        # Each name once, in the order in which results came.
        names = dict.fromkeys(owners[index] for index in new)
        for name in names:
            span = spans[name]
            if all(index in results for index in span):
                entries[name] = [results[index].entry() for index in span]
        journal.add(entries)
        steps.add(len(new))

    steps.done += len(results)
    # A copy of what is known, since `keep` changes it meanwhile.
    scored = score(
        model,
        requests_in_row,
        tokens_per_pass=tokens_per_pass,
        on_results=keep,
        known=dict(results),
        measured=measured,
    )
    return {name: scored[span.start : span.stop] for name, span in spans.items()}


def shares(model: PreTrainedModel, longest: int) -> bool:
    """Return whether requests of up to `longest` tokens can share what they begin with, by a cache
    and a mask of their own, and nothing else changes.

    Not where a layer attends through a window or a chunk that is shorter, is recurrent, places
    tokens by their distance in the row (ALiBi, the windows of GPT-Neo) or by its own count, turns
    positions by the length of the whole, or where the attention takes no mask (flash, flex).
    """
    config: Any = model.config.get_text_config()
    needed = accepted(model, attention_mask=0, position_ids=0, cache=0, use_cache=0)
    if len(needed) < 4 or not remembers(model) or config.model_type in _SHORT_ROWS:
        return False
    if getattr(config, "_attn_implementation", None) not in ("eager", "sdpa"):
        return False
    if getattr(config, "alibi", False) or getattr(config, "window_size", None) is not None:
        return False
    for name in ("sliding_window", "attention_chunk_size"):
        size = getattr(config, name, None)
        if size is not None and longest > size:
            return False
    alike_up_to = rope_alike_up_to(model)
    return alike_up_to is None or longest <= alike_up_to


def _checked(model: PreTrainedModel, requests: Sequence[Request]) -> int:
    """Return the tokens of the longest request as a model sees it; `DataError` for one that can't
    be scored.
    """
    room = longest_text(model)
    longest = 0
    for request in requests:
        if not request.context or not request.continuation:
            empty = "continuation" if request.context else "context"
            raise DataError(
                f"{request} has no {empty}; "
                f"a likelihood needs a token to begin with and one to score",
                subject=empty,
            )
        size = len(request.inputs)
        if room is not None and size > room:
            raise DataError(
                f"a text to score has {size} tokens, and the model has {room} positions; "
                f"show fewer examples, or measure shorter texts",
                subject=str(size),
            )
        longest = max(longest, size)
        # The last token of a continuation is looked up in what the head gives.
        check_tokens(model, max(max(request.context), max(request.continuation)))
    return longest


@dataclass(frozen=True)
class _Load:
    """What requests add to a pass: tokens, and about how many of them predict something."""

    tokens: int = 0
    predicting: int = 0

    def __add__(self, other: "_Load") -> "_Load":
        return _Load(self.tokens + other.tokens, self.predicting + other.predicting)

    def fits(self, most: "_Load") -> bool:
        """Return whether it is within `most`."""
        return self.tokens <= most.tokens and self.predicting <= most.predicting


@dataclass
class _Pack:
    """The requests of a pass, what they add up to, and what it may hold."""

    members: list[int]
    load: _Load
    capacity: _Load

    @property
    def last(self) -> int:
        """The request behind which another one would be put."""
        return self.members[-1]

    def has_room(self, load: _Load) -> bool:
        """Return whether so much more is within what it may hold."""
        return (self.load + load).fits(self.capacity)

    def add(self, index: int, load: _Load) -> None:
        """Add a request that adds `load`."""
        self.members.append(index)
        self.load += load


@final
class _Trees:
    """Passes of one row each: a cache of what all begin with, and behind it a tree."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], tokens: int) -> None:
        self._model = model
        self._requests = requests
        self._tokens = tokens
        vocabulary = model.config.get_text_config().vocab_size
        self._predictions = max(1, LOGITS // vocabulary)
        self._shared = _shared_beginning(requests)
        if self._shared < SHORTEST_PREFIX:
            self._shared = 0

    def packs(self) -> list[list[int]]:
        """Return the requests of each pass, in the order of their tokens; the requests of a
        context stay together if one pass can hold them.
        """

        def context_of(index: int) -> tuple[int, ...]:
            return self._requests[index].context

        def tokens_of(index: int) -> tuple[tuple[int, ...], ...]:
            return context_of(index), self._requests[index].continuation

        # Neighbours in this order share the most.
        order = sorted(range(len(self._requests)), key=tokens_of)
        packs: list[_Pack] = []
        for _, members in itertools.groupby(order, key=context_of):
            group = list(members)
            fits_alone = self._load(group).fits(self._capacity(group[0]))
            # A context begins a new pass where that keeps its requests together.
            if packs and fits_alone and not packs[-1].has_room(self._load(group, packs[-1].last)):
                packs.append(self._begun(group.pop(0)))
            for index in group:
                if packs:
                    load = self._load([index], after=packs[-1].last)
                    if packs[-1].has_room(load):
                        packs[-1].add(index, load)
                        continue
                packs.append(self._begun(index))
        return [pack.members for pack in packs]

    def _begun(self, first: int) -> "_Pack":
        return _Pack([first], self._load([first]), self._capacity(first))

    def _capacity(self, first: int) -> _Load:
        """Return what a pass that begins with this request may hold: a long context needs room for
        what belongs to it, too.
        """
        tokens = max(self._tokens, 2 * self._load([first]).tokens)
        return _Load(tokens, self._predictions)

    def _load(self, members: Sequence[int], after: int | None = None) -> _Load:
        """Return what these add to a tree in which `after` was the last."""
        load = _Load()
        last = () if after is None else self._requests[after].inputs
        for index in members:
            request = self._requests[index]
            present = max(common_length(last, request.inputs), self._shared)
            added = len(request.inputs) - present
            # A token behind those that are there predicts, and so does the last of these.
            predicting = min(len(request.continuation), added + 1)
            load += _Load(added, predicting)
            last = request.inputs
        return load

    @torch.no_grad()
    def run(self, pack: Sequence[int]) -> dict[int, Scored]:
        """Run one forward over the tree of these requests."""
        requests = [self._requests[index] for index in pack]
        tree = _grow(requests, self._shared)
        # The tokens that anything is predicted from, each once.
        rows = sorted(set(itertools.chain.from_iterable(tree.predicting)))
        device = self._model.device
        head_rows = accepted(self._model, logits_to_keep=torch.tensor(rows, device=device))
        cached: dict[str, Any] = {"use_cache": False}
        if self._shared:
            cached = {"cache": self._cache, "use_cache": True}
        logits: Tensor = self._model(
            input_ids=torch.tensor([tree.ids], device=device),
            position_ids=torch.tensor([tree.positions], device=device),
            attention_mask=_additive(tree, self._shared, self._model),
            **cached,
            **head_rows,
        ).logits[0]
        if self._shared:
            # The shared beginning stays, this pass's own tokens go.
            self._cache.crop(-len(tree.ids))
        predicting = tree.predicting
        if head_rows:
            # Only the rows that predict came back.
            place = {row: number for number, row in enumerate(rows)}
            predicting = []
            for rows_of_request in tree.predicting:
                predicting.append([place[row] for row in rows_of_request])
        return dict(zip(pack, _read(logits, requests, predicting), strict=True))

    @cached_property
    def _cache(self) -> DynamicCache:
        """The keys and values of what all requests begin with."""
        # Not made for the configuration: no layer of the cache may forget anything.
        cache = DynamicCache()
        beginning = self._requests[0].context[: self._shared]
        prefix = torch.tensor([beginning], device=self._model.device)
        limits = accepted(self._model, logits_to_keep=1)
        self._model(input_ids=prefix, cache=cache, use_cache=True, **limits)
        return cache


@dataclass
class _Tree:
    """Tokens in a row, each after its parent (-1 for one that has none); `predicting` are, for each
    request, the tokens that its continuation is predicted from.
    """

    ids: list[int] = field(default_factory=list[int])
    parents: list[int] = field(default_factory=list[int])
    positions: list[int] = field(default_factory=list[int])
    predicting: list[list[int]] = field(default_factory=list[list[int]])


def _grow(requests: Sequence[Request], shared: int) -> _Tree:
    """Return the tree of these requests without their first `shared` tokens: each shares what it
    begins with with the one before it.
    """
    tree = _Tree()
    path: list[int] = []
    last: tuple[int, ...] = ()
    for request in requests:
        in_common = max(0, common_length(last, request.inputs) - shared)
        path = path[:in_common]
        for position in range(shared + in_common, len(request.inputs)):
            parent = path[-1] if path else -1
            tree.parents.append(parent)
            path.append(len(tree.ids))
            tree.ids.append(request.inputs[position])
            tree.positions.append(position)
        # The last token of the context predicts the first of the continuation.
        last_of_context = len(request.context) - 1 - shared
        tree.predicting.append(path[last_of_context:])
        last = request.inputs
    return tree


def _additive(tree: _Tree, shared: int, model: PreTrainedModel) -> Float[Tensor, "1 1 token seen"]:
    """Return the mask: 0 where a token sees another, cached ones first, the most negative number
    elsewhere.
    """
    size = len(tree.ids)
    sees = np.zeros((size, shared + size), dtype=bool)
    sees[:, :shared] = True
    for number, parent in enumerate(tree.parents):
        if parent >= 0:
            sees[number] = sees[parent]
        sees[number, shared + number] = True
    unseen = torch.from_numpy(~sees).to(model.device)
    # Additive, as attention takes it; the most negative number and not -inf, of which a softmax
    # over nothing else would be NaN.
    mask = torch.zeros(unseen.shape, dtype=model.dtype, device=model.device)
    mask.masked_fill_(unseen, torch.finfo(model.dtype).min)
    return mask[None, None]


@final
class _PaddedRows:
    """Passes of requests of like length, padded on the right, each seen from its first token."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], tokens: int) -> None:
        self._model = model
        self._requests = requests
        self._tokens = tokens

    def packs(self) -> list[list[int]]:
        """Return the requests of each pass, the longest first."""
        # With the last token of each continuation, which stands in the row too.
        lengths = [len(request.inputs) + 1 for request in self._requests]
        return list(by_length(lengths, self._tokens))

    @torch.no_grad()
    def run(self, pack: Sequence[int]) -> dict[int, Scored]:
        """Run one padded forward."""
        windows: list[ScoredWindow] = []
        for index in pack:
            request = self._requests[index]
            ids = [*request.context, *request.continuation]
            windows.append(ScoredWindow("", 0, ids, len(request.context), 0))
        results: dict[int, Scored] = {}
        for index, logits in zip(pack, predictions(self._model, windows), strict=True):
            request = self._requests[index]
            rows = range(len(request.continuation))
            (results[index],) = _read(logits, [request], [rows])
        return results


def _read(
    logits: Float[Tensor, "row word"], requests: Sequence[Request], rows: Sequence[Sequence[int]]
) -> list[Scored]:
    """Return what each request's continuation got, whose tokens are predicted from its `rows`."""
    size = max(1, _LOGITS_AT_ONCE // logits.shape[1])
    totals = torch.cat([wide(part).logsumexp(-1) for part in logits.split(size)])
    most_probable = torch.cat([part.argmax(-1) for part in logits.split(size)])
    all_rows: list[int] = []
    all_ids: list[int] = []
    lengths: list[int] = []
    for request, rows_of_request in zip(requests, rows, strict=True):
        all_rows += rows_of_request
        all_ids += request.continuation
        lengths.append(len(request.continuation))
    places = torch.tensor(all_rows, device=logits.device)
    targets = torch.tensor(all_ids, device=logits.device)
    target_logits = wide(logits[places, targets])
    # A token's in float32 (or wider), their sum in float64, as everywhere.
    nats = (totals[places] - target_logits).cpu().double()
    hits = (most_probable[places] == targets).cpu()
    results: list[Scored] = []
    for part, hit in zip(nats.split(lengths), hits.split(lengths), strict=True):
        results.append(Scored(float(part.sum()), len(part), bool(hit.all())))
    return results


def _shared_beginning(requests: Sequence[Request]) -> int:
    """Return how many tokens all begin with, leaving out the last of each context: that one
    predicts.
    """
    contexts = [request.context for request in requests]
    # What the first and the last in order have in common, all have.
    shared = common_length(min(contexts), max(contexts))
    shortest = min(len(context) for context in contexts)
    return min(shared, shortest - 1)
