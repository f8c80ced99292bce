"""Texts that the model itself writes: batched sampling, what is filtered out, and the generations
in the user's cache.

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
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from calibrant.data import Row
from calibrant.data.select._base import MOST, Context, Selection, Selector
from calibrant.errors import DataError, SpecError
from calibrant.models import Opened
from calibrant.models.cache import cache_folder
from calibrant.numerics import not_finite
from calibrant.spec import canonical, identity
from calibrant.system.durable import put, read_json, sealed, short, text_of_json
from calibrant.system.seals import Purpose, tell_made_again

REVISION: Final = 1
"""Raised when the same question gives other texts than before."""

MARGIN: Final = Fraction(21, 20)
"""How many tokens are written for each that is to come: separators and the ends of windows take
up little.
"""
SURPLUS: Final = Fraction(23, 20)
"""How many times what is missing a round is to bring: one of few texts takes nearly as long as
one of many.
"""
PATIENCE: Final = 12
"""How many times as many texts as would do if all were as long as they may be are written before
it is given up.
"""

LEAST_DISTINCT: Final = 0.3
STRETCHES: Final = 4
TAIL: Final = 24
"""What makes a text a loop; see `looped`."""


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
    """What is to be written: the prefixes of equal length, start tokens (`starts` of each) first,
    are gone through round and round.

    A text ends at an end token, or when it has `length` tokens, prefix included; `batch` texts are
    written at a time, or fewer if fewer will do. `filter_texts` says which are left, of which
    `keeps` is the share that is expected.
    """

    prefixes: tuple[tuple[int, ...], ...]
    starts: int
    length: int
    sampling: Sampling
    batch: int
    filter_texts: Callable[[Sequence[GeneratedText]], FilterResult]
    keeps: float = 1.0


def selection(selector: Selector, context: Context, writing: GenerationRequest) -> Selection:
    """Rounds of a batch until what is left holds the tokens that are wanted and a twentieth more;
    rows in the order of writing.

    `DataError` if there is no end of it, or if the model can't see as many tokens as a text may
    have.
    """
    opened = context.model(selector)
    _check_room(selector, opened, writing)
    generation = _Generation(selector, context, opened, writing)
    ideal = math.ceil(context.tokens * MARGIN / writing.length)
    texts: list[GeneratedText] = []
    written = 0
    while True:
        remaining = writing.filter_texts(texts)
        have = sum(texts[i].tokens for i in remaining.places)
        if have >= context.tokens * MARGIN:
            break
        if written >= PATIENCE * ideal + 2 * writing.batch:
            raise DataError(
                f"{selector} wrote {written} texts, and what is left of them has {have} of "
                f"{context.tokens} tokens ({remaining.note}); choose another temperature or "
                "prefix, a lower drop, or loops='keep'",
                subject=str(selector),
            )
        drafts = generation.batch(
            written, _round(context.tokens * MARGIN - have, have, written, writing), have
        )
        written += len(drafts)
        texts += [
            text for draft in drafts if (text := _readable(context, draft, writing)) is not None
        ]
    context.progress(f"writing text for {selector}", context.tokens, context.tokens)
    rows = tuple(Row(text=texts[i].text) for i in remaining.places)
    shape = "/".join(
        f"{distinct([texts[i].draft.ids for i in remaining.places], n):.2f}" for n in (1, 2, 3)
    )
    return Selection(
        rows, f"wrote {written} texts; {remaining.note}; distinct-1/2/3 of the rest {shape}"
    )


def filter_texts(
    texts: Sequence[GeneratedText], drop: float = 0.0, loops: str = "drop"
) -> FilterResult:
    """Return what is left of texts without the ceil(drop · n) that are worst by the model's own
    perplexity, loops unless they are places, and copies.

    All n count for the share, loops among them. Of equals the later goes first.
    """
    worst = sorted(range(len(texts)), key=lambda i: (-texts[i].draft.nats, -i))[
        : math.ceil(Fraction(str(drop)) * len(texts))
    ]
    looping = {i for i, text in enumerate(texts) if looped(text.draft.ids)}
    first = {text.text: i for i, text in reversed(list(enumerate(texts)))}
    gone = {*worst, *(looping if loops == "drop" else ())}
    places = tuple(i for i, text in enumerate(texts) if i not in gone and first[text.text] == i)
    notes = (
        [
            f"dropped {len(worst)} of {len(texts)} at a perplexity of {math.exp(texts[worst[-1]].draft.nats):.4g} and above"
        ]
        if worst
        else []
    )
    notes += [f"{len(looping)} loops{', dropped too' if looping and loops == 'drop' else ''}"]
    notes += [f"{len(texts) - len(first)} copies dropped"] if len(first) < len(texts) else []
    return FilterResult(places, ", ".join(notes))


def distinct(sequences: Sequence[Sequence[int]], n: int) -> float:
    """distinct-n (Li et al. 2016, arXiv 1510.03055): how many different n-grams there are in the
    sequences, by how many n-grams; 1 if none.
    """
    grams = Counter(
        gram for ids in sequences for gram in zip(*(ids[i:] for i in range(n)), strict=False)
    )
    return len(grams) / grams.total() if grams else 1.0


def looped(ids: Sequence[int]) -> bool:
    """Whether a text is caught in a loop: its distinct-3 is below 0.3, or it ends in one stretch at
    least four times, 24 tokens or more in all.

    The rule is ours.
    """
    if distinct([ids], 3) < LEAST_DISTINCT:
        return True
    for period in range(1, len(ids) // STRETCHES + 1):
        at = len(ids) - 1
        while at >= period and ids[at] == ids[at - period]:
            at -= 1
        if len(ids) - 1 - at + period >= max(STRETCHES * period, TAIL):
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
    """Return the model continues each prefix until an end token comes or there are `length` tokens
    without its first `starts` ones.

    A text's chance is a row of numbers of its own, drawn before anything is written, so when
    another text ends changes nothing but rounding. Only the first `vocabulary` tokens are written.
    Log-softmax and softmax are float32, or float64 for a model that is.
    """
    width, steps = prefixes.shape[1], max(0, length + starts - prefixes.shape[1])
    # All numbers at once: which text ends first then changes nobody else's.
    chance = torch.rand(
        len(prefixes), steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    ids = torch.cat([prefixes, prefixes.new_zeros(len(prefixes), steps)], 1).to(model.device)
    lengths, nats = torch.full((len(ids),), width), torch.zeros(len(ids), dtype=torch.float64)
    going, cache, shown = torch.arange(len(ids)), None, ids[:, :width]
    for step in range(steps):
        answer: Any = model(input_ids=shown, cache=cache, use_cache=True)
        cache, logits = answer.cache, _wide(answer.logits)
        if step == 0:
            _make_room(cache, width + steps)
            nats += _nats(logits[:, :-1], shown[:, 1:]).sum(1)
        last, own = logits[:, -1], going.to(ids.device)
        chosen = pick(
            _within(last, vocabulary), ids[own, : width + step], chance[going, step], sampling, step
        )
        goes_on = torch.tensor([token not in ends for token in chosen.tolist()])
        nats[going] += torch.where(goes_on, _nats(last, chosen), 0.0)
        going = going[goes_on]
        lengths[going] += 1
        if not goes_on.any():
            break
        if (
            not goes_on.all()
        ):  # texts that have ended leave the batch, so the last long ones are cheap
            cache.batch_select_indices(goes_on.nonzero()[:, 0].to(ids.device))
        shown = chosen[goes_on.to(chosen.device), None]
        ids[going.to(ids.device), width + step] = shown[:, 0]
        on_step(step)
    predicted = (lengths - 1).clamp(min=1)
    return [
        Draft(tuple(row[starts:size]), nat)
        for row, size, nat in zip(
            ids.tolist(), lengths.tolist(), (nats / predicted).tolist(), strict=True
        )
    ]


def _make_room(cache: Any, positions: int) -> None:
    """Give layers that just grow room for all positions at once; others, such as those of a
    sliding window, look after themselves.
    """
    for at, layer in enumerate(cache.layers if isinstance(cache, DynamicCache) else ()):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            cache.layers[at] = _Room(layer.keys, layer.values, positions)


def pick(
    logits: Float[Tensor, "text token"],
    before: Int[Tensor, "text position"],
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
    if (penalty := sampling.repetition_penalty) != 1.0:
        old = logits.gather(1, before)
        logits = logits.scatter(1, before, torch.where(old < 0, old * penalty, old / penalty))
    scores = logits / sampling.temperature(step)
    count = min(sampling.top_k or scores.shape[1], scores.shape[1])
    # Sorted probabilities are few numbers: the rest is done where float64 is at hand.
    scores, tokens = scores.topk(count, dim=1)
    if not scores[:, 0].isfinite().all():
        raise not_finite("the model's logits of the next token", "logits")
    nucleus_of_each = nucleus(scores.softmax(1).cpu().double(), sampling.top_p)
    sums = nucleus_of_each.cumsum(1)
    # Inverse of the cumulated probabilities: a number in [0, 1) falls on each token as often as its
    # share of what is left.
    place = torch.searchsorted(sums, (chance * sums[:, -1])[:, None], right=True)
    place = torch.minimum(place, (nucleus_of_each > 0).sum(1, keepdim=True) - 1)
    return tokens.gather(1, place.to(tokens.device))[:, 0]


def nucleus(
    probabilities: Float64[Tensor, "text rank"], top_p: float
) -> Float64[Tensor, "text rank"]:
    """Sorted probabilities with those set to 0 before which there is `top_p` already; the first
    stays.
    """
    before = probabilities.cumsum(1) - probabilities
    stays: Bool[Tensor, "text rank"] = before < top_p
    stays[:, 0] = True
    return torch.where(stays, probabilities, 0.0)


def check_between(selector: Selector, **bounds: tuple[float, float]) -> None:
    """`SpecError` for a field of the selector that isn't within its bounds, of which the least
    is allowed; infinity stands for `MOST`.
    """
    for name, (least, most) in bounds.items():
        value = getattr(selector, name)
        if not least <= value <= min(most, MOST):
            allowed = (
                f"at least {least:g}"
                if value < least and math.isinf(most)
                else f"between {least:g} and {min(most, MOST):,g}"
            )
            raise SpecError(
                f"{selector.spec_name()}({name}={value}): it must be {allowed}", subject=name
            )


def _within(
    logits: Float[Tensor, "text token"], vocabulary: int | None
) -> Float[Tensor, "text token"]:
    """Many models have more rows in their head than their tokenizer has tokens: those have no
    text.
    """
    if vocabulary is None or vocabulary >= logits.shape[1]:
        return logits
    return logits.index_fill(
        1, torch.arange(vocabulary, logits.shape[1], device=logits.device), -math.inf
    )


def _nats(
    logits: Float[Tensor, "text *position token"], chosen: Int[Tensor, "text *position"]
) -> Float64[Tensor, "text *position"]:
    return (logits.logsumexp(-1) - logits.gather(-1, chosen[..., None])[..., 0]).double().cpu()


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _round(missing: Fraction, have: int, written: int, writing: GenerationRequest) -> int:
    """Return how many texts the next round writes: what is missing, as the texts before it have
    gone, and at most a batch.
    """
    each = have / written if have else writing.length * writing.keeps
    return (
        writing.batch
        if written and not have
        else min(writing.batch, 1 + math.ceil(SURPLUS * missing / Fraction(each)))
    )


def _check_room(selector: Selector, opened: Opened, writing: GenerationRequest) -> None:
    room = getattr(opened.model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(room, int) and writing.length + writing.starts > room:
        raise DataError(
            f"{selector}: a text may have {writing.length} tokens, and the model sees at most "
            f"{room}; lower max_tokens or --length",
            subject=str(selector),
        )


def _readable(context: Context, draft: Draft, writing: GenerationRequest) -> GeneratedText | None:
    """What the tokens read like without special ones and without a letter that is cut in half at
    the end; None if nothing was added to a prefix.
    """
    text: Any = context.tokenizer.decode(
        list(draft.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    text = text.rstrip("\ufffd")
    if len(draft.ids) <= len(writing.prefixes[0]) - writing.starts or not text.strip():
        return None
    return GeneratedText(
        draft,
        text,
        len(context.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]),
    )


class _Room(DynamicLayer):
    """Keys and values with room behind them for those to come. The usual layer copies all of
    them at every step.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._places = [
            states.new_empty(*states.shape[:2], length, states.shape[3])
            for states in (keys, values)
        ]
        self.update(keys, values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        end = self.get_seq_length() + key_states.shape[2]
        for place, states in zip(self._places, (key_states, value_states), strict=True):
            place[:, :, end - states.shape[2] : end] = states
        self.keys, self.values = (place[:, :, :end] for place in self._places)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._places = [place[indices] for place in self._places]
        self.keys, self.values = (place[:, :, : self.get_seq_length()] for place in self._places)


class _Generation:
    """The batches of one generation, from the disk where they are there."""

    def __init__(
        self, selector: Selector, context: Context, opened: Opened, writing: GenerationRequest
    ) -> None:
        self._context, self._opened, self._writing = context, opened, writing
        self._ends = _ends(opened)
        self._words, self._label, self._number = (
            len(context.tokenizer),
            f"writing text for {selector}",
            0,
        )
        request = {
            "generated": REVISION,
            "spec": canonical(selector),
            "model": opened.digest,
            "dtype": str(opened.dtype).removeprefix("torch."),
            "draw": context.draw,
            "tokens": context.tokens,
            "length": context.length,
            "prefixes": writing.prefixes,
            "ends": sorted(self._ends),
            "vocabulary": self._words,
        }
        self._name = identity(request)
        self._folder = cache_folder() / "generated" / self._name.removeprefix("sha256:")

    def batch(self, written: int, count: int, have: int) -> list[Draft]:
        """Return the next `count` texts, after `written` ones of which `have` tokens are left."""
        path = self._folder / f"batch-{self._number:05d}.json"
        purpose: Purpose = {"kind": "written texts", "of": self._name, "batch": self._number}
        drafts = _read_batch(path, purpose, count)
        if drafts is None:
            drafts = self._write(written, count, have)
            with suppress(OSError):  # where no file can be written the texts are made again
                path.parent.mkdir(parents=True, exist_ok=True)
                texts = [[list(draft.ids), draft.nats] for draft in drafts]
                put(path, text_of_json(sealed({"texts": texts}, purpose)).encode())
        self._number += 1
        return drafts

    def _write(self, written: int, count: int, have: int) -> list[Draft]:
        request, target = self._writing, self._context.tokens
        chosen = [request.prefixes[(written + i) % len(request.prefixes)] for i in range(count)]
        seed = int(identity([self._name, self._number]).removeprefix("sha256:")[:15], 16)

        def on_step(step: int) -> None:
            self._context.progress(self._label, min(have + count * (step + 1), target), target)

        return write(
            self._opened.model,
            torch.tensor(chosen),
            request.length,
            request.sampling,
            seed,
            self._ends,
            request.starts,
            self._words,
            on_step,
        )


def _ends(opened: Opened) -> frozenset[int]:
    """Return the tokens that end a text: the tokenizer's end token, and those that the model's
    own settings for generation name.
    """
    named = getattr(opened.model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(i for i in (*several, opened.tokenizer.eos_token_id) if isinstance(i, int))


def _read_batch(path: Path, purpose: Purpose, count: int) -> list[Draft] | None:
    """Return the batch that a file holds; None if there is no such file, or if it is damaged or
    of another size.
    """
    if not path.is_file():
        return None
    try:
        texts = read_json(path, purpose, required=True)["texts"]
    except DataError:
        tell_made_again("what the model wrote", short(path))
        return None
    if len(texts) != count:
        return None
    return [Draft(tuple(ids), nats) for ids, nats in texts]
