"""Has the model itself write texts: batched sampling, what is filtered out, and the generations in
the user's cache.

    CACHE/generated/<identity>/batch-00000.json

Texts are written batch by batch until enough of them is left. A batch depends on its number, on the
request and on the batches before it, which say how many texts it has; so a generation that was
killed goes on with its next batch, and gives bit for bit what one that wasn't gives. Where no file
can be written the texts are made anew each time.

transformers' `generate` isn't used: it draws all texts of a batch from one stream of random
numbers, so that a text depends on its neighbours and on which of them end first, and it gives no
losses. Nor is it faster: for 16 texts of 40 tokens with SmolLM2-135M on one core it took 8.7 s and
a forward for the losses 3.1 s more, where `write` takes 7.4 s.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import cycle, islice
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from calibrant.activations import wide
from calibrant.data import Row
from calibrant.data.select._base import Context, Selection, Selector, read_cached, write_cached
from calibrant.decoding import ReservedLayer
from calibrant.errors import DataError
from calibrant.models import Opened
from calibrant.models.cache import cache_folder
from calibrant.models.readable import longest_text
from calibrant.models.reading import end_tokens
from calibrant.numerics import not_finite, type_name
from calibrant.spec import canonical, identity
from calibrant.system.seals import Purpose

REVISION: Final = 1
"""Raised when the same question gives other texts than before."""

MARGIN: Final = Fraction(21, 20)
"""How many tokens are written for each that is to come: separators and the ends of windows take
up little.
"""
SURPLUS: Final = Fraction(23, 20)
"""How many times the missing tokens a round is to bring.

More than are missing, because a round of few texts takes nearly as long as one of many.
"""
PATIENCE: Final = 12
"""When a generation is given up: after this many times the texts that would do if each were as long
as it may be.
"""

LEAST: Final = 1e-3
"""The smallest temperature, penalty or share of likely tokens: nothing may be divided by zero."""

_LIKELY: Final = 64
"""How many of the likeliest tokens are looked at first, and how many times as many where these
aren't enough.
"""

_TEXTS_AT_ONCE: Final = 8
"""Texts whose probabilities are added up at once: their numbers stay in the processor's cache."""

LEAST_DISTINCT: Final = 0.3
"""A text whose distinct-3 is below this is a loop."""

STRETCHES: Final = 4
"""How often a text must end in the same stretch to be a loop."""

TAIL: Final = 24
"""How many tokens these stretches must have together."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: repetition penalty, then temperature, then the `top_k` most
    likely (0: all), then `top_p` of those.

    `temperature` gives that of a step, the first being 0.
    """

    temperature: Callable[[int], float]
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Draft:
    """A text as it was written: tokens with its prefix, without start and end token; and the mean
    nats of those that were predicted.

    The loss is taken from the raw logits while the text is written, and is what reading it again
    would give, but for rounding.
    """

    ids: tuple[int, ...]
    nats: float


@dataclass(frozen=True)
class GeneratedText:
    """A draft that can be used: what it reads like, and how many tokens that is when it is
    encoded again.
    """

    draft: Draft
    text: str
    tokens: int


@dataclass(frozen=True)
class FilterResult:
    """Which texts are left, by their places in the order of writing, and what became of the
    others.
    """

    places: tuple[int, ...]
    note: str


@dataclass(frozen=True)
class GenerationRequest:
    """What is to be written. The prefixes are continued in turn, round and round; all have the same
    length, and begin with `starts` start tokens.

    A text ends at an end token, or when it has `length` tokens, prefix included. `batch` texts are
    written at a time, or fewer if fewer will do. `filter_texts` says which of them are left;
    `keeps` is the share of texts that it is expected to leave.
    """

    prefixes: tuple[tuple[int, ...], ...]
    starts: int
    length: int
    sampling: Sampling
    batch: int
    filter_texts: Callable[[Sequence[GeneratedText]], FilterResult]
    keeps: float = 1.0


def selection(selector: Selector, context: Context, request: GenerationRequest) -> Selection:
    """Write rounds of a batch until what is left holds the tokens that are wanted and a twentieth
    more; return rows in the order of writing.

    `DataError` if there is no end of it, or if the model can't see as many tokens as a text may
    have.
    """
    opened = context.model(selector)
    _check_length(selector, opened, request)
    generation = _Generation(selector, context, opened, request)
    wanted_tokens = context.tokens * MARGIN
    expected_tokens = request.length * request.keeps
    most_texts = PATIENCE * math.ceil(wanted_tokens / request.length) + 2 * request.batch
    texts: list[GeneratedText] = []
    written_texts = 0
    while True:
        remaining = request.filter_texts(texts)
        kept_tokens = sum(texts[place].tokens for place in remaining.places)
        if kept_tokens >= wanted_tokens:
            break
        if written_texts >= most_texts:
            raise DataError(
                f"{selector} wrote {written_texts} texts, and what is left of them has "
                f"{kept_tokens} of {context.tokens} tokens ({remaining.note}); choose another "
                "temperature or prefix, a lower drop, or loops='keep'",
                subject=str(selector),
            )
        missing_tokens = wanted_tokens - kept_tokens
        count = texts_of_round(
            missing_tokens, kept_tokens, written_texts, expected_tokens, request.batch
        )
        drafts = generation.batch(written_texts, count, kept_tokens)
        written_texts += len(drafts)
        readable = [_readable(context, draft, request) for draft in drafts]
        texts += [text for text in readable if text is not None]
    context.progress(f"writing text for {selector}", context.tokens, context.tokens)
    kept = [texts[place] for place in remaining.places]
    sequences = [text.draft.ids for text in kept]
    variety = "/".join(f"{distinct(sequences, length):.2f}" for length in (1, 2, 3))
    note = f"wrote {written_texts} texts; {remaining.note}; distinct-1/2/3 of the rest {variety}"
    return Selection(tuple(Row(text=text.text) for text in kept), note)


def filter_texts(
    texts: Sequence[GeneratedText], drop: float = 0.0, loops: str = "drop"
) -> FilterResult:
    """Return what is left of n texts without the ceil(drop · n) that are worst by the model's own
    perplexity, without loops unless `loops` is `keep`, and without copies.

    Loops are among the n. Of equally bad texts the later goes first.
    """

    def worst_first(place: int) -> tuple[float, int]:
        return -texts[place].draft.nats, -place

    # A fraction: with floats, 0.1 of 30 texts would be a little more than 3, and 4 would go.
    count = math.ceil(Fraction(str(drop)) * len(texts))
    worst = sorted(range(len(texts)), key=worst_first)[:count]
    looping = {place for place, text in enumerate(texts) if looped(text.draft.ids)}
    dropped = set(worst)
    if loops == "drop":
        dropped |= looping
    places: list[int] = []
    earlier: set[str] = set()
    for place, text in enumerate(texts):
        if text.text not in earlier and place not in dropped:
            places.append(place)
        earlier.add(text.text)
    notes: list[str] = []
    if worst:
        perplexity = math.exp(texts[worst[-1]].draft.nats)
        notes.append(
            f"dropped {len(worst)} of {len(texts)} at a perplexity of {perplexity:.4g} and above"
        )
    loop_note = f"{len(looping)} loops"
    if looping and loops == "drop":
        loop_note += ", dropped too"
    notes.append(loop_note)
    copies = len(texts) - len(earlier)
    if copies:
        notes.append(f"{copies} copies dropped")
    return FilterResult(tuple(places), ", ".join(notes))


def distinct(sequences: Sequence[Sequence[int]], length: int) -> float:
    """Return distinct-n (Li et al. 2016, arXiv 1510.03055): how many different runs of `length`
    tokens there are in the sequences, by how many runs; 1 if none.
    """
    runs: set[tuple[int, ...]] = set()
    count = 0
    for ids in sequences:
        for begin in range(len(ids) - length + 1):
            runs.add(tuple(ids[begin : begin + length]))
            count += 1
    if not count:
        return 1.0
    return len(runs) / count


def looped(ids: Sequence[int]) -> bool:
    """Return whether a text is caught in a loop: its distinct-3 is below 0.3, or it ends in one
    stretch at least four times, 24 tokens or more in all.

    The rule is ours. It chooses what is calibrated on, so it also drops good texts of few words;
    `is_loop` of `chat_form` finds fault with a model, and doesn't.
    """
    if distinct([ids], 3) < LEAST_DISTINCT:
        return True
    for period in range(1, len(ids) // STRETCHES + 1):
        place = len(ids) - 1
        while place >= period and ids[place] == ids[place - period]:
            place -= 1
        repeated = len(ids) - 1 - place + period
        if repeated >= max(STRETCHES * period, TAIL):
            return True
    return False


@torch.no_grad()
def write(
    model: PreTrainedModel,
    prefixes: Int[Tensor, "text position"],
    length: int,
    sampling: Sampling,
    seed: int,
    ends: frozenset[int],
    starts: int = 0,
    vocabulary: int | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[Draft]:
    """Have the model continue each prefix until an end token comes or there are `length` tokens
    without its first `starts` ones.

    A text's chance is a row of numbers of its own, drawn before anything is written, so when
    another text ends changes nothing but rounding. Only the first `vocabulary` tokens are written.
    Log-softmax and softmax are float32, or float64 for a model that is.
    """
    prefix_length = prefixes.shape[1]
    steps = max(0, length + starts - prefix_length)  # start tokens don't count for the length
    # All numbers at once: which text ends first then changes nobody else's.
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(len(prefixes), steps, generator=generator, dtype=torch.float64)
    texts = _Texts(prefixes, prefix_length + steps, model.device)
    step_ids = texts.shown()
    cache = None
    for step in range(steps):
        # Behind the prefix only the newest token is shown: the cache has the keys of all others.
        output: Any = model(input_ids=step_ids, cache=cache, use_cache=True)
        cache = output.cache
        logits = output.logits.to(wide(output.logits.dtype))
        if step == 0:
            # The first forward reads the prefix, whose tokens are part of the loss too.
            _reserve(cache, prefix_length + steps)
            texts.nats += _nats_of_tokens(logits[:, :-1], step_ids[:, 1:]).sum(1)
        last = logits[:, -1]
        chances = chance[texts.unfinished, step]
        chosen = pick(known_logits(last, vocabulary), texts.shown(), chances, sampling, step)
        continues = torch.tensor([token not in ends for token in chosen.tolist()])
        texts.add(chosen, _nats_of_tokens(last, chosen), continues)
        if not continues.any():
            break
        if not continues.all():
            # Texts that have ended leave the batch, so the last long ones are cheap.
            cache.batch_select_indices(continues.nonzero()[:, 0].to(model.device))
        step_ids = chosen[continues.to(chosen.device), None]
        on_step(step)
    return texts.drafts(starts)


class _Texts:
    """Texts that are being written, each at first its prefix."""

    def __init__(
        self, prefixes: Int[Tensor, "text position"], room: int, device: torch.device
    ) -> None:
        count, self._length = prefixes.shape
        empty = prefixes.new_zeros(count, room - self._length)
        self._ids = torch.cat([prefixes, empty], 1).to(device)
        self._lengths = torch.full((count,), self._length)
        self.nats = torch.zeros(count, dtype=torch.float64)
        self.unfinished = torch.arange(count)  # the texts that haven't ended

    def shown(self) -> Int[Tensor, "text position"]:
        """Return the tokens of the unfinished texts, all of one length."""
        return self._ids[self.unfinished.to(self._ids.device), : self._length]

    def add(
        self,
        chosen: Int[Tensor, " text"],
        nats: Float64[Tensor, " text"],
        continues: Bool[Tensor, " text"],
    ) -> None:
        """Add a token to each unfinished text, or end it where it doesn't continue."""
        self.nats[self.unfinished] += torch.where(continues, nats, 0.0)
        self.unfinished = self.unfinished[continues]
        self._lengths[self.unfinished] += 1
        rows = self.unfinished.to(self._ids.device)
        self._ids[rows, self._length] = chosen[continues.to(chosen.device)]
        self._length += 1

    def drafts(self, starts: int) -> list[Draft]:
        """Return the texts without their first `starts` tokens."""
        means = self.nats / (self._lengths - 1).clamp(min=1)
        drafts: list[Draft] = []
        columns = (self._ids.tolist(), self._lengths.tolist(), means.tolist())
        for row, size, mean in zip(*columns, strict=True):
            drafts.append(Draft(tuple(row[starts:size]), mean))
        return drafts


def _reserve(cache: Any, positions: int) -> None:
    """Reserve all positions at once in layers that just grow; others, such as those of a sliding
    window, look after themselves.
    """
    if not isinstance(cache, DynamicCache):
        return
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            keys = _with_room(layer.keys, positions)
            values = _with_room(layer.values, positions)
            cache.layers[place] = ReservedLayer(keys, values, layer.get_seq_length())


def _with_room(
    part: Float[Tensor, "text head position feature"], positions: int
) -> Float[Tensor, "text head room feature"]:
    """Return keys or values at the beginning of so many positions."""
    whole = part.new_empty(*part.shape[:2], positions, part.shape[3])
    whole[:, :, : part.shape[2]] = part
    return whole


def pick(
    logits: Float[Tensor, "text token"],
    earlier_ids: Int[Tensor, "text position"],
    chance: Float64[Tensor, " text"],
    sampling: Sampling,
    step: int = 0,
) -> Int[Tensor, " text"]:
    """Return the next token of each text: where `chance`, a number in [0, 1), falls among the
    tokens that are left, the most likely first.

    Penalty (Keskar et al. 2019, arXiv 1909.05858: the logit of what occurred before, the prefix
    included, is divided by the penalty, or multiplied if it is negative), temperature, top-k and
    top-p in the order in which transformers applies them. Of tokens that tie at the k-th place only
    as many as fit stay, where transformers keeps all.
    """
    penalty = sampling.repetition_penalty
    # A token that occurred several times is written several times, always with the same value.
    if penalty != 1.0:
        earlier_logits = logits.gather(1, earlier_ids)
        logits = logits.scatter(
            1,
            earlier_ids,
            torch.where(earlier_logits < 0, earlier_logits * penalty, earlier_logits / penalty),
        )
    scores = logits / sampling.temperature(step)
    count = min(sampling.top_k or scores.shape[1], scores.shape[1])
    # Sorted probabilities are few numbers: the rest is done where float64 is at hand.
    scores, tokens = scores.topk(count, dim=1)
    _check_finite(scores)
    probabilities = nucleus(scores.softmax(1).cpu().double(), sampling.top_p)
    # A number in [0, 1) falls on each token as often as its share of what is left. Both sides are
    # multiplied by the sum, so that nothing is divided.
    return _drawn(probabilities, tokens, chance * probabilities.cumsum(1)[:, -1])


def pick_likely(
    logits: Float[Tensor, "text token"],
    chance: Float64[Tensor, " text"],
    temperature: float,
    top_p: float,
) -> Int[Tensor, " text"]:
    """Return what `pick` gives without penalty and top-k, but for rounding. A few tokens are most
    of what is likely, so a vocabulary is hardly ever sorted whole.
    """
    vocabulary = logits.shape[1]
    log_masses = _log_masses(logits, temperature)
    chosen = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(logits))  # the texts whose token isn't found yet
    count = min(_LIKELY, vocabulary)
    while len(rows):
        likely, tokens = logits.topk(count, dim=1)
        _check_finite(likely)
        scores = likely.to(log_masses.dtype) / temperature
        probabilities = nucleus((scores - log_masses[rows]).exp().cpu().double(), top_p)
        mass = probabilities.sum(1)
        place = chance[rows]
        # The mass of all tokens is 1, so with `top_p` 1 the likeliest need only reach the place.
        found = mass > place
        if top_p < 1:
            place = place * mass
            found = mass >= top_p
        if count == vocabulary:
            found = torch.ones_like(found)
        chosen[rows[found]] = _drawn(probabilities, tokens, place)[found]
        rows = rows[~found]
        logits = logits[~found]
        count = min(count * _LIKELY, vocabulary)
    return chosen


def _log_masses(logits: Float[Tensor, "text token"], temperature: float) -> Float[Tensor, "text 1"]:
    """Return the logarithm of Σ e^(logit / temperature) of each text."""
    masses: list[Tensor] = []
    for part in logits.split(_TEXTS_AT_ONCE):
        scores = part.to(wide(part.dtype)) / temperature
        masses.append(scores.logsumexp(1, keepdim=True))
    return torch.cat(masses)


def most_likely(logits: Float[Tensor, "text token"]) -> Int[Tensor, " text"]:
    """Return the most likely next token of each text."""
    highest, tokens = logits.max(1, keepdim=True)
    _check_finite(highest)
    return tokens[:, 0]


def _drawn(
    probabilities: Float64[Tensor, "text rank"],
    tokens: Int[Tensor, "text rank"],
    place: Float64[Tensor, " text"],
) -> Int[Tensor, " text"]:
    """Return the token of each text on which `place` falls, counted from the first of its sorted
    probabilities: inverse transform sampling.
    """
    rank = torch.searchsorted(probabilities.cumsum(1), place[:, None], right=True)
    # Rounding may put the number behind the last token that is left.
    rank = torch.minimum(rank, (probabilities > 0).sum(1, keepdim=True) - 1)
    return tokens.gather(1, rank.to(tokens.device))[:, 0]


def _check_finite(scores: Float[Tensor, "text rank"]) -> None:
    """Raise `NumericsError` where the highest score of a text isn't finite."""
    if not scores[:, 0].isfinite().all():
        raise not_finite("the model's logits of the next token", "logits")


def nucleus(
    probabilities: Float64[Tensor, "text rank"], top_p: float
) -> Float64[Tensor, "text rank"]:
    """Return sorted probabilities with those set to 0 before which there is `top_p` already; the
    first stays.
    """
    likelier = probabilities.cumsum(1) - probabilities
    stays: Bool[Tensor, "text rank"] = likelier < top_p
    stays[:, 0] = True
    return torch.where(stays, probabilities, 0.0)


def known_logits(
    logits: Float[Tensor, "text token"], vocabulary: int | None
) -> Float[Tensor, "text token"]:
    """Return the logits without those of tokens that the tokenizer lacks: many models have more
    rows in their head, which have no text.
    """
    if vocabulary is None or vocabulary >= logits.shape[1]:
        return logits
    unknown = torch.arange(vocabulary, logits.shape[1], device=logits.device)
    return logits.index_fill(1, unknown, -math.inf)


def _nats_of_tokens(
    logits: Float[Tensor, "text *position token"], chosen: Int[Tensor, "text *position"]
) -> Float64[Tensor, "text *position"]:
    chosen_logits = logits.gather(-1, chosen[..., None])[..., 0]
    return (logits.logsumexp(-1) - chosen_logits).cpu().double()


def texts_of_round(
    missing_tokens: Fraction, kept_tokens: int, written_texts: int, expected: float, batch: int
) -> int:
    """Return how many texts the next round writes: what is missing, as the texts before it have
    gone, and at most `batch`. The first are expected to have so many tokens that are kept.
    """
    if written_texts and not kept_tokens:
        return batch
    tokens_of_a_text = expected
    if kept_tokens:
        tokens_of_a_text = kept_tokens / written_texts
    # In fractions: a count that depends on rounding would change the texts.
    texts = SURPLUS * missing_tokens / Fraction(tokens_of_a_text)
    return min(batch, 1 + math.ceil(texts))


def _check_length(selector: Selector, opened: Opened, request: GenerationRequest) -> None:
    most = longest_text(opened.model)
    if most is not None and request.length + request.starts > most:
        raise DataError(
            f"{selector}: a text may have {request.length} tokens, and the model sees at most "
            f"{most}; lower max_tokens or length",
            subject=str(selector),
        )


def _readable(context: Context, draft: Draft, request: GenerationRequest) -> GeneratedText | None:
    """Return what the tokens read like without special ones and without a letter that is cut in
    half at the end; None if nothing was added to a prefix.
    """
    text: Any = context.tokenizer.decode(
        list(draft.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    text = text.rstrip("\ufffd")
    # A draft has no start tokens any more, a prefix still has.
    if len(draft.ids) <= len(request.prefixes[0]) - request.starts or not text.strip():
        return None
    encoded = context.tokenizer(text, add_special_tokens=False, verbose=False)
    return GeneratedText(draft, text, len(encoded["input_ids"]))


class Batches:
    """The batches of one generation, each from the user's cache where it is there.

    A batch's texts depend on `facts`, on its number, on how many texts there are before it and on
    how many it has.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._name = identity(facts)
        self._folder = cache_folder() / "generated" / self._name.removeprefix("sha256:")
        self._number = 0
        self._before = 0

    def batch(self, count: int, write: Callable[[int], list[list[Any]]]) -> list[list[Any]]:
        """Return the next `count` texts: plain data, as `write` gives them for a seed."""
        path = self._folder / f"batch-{self._number:05d}.json"
        purpose: Purpose = {"kind": "written texts", "of": self._name, "batch": self._number}
        stored = read_cached(path, purpose, "what the model wrote")
        if stored is not None and self._is_same(stored, count):
            texts = stored["texts"]
        else:
            # The seed is made of the request, so a batch has the same chance wherever it is
            # written.
            digits = identity([self._name, self._number]).removeprefix("sha256:")
            texts = write(int(digits[:15], 16))
            write_cached(path, purpose, {"texts": texts, "before": self._before})
        self._number += 1
        self._before += count
        return texts

    def _is_same(self, stored: Mapping[str, Any], count: int) -> bool:
        """Whether a file is of this generation, and not of one that went another way since other
        texts were left.
        """
        # Files of earlier releases don't say how many were before.
        before = stored.get("before", self._before)
        return before == self._before and len(stored["texts"]) == count


class _Generation:
    """The texts of one generation, batch by batch."""

    def __init__(
        self, selector: Selector, context: Context, opened: Opened, request: GenerationRequest
    ) -> None:
        self._context = context
        self._opened = opened
        self._request = request
        self._ends = end_tokens(opened.model, opened.tokenizer)
        self._vocabulary = len(context.tokenizer)
        self._label = f"writing text for {selector}"
        facts = identifying(selector, context, opened, self._ends)
        self._batches = Batches({"generated": REVISION, "prefixes": request.prefixes, **facts})

    def batch(self, written_texts: int, count: int, kept_tokens: int) -> list[Draft]:
        """Return the next `count` texts, after `written_texts` of which `kept_tokens` are left."""
        write = partial(self._write, written_texts, count, kept_tokens)
        return [Draft(tuple(ids), nats) for ids, nats in self._batches.batch(count, write)]

    def _write(
        self, written_texts: int, count: int, kept_tokens: int, seed: int
    ) -> list[list[Any]]:
        request = self._request
        target = self._context.tokens
        prefixes = list(islice(cycle(request.prefixes), written_texts, written_texts + count))

        def on_step(step: int) -> None:
            self._context.progress(
                self._label, min(kept_tokens + count * (step + 1), target), target
            )

        drafts = write(
            self._opened.model,
            torch.tensor(prefixes),
            request.length,
            request.sampling,
            seed,
            self._ends,
            request.starts,
            self._vocabulary,
            on_step,
        )
        return [[list(draft.ids), draft.nats] for draft in drafts]


def identifying(
    selector: Selector, context: Context, opened: Opened, ends: Iterable[int]
) -> dict[str, Any]:
    """Return by what the batches of a selector are told from others: all that decides what a model
    writes, but for what it continues.
    """
    return {
        "spec": canonical(selector),
        "model": opened.digest,
        "dtype": type_name(opened.dtype),
        "draw": context.draw,
        "tokens": context.tokens,
        "length": context.length,
        "ends": sorted(ends),
        "vocabulary": len(context.tokenizer),
    }
